"""Our KaY against stock Debian wpa_supplicant, over kernel MACsec in a user-mode-Linux guest."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="a guest on the host's files needs root"),
    pytest.mark.skipif(shutil.which("linux.uml") is None, reason="user-mode-linux is not installed"),
    pytest.mark.skipif(shutil.which("wpa_supplicant") is None, reason="wpasupplicant is not installed"),
    pytest.mark.timeout(420),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Boot the guest once, let it play all cases, and read what it wrote."""
    directory = tmp_path_factory.mktemp("mka")
    with (directory / "console").open("wb") as console:
        guest = subprocess.Popen(
            [
                *("linux.uml", "mem=768M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro"),
                *(f"init={HERE / 'guest_init.sh'}", "con=null", "con0=fd:0,fd:1", "quiet"),
                *(f"PYTHON={sys.executable}", f"HERE={HERE}", f"RESULTS={directory}"),
                f"MKA_CASES={os.environ.get('MKA_CASES', '')}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            env={"TMPDIR": str(directory), "HOME": "/root", "PATH": os.environ["PATH"]},
        )
        try:
            guest.wait(400)
        finally:
            guest.kill()
            guest.wait()
    lines = (
        (directory / "results.json").read_text().splitlines() if (directory / "results.json").exists() else []
    )
    log = (
        (directory / "log").read_text()
        if (directory / "log").exists()
        else (directory / "console").read_text()
    )
    assert lines, log[-3000:]
    return {entry["case"]: entry for entry in map(json.loads, lines)}, log


CASES = (
    "we serve",
    "they serve",
    "cak 256, ckn of 3, port 7",
    "they serve, cak 256, ckn of 4, port 9",
    "equal priorities",
    "both 255",
    "icv indicator",
    "integrity only, they serve",
    "peer restarts, we serve",
    "peer restarts, they serve",
    "we restart, they serve",
    "three stations, we serve",
    "three stations, they serve",
    "wrong cak",
    "wrong ckn",
)


@pytest.mark.parametrize("case", CASES)
def test_case(results, case):
    """Traffic passes where keys agree, is never lost in a rekey, and never passes where they do not."""
    played, log = results
    assert case in played, log[-3000:]
    assert played[case]["ok"], json.dumps(played[case], indent=1)


@pytest.mark.parametrize(
    ("case", "cause"),
    [
        ("wrong cak", "its ICV is wrong: the CAKs differ"),
        ("wrong ckn", f"a peer uses only unknown CKNs: {'77' * 32}"),
    ],
)
def test_the_cause_is_named(results, case, cause):
    """A CAK or CKN mismatch is invisible elsewhere; here it is a sentence."""
    assert cause in results[0][case]["suspicion"]
