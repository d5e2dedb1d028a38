"""ExaBGP, shim, Speaker, Rib and Fib against independent BGP daemons."""

import asyncio
import os
import signal
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from bgp_builders import POLICY, make_config
from bgp_live import PASSWORD, REF, Routerd, bench, until

from router.bgp import exabgp
from router.bgp.policy import Reason
from router.bgp.rib import Phase
from router.config.effective import BgpTimers
from router.errors import ConfigError
from router.fib_ops import GroupReplace, NexthopReplace, RouteReplace
from router.model import Prefix

V4 = ["10.20.1.0/24", "10.20.2.0/24", "192.0.2.0/24"]
V6 = ["2001:db8:20:1::/64", "2001:db8:bad::/48"]


@pytest.mark.parametrize("daemon", ["frr", "bird", "gobgp"])
async def test_routes_of_a_foreign_peer_become_kernel_operations(daemon):
    """With MD5, both families: accepted prefixes get one group per family, refused ones a reason."""
    with bench(2) as net:
        getattr(net, daemon)(V4, V6)
        routerd = Routerd(net, make_config(2, password=REF))
        try:
            await routerd.start()
            await until(routerd.all_established, "sessions")
            await until(lambda: routerd.synced, "synced")
            wanted = {Prefix.parse(p) for p in (*V4[:2], V6[0])}
            await until(lambda: set(routerd.routes) == wanted, "routes")
            await until(lambda: all(len(hops) == 2 for hops in routerd.routes.values()), "multipath")
            groups = {op.id: op for op in routerd.ops if isinstance(op, GroupReplace)}
            nexthops = {op.id: op.nexthop for op in routerd.ops if isinstance(op, NexthopReplace)}
            last = {op.prefix: op.nexthop_id for op in routerd.ops if isinstance(op, RouteReplace)}
            for prefix, hops in routerd.routes.items():
                assert {nexthops[n] for n in groups[last[prefix]].members} == set(hops)
            rejected = routerd.speaker.rib().rejected("prod/c1/ipv4")
            assert rejected[Prefix.parse("192.0.2.0/24")] is Reason.NOT_ACCEPTED
            assert set(rejected.values()) <= {Reason.NOT_ACCEPTED, Reason.OWN_AS}  # FRR sends ours back
        finally:
            await routerd.stop()


class Instant:
    """A time of day as BIRD prints it, which is off by a millisecond now and then."""

    def __init__(self, text: str) -> None:
        hours, minutes, seconds = text.split(":")
        self.seconds = int(hours) * 3600 + int(minutes) * 60 + float(seconds)

    __hash__ = None

    def __eq__(self, other):
        return abs(self.seconds - other.seconds) < 0.01

    def __repr__(self):
        return f"{self.seconds:.3f}"


def since(net, protocol: str) -> tuple[object, ...]:
    """What BIRD counts of a session: since when, and how many updates it received and refreshed."""
    text = net.birdc("show", "protocols", "all", protocol)
    since = next(Instant(line.split()[4]) for line in text.splitlines() if line.startswith(protocol))
    return since, *(line for line in text.splitlines() if "updates:" in line)


def imported(net, protocol: str) -> int:
    """How many of our prefixes BIRD has."""
    text = net.birdc("show", "route", "protocol", protocol, "count")
    return int(text.split()[text.split().index("of") - 1])


def bird_sees_us(net):
    return lambda: imported(net, "e1x4") == 1 and imported(net, "e1x6") == 1


