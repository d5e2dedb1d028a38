"""The boxes: Debian's vagrant takes the Vagrantfile as it stands."""

import os
import subprocess
from pathlib import Path


def test_vagrant_validates_the_file(tmp_path):
    """`vagrant validate`, with the provider that `make setup` installs."""
    done = subprocess.run(
        ["vagrant", "validate"],
        cwd=Path(__file__).parents[2] / "vagrant",
        env={**os.environ, "HOME": str(tmp_path), "VAGRANT_HOME": str(tmp_path / "vagrant")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "validated successfully" in done.stdout
