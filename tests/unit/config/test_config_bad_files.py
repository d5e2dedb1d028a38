"""The corpus of broken files: each is refused, with the line and the reason that its first line names."""

import re
from pathlib import Path

import pytest

from router.config.findings import ConfigErrors, Severity
from router.config.load import load

BAD = sorted((Path(__file__).parent / "bad").glob("*.yaml"))
EXPECT = re.compile(rb"# expect: (\d+): (.+)")


@pytest.mark.parametrize("file", BAD, ids=lambda file: file.stem)
def test_a_broken_file_is_refused_with_line_and_reason(file):
    """One of the errors is in the line, and says what, that the file itself announces."""
    match = EXPECT.match(file.read_bytes())
    assert match is not None
    line, reason = int(match[1]), match[2].decode()
    with pytest.raises(ConfigErrors) as raised:
        load(file)
    errors = [finding for finding in raised.value.findings if finding.severity is Severity.ERROR]
    assert any(
        error.line == line and reason in f"{error.path}: {error.message}" and error.file == str(file)
        for error in errors
    ), [str(error) for error in errors]


@pytest.mark.parametrize("file", BAD, ids=lambda file: file.stem)
def test_every_remark_is_one_line_that_an_editor_can_open(file):
    """Each is `FILE:LINE: ...` on one line, with a line that the file has, and they are in order."""
    lines = file.read_bytes().count(b"\n") + 1
    with pytest.raises(ConfigErrors) as raised:
        load(file)
    for finding in raised.value.findings:
        assert str(finding).startswith(f"{file}:{finding.line}: ")
        assert "\n" not in str(finding)
        assert 1 <= finding.line <= lines
        assert finding.column >= 1
    positions = [(finding.line, finding.column) for finding in raised.value.findings]
    assert positions == sorted(positions)


def test_the_corpus_is_large_and_each_fault_is_its_own():
    """At least sixty files, and no two announce the same reason in the same line."""
    assert len(BAD) >= 60
    announced = [(file.read_bytes().split(b"\n")[0], file.read_bytes()) for file in BAD]
    assert len({content for _, content in announced}) == len(BAD)
