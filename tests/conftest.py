"""Order, and a root that `ip netns` can work with."""

import ctypes
import os
from pathlib import Path

import pytest

CLONE_NEWNS = 0x00020000
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what needs a lab before what needs root, and that before the rest: the longest starts first."""
    items.sort(
        key=lambda item: 0 if item.get_closest_marker("lab") else 1 if item.get_closest_marker("root") else 2
    )


def pytest_configure() -> None:
    """In a chroot / is no mount point, and `ip netns exec` refuses to work: make it one, for us alone."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    if os.geteuid() or "/" in mounts or "/run" not in mounts:
        return
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *arguments: object) -> None:
        if getattr(libc, name)(*arguments):
            raise OSError(ctypes.get_errno(), name)

    here, root = Path.cwd(), Path("/run/lastmile-tests")
    call("unshare", CLONE_NEWNS)
    call("mount", None, b"/run", None, MS_PRIVATE, None)  # what is mounted below stays in this namespace
    root.mkdir(exist_ok=True)
    call("mount", b"/", str(root).encode(), None, MS_BIND | MS_REC, None)
    call("mount", None, str(root).encode(), None, MS_REC | MS_PRIVATE, None)
    os.chroot(root)
    os.chdir(here)
