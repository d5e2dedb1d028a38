"""The KaY against itself over an imaginary wire: what must hold, case by case, in virtual seconds."""

from dataclasses import replace

import pytest
from mka_world import CAK, CKN, KEY, World, mka_pair, sci_of

from router.errors import ControlError
from router.mka.cp import CpState
from router.mka.events import (
    CreateReceiveSa,
    CreateTransmitSa,
    DeleteReceiveSa,
    DeleteTransmitSa,
    EnableReceive,
    EnableTransmit,
    PortState,
    SendMkpdu,
    SetControlledPort,
    UpdateReceivePn,
)
from router.mka.kay import KeyEntry
from router.mka.keys import Cak, SsciOrder, salt
from router.mka.mkpdu import Basic, Confidentiality, DistributedSak, Frame, KeyUse, Mkpdu, envelope
from router.model import CipherSuite, MacAddress, Secret

OTHER_KEY = KeyEntry(b"\x09" * 32, Secret(b"\x09" * 16))
NEWER_KEY = KeyEntry(b"\x0a" * 4, Secret(b"\x0a" * 32))


def last_pdu(node, ckn=CKN):
    return next(
        pdu
        for frame in reversed(node.sent)
        if (pdu := Mkpdu.parse(Frame.parse(frame).mkpdu)).basic.ckn == ckn
    )


def names(node):
    return [type(operation).__name__ for operation, _ in node.secy.log]


# ------------------------------------------------------------------------ coming up


@pytest.mark.parametrize("suite", CipherSuite, ids=str)
@pytest.mark.parametrize("cak_size", [16, 32])
@pytest.mark.parametrize("ckn_size", [1, 3, 4, 16, 32])
def test_two_stations_secure_a_link(suite, cak_size, ckn_size):
    """Every suite with every CAK size: both directions pass, in well under a second."""
    key = KeyEntry(b"k" * ckn_size, Secret(b"c" * cak_size))
    world = World()
    world.add(10, (key,), suites=(suite,))
    world.add(11, (key,), suites=(suite,), sci=sci_of(11, 7))
    assert world.run(5, world.secured) < 0.1
    assert world.secured()


def test_a_late_station_is_secured_within_a_second():
    """Fast start: whoever starts second is heard at once and hears the first within its ramp."""
    for wait in (0.05, 0.5, 1.9, 2.1, 61.3):
        world = World()
        world.add(10)
        world.run(wait)
        world.add(11)
        assert world.run(5, world.secured) < 1.0


def test_link_up_starts_the_ramp_again():
    """After carrier loss beyond the life time, a link is secured within a second of the carrier's return."""
    with mka_pair() as (a, b):
        world = a.world
        world.fate = lambda *_: []
        for node in (a, b):
            node.do(lambda kay: kay.carrier(world.now, up=False))
        world.run(20)
        assert a.secy.port is PortState.CLOSED
        world.fate = None
        for node in (a, b):
            node.do(lambda kay: kay.carrier(world.now, up=True))
        assert world.run(5, world.secured) < 1.0


def test_receive_comes_before_claim_and_claim_before_transmit():
    """SAs are created, then enabled for receive, then claimed, and only then used for transmit."""
    with mka_pair() as (a, b):
        for node in (a, b):
            order = names(node)
            assert order.index("CreateReceiveSc") < order.index("CreateReceiveSa")
            assert order.index("CreateReceiveSa") < order.index("CreateTransmitSa")
            assert order.index("CreateTransmitSa") < order.index("EnableReceive")
            assert order.index("EnableReceive") < order.index("EnableTransmit")


def test_three_stations_share_one_key_with_three_sscis():
    """On a shared segment all members agree on key, SSCIs and salt; every pair passes."""
    world = World()
    nodes = [world.add(10 + n) for n in range(3)]
    world.run(20, world.quiet)
    assert world.quiet()
    assert len({node.ki for node in nodes}) == 1
    sscis = [node.secy.transmit[node.secy.encoding_an].key.ssci for node in nodes]
    assert sscis == [3, 2, 1]
    assert {node.secy.transmit[node.secy.encoding_an].key.salt for node in nodes} == {salt(nodes[0].ki)}


@pytest.mark.parametrize(
    ("order", "expected"), [(SsciOrder.DESCENDING_SCI, [2, 1]), (SsciOrder.ASCENDING_SCI, [1, 2])]
)
def test_the_ssci_knob_turns_the_order_round(order, expected):
    """The key server numbers by its knob and tells the order, which the other side takes over."""
    with mka_pair(a={"ssci_order": order}) as (a, b):
        assert [n.secy.transmit[n.secy.encoding_an].key.ssci for n in (a, b)] == expected


def test_lowest_priority_then_lowest_sci_is_key_server():
    """Priority counts first, the SCI breaks the tie, and both sides say why."""
    for first, second, server in ((16, 32, 10), (32, 16, 11), (16, 16, 10), (255, 16, 11), (255, 255, 10)):
        with mka_pair(a={"priority": first}, b={"priority": second}) as (a, b):
            for node in (a, b):
                assert node.snapshot.participants[0].server == sci_of(server)
            assert str(sci_of(server)) in a.snapshot.participants[0].server_reason


def test_integrity_only_is_distributed_and_must_be_accepted():
    """A server of integrity only is refused by default, and followed where that is configured."""
    only = Confidentiality.INTEGRITY_ONLY
    both = {"suites": (CipherSuite.GCM_AES_128,), "confidentiality": only}
    with mka_pair(accept=frozenset({only}), **both) as (_, b):
        assert b.snapshot.current.confidentiality is only
    world = World()
    world.add(10, **both)
    b = world.add(11, suites=(CipherSuite.GCM_AES_128,), priority=32)
    world.run(3)
    assert b.secy.port is PortState.CLOSED
    assert "orders integrity-only, our policy is offset-0: refused" in b.snapshot.suspicion


