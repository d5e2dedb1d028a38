"""Against a peer with hostap's manners: what deployed wpa_supplicants do beside the standard.

The peer is our own KaY behind a filter that gives its MKPDUs, and what it accepts, hostap's form:
MKA version 1 without Announcement and XPN; who comes within 6 s of a SAK's distribution never gets
one, nor does a member that goes cause one; only our last two message numbers count as recent; a
new MI from a known SCI is ignored until the old one expires; priority 255 is an ordinary number;
GCM-AES-128 only in the short form or under the misprinted id; a whole SAK Use is discarded when its
sender claims delay protection and either LPN is 0.
"""

from collections import deque
from dataclasses import replace

import pytest
from mka_world import CKN, Node, World, sci_of

from router.mka.events import PortState
from router.mka.kay import KayConfig
from router.mka.mkpdu import SUITE_ID_MISPRINTED, Frame, KeyUse, Mkpdu, envelope
from router.model import CipherSuite


class HostapNode(Node):
    """A station that speaks and listens like hostap 2.10."""

    def __init__(self, world, number, priority=100, *, misprinted=False):
        self.misprinted = misprinted
        self.own_mns: deque[int] = deque(maxlen=2)
        self.known: dict[object, tuple[bytes, float]] = {}
        self.discarded_uses = 0
        config = KayConfig(
            sci=sci_of(number), priority=priority, suites=(CipherSuite.GCM_AES_128,), announce=False
        )
        super().__init__(world, number, config)

    def start(self, **how):
        super().start(**how)
        make_sak = self.kay._make_sak

        def make_unless_early(now):
            """For new members alone, and once only: too early is never."""
            kay = self.kay
            participant, key = kay._principal, kay._newest()
            if key is not None and key.ki == kay._made_ki:
                mis = frozenset({participant.mi} | {peer.mi for peer in participant.live})
                if mis < key.member_mis or (mis != key.member_mis and now < kay._made_at + 6.0):
                    object.__setattr__(key, "member_mis", mis)
                    kay._made = None  # it is not distributed any more
            make_sak(now)

        self.kay._make_sak = make_unless_early

    @property
    def cak(self):
        return self.kay._participants[CKN].cak

    def spoken(self, frame):
        pdu = Mkpdu.parse(Frame.parse(frame).mkpdu)
        self.own_mns.append(pdu.basic.mn)
        sak = pdu.distributed_sak
        if sak is not None and self.misprinted:
            sak = replace(sak, suite_id=SUITE_ID_MISPRINTED)
        old = replace(
            pdu, basic=replace(pdu.basic, version=1), xpn=None, announcement=None, distributed_sak=sak
        )
        protected = envelope(self.config.sci.mac, old.serialize())
        return protected + self.cak.icv(protected)

    def receive(self, frame):
        if self.kay is None:
            return
        pdu = Mkpdu.parse(Frame.parse(frame).mkpdu)
        now, sci, mi = self.world.now, pdu.basic.sci, pdu.basic.mi
        known = self.known.get(sci)
        if known is not None and known[0] != mi and now < known[1]:
            return
        self.known[sci] = mi, now + 6.0
        own = self.kay._participants[CKN].mi
        stale = [e for e in (*pdu.live, *pdu.potential) if e.mi == own and e.mn not in self.own_mns]
        if stale:
            pdu = replace(
                pdu,
                live=tuple(e for e in pdu.live if e not in stale),
                potential=tuple(e for e in pdu.potential if e not in stale),
            )
        use = pdu.sak_use
        if use is not None and use.delay_protect and 0 in {use.latest.lpn, use.old.lpn}:
            self.discarded_uses += 1
            pdu = replace(pdu, sak_use=None)
        assert pdu.distributed_sak is None or pdu.distributed_sak.suite_id in {None, SUITE_ID_MISPRINTED}
        protected = envelope(sci.mac, pdu.serialize())
        super().receive(protected + self.cak.icv(protected))


def hostap_pair(peer_priority=100, misprinted=False, **config):
    world = World()
    transmit = world.transmit

    def with_manners(sender, frame):
        transmit(sender, sender.spoken(frame) if isinstance(sender, HostapNode) else frame)

    world.transmit = with_manners
    us = world.add(10, suites=(CipherSuite.GCM_AES_128,), **config)
    peer = HostapNode(world, 11, peer_priority, misprinted=misprinted)
    world.nodes.append(peer)
    return world, us, peer


@pytest.mark.parametrize(
    ("ours", "theirs", "server"), [(16, 100, 10), (200, 100, 11), (255, 255, 10), (255, 100, 11)]
)
def test_secured_whoever_serves(ours, theirs, server):
    """Also with 255 on both sides, which hostap takes for an ordinary number."""
    world, us, peer = hostap_pair(theirs, priority=ours)
    world.run(10, world.quiet)
    assert world.quiet()
    assert us.snapshot.participants[0].server == peer.snapshot.participants[0].server == sci_of(server)
    assert us.snapshot.participants[0].peers[0].version == 1


