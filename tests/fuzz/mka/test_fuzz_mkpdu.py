"""A short run of the fuzz target, from its corpus, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("atheris", reason="atheris cannot be imported on this interpreter")

HERE = Path(__file__).parent
RUNS = int(os.environ.get("MKA_FUZZ_RUNS", "800"))


def test_the_fuzz_target_finds_nothing(tmp_path):
    """The corpus and some thousand mutations of it crash neither the parser nor the KaY."""
    assert len(list((HERE / "corpus").iterdir())) >= 20
    done = subprocess.run(
        [
            sys.executable,
            HERE / "fuzz_mkpdu.py",
            tmp_path,
            HERE / "corpus",
            f"-runs={RUNS}",
            "-seed=1",
            f"-artifact_prefix={tmp_path}/",
        ],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"Done {RUNS} runs" in done.stderr