def test_icv_indicator_is_sent_when_asked_and_accepted_always():
    """Some switches want the set; a peer without it understands it."""
    with mka_pair(a={"icv_indicator": True}) as (a, b):
        assert last_pdu(a).icv_indicator
        assert not last_pdu(b).icv_indicator


# ----------------------------------------------------------------------- the suites


def test_server_takes_its_best_suite_that_all_peers_offer():
    """Announcements decide: XPN-256 where both have it, else the next that both have."""
    xpn, gcm = CipherSuite.GCM_AES_XPN_256, CipherSuite.GCM_AES_256
    with mka_pair(a={"suites": (xpn, gcm)}, b={"suites": (gcm, xpn)}) as (a, b):
        assert a.snapshot.current.suite is b.snapshot.current.suite is xpn
    with mka_pair(a={"suites": (xpn, gcm)}, b={"suites": (gcm,)}) as (a, b):
        assert b.snapshot.current.suite is gcm


def test_no_common_suite_is_never_secured_and_says_so():
    """Both ends stay closed; the server names the reason, and so does the other one for a mute server."""
    world = World()
    a = world.add(10, suites=(CipherSuite.GCM_AES_128,))
    b = world.add(11, suites=(CipherSuite.GCM_AES_256,), priority=32)
    world.run(30)
    assert a.secy.port is b.secy.port is PortState.CLOSED
    assert a.snapshot.suspicion == "no cipher suite is offered by all peers and allowed here"
    world = World()
    world.add(10, suites=(CipherSuite.GCM_AES_128,), announce=False)
    b = world.add(11, suites=(CipherSuite.GCM_AES_256,), priority=32, announce=False)
    world.run(30)
    assert "chose suite gcm-aes-128, allowed here: gcm-aes-256" in b.snapshot.suspicion


def test_a_third_station_can_force_another_suite_and_it_is_announced_as_interruption():
    """The kernel cannot hold two suites: the old SAs go first, the fact says so, and traffic returns."""
    xpn, gcm = CipherSuite.GCM_AES_XPN_256, CipherSuite.GCM_AES_256
    with mka_pair(suites=(xpn, gcm)) as (a, b):
        world = a.world
        world.add(12, suites=(gcm,), priority=64)
        world.run(30, world.quiet)
        assert world.quiet()
        assert a.snapshot.current.suite is gcm
        assert a.named("sak.interrupted")
        assert b.named("sak.interrupted")


def test_a_secy_of_mixed_suites_changes_suite_without_interruption():
    """Make before break where the SecY can hold both."""
    xpn, gcm = CipherSuite.GCM_AES_XPN_256, CipherSuite.GCM_AES_256
    with mka_pair(suites=(xpn, gcm), mixed_suites=True) as (a, b):
        world = a.world
        world.add(12, suites=(gcm,), priority=64, mixed_suites=True)
        lost = Traffic(world, a, b)
        world.run(30)
        assert a.snapshot.current.suite is gcm
        assert not a.named("sak.interrupted")
        assert lost.count == 0
        assert lost.sent > 1000


class Traffic:
    """Data frames both ways every 10 ms; a frame that nobody can send or take is lost."""

    def __init__(self, world, a, b, spacing=0.01):
        self.world, self.pair, self.spacing = world, (a, b), spacing
        self.sent = self.count = 0
        self.lost_at: list[float] = []
        self.tick()

    def tick(self):
        for one, other in (self.pair, self.pair[::-1]):
            self.sent += 1
            if not self.world.passes(one, other):
                self.count += 1
                self.lost_at.append(self.world.now)
        self.world.at(self.world.now + self.spacing, self.tick)


# --------------------------------------------------------------------- SAK rotation


def test_a_thousand_rotations_lose_no_frame_and_leave_no_sa():
    """ANs go round, old SAs retire after 3 s, and data never stops."""
    with mka_pair() as (a, b):
        world = a.world
        lost = Traffic(world, a, b, 0.05)
        for _ in range(1000):
            a.do(lambda kay: kay.rekey(world.now))
            world.run(3.5)
            assert world.quiet()
        assert lost.count == 0
        assert a.ki.kn == 1001
        assert a.secy.encoding_an == 1000 % 4


def test_rotations_follow_each_other_as_fast_as_the_retire_time_allows():
    """With a short SAK Retire Time at both ends, ten rotations a second lose no frame either."""
    with mka_pair(sak_retire_time_s=0.1) as (a, b):
        world = a.world
        lost = Traffic(world, a, b, 0.005)
        world.run(3)
        for _ in range(100):
            a.do(lambda kay: kay.rekey(world.now))
            world.run(0.11)
            assert world.quiet()
        assert lost.count == 0
        assert a.ki.kn == 101


def test_a_short_retire_time_waits_for_a_peer_whose_mkpdus_are_late():
    """Its claim to transmit comes seconds later; until then its frames under the old key are taken."""
    with mka_pair(sak_retire_time_s=0.1) as (a, b):
        world = a.world
        lost = Traffic(world, a, b, 0.01)
        world.fate = lambda sender, _receiver, _frame: [2.5 if sender is a else 0.001]
        world.run(6)
        for _ in range(5):
            a.do(lambda kay: kay.rekey(world.now))
            world.run(12, lambda: len(b.secy.transmit) == 2)
            world.run(12, world.quiet)
            assert world.quiet()
        assert lost.count == 0


