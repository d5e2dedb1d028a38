"""What the lab's faults and loads do by themselves: a SecY that fails on order, a TCP load, a hook on failures."""

import asyncio
import socket

import pytest

from router.errors import KernelError
from router.lab import traffic
from router.lab.farend import keyd
from router.lab.farend.keyd import DIED, DyingSecy
from router.lab.report import Report


class Secy:
    """Remembers what it was asked."""

    def __init__(self):
        self.done = []

    async def enable_transmit_sa(self, an):
        self.done.append(an)


class Died(BaseException):
    """Instead of the end of this process."""


@pytest.fixture
def secy(tmp_path, monkeypatch):
    """Return a SecY, the same with faults, and the file that orders them."""

    def die(status):
        raise Died(status)

    monkeypatch.setattr(keyd.os, "_exit", die)
    inner = Secy()
    return inner, DyingSecy(inner, tmp_path / "die"), tmp_path / "die"


@pytest.mark.parametrize(("moment", "done"), [("before", []), ("after", [2])])
def test_it_dies_where_it_is_told_to_and_once(secy, moment, done):
    """The successor finds no order."""
    inner, faulty, order = secy
    order.write_text(f"{moment} enable_transmit_sa\n")
    with pytest.raises(Died) as died:
        asyncio.run(faulty.enable_transmit_sa(2))
    assert died.value.args == (DIED,)
    assert inner.done == done
    assert not order.exists()
    asyncio.run(faulty.enable_transmit_sa(2))


def test_a_dirty_death_takes_the_memory_of_used_keys_along(secy):
    """As when /run was lost, and the SecY was not."""
    _, faulty, order = secy
    memory = order.parent / "keyd"
    memory.mkdir()
    (memory / "edge.used").write_text("00" * 16)
    order.write_text("dirty before enable_transmit_sa")
    with pytest.raises(Died):
        asyncio.run(faulty.enable_transmit_sa(2))
    assert not list(memory.iterdir())


def test_it_refuses_for_as_long_as_it_is_told_to(secy):
    """Like a driver that is out of memory for a while."""
    inner, faulty, order = secy
    order.write_text("refuse enable_transmit_sa")
    for _ in range(2):
        with pytest.raises(KernelError, match="refused"):
            asyncio.run(faulty.enable_transmit_sa(2))
    order.write_text("")
    asyncio.run(faulty.enable_transmit_sa(2))
    assert inner.done == [2]


class Here:
    """A node that is this process' own namespace."""

    def socket(self, family, kind, protocol=0):
        return socket.socket(family, kind, protocol)


def test_a_tcp_load_counts_what_arrived():
    """All of it, at about the rate that was asked for."""
    load = traffic.TcpLoad(Here(), Here(), "127.0.0.1", mbps=4.0)
    load.start()
    load._stop.wait(0.3)
    stream, whole = load.stop()
    assert whole
    assert 0 < stream.octets <= 4e6 / 8 * 1.0


def test_a_failed_check_calls_for_an_explanation():
    """At that moment, while it can be given; a check that holds does not."""
    report = Report("s")
    report.when_failed = lambda: report.note(f"after {len(report.checks)} checks")
    report.check("a", True)
    report.check("b", False)
    assert report.notes == ["after 2 checks"]
