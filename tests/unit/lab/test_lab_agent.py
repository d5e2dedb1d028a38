"""The line into the machine: commands, their output, input and exit status, in order."""

import contextlib
import signal
import socket
import subprocess
import sys

import pytest

from router.errors import LabError
from router.lab import agent
from router.lab.link import LINE_MAX, Link


@pytest.fixture
def link():
    ours, theirs = socket.socketpair()
    argv = [sys.executable, "-I", "-S", agent.__file__, str(theirs.fileno())]
    process = subprocess.Popen(argv, pass_fds=[theirs.fileno()])
    theirs.close()
    line = Link(ours)
    assert line.receive(10) == {"op": "hello"}
    yield line
    ours.close()
    try:
        process.wait(10)
    finally:
        process.kill()


def run(link, *argv, **options):
    out = {1: b"", 2: b""}

    def sink(descriptor, data):
        out[descriptor] += data

    code = link.run(argv, sink, timeout_s=20, **options)
    return code, out[1], out[2]


def test_output_and_status_come_back(link):
    """Both streams apart, and the exit status."""
    assert run(link, "sh", "-c", "echo out; echo err >&2; exit 3") == (3, b"out\n", b"err\n")


def test_input_larger_than_the_terminal_buffer_arrives_whole(link):
    """It goes in pieces, each after the last was taken."""
    data = bytes(range(256)) * 64
    assert run(link, "cat", stdin=data) == (0, data, b"")


def test_environment_is_added(link):
    """On top of what is there."""
    assert run(link, "sh", "-c", "echo $LAB_TEST", env={"LAB_TEST": "x y"})[1] == b"x y\n"


def test_a_missing_program_is_said(link):
    """Exit status 127 and a sentence, as a shell would."""
    code, _, error = run(link, "no-such-program")
    assert code == 127
    assert b"no-such-program" in error


def test_a_killed_command_has_128_and_its_signal(link):
    """As a shell would."""
    assert run(link, "sh", "-c", "kill -9 $$")[0] == 128 + signal.SIGKILL


def test_several_commands_one_after_the_other(link):
    """Each gets its own output."""
    for number in range(5):
        assert run(link, "echo", str(number)) == (0, f"{number}\n".encode(), b"")


def test_an_interrupt_ends_the_command_and_the_line_goes_on(link):
    """Ctrl-C in the middle: the command there is ended, the next one works."""

    def interrupt(*_):
        raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        link.run(["sh", "-c", "echo started; sleep 1000"], interrupt, timeout_s=20)
    assert run(link, "echo", "next") == (0, b"next\n", b"")


def test_a_command_line_that_would_stall_the_serial_line_is_refused(link):
    """It says how long it may be."""
    with pytest.raises(LabError, match=str(LINE_MAX)):
        run(link, "echo", "x" * LINE_MAX)


def test_deadline(link):
    """A command that does not end is a LabError, not a hang."""
    with pytest.raises(LabError, match="did not end within"):
        link.run(["sleep", "1000"], lambda *_: None, timeout_s=0.2)
