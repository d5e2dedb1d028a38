"""How fast this machine is: cipher, whole frames, gateways end to end, beside the peers installed.

A harness, not a part of the router: it starts programs, and lays wires in namespaces of its own.
"""
