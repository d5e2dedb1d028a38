"""Faults of key agreement: who dies, what is lost, what is late, what the SecY refuses.

Either side dies at each step of a rotation, and known wedges of other implementations are brought
about: CP stuck in TRANSMIT, a delayed SAK Use, stale SAs after a dirty restart. Each time keys must
be agreed upon again, none twice, with at most an MKA Life Time of loss; where no process dies,
without any. The capture of the wire is the proof that nothing ever went in clear.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Final

from router.lab.lab import Lab
from router.lab.poll import reached, until
from router.lab.report import Report
from router.lab.scenarios.mka import (
    MKA_LIFE_TIME_S,
    RETIRE_MS,
    SECURE_TIMEOUT_S,
    Channel,
    no_stale_sa,
    rekey,
    settled,
)

SETTLE_TIMEOUT_S: Final = 40.0
LINGER_S: Final = 0.3
"""For answers under way; those that are later count as lost, of which there may be thousands here."""
MKPDU_DELAY_S: Final = 2.5
"""Longer than a hello interval, and several times the retirement of old SAs in this scenario."""
A_WHILE: Final = 2
"""Refusals of EnableTransmit that the CP machine sits out in TRANSMIT, half a second each."""
FOR_GOOD: Final = 6
"""Refusals after which it gives up, and another key is made."""

FAULT_POINTS: Final = tuple(
    f"{when} {step}"
    for step in (
        "create_receive_sa",
        "create_transmit_sa",
        "enable_receive_sa",
        "enable_transmit_sa",
        "delete_transmit_sa",
        "delete_receive_sa",
    )
    for when in ("before", "after")
)
"""Every step of a rotation, as a SecY sees it: between two of them lies each transition of the CP machine."""
DIRTY: Final = tuple(f"dirty {moment}" for moment in ("after create_transmit_sa", "after enable_transmit_sa"))
"""The successor finds SAs of two keys, and no memory of them."""


class Faults:
    """The channel under faults, and the keys that it has used."""

    def __init__(self, lab: Lab, report: Report) -> None:
        self.channel = Channel(lab, report)
        self.report = report
        self.far = self.channel.far_keyd
        self.used: list[str] = []
        """KIs in the order in which they came into use; one that came back is in it again."""
        self.worst_ms = 0

    def serve(self, priority: int) -> None:
        """Give the far end another Key Server Priority. Raises LabError."""
        self.far.write(mka={"priority": priority, "sak_retire_time_ms": RETIRE_MS})
        us_first = priority > self.channel.edge.priority

        def elected() -> bool:
            state = self.channel.state()
            servers = {p["key_server"] for p in state.get("participants", ()) if p["principal"]} - {None}
            return bool(servers) and (state["sci"] in servers) is us_first

        until(elected, SECURE_TIMEOUT_S, lambda: "the key server does not change")
        self.settle()

    def settle(self) -> None:
        """Wait until both ends hold one key, and remember it. Raises LabError."""
        until(lambda: settled(self.channel), SETTLE_TIMEOUT_S, lambda: "the last rotation does not end")
        key = self.channel.current()
        if key and [key] != self.used[-1:]:
            self.used.append(key)

    def fresh(self) -> bool:
        """Whether both ends hold one key that was never used before."""
        return self.channel.current() not in {"", *self.used} and settled(self.channel)

    @contextlib.contextmanager
    def rotation(self, name: str, *, lost: int | None) -> Iterator[None]:
        """Begin a rotation once the block has prepared the fault, and check that it ends.

        At most `lost` probes may be lost; None is an MKA Life Time of silence.
        """
        self.settle()
        prober = self.channel.prober(LINGER_S)
        prober.start()
        rekey(self.channel)
        yield
        start = time.monotonic()
        ended = reached(self.fresh, SETTLE_TIMEOUT_S, 0.02) is not None
        seconds = time.monotonic() - start
        outage = prober.stop()
        self.worst_ms = max(self.worst_ms, outage.longest_ms)
        allowed = outage.longest_ms <= MKA_LIFE_TIME_S * 1000 if lost is None else outage.lost <= lost
        detail = f"{outage.lost} of {outage.sent} lost, longest {outage.longest_ms} ms; settled after {seconds:.1f} s"
        self.report.check(name, ended and outage.sent > 0 and allowed, detail)
        self.settle()

    def dies(self, who: str, moment: str) -> None:
        """The far end dies at a step of a rotation, and its successor goes on."""
        pid = self.far.pid
        self.settle()
        self.far.order(moment)
        with self.rotation(f"{who} dies {moment}: agreed anew, at most a life time lost", lost=None):
            died = reached(lambda: self.far.pid != pid, 10.0, 0.01)
        if died is None:
            self.report.check(f"{who} dies {moment}: it died", False, "it did not come to that step")
            self.far.order("")


def faults(lab: Lab, report: Report) -> None:
    """Each fault in turn, on one channel that has to get over all of them."""
    it = Faults(lab, report)
    it.far.write(mka={"priority": 1, "sak_retire_time_ms": RETIRE_MS})
    it.channel.start()
    it.channel.wait_secured("secured")
    start = time.monotonic()
    for who, priority in (("key server", 1), ("other side", 200)):
        it.serve(priority)
        for moment in (*FAULT_POINTS, *DIRTY):
            it.dies(who, moment)
    report.figure("deaths", 2 * len((*FAULT_POINTS, *DIRTY)))
    report.figure("per_death", round((time.monotonic() - start) / (2 * len((*FAULT_POINTS, *DIRTY))), 1), "s")
    report.figure("longest_outage_of_a_death", it.worst_ms, "ms")
    for who, priority in (("other side", 200), ("key server", 1)):
        it.serve(priority)
        _stuck_in_transmit(it, who, A_WHILE, lost=0)
        # The others may send under the key that is given up, until they have the next one.
        _stuck_in_transmit(it, who, FOR_GOOD, lost=0 if who == "key server" else None)
        _late_mkpdus(it, who)
    _lost_mkpdus(it)
    report.check("no key came twice", len(set(it.used)) == len(it.used), f"{len(it.used)} keys")
    no_stale_sa(it.channel)
    _taken_away(it.channel)
    _flap(it.channel)
    it.channel.nothing_in_clear()


def _stuck_in_transmit(it: Faults, who: str, refusals: int, *, lost: int | None) -> None:
    """The SecY refuses so often to switch to the new SA: tried again, or given up and done with another key."""
    it.settle()
    before = it.far.state()["counters"]["secy_refusals"]
    it.far.order("refuse enable_transmit_sa")
    loss = "none lost" if lost == 0 else "at most a life time lost"
    with it.rotation(f"{who} cannot switch to the new SA {refusals} times: {loss}", lost=lost):
        refused = reached(
            lambda: it.far.state()["counters"]["secy_refusals"] >= before + refusals, 20.0, 0.02
        )
        it.far.order("")
    it.report.check(
        f"{who} cannot switch: refused {refusals} times", refused is not None, f"after {refused or -1:.1f} s"
    )


def _late_mkpdus(it: Faults, who: str) -> None:
    """The far end's MKPDUs, SAK Use among them, come seconds late: a rotation takes longer, that is all."""
    with (
        _mkpdus_through(it.channel, f"netem delay {MKPDU_DELAY_S * 1000:.0f}ms"),
        it.rotation(f"{who}'s MKPDUs are {MKPDU_DELAY_S} s late: the rotation ends, none lost", lost=0),
    ):
        pass