def test_rollover_happens_in_the_order_of_the_standard():
    """Server receives, peer receives, server transmits, peer transmits, both retire 3 s later."""
    with mka_pair() as (a, b):
        world = a.world
        for node in (a, b):
            node.secy.log.clear()
        start = world.now
        a.do(lambda kay: kay.rekey(world.now))
        assert [type(o) for o, _ in a.secy.log] == [CreateReceiveSa, CreateTransmitSa, EnableReceive]
        assert last_pdu(a).distributed_sak is not None
        assert last_pdu(a).sak_use.latest.rx
        assert not last_pdu(a).sak_use.latest.tx
        world.run(1, lambda: any(isinstance(o, EnableTransmit) for o, _ in a.secy.log))
        assert [type(o) for o, _ in b.secy.log] == [CreateReceiveSa, CreateTransmitSa, EnableReceive]
        world.run(1, lambda: any(isinstance(o, EnableTransmit) for o, _ in b.secy.log))
        assert world.now - start < 0.01
        world.run(2.9)
        assert not any(isinstance(o, DeleteTransmitSa) for o, _ in a.secy.log)
        world.run(0.2)
        for node in (a, b):
            assert [type(o) for o, _ in node.secy.log][-2:] == [DeleteTransmitSa, DeleteReceiveSa]
        world.run(2)
        for node in (a, b):
            assert last_pdu(node).sak_use.old.ki == node.ki


def test_rotation_by_time_is_the_servers_and_by_its_own_lifetime():
    """A SAK is replaced when it is 30 s old; the other side's configuration does not count."""
    with mka_pair(a={"sak_lifetime_s": 30.0}, b={"sak_lifetime_s": 5.0}) as (a, b):
        first = a.ki
        a.world.run(26)
        assert a.ki == first
        a.world.run(10)
        assert a.ki.kn == first.kn + 1
        assert b.ki == a.ki
        assert a.snapshot.current.reason == "age"


@pytest.mark.parametrize("suite", [CipherSuite.GCM_AES_128, CipherSuite.GCM_AES_XPN_256], ids=str)
@pytest.mark.parametrize("whose", [0, 1])
def test_rotation_by_packet_number_of_either_side(suite, whose):
    """At 75 % of the numbers, of the server's or of a peer's, a new SAK is made once, and not before."""
    limit = (suite.pn_max + 1) // 4 * 3
    with mka_pair(suites=(suite,)) as pair:
        a, node = pair[0], pair[whose]
        world = a.world
        node.secy.transmit[node.secy.encoding_an].pn = limit - 10
        pair[1 - whose].secy.receive[node.config.sci][a.secy.encoding_an].pn = limit - 10
        for _ in range(6):
            a.observe()
            pair[1].observe()
            world.run(2.0)
        assert a.ki.kn == 1
        node.secy.transmit[node.secy.encoding_an].pn = limit
        for _ in range(6):
            a.observe()
            pair[1].observe()
            world.run(2.0)
        assert a.ki.kn == 2
        assert "packet numbers" in a.snapshot.current.reason
        assert pair[1].ki == a.ki


def test_an_xpn_peer_of_version_1_is_read_by_our_secys_high_half():
    """Without the XPN set only 32 bits arrive; the rest is our own count of its frames."""
    with mka_pair(suites=(CipherSuite.GCM_AES_XPN_256,)) as (a, b):
        world = a.world
        strip_version_2(world, b)
        limit = 0xC000_0000_0000_0000
        an = a.secy.encoding_an
        b.secy.transmit[an].pn = limit + 5
        a.secy.receive[b.config.sci][an].pn = limit + 6
        for _ in range(6):
            a.observe()
            b.observe()
            world.run(2.0)
        assert a.ki.kn == 2


def strip_version_2(world, node):
    """Make what `node` sends look like MKA version 1: no XPN set, no announcement."""
    world.fate = lambda sender, receiver, frame: [0.001]
    original = world.transmit

    def transmit(sender, frame):
        if sender is node:
            parsed = Frame.parse(frame)
            pdu = Mkpdu.parse(parsed.mkpdu)
            old = replace(pdu, basic=replace(pdu.basic, version=1), xpn=None, announcement=None)
            frame = sign(node, old)
        original(sender, frame)

    world.transmit = transmit


def sign(node, pdu, source=None):
    protected = envelope(source or node.config.sci.mac, pdu.serialize())
    cak = node.kay._participants[pdu.basic.ckn].cak
    return protected + cak.icv(protected)


def test_rekey_by_command_is_refused_where_it_cannot_be_done():
    """Not by us where the peer is key server, not where nobody is live; the message says where to go."""
    with mka_pair() as (a, b):
        with pytest.raises(ControlError, match=f"the key server is {a.config.sci}: rekey there"):
            b.kay.rekey(b.world.now)
        a.kill()
        b.world.run(10)
        with pytest.raises(ControlError, match="no peer is live"):
            b.kay.rekey(b.world.now)


def test_delay_protection_bounds_hellos_and_raises_receive_pns():
    """Half-second hellos, the flag, and the LPN sampled a hello ago as the other side's lowest PN."""
    with mka_pair(delay_protection=True) as (a, b):
        world = a.world
        before = len(a.sent)
        an = a.secy.encoding_an
        for _ in range(20):
            a.secy.transmit[an].pn += 100
            a.observe()
            world.run(0.5)
        assert 18 <= len(a.sent) - before <= 24
        assert last_pdu(a).sak_use.delay_protect
        raised = [o.lowest_pn for o, _ in b.secy.log if isinstance(o, UpdateReceivePn)]
        assert raised == sorted(set(raised))
        assert raised[-1] <= a.secy.transmit[an].pn - 100


def test_an_lpn_is_never_zero_not_even_in_an_empty_slot():
    """hostap drops the whole SAK Use of a delay protecting peer where one is 0."""
    with mka_pair(delay_protection=True) as (a, b):
        for node in (a, b):
            for frame in node.sent:
                use = Mkpdu.parse(Frame.parse(frame).mkpdu).sak_use
                assert use is None or (use.latest.lpn >= 1 and use.old.lpn >= 1)


# --------------------------------------------------------------------- peers change


def test_a_killed_peer_that_restarts_is_secured_again_within_a_second():
    """Its new MI replaces the old one at once: no waiting for the old peer to expire."""
    for victim in (0, 1):
        with mka_pair() as pair:
            world = pair[0].world
            world.run(5)
            pair[victim].kill()
            world.run(1)
            pair[victim].start()
            assert world.run(10, world.secured) < 1.0


