"""The tests in `inside/` need macsec, 8021q and vrf: they run in this kernel if it has them, else in a guest."""

import io
import sys
from pathlib import Path

import pytest

from router.lab.detect import choose
from router.lab.machine import started

INSIDE = Path(__file__).parent / "inside"
FILES = sorted(path.name for path in INSIDE.glob("test_*.py"))


@pytest.fixture(scope="module")
def machine():
    kind, _ = choose("auto")
    with started(kind) as running:
        yield running


@pytest.mark.lab
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", FILES)
def test_inside(machine, name):
    """Every test of the file passes in a kernel with MACsec."""
    output = io.BytesIO()
    options = [
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:benchmark",
        "--timeout=120",
        "--tb=short",
        "--show-capture=no",
    ]
    argv = [sys.executable, "-B", "-m", "pytest", *options, str(INSIDE / name)]
    code = machine.link.run(
        argv, lambda _, data: output.write(data), env={"LASTMILE_INSIDE": "1"}, timeout_s=800
    )
    assert code == 0, output.getvalue().decode(errors="replace")