@pytest.mark.parametrize("misprinted", [False, True])
def test_its_forms_of_gcm_aes_128_are_understood(misprinted):
    """The short form and the misprinted identifier of 2006."""
    world, us, _ = hostap_pair(priority=200, misprinted=misprinted)
    world.run(10, world.quiet)
    assert world.quiet()
    assert us.snapshot.current.suite is CipherSuite.GCM_AES_128


def test_delay_protection_never_makes_it_discard_our_sak_use():
    """An LPN of 0 would make hostap as server wait for our claim for ever."""
    world, us, peer = hostap_pair(priority=16, delay_protection=True)
    world.run(20, world.quiet)
    for _ in range(5):
        us.observe()
        world.run(1)
    assert world.quiet()
    assert peer.discarded_uses == 0


def test_bursts_of_ours_do_not_lose_it():
    """A distribution that crosses its own burst is stale to it; the repetition a hello later is not."""
    world, us, _ = hostap_pair(priority=16)
    world.run(10, world.quiet)
    for _ in range(20):
        us.do(lambda kay: kay.rekey(world.now))
        world.run(6)
        assert world.quiet()
    assert not us.named("peer.lost")


def test_a_restart_of_ours_is_unnoticed_with_a_handover_and_heals_without():
    """It ignores our new member until the old one expires: hence the handover."""
    world, us, peer = hostap_pair(priority=200)
    world.run(10, world.quiet)
    handover = us.kay.handover()
    us.kill()
    world.run(1)
    us.start(adopt=True, handover=handover)
    peer.facts.clear()
    world.run(20)
    assert world.quiet()
    assert not [fact for fact in peer.facts if fact.name.startswith("peer.")]
    us.kill()
    world.run(1)
    us.start()
    assert world.run(30, world.quiet) < 15
    assert world.quiet()


def forgetful_segment(late_s):
    """Return a wire with hostap as key server, a member, and us, who come so long after a SAK was made."""
    world = World()
    transmit = world.transmit

    def with_manners(sender, frame):
        transmit(sender, sender.spoken(frame) if isinstance(sender, HostapNode) else frame)

    world.transmit = with_manners
    server = HostapNode(world, 11, 16)
    world.nodes.append(server)
    world.add(12, suites=(CipherSuite.GCM_AES_128,), priority=100)
    world.run(10, world.quiet)
    assert world.quiet()
    world.run(7)
    server.do(lambda kay: kay.rekey(world.now))
    world.run(late_s)
    return world, world.add(10, suites=(CipherSuite.GCM_AES_128,), priority=200)


@pytest.mark.parametrize("late_s", [0.5, 1.5, 3.0, 4.5, 5.5])
def test_a_key_server_that_forgot_us_is_reminded_in_time(late_s):
    """Its SAK never comes until we are a new member.

    It does not know the new one while the old one lives, so it proves no presence to it either; it
    must not be lost for that, or we would serve a CA of our own, secured with nobody.
    """
    world, us = forgetful_segment(late_s)
    assert world.run(60, world.secured) < 15
    assert world.secured()
    assert not us.named("sak.made")
    assert not us.named("peer.lost")


def test_a_key_of_our_own_is_none_where_another_serves():
    """Hearing the member first we serve it, in vain: it has a better server, which then forgets us."""
    world, us = forgetful_segment(0.1)
    deaf_until = world.now + 4.0
    world.fate = lambda sender, receiver, _frame: (
        [] if sender.number == 11 and receiver is us and world.now < deaf_until else [0.001]
    )
    world.run(3)
    assert us.named("sak.in_use")
    assert us.secy.port is PortState.SECURED, "as far as we can know"
    assert world.run(60, world.secured) < 25
    assert world.secured()


def test_keys_reported_in_the_latest_slot_count_as_well():
    """Peers of other vendors keep the key in use in the latest slot; it is found by its identifier."""
    world, us, peer = hostap_pair(priority=16)
    spoken = peer.spoken

    def latest(frame):
        frame = spoken(frame)
        pdu = Mkpdu.parse(Frame.parse(frame).mkpdu)
        if pdu.sak_use is None or pdu.sak_use.latest != KeyUse():
            return frame
        moved = replace(pdu, sak_use=replace(pdu.sak_use, latest=pdu.sak_use.old, old=KeyUse()))
        protected = envelope(peer.config.sci.mac, moved.serialize())
        return protected + peer.cak.icv(protected)

    peer.spoken = latest
    world.run(30, world.quiet)
    first = us.ki
    world.run(30)
    assert world.quiet()
    assert us.ki == first