async def test_routerd_may_die_and_return_without_any_event_at_the_peer():
    """A new routerd relearns sessions, tables and announcements from the shim, with nothing on the wire."""
    with bench(1) as net:
        net.bird(V4, V6)
        config = make_config(1, sites=("site-a",), password=REF)
        first = Routerd(net, config)
        try:
            await first.start()
            await until(lambda: first.synced, "first sync")
            await until(bird_sees_us(net), "our prefixes at BIRD")
            routes, sessions = dict(first.routes), first.speaker.status().sessions
            before = since(net, "e1x4"), since(net, "e1x6")
            await first.stop()
            second = Routerd(net, config)
            second.exabgp = first.exabgp
            await second.start(children=False)
            await until(lambda: second.synced, "second sync", 3)
            assert second.routes == routes
            for old, new in zip(sessions, second.speaker.status().sessions, strict=True):
                assert (new.rib.phase, new.rib.since) == (old.rib.phase, old.rib.since)
                assert new.rib.seen_asn == old.rib.seen_asn
                assert new.rib.hold_time_s == old.rib.hold_time_s
            await until(lambda: all(s.advertised for s in second.speaker.status().sessions), "exports known")
            assert (since(net, "e1x4"), since(net, "e1x6")) == before
            await second.stop()
        finally:
            await first.stop()


async def test_death_of_the_helper_is_repaired_by_a_refresh():
    """ExaBGP replays nothing: what was withdrawn meanwhile must not stay."""
    with bench(1) as net:
        net.bird(V4, V6)
        routerd = Routerd(net, make_config(1, sites=("site-a",), password=REF))
        try:
            await routerd.start()
            await until(lambda: routerd.synced and len(routerd.routes) == 3, "routes")
            before = since(net, "e1x6")[0]
            spec = routerd.exabgp["exabgp-site-a.1"]
            shim = int(Path(f"/proc/{spec.pid}/task/{spec.pid}/children").read_text().split()[0])
            os.kill(shim, signal.SIGSTOP)  # so that it certainly misses what follows
            net.birdc("disable", "s4")
            await asyncio.sleep(0.2)
            os.kill(shim, signal.SIGKILL)
            await until(lambda: len(routerd.routes) == 1, "withdrawn routes are gone")
            net.birdc("enable", "s4")
            await until(lambda: len(routerd.routes) == 3, "routes are back")
            assert since(net, "e1x6")[0] == before
            assert routerd.all_established()
            assert [c.phase.value for c in routerd.changes].count("established") == 2
        finally:
            await routerd.stop()


async def test_a_lost_line_is_noticed_and_repaired():
    """The neighbour's counter jumps: the peer is asked for its table again."""
    with bench(1) as net:
        net.bird(V4, V6)
        routerd = Routerd(net, make_config(1, sites=("site-a",), password=REF))
        try:
            await routerd.start()
            await until(lambda: routerd.synced and len(routerd.routes) == 3, "routes")
            take, lost = routerd.speaker._take, []

            def lossy(link, text):
                if b'"withdraw"' in text and not lost:
                    lost.append(text)
                else:
                    take(link, text)

            routerd.speaker._take = lossy
            net.birdc("disable", "s4")
            await until(lambda: lost, "the withdrawal is lost")
            net.birdc("disable", "s6")  # the next line, of the other session: no gap there
            await until(lambda: len(routerd.routes) == 2, "IPv6 withdrawn")
            net.birdc("enable", "s4")
            net.birdc("disable", "s4")
            await until(lambda: routerd.routes == {}, "all withdrawn")
            gaps = {s.rib.name: s.rib.gaps_total for s in routerd.speaker.status().sessions}
            assert gaps == {"prod/c1/ipv4": 1, "prod/c1/ipv6": 0}
        finally:
            await routerd.stop()


async def test_a_daemon_that_does_not_read_costs_no_session():
    """Frozen beyond the hold time with far more than a pipe's 64 KiB pending: sessions stay."""
    many = [f"172.16.{i >> 8}.{i & 255}/32" for i in range(2000)]
    policy = replace(POLICY, timers=BgpTimers(hold_s=3, keepalive_s=1))
    with bench(1) as net:
        net.bird(many, V6)
        config = make_config(1, sites=("site-a",), password=REF, policy=policy)
        first = Routerd(net, config)
        try:
            await first.start()
            await until(lambda: first.synced and len(first.routes) == 2001, "routes")
            before = since(net, "e1x4")[0], since(net, "e1x6")[0]
            await first.stop()
            path = net.run_dir / "bgp-site-a.1.sock"
            path.unlink(missing_ok=True)
            frozen = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            frozen.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            frozen.bind(str(path))
            path.chmod(0o666)
            frozen.listen()
            for _ in range(5):
                net.birdc("disable", "s4")
                await asyncio.sleep(0.45)
                net.birdc("enable", "s4")
                await asyncio.sleep(0.45)
            assert (since(net, "e1x4")[0], since(net, "e1x6")[0]) == before
            frozen.close()
            second = Routerd(net, config)
            second.exabgp = first.exabgp
            await second.start(children=False)
            await until(lambda: second.synced and len(second.routes) == 2001, "relearned")
            assert (since(net, "e1x4")[0], since(net, "e1x6")[0]) == before
            await second.stop()
        finally:
            await first.stop()