def test_a_restart_over_living_sas_loses_nothing():
    """keyd is replaced while the SecY goes on: not one frame is lost, and no SA stays behind."""
    for victim in (0, 1):
        with mka_pair() as pair:
            world = pair[0].world
            lost = Traffic(world, *pair)
            for _ in range(5):
                world.run(3)
                pair[victim].kill()
                world.run(4)
                pair[victim].start(adopt=True)
                world.run(8)
                assert world.quiet()
            assert lost.count == 0


def test_a_handover_is_unnoticed_by_the_peers():
    """The successor is the same member: no peer joins or leaves, no frame is lost, numbers go on."""
    for victim in (0, 1):
        with mka_pair() as pair:
            world, node, other = pair[0].world, pair[victim], pair[1 - victim]
            world.run(5)
            lost = Traffic(world, *pair)
            other.facts.clear()
            mi = node.snapshot.participants[0].mi
            for _ in range(3):
                handover = node.kay.handover()
                ahead = replace(handover.identities[0], mn=handover.identities[0].mn + 1000)
                node.kill()
                world.run(3)
                node.start(adopt=True, handover=replace(handover, identities=(ahead,)))
                assert last_pdu(node).sak_use.old.ki == other.ki
                world.run(8)
            assert node.snapshot.participants[0].mi == mi
            assert not [f for f in other.facts if f.name.startswith("peer.")]
            assert lost.count == 0
            assert world.quiet()


def test_a_handover_over_an_empty_secy_makes_a_new_member():
    """Peers believe that the old member has the key; without its SAs we must not pretend to be it."""
    with mka_pair() as (a, b):
        world = a.world
        world.run(5)
        handover, mi = b.kay.handover(), b.snapshot.participants[0].mi
        b.kill()
        b.secy.transmit.clear()
        b.start(adopt=True, handover=handover)
        assert b.snapshot.participants[0].mi != mi
        world.run(20, world.quiet)
        assert world.quiet()


def test_adopted_sas_go_if_nobody_answers():
    """Within the life time of the restart, as they would have without it."""
    with mka_pair() as (a, b):
        world = a.world
        a.kill()
        b.kill()
        a.start(adopt=True)
        assert a.secy.port is PortState.SECURED
        world.run(5.9)
        assert a.secy.transmit
        world.run(0.2)
        assert not a.secy.transmit
        assert a.secy.port is PortState.CLOSED


def test_a_key_that_was_in_use_before_a_restart_is_never_installed_again():
    """A server that distributes the old key to our new incarnation gets no claim, and a new member."""
    with mka_pair() as (a, b):
        world = a.world
        first = b.ki
        offers = [f for f in a.sent if Mkpdu.parse(Frame.parse(f).mkpdu).distributed_sak]
        assert offers
        b.kill()
        b.secy.transmit.clear()
        b.start(adopt=False)
        world.run(10, world.quiet)
        assert world.quiet()
        assert b.ki != first


def test_peers_expire_after_the_life_time_and_the_port_closes():
    """6 s without a word and not earlier; the SAs are gone, the port is closed, nothing is in clear."""
    with mka_pair() as (a, b):
        world = a.world
        world.fate = lambda sender, *_: []
        world.run(3.9)
        assert a.secy.port is PortState.SECURED
        world.run(2.2)
        for node in (a, b):
            assert node.secy.port is PortState.CLOSED
            assert not node.secy.transmit
            assert not node.secy.receive


def test_a_stopped_process_reads_its_backlog_before_it_gives_up_on_peers():
    """SIGSTOP for 5 s: the timers are late, the peers' frames wait unread, no frame is lost."""
    for victim in (0, 1):
        with mka_pair() as pair:
            world = pair[0].world
            world.run(7)
            lost = Traffic(world, *pair)
            pair[victim].freeze()
            world.run(5)
            pair[victim].thaw()
            world.run(10)
            assert lost.count == 0
            assert world.quiet()


def test_should_secure_opens_in_clear_only_without_a_peer():
    """By explicit choice: plain before, secured as soon as a peer is there, plain again when it is gone."""
    world = World()
    a = world.add(10, must_secure=False)
    world.run(7)
    assert a.secy.port is PortState.UNPROTECTED
    b = world.add(11)
    world.run(1)
    assert a.secy.port is PortState.SECURED
    assert world.secured()
    b.kill()
    world.run(7)
    assert a.secy.port is PortState.UNPROTECTED


def ports_ordered(node):
    """Every state of the controlled port that was ordered, in order."""
    return [op.state for op, _ in node.secy.log if isinstance(op, SetControlledPort)]


def test_should_secure_hears_a_life_time_before_it_opens():
    """Where the peer has the key nothing passes in clear: not at start, not when the link or the keys change."""
    world = World()
    a, b = world.add(10, must_secure=False), world.add(11)
    world.run(10)
    assert world.secured()
    other = KeyEntry(b"\7" * 32, Secret(b"o" * 32))
    for node in (a, b):
        node.set_keys(other)
    world.run(10)
    assert world.secured()
    for node in (a, b):
        node.kay.carrier(world.now, up=False)
        node.pump()
    world.run(20)
    assert a.secy.port is PortState.CLOSED
    for node in (a, b):
        node.kay.carrier(world.now, up=True)
        node.pump()
    world.run(5)
    assert world.secured()
    assert PortState.UNPROTECTED not in ports_ordered(a)


