"""Fixtures of the tests that need root on the host: each in a network namespace of its own."""

import ctypes
import os
import subprocess

import pytest

CLONE_NEWNET = 0x40000000


@pytest.fixture
def fresh_namespace():
    """Enter a fresh network namespace with a wire d0-d1; a function makes others."""
    if os.geteuid():
        pytest.skip("needs root")
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/self/ns/net", os.O_RDONLY)

    def enter():
        assert libc.unshare(CLONE_NEWNET) == 0
        for command in ("ip link set lo up", "ip link add d0 type veth peer name d1", "ip link set d1 up"):
            subprocess.run(command.split(), check=True)

    enter()
    try:
        yield enter
    finally:
        assert libc.setns(before, CLONE_NEWNET) == 0
        os.close(before)