async def test_a_broken_reload_is_refused_and_sessions_stay(monkeypatch):
    """ExaBGP never sees a file that it would choke on; a good one adds sessions and resets none."""
    with bench(2) as net:
        net.bird(V4, V6)
        one = make_config(1, sites=("site-a",), password=REF)
        routerd = Routerd(net, one)
        try:
            await routerd.start()
            await until(lambda: routerd.synced, "synced")
            await until(bird_sees_us(net), "our prefixes at BIRD")
            path = net.run_dir / "bgp-site-a.1.conf"
            before, content = since(net, "e1x4"), path.read_bytes()
            assert path.stat().st_mode & 0o777 == 0o600
            two = make_config(2, sites=("site-a",), password=REF)
            render = exabgp.render
            with monkeypatch.context() as patch:
                patch.setattr(exabgp, "render", lambda *args: render(*args) + "neighbor oops {\n")
                with pytest.raises(ConfigError) as refused:
                    await routerd.speaker.reconfigure(two)
            assert "s3cret" not in str(refused.value)
            assert path.read_bytes() == content
            assert since(net, "e1x4") == before
            three = make_config(
                1, sites=("site-a",), password=REF, advertise=("10.10.0.0/24", "10.10.1.0/24")
            )
            await routerd.speaker.reconfigure(three)
            await until(
                lambda: imported(net, "e1x4") == 2 and imported(net, "e1x6") == 0, "new exports at BIRD"
            )
            await routerd.speaker.reconfigure(two)
            routerd.start_children()
            await until(routerd.all_established, "the second channel")
            assert since(net, "e1x4")[0] == before[0]
            await until(lambda: imported(net, "e1x4") == 1, "old exports")
        finally:
            await routerd.stop()


async def test_a_file_that_changed_while_routerd_was_away_is_loaded():
    """The running ExaBGP is older than its file: it is told, and the old session stays."""
    with bench(1) as net:
        net.bird(V4, V6)
        first = Routerd(net, make_config(1, sites=("site-a",), password=REF, families=("ipv4",)))
        second = Routerd(net, make_config(1, sites=("site-a",), password=REF))
        try:
            await first.start()
            await until(lambda: first.synced and imported(net, "e1x4") == 1, "synced")
            before = since(net, "e1x4")
            await first.stop()
            second.exabgp = first.exabgp
            await second.start(children=False)
            await until(second.all_established, "the session that is new")
            await until(bird_sees_us(net), "announced there, too")
            assert since(net, "e1x4") == before
        finally:
            await first.stop()
            await second.stop()


async def test_a_killed_exabgp_comes_back_and_announces_again():
    """kill -9: the other process keeps its sessions; the new one gets our announcements again."""
    with bench(2) as net:
        net.bird(V4, V6)
        routerd = Routerd(net, make_config(2, password=REF))
        try:
            await routerd.start()
            await until(lambda: routerd.synced, "synced")
            await until(bird_sees_us(net), "our prefixes at BIRD")
            other = since(net, "e2x4")[0]
            process = routerd.exabgp["exabgp-site-a"]
            process.kill()
            process.wait()
            await until(lambda: imported(net, "e1x4") == 0, "BIRD noticed")
            routerd.start_children()
            await until(bird_sees_us(net), "announced again")
            assert {c.reason for c in routerd.changes if c.session.startswith("prod/c1")} >= {
                "ExaBGP was restarted"
            }
            await until(lambda: set(map(len, routerd.routes.values())) == {2}, "both again")
            assert since(net, "e2x4")[0] == other
        finally:
            await routerd.stop()