def test_should_secure_is_closed_from_the_proof_of_a_peer_until_it_is_secured():
    """The port closes before the first SA is asked for: no plain frame beside a live peer."""
    world = World()
    a = world.add(10, must_secure=False)
    world.run(7)
    a.secy.log.clear()
    world.add(11)
    world.run(2)
    operations = [type(op).__name__ for op, _ in a.secy.log if not isinstance(op, SetControlledPort)]
    first = next(i for i, (op, _) in enumerate(a.secy.log) if isinstance(op, SetControlledPort))
    assert a.secy.log[first][0].state is PortState.CLOSED
    assert "CreateTransmitSa" not in [type(op).__name__ for op, _ in a.secy.log[:first]]
    assert "EnableTransmit" in operations
    assert ports_ordered(a) == [PortState.CLOSED, PortState.SECURED]


def test_should_secure_without_any_key_opens():
    """The last key is taken away: no peer can prove one, so frames pass in clear."""
    world = World()
    a, b = world.add(10, must_secure=False), world.add(11)
    world.run(2)
    assert world.secured()
    a.set_keys()
    b.set_keys()
    world.run(8)
    assert a.secy.port is PortState.UNPROTECTED
    assert b.secy.port is PortState.CLOSED


def test_a_successor_of_one_that_was_open_stays_open():
    """The key daemon restarts while no peer proves a key: no second silence of a life time."""
    world = World()
    a = world.add(10, must_secure=False)
    world.run(7)
    a.secy.log.clear()
    a.kill()
    a.start(adopt=True)
    world.run(1)
    assert a.secy.port is PortState.UNPROTECTED
    world.add(11)
    world.run(2)
    assert world.secured()


def test_must_secure_never_orders_an_open_port():
    """Whatever is tried: no peer, a peer that comes and goes, no keys, no carrier, a SecY found open."""
    world = World()
    a, b = world.add(10), world.add(11)
    world.run(10)
    b.kill()
    world.run(10)
    a.kay.carrier(world.now, up=False)
    a.pump()
    a.kay.carrier(world.now, up=True)
    a.pump()
    world.run(10)
    a.set_keys()
    world.run(10)
    a.kill()
    a.secy.port = PortState.UNPROTECTED
    a.start(adopt=True)
    world.run(10)
    assert PortState.UNPROTECTED not in ports_ordered(a)
    assert a.secy.port is PortState.CLOSED


# --------------------------------------------------------------------- wrong things


def test_wrong_cak_is_never_secured_and_named():
    """Same CKN, other CAK: ICV failures on both sides, nothing believed."""
    world = World()
    a = world.add(10, (KEY,))
    b = world.add(11, (KeyEntry(CKN, Secret(b"x" * 32)),))
    world.run(30)
    for node in (a, b):
        assert node.secy.port is PortState.CLOSED
        assert "its ICV is wrong: the CAKs differ" in node.snapshot.suspicion
        assert dict(node.snapshot.drops)["icv"] > 5
        assert node.snapshot.participants[0].icv_failures > 5
        assert node.snapshot.participants[0].peers == ()


def test_wrong_ckn_is_never_secured_and_the_peers_ckn_is_shown():
    """The peer's CKN has been seen, and it is not ours."""
    world = World()
    a = world.add(10, (KEY,))
    world.add(11, (OTHER_KEY,))
    world.run(30)
    assert a.snapshot.suspicion == f"a peer uses only unknown CKNs: {OTHER_KEY.ckn.hex()}"
    assert a.snapshot.unknown_ckns[0].source == MacAddress.parse("02:00:00:00:00:0b")


def test_silence_and_one_way_loss_are_told_apart():
    """Nothing heard, or heard but not hearing us."""
    world = World()
    a = world.add(10)
    world.run(5)
    assert a.snapshot.suspicion == "no MKPDU has been received"
    b = world.add(11)
    world.fate = lambda sender, receiver, frame: [] if sender is a else [0.001]
    world.run(20)
    assert a.snapshot.suspicion == "a peer is heard, but it does not hear us"
    assert b.snapshot.suspicion == "no MKPDU has been received"


def test_unknown_ckns_are_remembered_boundedly():
    """A flood of claimed CKNs costs a fixed amount of memory."""
    world = World()
    a = world.add(10)
    stranger = World().add(11)
    for n in range(100):
        pdu = Mkpdu(Basic(sci_of(9), b"m" * 12, 1, bytes([n]), key_server=True, priority=1))
        stranger_cak = stranger.kay._participants[CKN].cak
        protected = envelope(sci_of(9).mac, pdu.serialize())
        a.receive(protected + stranger_cak.icv(protected))
    assert len(a.snapshot.unknown_ckns) == 8
    assert dict(a.snapshot.drops) == {"ckn_unknown": 100}


def forged(node, **changes):
    """An authentic MKPDU of `node`'s with other basic fields."""
    pdu = last_pdu(node)
    return sign(node, replace(pdu, basic=replace(pdu.basic, **changes)))


def drop_reasons(node):
    return [entry["reason"] for entry in node.named("mkpdu.dropped")]


def test_replayed_and_reflected_frames_change_nothing():
    """An old MN, our own frame, version 0: dropped by name; a foreign user of our MI makes us take another."""
    with mka_pair() as (a, b):
        world = a.world
        world.run(5)
        mi = a.snapshot.participants[0].mi
        for frame, reason in (
            (b.sent[-1], "mn_not_rising"),
            (b.sent[0], "mn_not_rising"),
            (a.sent[-1], "own_frame"),
            (forged(b, mn=900, version=0), "version"),
        ):
            a.receive(frame)
            assert drop_reasons(a)[-1] == reason
        assert a.snapshot.participants[0].mi == mi
        a.receive(forged(b, mi=mi, mn=5, sci=sci_of(77)))
        assert drop_reasons(a)[-1] == "mi_collision"
        assert a.snapshot.participants[0].mi != mi
        world.run(20, world.quiet)
        assert world.quiet()


def test_a_peer_table_has_a_limit():
    """The 65th member is refused and counted."""
    world = World()
    a = world.add(10)
    b = World().add(11)
    for n in range(66):
        a.receive(forged(b, mi=bytes([n]) * 12, sci=sci_of(100 + n)))
    assert len(a.snapshot.participants[0].peers) == 64
    assert drop_reasons(a) == ["peer_table_full"] * 2


