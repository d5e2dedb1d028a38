"""Whether this kernel can carry a lab in namespaces, found out by trying."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Final

from router.errors import LabError

MODULES: Final = ("macsec", "8021q", "vrf", "veth", "gcm", "ghash-generic", "cmac")
TRIAL: Final = {
    "veth": "link add t0 type veth peer name t1",
    "macsec": "link add link t0 m0 type macsec cipher gcm-aes-xpn-256",
    "8021q": "link add link t0 v0 type vlan id 100",
    "vrf": "link add r0 type vrf table 100",
}
"""What each feature is tried with, in a namespace that goes with the trial."""


def missing() -> list[str]:
    """What this kernel lacks for a lab of its own; `root` where we may not even try."""
    if os.geteuid():
        return ["root"]
    if shutil.which("modprobe"):
        subprocess.run(["modprobe", "-a", "-q", *MODULES], check=False, capture_output=True)
    script = "; ".join(f"ip {command} 2>/dev/null || echo {name}" for name, command in TRIAL.items())
    try:
        done = subprocess.run(
            ["unshare", "--net", "/bin/sh", "-c", script],
            check=False,
            capture_output=True,
            text=True,
            timeout=30,
        )
    except FileNotFoundError as error:
        raise LabError("unshare is not installed (Debian package util-linux)") from error
    if done.returncode:
        return ["network namespaces"]
    return done.stdout.split()


ASKED: Final = {
    "host": "lab in this kernel, as asked",
    "guest": "lab in a guest kernel, as asked",
    "bridged": "the router in this kernel, the provider's edges in a guest kernel, as asked",
}


def choose(asked: str, secy: str = "auto") -> tuple[str, str]:
    """Choose the machine: `host`, `guest` or `bridged`, and one line that says why. Raises LabError.

    `bridged` is the router in this kernel, and the edges, whose MACsec is a kernel's, in a guest.
    """
    if asked in ASKED:
        return asked, ASKED[asked]
    if asked != "auto":
        raise LabError(f"--machine is auto, {', '.join(ASKED)}, not {asked!r}")
    lacking = missing()
    if not lacking:
        return "host", f"lab in namespaces of this kernel ({os.uname().release})"
    if lacking == ["root"]:
        return "guest", "lab in a user-mode-Linux guest: not root here"
    if secy == "fastpath" and "veth" not in lacking:
        here = f"this kernel ({os.uname().release}, without {', '.join(lacking)})"
        return "bridged", f"the router in {here}, edges with kernel MACsec in a user-mode-Linux guest"
    return (
        "guest",
        f"lab in a user-mode-Linux guest: this kernel ({os.uname().release}) has no {', '.join(lacking)}",
    )