async def test_status_names_a_wrong_peer_as():
    """The peer is AS 64999: said in words, not as a notification code."""
    with bench(1) as net:
        net.bird(V4, V6, password=None, asn=64999)
        routerd = Routerd(net, make_config(1))
        try:
            await routerd.start()
            causes = lambda: {s.cause for s in routerd.speaker.status().sessions}  # noqa: E731
            await until(lambda: any("64999" in c for c in causes()), "the AS is named")
        finally:
            await routerd.stop()


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        (REF, "another", "MD5 password differs from the peer's ("),
        (REF, None, "the peer uses no MD5 password ("),
        (None, "another", "the peer uses an MD5 password ("),
    ],
)
async def test_status_names_an_md5_mismatch(ours, theirs, words):
    """Nothing but silence on the wire, yet status says which side has which password."""
    with bench(1) as net:
        net.bird(V4, V6, password=theirs)
        routerd = Routerd(net, make_config(1, sites=("site-a",), password=ours))
        try:
            await routerd.start()
            causes = lambda: [s.cause for s in routerd.speaker.status().sessions]  # noqa: E731
            await until(lambda: all(c.startswith(words) for c in causes()), "the cause is named")
        finally:
            await routerd.stop()


async def test_a_password_put_right_by_a_reload_brings_the_session_up():
    """Nobody has to wait for the connection attempt that began under the wrong one."""
    with bench(1) as net:
        net.bird(V4, V6)
        config = make_config(1, sites=("site-a",), password=REF)
        routerd = Routerd(net, config, password="not-this-one")
        try:
            await routerd.start()
            reports = lambda: routerd.speaker.status().sessions  # noqa: E731
            await until(lambda: all("MD5" in s.cause for s in reports()), "the cause is named")
            routerd.use_password(PASSWORD)
            await routerd.speaker.reconfigure(config)
            await until(lambda: all(s.rib.phase is Phase.ESTABLISHED for s in reports()), "established")
        finally:
            await routerd.stop()


async def test_status_names_silence():
    """The peer's host drops us: said after a few seconds, with what it may be."""
    with bench(1) as net:
        net.filter_bgp()
        routerd = Routerd(net, make_config(1, sites=("site-a",), password=REF, families=("ipv4",)))
        try:
            await routerd.start()
            causes = lambda: [s.cause for s in routerd.speaker.status().sessions]  # noqa: E731
            await until(lambda: all(c.startswith("no answer to our attempts") for c in causes()), "named")
        finally:
            await routerd.stop()


async def test_with_graceful_restart_a_killed_exabgp_costs_no_route_on_either_side():
    """RFC 4724: both keep forwarding; our EOR comes only after our announcements."""
    policy = replace(POLICY, graceful_restart_s=60)
    with bench(1) as net:
        net.bird(V4, V6)
        routerd = Routerd(net, make_config(1, sites=("site-a",), password=REF, policy=policy))
        try:
            await routerd.start()
            await until(lambda: routerd.synced, "synced")
            await until(bird_sees_us(net), "our prefixes at BIRD")
            before = dict(routerd.routes)
            process = routerd.exabgp["exabgp-site-a.1"]
            process.kill()
            process.wait()

            def stale():
                return "Neighbor graceful restart active" in net.birdc("show", "protocols", "all", "e1x4")

            await until(stale, "BIRD keeps our prefixes as stale ones")
            assert bird_sees_us(net)()
            lost = []
            routerd.start_children()

            def again():
                lost.extend([routerd.routes != before, not bird_sees_us(net)()])
                return routerd.all_established() and not stale()

            await until(again, "restarted")
            await until(
                lambda: all(s.rib.synced and not s.rib.stale for s in routerd.speaker.status().sessions),
                "swept",
            )
            assert not any(lost)
            assert routerd.routes == before
            assert bird_sees_us(net)()
        finally:
            await routerd.stop()
