"""The supervisor with real processes: restarts, the wanted set, and an orderly end."""

import asyncio
import json
import os
import signal
import sys
import time

import pytest

from router.supervise import ChildSpec, Supervisor, ask, closed_ancestor

DEADLINE_S = 20.0
SLEEP = (sys.executable, "-c", "import time; time.sleep(100)")


@pytest.fixture
async def supervisor(tmp_path):
    supervisor = Supervisor(tmp_path, [ChildSpec("fixed", SLEEP)])
    task = asyncio.create_task(supervisor.run())
    await until((tmp_path / "supervisor.sock").exists)
    yield tmp_path
    await ask(tmp_path, {"stop": True})
    await asyncio.wait_for(task, DEADLINE_S)


async def until(condition):
    deadline = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    return value


async def children(run_dir):
    return (await ask(run_dir, {"list": True}))["children"]


async def pid_of(run_dir, name, but=None):
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        pid = (await children(run_dir)).get(name, {}).get("pid")
        if pid and pid != but:
            return pid
        await asyncio.sleep(0.01)
    raise AssertionError(f"{name} does not run")


async def test_a_killed_child_comes_back_at_once(supervisor):
    """kill -9 costs a restart, and the list says what happened."""
    pid = await pid_of(supervisor, "fixed")
    os.kill(pid, signal.SIGKILL)
    await pid_of(supervisor, "fixed", but=pid)
    child = (await children(supervisor))["fixed"]
    assert (child["restarts"], child["last_exit"]) == (1, "killed by SIGKILL")


async def test_asking_for_what_runs_changes_nothing(supervisor):
    """The wanted set is compared: equal children keep their process, others are replaced or ended."""
    one, two = ChildSpec("one", SLEEP), ChildSpec("two", SLEEP)
    await ask(supervisor, {"children": [one.to_json(), two.to_json()]})
    first, second = await pid_of(supervisor, "one"), await pid_of(supervisor, "two")
    changed = ChildSpec("two", (*SLEEP[:2], "import time; time.sleep(99)"))
    await ask(supervisor, {"children": [one.to_json(), changed.to_json()]})
    assert await pid_of(supervisor, "one") == first
    assert await pid_of(supervisor, "two", but=second)
    await ask(supervisor, {"children": []})
    assert set(await children(supervisor)) == {"fixed"}


async def test_a_child_that_cannot_start_is_reported_and_retried(supervisor):
    """A missing program is an error to read in the list, not the end of the supervisor."""
    await ask(supervisor, {"children": [ChildSpec("ghost", ("/nonexistent/program",)).to_json()]})
    deadline = time.monotonic() + DEADLINE_S
    while (await children(supervisor))["ghost"]["restarts"] < 2:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    assert "not started" in (await children(supervisor))["ghost"]["last_exit"]


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        "[]",
        "nonsense",
        '{"signal": ["nobody", "SIGHUP"]}',
        '{"signal": ["fixed", "SIGNOPE"]}',
        '{"children": [{"name": "fixed", "argv": ["x"]}]}',
    ],
)
async def test_a_bad_request_is_refused_and_the_connection_stays(supervisor, line):
    """Rubbish on the socket ends nothing."""
    reader, writer = await asyncio.open_unix_connection(supervisor / "supervisor.sock")
    writer.write(line.encode() + b'\n{"list": true}\n')
    answers = [json.loads(await reader.readline()) for _ in range(2)]
    writer.close()
    assert [answer["ok"] for answer in answers] == [False, True]


def test_the_first_closed_directory_is_found(tmp_path):
    """A user who may not pass a directory is told which one."""
    (tmp_path / "home" / "checkout").mkdir(parents=True)
    (tmp_path / "home").chmod(0o700)
    stranger = os.getuid() + 12345
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == os.getuid() and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    assert closed_ancestor(str(tmp_path / "home" / "checkout"), stranger, set()) == str(tmp_path / "home")
    assert closed_ancestor(str(tmp_path / "home" / "checkout"), os.getuid(), set()) is None


@pytest.mark.root
async def test_an_unprivileged_child_runs_from_a_closed_home(supervisor):
    """ExaBGP runs as nobody, without capabilities, also where the checkout is under /root."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    out = supervisor / "out"
    out.mkdir()
    out.chmod(0o777)
    program = (
        "import os, json, router.supervise, time\n"
        "caps = [l for l in open('/proc/self/status') if l.startswith(('CapEff', 'CapPrm', 'NoNewPrivs'))]\n"
        f"json.dump([os.getuid(), caps], open('{out}/result.new', 'w'))\n"
        f"os.rename('{out}/result.new', '{out}/result')\n"
        "time.sleep(100)\n"
    )
    for parent in (supervisor, *supervisor.parents):
        if not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    await ask(
        supervisor, {"children": [ChildSpec("bgp", (sys.executable, "-c", program), user="nobody").to_json()]}
    )
    await until((out / "result").exists)
    uid, status = json.loads((out / "result").read_text())
    assert uid == 65534
    assert {line.split()[1].lstrip("0") or "0" for line in status} == {"0", "1"}
