"""Our KaY against stock Debian wpa_supplicant, over kernel MACsec in a user-mode-Linux guest.

`HOSTAP` maps hostap's own MACsec tests with pre-shared keys (tests/hwsim/test_macsec.py) to what
covers them here: a case of this file, a scenario of the lab, or a unit test. hostap runs two of its
own against each other; here one side is ours, and traffic is counted where hostap asks for a status.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from router.lab.scenario import all_scenarios

HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="a guest on the host's files needs root"),
    pytest.mark.skipif(shutil.which("linux.uml") is None, reason="user-mode-linux is not installed"),
    pytest.mark.skipif(shutil.which("wpa_supplicant") is None, reason="wpasupplicant is not installed"),
    pytest.mark.timeout(600),
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
            guest.wait(560)
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
    "defaults of theirs",
    "port 65534 at both",
    "ports 2 and 3",
    "two on a bridge",
    "two on a bridge, equal priorities",
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
    "three stations, equal priorities",
    "wrong cak",
    "wrong ckn",
)


HOSTAP = {
    "macsec_psk": ("case", "defaults of theirs"),
    "macsec_psk_mka_life_time": ("scenario", "mka-wpa-supplicant"),
    "macsec_psk_integ_only": ("case", "integrity only, they serve"),
    "macsec_psk_port": ("case", "port 65534 at both"),
    "macsec_psk_different_ports": ("case", "ports 2 and 3"),
    "macsec_psk_shorter_ckn": ("case", "they serve, cak 256, ckn of 4, port 9"),
    "macsec_psk_shorter_ckn2": ("case", "cak 256, ckn of 3, port 7"),
    "macsec_psk_ckn_mismatch": ("case", "wrong ckn"),
    "macsec_psk_cak_mismatch": ("case", "wrong cak"),
    "macsec_psk_256": ("scenario", "mka-wpa-supplicant"),
    # Debian's 2.10 has no macsec_csindex: of this suite both ends are ours.
    "macsec_gcm_aes_256": ("unit", "test_kay.py::test_two_stations_secure_a_link"),
    "macsec_psk_br2": ("case", "two on a bridge"),
    "macsec_psk_br2_same_prio": ("case", "two on a bridge, equal priorities"),
    "macsec_psk_br3": ("case", "three stations, we serve"),
    "macsec_psk_br3_same_prio": ("case", "three stations, equal priorities"),
    "macsec_psk_ns": ("scenario", "mka-wpa-supplicant"),  # each end in a network namespace, as ever here
    # Failures inside hostap's own CP machine. Ours: the SecY refuses, in every state.
    "macsec_psk_fail_cp": ("scenario", "mka-faults"),
    "macsec_psk_fail_cp2": ("unit", "test_explorer.py::test_stations_always_find_back_to_peace"),
    # hostapd as one end is the same KaY behind another main(); it is not run here.
    "macsec_hostapd_psk": ("scenario", "mka-wpa-supplicant"),
}


@pytest.mark.parametrize("name", HOSTAP)
def test_each_of_hostap_s_cases_has_one_here(name):
    """So that what covers it cannot be renamed or removed unnoticed."""
    kind, what = HOSTAP[name]
    if kind == "case":
        assert what in CASES
    elif kind == "scenario":
        assert what in {scenario.name for scenario in all_scenarios()}
    else:
        file, _, test = what.partition("::")
        assert f"def {test}" in (HERE.parent / "unit/mka" / file).read_text()


@pytest.mark.lab
@pytest.mark.parametrize("case", CASES)
def test_case(results, case):
    """Traffic passes where keys agree, is never lost in a rekey, and never passes where they do not."""
    played, log = results
    assert case in played, log[-3000:]
    assert played[case]["ok"], json.dumps(played[case], indent=1)


@pytest.mark.lab
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