def _lost_mkpdus(it: Faults) -> None:
    """Every other MKPDU of the edge is lost: no frame is."""
    with (
        _mkpdus_through(it.channel, "netem loss 50%"),
        it.rotation("half of the key server's MKPDUs are lost: the rotation ends, none lost", lost=0),
    ):
        pass


@contextlib.contextmanager
def _mkpdus_through(channel: Channel, discipline: str) -> Iterator[None]:
    """Send the edge's MKPDUs, and nothing else, through a queueing discipline."""
    device = f"dev {channel.edge.port}"
    for line in (
        f"qdisc add {device} root handle 1: htb default 10",
        f"class add {device} parent 1: classid 1:10 htb rate 10gbit",
        f"class add {device} parent 1: classid 1:30 htb rate 10gbit",
        f"qdisc add {device} parent 1:30 handle 30: {discipline}",
        f"filter add {device} parent 1: protocol 0x888e matchall flowid 1:30",
    ):
        channel.edge_node.run("tc", *line.split())
    try:
        yield
    finally:
        channel.edge_node.run("tc", "qdisc", "del", "dev", channel.edge.port, "root")


def _taken_away(channel: Channel) -> None:
    """Somebody deletes the router's secured port: it is made anew, under a key never used before."""
    before = channel.current()
    channel.lab.network.router.run("ip", "link", "delete", channel.device)
    fresh = reached(
        lambda: channel.current() not in {"", before} and channel.secured(), SECURE_TIMEOUT_S, 0.1
    )
    channel.report.check(
        "MACsec device deleted: secured again under another key",
        fresh is not None,
        f"after {fresh or -1:.1f} s",
    )


def _flap(channel: Channel) -> None:
    """The edge's port goes down for longer than a life time, and comes back."""
    channel.edge_node.batch([f"link set {channel.edge.port} down"])
    closed = reached(lambda: channel.state().get("port") == "closed", 15.0, 0.1)
    channel.report.check(
        "link down: closed within its life time", closed is not None, f"after {closed or -1:.1f} s"
    )
    channel.edge_node.batch(
        [f"link set {channel.edge.port} up", "link set macsec0 up", f"link set vlan{channel.edge.vlan} up"]
    )
    start = time.monotonic()
    channel.wait_secured("link up: secured again")
    channel.report.figure("link_up_to_secured", round(time.monotonic() - start, 1), "s")
