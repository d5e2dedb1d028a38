"""One agent, several clients: each has its own jobs, whatever numbers it gives them."""

import os
import socket
import subprocess
import sys
import threading

import pytest

from router.errors import LabError
from router.lab import agent
from router.lab.link import Link
from router.lab.switchboard import Switchboard, listen

TIMEOUT_S = 20.0


@pytest.fixture
def door(tmp_path):
    """A switchboard before a real agent: the path of its socket."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-I", "-S", agent.__file__, str(theirs.fileno())]
    with ours, subprocess.Popen(command, pass_fds=[theirs.fileno()]) as process:
        theirs.close()
        link = Link(ours)
        assert link.receive(TIMEOUT_S) == {"op": "hello"}
        path = tmp_path / "door"
        with listen(path) as server:
            thread = threading.Thread(target=Switchboard(link, server).serve)
            thread.start()
            yield path
            if thread.is_alive():
                connect(path).send(op="down")
            thread.join(TIMEOUT_S)
        process.kill()


def connect(path):
    line = socket.socket(socket.AF_UNIX)
    line.connect(str(path))
    return Link(line)


def run(link, script, stdin=b""):
    out = []
    code = link.run(["sh", "-c", script], lambda fd, data: out.append((fd, data)), stdin=stdin, timeout_s=20)
    return code, b"".join(data for fd, data in out if fd == 1)


def test_the_socket_is_its_owners_alone(door):
    """Whoever reaches it commands the lab."""
    assert door.stat().st_mode & 0o777 == 0o600


def test_clients_do_not_hear_each_other(door):
    """Both call their first job 1; each gets its own output and status."""
    one, two = connect(door), connect(door)
    one.send(op="spawn", id=1, argv=["sh", "-c", "read x; echo one; exit 3"], env={})
    assert run(two, "cat; exit 4", b"two" * 2000) == (4, b"two" * 2000)
    one.send(op="stdin", id=1, data=None)
    heard = []
    while not heard or heard[-1]["op"] != "exit":
        message = one.receive(TIMEOUT_S)
        assert message is not None
        heard.append(message)
    assert {message["id"] for message in heard} == {1}
    assert heard[-1]["code"] == 3


def test_a_client_that_is_gone_ends_what_it_started(door, tmp_path):
    """As Ctrl-C ends a command that was typed."""
    flag = tmp_path / "pid"
    line = socket.socket(socket.AF_UNIX)
    line.connect(str(door))
    Link(line).send(
        op="spawn",
        id=1,
        argv=["sh", "-c", f"echo $$ > {flag}.new; mv {flag}.new {flag}; exec sleep 60"],
        env={},
    )
    other = connect(door)
    assert run(other, f"while ! [ -e {flag} ]; do sleep 0.01; done")[0] == 0
    line.close()
    assert run(other, f"while [ -e /proc/{int(flag.read_text())} ]; do sleep 0.01; done")[0] == 0


def test_the_program_is_a_client(door):
    """It passes standard input in, output and status out."""
    argv = [
        sys.executable,
        "-m",
        "router.lab.switchboard",
        str(door),
        "sh",
        "-c",
        "cat; echo err >&2; exit 5",
    ]
    done = subprocess.run(argv, input=b"in", capture_output=True, check=False, timeout=TIMEOUT_S)
    assert (done.returncode, done.stdout, done.stderr) == (5, b"in", b"err\n")
    gone = [*argv[:3], f"{door}.gone", "true"]
    done = subprocess.run(gone, input=b"", capture_output=True, check=False, timeout=TIMEOUT_S)
    assert (done.returncode, b"No such file" in done.stderr) == (2, True)


def test_an_agent_that_ends_ends_it():
    """Nobody waits for a lab that is gone."""
    ours, theirs = socket.socketpair()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0lastmile-{os.getpid()}")
        server.listen()
        theirs.close()
        with pytest.raises(LabError, match="ended"):
            Switchboard(Link(ours), server).serve()
    ours.close()
