"""Adj-RIB-In and Loc-RIB: sessions, gaps, stale routes, snapshots, the ceiling."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from bgp_builders import LOCAL_ASN, PEER_ASN, POLICY, make_config, with_connection
from hypothesis import given
from hypothesis import strategies as st

from router.bgp import rib as rib_module
from router.bgp.exabgp import processes
from router.bgp.messages import SnapshotBegin, SnapshotEnd, SnapshotNeighbor, parse
from router.bgp.policy import Reason
from router.bgp.rib import AskRefresh, Phase, Rib, RouteChange, SessionChange
from router.model import Prefix


class World:
    """A Rib and the ExaBGP processes that talk to it."""

    def __init__(self, channels=2, **changes):
        changes.setdefault("families", ("ipv4",))
        self.config = make_config(channels, **changes)
        self.processes = processes(self.config)
        self.rib = Rib(self.config, self.processes, 0.0)
        self.routes = {}
        self.refreshes = []
        self.changes = []
        self.counters = {}
        self.now = 100.0
        self.pid = 7

    def session(self, n):
        return self.config.connections[0].features[n - 1].sessions[0]

    def process(self, n):
        return next(p for p, sessions in self.processes.items() if self.session(n) in sessions)

    def line(self, n, kind, *, lost=0, **body):
        s = self.session(n)
        self.counters[n] = self.counters.get(n, 0) + 1 + lost
        return parse(
            json.dumps(
                {
                    "exabgp": "5.0.0",
                    "time": self.now,
                    "pid": self.pid,
                    "counter": self.counters[n],
                    "type": kind,
                    "neighbor": {
                        "address": {"local": s.addresses.local, "peer": s.addresses.peer},
                        **body,
                    },
                }
            )
        )

    def tell(self, n, kind, **body):
        self.rib.receive(self.process(n), self.line(n, kind, **body), self.now)
        self.drain()

    def drain(self):
        for output in self.rib.take_outputs():
            match output:
                case RouteChange(_, prefix, nexthops):
                    assert self.routes.get(prefix, ()) != nexthops, "a change that changes nothing"
                    if nexthops:
                        self.routes[prefix] = nexthops
                    else:
                        del self.routes[prefix]
                case AskRefresh():
                    self.refreshes.append(output)
                case SessionChange():
                    self.changes.append(output)

    def up(self, n, *, restart=None, refresh="enhanced"):
        self.tell(n, "state", state="connected")
        capabilities = {"65": {"name": "asn4", "asn4": PEER_ASN}}
        if restart:
            capabilities["64"] = {
                "name": "graceful restart",
                "time": restart,
                "address-family-flags": {"ipv4/unicast": ["restart"]},
                "restart-flags": [],
            }
        opened = {
            "version": 4,
            "asn": 23456,
            "hold_time": 30,
            "router_id": f"10.255.0.{n}",
            "capabilities": capabilities,
        }
        self.tell(n, "open", direction="receive", open=opened)
        facts = {"hold_time": 30, "families": ["ipv4 unicast"], "refresh": refresh}
        self.tell(n, "negotiated", negotiated=facts)
        self.tell(n, "state", state="up")

    def down(self, n, reason="closing connection"):
        self.tell(n, "state", state="down", reason=reason)

    def announce(self, n, *prefixes, asns=(PEER_ASN,), nexthop=None, lost=0):
        self.tell(
            n,
            "update",
            lost=lost,
            direction="receive",
            message={
                "update": {
                    "attribute": {
                        "origin": "igp",
                        "as-path": {"0": {"element": "as-sequence", "value": list(asns)}},
                    },
                    "announce": {"ipv4 unicast": {nexthop or f"169.254.{n}.2": list(prefixes)}},
                }
            },
        )

    def withdraw(self, n, *prefixes, attribute=None):
        body = {"withdraw": {"ipv4 unicast": list(prefixes)}}
        if attribute:
            body["attribute"] = attribute
        self.tell(n, "update", direction="receive", message={"update": body})

    def eor(self, n):
        self.tell(n, "update", direction="receive", message={"eor": {"afi": "ipv4", "safi": "unicast"}})

    def refresh(self, n, subtype):
        facts = {"afi": "ipv4", "safi": "unicast", "subtype": subtype}
        self.tell(n, "refresh", direction="receive", **{"route-refresh": facts})

    def wait(self, seconds):
        """Let time pass, as a driver does: from timer to timer."""
        end = self.now + seconds
        while (due := self.rib.next_timer()) is not None and due <= end:
            self.now = max(self.now, due)
            self.rib.handle_timer(self.now)
            self.drain()
            assert self.rib.next_timer() != due, "a timer that never goes"
        self.now = end

    def paths(self):
        return {str(prefix): [hop.device for hop in hops] for prefix, hops in self.routes.items()}

    def status(self, n):
        return next(s for s in self.rib.status() if s.name == self.session(n).name)


P1, P2, P3 = "10.20.1.0/24", "10.20.2.0/24", "10.20.3.0/24"


def test_routes_of_two_sessions_share_the_traffic():
    """And follow each withdrawal."""
    w = World()
    w.up(1), w.up(2)
    w.announce(1, P1, P2)
    w.announce(2, P1)
    assert w.paths() == {P1: ["ch1", "ch2"], P2: ["ch1"]}
    w.withdraw(1, P1)
    assert w.paths() == {P1: ["ch2"], P2: ["ch1"]}
    w.down(1)
    assert w.paths() == {P1: ["ch2"]}


def test_a_session_reports_its_phases_reason_and_since():
    """Attempts after a failure are one state, since the failure."""
    w = World(1)
    w.tell(1, "fsm", state="ACTIVE")
    w.up(1)
    w.now = 200.0
    w.tell(
        1,
        "notification",
        direction="receive",
        notification={"code": 6, "subcode": 2, "data": "0x", "message": "bye"},
    )
    w.down(1, "notification received (6,2)")
    w.now = 230.0
    for state in ("IDLE", "ACTIVE", "CONNECT", "OPENSENT", "IDLE", "ACTIVE"):
        w.tell(1, "fsm", state=state)
    status = w.status(1)
    assert (status.phase, status.since, status.flaps_total) == (Phase.CONNECTING, 200.0, 1)
    assert status.reason == "received Cease/Administrative Shutdown (6/2): bye"
    assert (w.status(1).seen_asn, w.status(1).seen_router_id) == (PEER_ASN, "10.255.0.1")


def test_down_without_up_is_harmless():
    """ExaBGP reports attempts that never came to anything."""
    w = World(1)
    w.down(1, "attempt failed")
    w.down(1, "attempt failed")
    assert w.status(1).flaps_total == 0
    assert w.routes == {}


def test_the_same_update_again_changes_nothing():
    """The assertion is in `drain`."""
    w = World(1)
    w.up(1)
    w.announce(1, P1)
    w.announce(1, P1)
    assert w.paths() == {P1: ["ch1"]}


def test_a_route_that_becomes_unacceptable_is_withdrawn():
    """The prefix is announced again with our own AS in its path."""
    w = World(1)
    w.up(1)
    w.announce(1, P1)
    w.announce(1, P1, asns=(PEER_ASN, LOCAL_ASN))
    assert w.routes == {}
    assert w.rib.rejected(w.session(1).name) == {Prefix.parse(P1): Reason.OWN_AS}
    w.withdraw(1, P1)
    assert w.status(1).rejected == {}


def test_treat_as_withdraw_is_withdrawn_and_seen():
    """RFC 7606: the route goes, the session stays, and status has the prefix with its reason."""
    w = World(1)
    w.up(1)
    w.announce(1, P1)
    w.withdraw(1, P1, attribute={"error": "treat-as-withdraw due to origin"})
    assert w.routes == {}
    assert w.status(1).rejected == {Reason.TREAT_AS_WITHDRAW: 1}
    assert w.status(1).phase is Phase.ESTABLISHED


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_ceiling_holds_back_and_admits_when_there_is_room(count):
    """`prefix_max` 3: the fourth waits, visible, and enters when another leaves."""
    w = World(1, policy=replace(POLICY, prefix_max=3, prefix_warn=3))
    w.up(1)
    w.announce(1, *[f"10.20.{n}.0/24" for n in range(count)])
    assert len(w.routes) == min(count, 3)
    status = w.status(1)
    assert status.rejected == ({Reason.PREFIX_LIMIT: 1} if count > 3 else {})
    assert status.prefix_warn == (count >= 3)
    assert status.received == count
    w.withdraw(1, "10.20.0.0/24")
    assert len(w.routes) == min(count - 1, 3)
    assert w.status(1).rejected == {}


def test_a_flood_of_refused_routes_is_counted_beyond_what_is_listed(monkeypatch):
    """The memory for them is bounded, the count is not."""
    monkeypatch.setattr(rib_module, "REJECTED_MAX", 3)
    w = World(1)
    w.up(1)
    w.announce(1, *[f"192.0.2.{n}/32" for n in range(5)])
    assert len(w.rib.rejected(w.session(1).name)) == 3
    assert w.status(1).rejected == {Reason.NOT_ACCEPTED: 5}


def test_a_gap_asks_for_a_refresh_which_sweeps_what_is_gone():
    """Lines were lost: BoRR marks, EoRR sweeps; what forwards stays meanwhile."""
    w = World(1)
    w.up(1)
    w.announce(1, P1, P2)
    w.announce(1, P3, lost=4)
    assert [r.reason for r in w.refreshes] == ["line 10 came where [6] was next"]
    w.refresh(1, "begin")
    assert set(w.paths()) == {P1, P2, P3}
    w.announce(1, P1)
    assert set(w.paths()) == {P1, P2, P3}
    w.refresh(1, "end")
    assert set(w.paths()) == {P1}
    assert w.status(1).gaps_total == 1


def test_a_counter_that_starts_again_is_no_gap():
    """ExaBGP reloaded the neighbour."""
    w = World(1)
    w.up(1)
    old = w.counters[1]
    w.counters[1] = 0
    w.announce(1, P1)
    w.counters[1] = old  # the session's own sequence goes on beside it
    w.announce(1, P2)
    w.counters[1] = 1
    w.announce(1, P3)
    assert w.refreshes == []
    w.announce(1, P1, lost=1)
    assert len(w.refreshes) == 1


def test_a_refresh_without_its_frame_ends_by_silence():
    """A peer without RFC 7313: sweep when it has been quiet."""
    w = World(1)
    w.up(1, refresh="normal")
    w.announce(1, P1, P2)
    w.announce(1, P3, lost=1)
    w.rib.refresh_sent(w.session(1).name, w.now)
    w.wait(rib_module.REFRESH_QUIET_S - 1)
    w.announce(1, P1)
    w.wait(rib_module.REFRESH_QUIET_S - 1)
    assert set(w.paths()) == {P1, P2, P3}
    w.wait(2)
    assert set(w.paths()) == {P1}


def snapshot(w, n, *lines, complete=True):
    """What the shim sends: a frame around remembered lines."""
    process, s = w.process(n), w.session(n)
    key = (s.addresses.local, s.addresses.peer)
    w.rib.receive(process, SnapshotBegin(w.pid, "test"), w.now)
    w.rib.receive(process, SnapshotNeighbor(key, w.pid, (50,), complete), w.now)
    w.counters[n] = 49
    for kind, body in lines:
        w.rib.receive(process, w.line(n, kind, **body), w.now)
        w.counters[n] = 49
    w.rib.receive(process, SnapshotEnd(w.pid), w.now)
    w.counters[n] = 50
    w.drain()


UP = ("state", {"state": "up"})


def table(n, *prefixes):
    attribute = {"origin": "igp", "as-path": {"0": {"element": "as-sequence", "value": [PEER_ASN]}}}
    announce = {"ipv4 unicast": {f"169.254.{n}.2": list(prefixes)}}
    return (
        "update",
        {"direction": "receive", "message": {"update": {"attribute": attribute, "announce": announce}}},
    )


def test_a_snapshot_replaces_the_table_without_moving_what_stays():
    """The daemon was too slow or away: what is in both never leaves the Loc-RIB."""
    w = World(1)
    w.up(1)
    w.announce(1, P1, P2)
    snapshot(w, 1, UP, table(1, P2, P3))
    assert set(w.paths()) == {P2, P3}
    assert w.refreshes == []
    w.announce(1, P1)
    assert w.status(1).gaps_total == 0


def test_an_incomplete_snapshot_keeps_what_there_is_and_asks():
    """The shim was new: nothing is removed on suspicion."""
    w = World(1)
    w.up(1)
    w.announce(1, P1)
    snapshot(w, 1, complete=False)
    assert set(w.paths()) == {P1}
    assert len(w.refreshes) == 1
    assert w.rib.unknown(w.process(1)) == [w.session(1).name]


def test_a_session_nobody_remembers_is_learned_from_exabgp_itself():
    """Both the shim and we are new."""
    w = World(1)
    w.rib.learn_state(w.session(1).name, established=True, now=w.now)
    w.drain()
    assert w.status(1).phase is Phase.ESTABLISHED
    assert len(w.refreshes) == 1


def test_a_new_exabgp_ends_the_old_ones_sessions():
    """The pid tells, though no `down` ever came."""
    w = World(2)
    w.up(1), w.up(2)
    w.announce(1, P1)
    w.announce(2, P1)
    hello = parse('{"shim":"hello","pid":8,"shim_pid":9,"age_s":0.1}')
    w.rib.receive(w.process(1), hello, w.now)
    w.drain()
    assert w.paths() == {P1: ["ch2"]}


def test_a_shim_that_does_not_return_means_a_dead_exabgp():
    """A short absence costs nothing."""
    w = World(1)
    w.up(1)
    w.announce(1, P1)
    w.rib.link_lost(w.process(1), w.now)
    w.wait(rib_module.LINK_LOST_S - 0.5)
    w.rib.receive(w.process(1), parse('{"shim":"hello","pid":7,"shim_pid":9,"age_s":0.1}'), w.now)
    w.wait(rib_module.LINK_LOST_S * 2)
    assert set(w.paths()) == {P1}
    w.rib.link_lost(w.process(1), w.now)
    w.wait(rib_module.LINK_LOST_S + 0.5)
    assert w.routes == {}
    assert w.status(1).reason == "ExaBGP does not run"


GRACEFUL = replace(POLICY, graceful_restart_s=120)


def test_a_peer_that_restarts_gracefully_keeps_its_routes_until_its_eor():
    """RFC 4724 4.2: stale, in use, swept by the EOR."""
    w = World(1, policy=GRACEFUL)
    w.up(1, restart=60)
    w.announce(1, P1, P2)
    w.down(1)
    assert set(w.paths()) == {P1, P2}
    w.up(1, restart=60)
    w.announce(1, P1)
    w.eor(1)
    assert set(w.paths()) == {P1}


def test_a_peer_that_does_not_return_in_its_restart_time_loses_its_routes():
    """60 s, not 61."""
    w = World(1, policy=GRACEFUL)
    w.up(1, restart=60)
    w.announce(1, P1)
    w.down(1)
    w.wait(59)
    assert set(w.paths()) == {P1}
    w.wait(2)
    assert w.routes == {}


@pytest.mark.parametrize(
    ("policy", "restart", "notified"), [(POLICY, 60, False), (GRACEFUL, None, False), (GRACEFUL, 60, True)]
)
def test_without_agreement_on_graceful_restart_routes_go_at_once(policy, restart, notified):
    """We do not offer it, the peer does not, or it said why it ended."""
    w = World(1, policy=policy)
    w.up(1, restart=restart)
    w.announce(1, P1)
    if notified:
        facts = {"code": 6, "subcode": 2, "data": "0x", "message": ""}
        w.tell(1, "notification", direction="receive", notification=facts)
    w.down(1)
    assert w.routes == {}


def test_synced_means_every_session_has_told_all():
    """EOR; silence after up where there is no EOR; or being down for a while."""
    w = World(3)
    hello = parse('{"shim":"hello","pid":7,"shim_pid":9,"age_s":0.1}')
    for process in w.processes:
        w.rib.receive(process, hello, w.now)
    w.up(1), w.up(2)
    assert len(w.rib.unsynced()) == 3
    w.eor(1)
    assert len(w.rib.unsynced()) == 2
    w.wait(rib_module.EOR_WAIT_S + 0.1)
    assert w.rib.unsynced() == [w.session(3).name]
    w.wait(rib_module.SETTLED_S)
    assert w.rib.unsynced() == []


def test_a_changed_import_policy_acts_at_once_and_asks_for_the_rest():
    """What is refused now goes; what may be taken now was not kept and is asked for."""
    w = World(1)
    w.up(1)
    w.announce(1, P1, "172.16.1.0/24")
    w.config = with_connection(w.config, accept=w.config.connections[0].accept[1:])
    w.rib.configure(w.config, processes(w.config), w.now)
    w.drain()
    assert set(w.paths()) == {"172.16.1.0/24"}
    assert len(w.refreshes) == 1


def test_removed_and_added_sessions_leave_the_others_alone():
    """From two channels to three, then to the last two."""
    w = World(2)
    w.up(1), w.up(2)
    w.announce(1, P1)
    w.announce(2, P1)
    w.config = make_config(3, families=("ipv4",))
    w.processes = processes(w.config)
    w.rib.configure(w.config, w.processes, w.now)
    w.drain()
    assert w.paths() == {P1: ["ch1", "ch2"]}
    fewer = replace(
        w.config,
        connections=(replace(w.config.connections[0], features=w.config.connections[0].features[1:]),),
    )
    w.rib.configure(fewer, processes(fewer), w.now)
    w.drain()
    assert w.paths() == {P1: ["ch2"]}


@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.integers(0, 3), st.booleans(), st.integers(0, 2)),
        max_size=25,
    ).flatmap(lambda steps: st.tuples(st.just(steps), st.permutations(range(1, 4))))
)
def test_the_locrib_depends_on_what_is_announced_not_on_when(case):
    """The same final announcements, session by session in any order, give the same Loc-RIB."""
    steps, order = case
    final = {}
    w = World(3)
    for n in (1, 2, 3):
        w.up(n)
    for n, index, present, length in steps:
        prefix = f"10.20.{index}.0/24"
        if present:
            final[n, prefix] = (PEER_ASN, *range(65001, 65001 + length))
            w.announce(n, prefix, asns=final[n, prefix])
        else:
            final.pop((n, prefix), None)
            w.withdraw(n, prefix)
    other = World(3)
    for n in order:
        other.up(n)
        for (m, prefix), asns in sorted(final.items()):
            if m == n:
                other.announce(n, prefix, asns=asns)
    assert other.paths() == w.paths()
