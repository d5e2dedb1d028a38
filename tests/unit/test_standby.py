"""Two equal processes: one holds the lock and works, the other waits, and takes over by itself."""

import os
import signal
import subprocess
import sys
import time

import pytest

from router.standby import roles, wait_for_turn

DEADLINE_S = 20.0
PROGRAM = """
import sys
from pathlib import Path
from router.standby import wait_for_turn
wait_for_turn(Path(sys.argv[1]))
print("works", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def start(tmp_path):
    """Return a function that starts a process which takes its turn; all are gone afterwards."""
    started = []

    def start():
        argv = [sys.executable, "-c", PROGRAM, str(tmp_path / "lock")]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def until(condition):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def two(start, lock):
    """One that works and one that waits."""
    first = start()
    assert first.stdout.readline() == b"works\n"
    second = start()
    until(lambda: roles(lock) == {first.pid: "active", second.pid: "spare"})
    return first, second


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_spare_goes_on_when_the_active_one_dies(start, tmp_path, number):
    """However it dies, and the next one to start waits."""
    lock = tmp_path / "lock"
    first, second = two(start, lock)
    first.send_signal(number)
    assert second.stdout.readline() == b"works\n"
    third = start()
    until(lambda: roles(lock) == {second.pid: "active", third.pid: "spare"})


def test_the_death_of_the_spare_changes_nothing(start, tmp_path):
    """The active one holds on."""
    lock = tmp_path / "lock"
    first, second = two(start, lock)
    second.kill()
    second.wait()
    assert roles(lock) == {first.pid: "active"}


def test_a_program_that_the_active_one_starts_does_not_keep_the_lock(tmp_path):
    """A key's command that hangs must not keep the spare from working."""
    lock = tmp_path / "lock"
    turn = wait_for_turn(lock)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    os.close(turn)
    try:
        os.close(wait_for_turn(lock))
    finally:
        child.communicate(b"\n")


def test_nobody_has_a_role_where_there_is_no_lock(tmp_path):
    """A router that does not run has no key daemons."""
    assert roles(tmp_path / "lock") == {}