def test_a_server_that_repeats_a_sak_under_another_number_is_refused(monkeypatch):
    """A key server whose random numbers repeat (a restored snapshot) must not make us reuse nonces."""
    with mka_pair(b={"priority": 255}) as (a, b):
        world = a.world
        used = b.kay._cp.in_use.key.sak
        original = Cak.wrap
        monkeypatch.setattr(Cak, "wrap", lambda self, _sak: original(self, used))
        a.do(lambda kay: kay.rekey(world.now))
        world.run(1)
        assert drop_reasons(b)[-1] == "sak_used_before"
        assert b.ki.kn == 1


def test_plain_text_from_the_key_server_is_refused_in_must_secure():
    """A Distributed SAK of length 0 neither opens nor changes anything."""
    with mka_pair() as (a, b):
        a.world.run(5)
        pdu = last_pdu(a)
        b.receive(sign(a, replace(pdu, basic=replace(pdu.basic, mn=900), distributed_sak=DistributedSak())))
        assert drop_reasons(b)[-1] == "sak_plain_text"
        assert b.secy.port is PortState.SECURED


def test_plain_text_from_the_key_server_is_obeyed_in_should_secure():
    """It holds the key, so it may: the keys go, plain frames pass, and the reason is said."""
    with mka_pair(b={"must_secure": False}) as (a, b):
        a.world.run(5)
        pdu = last_pdu(a)
        b.receive(sign(a, replace(pdu, basic=replace(pdu.basic, mn=900), distributed_sak=DistributedSak())))
        assert b.secy.port is PortState.UNPROTECTED
        assert not b.secy.transmit
        assert "orders plain text" in b.snapshot.suspicion
        assert a.secy.port is not PortState.UNPROTECTED


# -------------------------------------------------------------- what the SecY refuses


@pytest.mark.parametrize("operation", [CreateReceiveSa, CreateTransmitSa, EnableReceive])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_refused_key_is_never_claimed_and_traffic_stays_on_the_old_one(operation, victim):
    """hostap reports receiving whatever its SecY says; we do not, and try again."""
    with mka_pair() as pair:
        a, node = pair[0], pair[victim]
        world = a.world
        world.run(4)
        first = node.ki
        node.secy.refuse = lambda op: "ENOSPC" if isinstance(op, operation) else None
        a.do(lambda kay: kay.rekey(world.now))
        world.run(3)
        for frame in node.sent:
            use = Mkpdu.parse(Frame.parse(frame).mkpdu).sak_use
            assert use is None or not use.latest.rx or use.latest.ki == first
        assert node.ki == first
        assert "ENOSPC" in node.snapshot.suspicion
        node.secy.refuse = lambda op: None
        world.run(20, lambda: world.quiet() and a.ki != first)
        assert world.quiet()
        assert a.ki == pair[1].ki != first


@pytest.mark.parametrize("victim", [0, 1])
def test_a_refused_switch_of_transmit_falls_back_to_the_old_sa_and_recovers(victim):
    """CP stuck in TRANSMIT: the enable is repeated, then given up, and a new key is asked for."""
    with mka_pair() as pair:
        a, node = pair[0], pair[victim]
        world = a.world
        first = node.ki
        node.secy.refuse = lambda op: "EIO" if isinstance(op, EnableTransmit) else None
        a.do(lambda kay: kay.rekey(world.now))
        world.run(0.2)
        assert node.kay.state is CpState.TRANSMIT
        world.run(0.9)
        node.secy.refuse = lambda op: None
        world.run(20, lambda: world.quiet() and node.ki != first)
        assert world.quiet()


def test_a_refused_deletion_is_repeated_until_it_succeeds():
    """An old SA that the SecY would not give up does not stay for ever."""
    with mka_pair() as (a, _):
        world = a.world
        a.secy.refuse = lambda op: "EBUSY" if isinstance(op, DeleteTransmitSa | DeleteReceiveSa) else None
        a.do(lambda kay: kay.rekey(world.now))
        world.run(10)
        assert len(a.secy.transmit) == 2
        a.secy.refuse = lambda op: None
        world.run(3)
        assert len(a.secy.transmit) == 1
        assert world.quiet()


def test_sas_taken_away_by_hand_are_noticed_and_replaced():
    """Someone ran `ip macsec del`: two observations later a new key is on its way, never the old one."""
    for victim in (0, 1):
        with mka_pair() as pair:
            world, node = pair[0].world, pair[victim]
            world.run(5)
            first = node.ki
            node.secy.transmit.clear()
            for _ in range(3):
                node.observe()
                world.run(2)
            world.run(15, world.quiet)
            assert world.quiet()
            assert node.ki != first
            assert node.named("secy.sa_missing")


# ------------------------------------------------------------------ known wedges


def test_a_delayed_sak_use_costs_at_most_the_life_time_and_no_deadlock():
    """The server does not wait for ever: after 6 s it transmits, and the late claim still finishes it."""
    with mka_pair() as (a, b):
        world = a.world
        world.run(4)
        first, rotated_at, transmit = a.ki, world.now, world.transmit

        def without_claim(sender, frame):
            if sender is b and world.now < rotated_at + 7:
                pdu = Mkpdu.parse(Frame.parse(frame).mkpdu)
                frame = sign(b, replace(pdu, sak_use=replace(pdu.sak_use, latest=KeyUse())))
            transmit(sender, frame)

        world.transmit = without_claim
        lost = Traffic(world, a, b)
        a.do(lambda kay: kay.rekey(world.now))
        world.run(5.9)
        assert a.ki == first
        world.run(0.2)
        assert a.ki != first
        world.run(20, world.quiet)
        assert world.quiet()
        assert lost.count == 0


def test_sas_of_a_dirty_restart_are_cleared_out_of_the_way():
    """A SecY that still has SAs of a former life refuses the new ones once, and no longer."""
    with mka_pair() as (a, b):
        world = a.world
        b.kill()
        transmit, receive = b.secy.transmit.copy(), {sci: dict(t) for sci, t in b.secy.receive.items()}
        b.start()
        b.secy.transmit.update(transmit)
        b.secy.receive.update(receive)
        b.secy.transmit[1] = b.secy.transmit[0]
        world.run(20, world.quiet)
        assert a.ki == b.ki
        assert world.secured()


class Killed(Exception):  # noqa: N818 - an end, not an error
    """The process died here."""


@pytest.mark.parametrize("adopt", [False, True])
@pytest.mark.parametrize("steps", range(1, 13))
def test_key_server_killed_at_every_step_of_a_rollover_is_survived(steps, adopt):
    """The server dies after its n-th output of a rotation and restarts: secured again, nothing in clear."""
    with mka_pair() as (a, _):
        world = a.world
        world.run(4)
        left = steps
        transmit, apply = world.transmit, a.secy.apply

        def spend():
            nonlocal left
            left -= 1
            if left <= 0:
                raise Killed

        def transmit_and_die(sender, frame):
            transmit(sender, frame)
            if sender is a:
                spend()

        def apply_and_die(operation):
            apply(operation)
            spend()

        world.transmit, a.secy.apply = transmit_and_die, apply_and_die
        world.at(world.now, lambda: a.do(lambda kay: kay.rekey(world.now)))
        with pytest.raises(Killed):
            world.run(10)
        world.transmit, a.secy.apply = transmit, apply
        a.kill()
        a.pumping = False
        world.run(2)
        a.start(adopt=adopt)
        world.run(20, world.quiet)
        assert world.quiet()


def test_a_successor_takes_frames_under_the_key_that_its_predecessor_had_just_begun_with():
    """It died before it switched, and the server after: the SA that explains those frames goes with the next key."""
    with mka_pair() as (a, b):
        world = a.world
        world.run(4)
        apply = b.secy.apply

        def die_at_the_switch(operation):
            if isinstance(operation, EnableTransmit):
                raise Killed
            return apply(operation)

        b.secy.apply = die_at_the_switch
        world.at(world.now, lambda: a.do(lambda kay: kay.rekey(world.now)))
        with pytest.raises(Killed):
            world.run(1)
        b.secy.apply = apply
        b.kill()
        b.pumping = False
        lost = Traffic(world, a, b)
        world.run(0.3)
        b.start(adopt=True)
        world.run(20, world.quiet)
        assert world.quiet()
        assert lost.count <= 1, "of those under the old key, between its end there and our switch to the next"
        assert {len(table) for table in b.secy.receive.values()} == {1}


def test_a_mute_key_server_is_asked_anew(monkeypatch):
    """A server that forgot to distribute (hostap drops early requests) sees a new member in the end."""
    world = World()
    a = world.add(10)
    b = world.add(11, priority=32)
    monkeypatch.setattr(a.kay, "_make_sak", lambda now: None)
    world.run(14)
    mi = b.snapshot.participants[0].mi
    world.run(4)
    assert b.snapshot.participants[0].mi != mi
    assert b.named("actor.new_mi")[-1]["why"] == "no SAK came from the key server"
    monkeypatch.undo()
    world.run(20, world.quiet)
    assert world.quiet()


def test_a_mute_key_server_gets_more_patience_each_time(monkeypatch):
    """A new MI voids what a slow server is about to distribute, so the requests thin out; a key resets them."""
    world = World()
    a = world.add(10)
    b = world.add(11, priority=32)
    monkeypatch.setattr(a.kay, "_make_sak", lambda now: None)
    world.run(15 + 30 + 60 + 2)
    assert len([f for f in b.named("actor.new_mi") if f["why"].startswith("no SAK")]) == 3
    world.run(100)
    assert len([f for f in b.named("actor.new_mi") if f["why"].startswith("no SAK")]) == 3
    monkeypatch.undo()
    world.run(20, world.quiet)
    assert world.quiet()
    assert b.kay._patience_s() == 7.0, "and it uses a key: the least patience again"


# ---------------------------------------------------------------------- key chains


def test_a_new_cak_takes_over_without_losing_a_frame():
    """Add on both sides, the server switches when all are live there, then the old one is removed."""
    with mka_pair(keys=(OTHER_KEY,)) as (a, b):
        world = a.world
        lost = Traffic(world, a, b)
        for node in (b, a):
            node.set_keys(NEWER_KEY, OTHER_KEY)
            world.run(5)
        for node in (a, b):
            assert node.snapshot.principal == NEWER_KEY.ckn
            assert node.snapshot.current.ckn == NEWER_KEY.ckn
        for node in (a, b):
            node.set_keys(NEWER_KEY)
            world.run(5)
        assert lost.count == 0
        assert world.quiet()


def test_another_cak_under_the_same_ckn_is_another_key():
    """The key is replaced, not kept by its name: with the old one on the other side nothing is believed."""
    with mka_pair() as (a, b):
        world = a.world
        changed = KeyEntry(CKN, Secret(b"z" * 32))
        a.set_keys(changed)
        world.run(7)
        assert a.secy.port is PortState.CLOSED
        b.set_keys(changed)
        world.run(10, world.quiet)
        assert world.quiet()


def test_a_retired_sak_is_wiped():
    """Of the octets that we hold of a key, none is left once its SAs are deleted."""
    with mka_pair() as (a, _):
        key = a.kay._cp.in_use.key
        assert any(key.sak.reveal())
        a.do(lambda kay: kay.rekey(a.world.now))
        a.world.run(2.5)
        assert any(key.sak.reveal())
        a.world.run(2)
        assert not any(key.sak.reveal())


def test_a_key_that_only_one_side_has_changes_nothing():
    """The bad key is skipped: traffic stays on the old one, from either side."""
    for side in (0, 1):
        with mka_pair(keys=(OTHER_KEY,)) as pair:
            world = pair[0].world
            lost = Traffic(world, *pair)
            pair[side].set_keys(NEWER_KEY, OTHER_KEY)
            world.run(30)
            assert lost.count == 0
            assert pair[side].snapshot.current.ckn == OTHER_KEY.ckn


def test_the_server_falls_back_to_the_last_working_key():
    """The peer removes the new key again: the link returns to the old one without being closed."""
    with mka_pair(keys=(NEWER_KEY, OTHER_KEY)) as (a, b):
        world = a.world
        assert a.snapshot.current.ckn == NEWER_KEY.ckn
        lost = Traffic(world, a, b)
        b.set_keys(OTHER_KEY)
        world.run(20)
        assert a.snapshot.current.ckn == b.snapshot.current.ckn == OTHER_KEY.ckn
        assert lost.count == 0


def test_a_standby_key_is_run_but_not_chosen():
    """Before its start time a key's peers are live already, and the server does not take it yet."""
    with mka_pair(keys=(OTHER_KEY,)) as (a, b):
        world = a.world
        for node in (a, b):
            node.set_keys(replace(NEWER_KEY, eligible=False), OTHER_KEY)
        world.run(10)
        assert a.snapshot.principal == OTHER_KEY.ckn
        assert a.snapshot.participants[0].peers[0].live
        a.set_keys(NEWER_KEY, OTHER_KEY)
        world.run(5)
        assert a.snapshot.principal == b.snapshot.principal == NEWER_KEY.ckn


def test_five_keys_roll_every_few_seconds_without_loss_and_block_after_the_last():
    """OpenConfig PF-1.17: no loss while keys one to five expire, all lost after the fifth."""
    keys = [KeyEntry(bytes([n]) * 8, Secret(bytes([n]) * 32)) for n in range(1, 6)]
    with mka_pair(keys=keys[:1]) as (a, b):
        world = a.world
        lost = Traffic(world, a, b)
        for n in range(1, 5):
            for node in (a, b):
                node.set_keys(keys[n], keys[n - 1])
            world.run(5)
            for node in (a, b):
                node.set_keys(keys[n])
            world.run(3)
            assert a.snapshot.current.ckn == keys[n].ckn
        assert lost.count == 0
        for node in (a, b):
            node.set_keys()
        world.run(1)
        for node in (a, b):
            assert node.secy.port is PortState.CLOSED
            assert not node.secy.transmit
        assert "no key is valid now" in a.snapshot.suspicion


def test_the_other_server_of_a_second_ca_does_not_take_over_from_a_better_one():
    """Key servers that differ between CAs: the better priority decides, the port does not flap."""
    with mka_pair(keys=(OTHER_KEY,)) as (a, b):
        world = a.world
        for node in (a, b):
            node.set_keys(NEWER_KEY, OTHER_KEY)
        world.run(30)
        assert len(a.named("principal")) <= 3
        assert a.snapshot.principal == b.snapshot.principal == NEWER_KEY.ckn


# ------------------------------------------------------------------------- explain


def test_all_frames_invalid_while_secured_names_the_suspect():
    """Secured and every frame NotValid: the SSCI order with XPN, the suite without."""
    for suite, cause in (
        (CipherSuite.GCM_AES_XPN_256, "SSCI order or suite suspected"),
        (CipherSuite.GCM_AES_128, "suite suspected"),
    ):
        with mka_pair(suites=(suite,)) as (a, _):
            a.world.run(4)
            for count in (0, 10, 20, 30):
                a.observe(in_pkts_not_valid=count)
            assert a.snapshot.suspicion == f"secured but every frame NotValid: {cause}"
            a.observe(in_pkts_not_valid=40, in_pkts_ok=1)
            assert a.snapshot.suspicion == ""


def test_snapshot_tells_age_rate_and_exhaustion_and_no_secret():
    """Seconds to exhaustion follow from the current rate; no key is in any text of it."""
    with mka_pair(suites=(CipherSuite.GCM_AES_128,)) as (a, _):
        world = a.world
        for _ in range(5):
            world.run(2)
            a.secy.transmit[a.secy.encoding_an].pn += 2_000_000
            a.observe()
        current = a.snapshot.current
        assert current.exhaustion_s == pytest.approx((2**32 - current.next_pn) / 1e6, rel=0.01)
        assert current.age_s == pytest.approx(10, abs=0.1)
        assert a.snapshot.transitions[-1].now is CpState.RETIRE
        text = repr(a.snapshot) + repr(a.facts) + repr([operation for operation, _ in a.secy.log])
        assert CAK.reveal().hex() not in text
        for node in world.nodes:
            assert repr(node.secy.transmit[node.secy.encoding_an].key.sak.reveal())[2:-1] not in text


def test_next_timer_is_always_in_the_future_and_handling_early_is_harmless():
    """The driver's one timer never spins."""
    with mka_pair() as (a, b):
        world = a.world
        for _ in range(200):
            world.run(0.17)
            for node in (a, b):
                node.do(lambda kay: kay.handle_timer(world.now))
                assert node.kay.next_timer() > world.now
        assert world.quiet()


def test_the_driver_may_drain_late():
    """Outputs wait in order; nothing is claimed before the SecY has answered."""
    world = World()
    a = world.add(10)
    b = world.add(11, priority=32)
    b.pumping = True
    world.run(0.5)
    outputs = b.kay.take_outputs()
    assert not any(isinstance(o, EnableTransmit) for o in outputs)
    claims = [o.frame for o in outputs if isinstance(o, SendMkpdu)]
    assert all(Mkpdu.parse(Frame.parse(frame).mkpdu).sak_use is None for frame in claims)
    assert a.secy.port is PortState.SECURED or a.secy.port is PortState.CLOSED
