"""An MKA participant (IEEE 802.1X-2020 9.4 to 9.6): one actor in the CA that one CKN names.

It knows who else holds the CAK. A peer whose valid MKPDU we have seen is *potential*; once it lists
our member identifier with a message number that we sent within the last MKA Life Time it has
proved to be there now, and is *live*. From the live peers and ourselves the key server is elected.

SAKs, the SecY and several CAs at once are the KaY's business.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from router.mka.cp import MKA_LIFE_TIME_S
from router.mka.events import Output, fact
from router.mka.keys import Cak
from router.mka.mkpdu import (
    MI_SIZE,
    Basic,
    DropReason,
    KeyIdentifier,
    Mkpdu,
    MkpduError,
    PeerEntry,
    SakUse,
    Xpn,
)
from router.model import CipherSuite, Sci

# Of the standard (table 9-3, 9.5).
PRIORITY_NEVER: Final = 255
# Of ours.
PEERS_MAX: Final = 64
"""Members of a CA that we keep track of, ourselves not counted."""
GONE_MAX: Final = 256
"""MIs of former peers that we keep track of."""
RAMP_S: Final = (0.1, 0.2, 0.4, 0.8, 0.8)
"""Intervals of the first hellos after start or link-up; then the regular ones."""
_NUMBER_RENEWAL: Final = 0xFFFFFF00
"""MN from which a new MI is taken: 32 bits must never wrap under one MI (9.4.2)."""


@dataclass(slots=True)
class Peer:
    """What we know of another member."""

    mi: bytes
    mn: int
    basic: Basic
    live: bool
    expires_at: float
    last_seen: float
    since: float
    """When it became potential, then live."""
    offers: tuple[CipherSuite, ...] | None = None
    """Announced cipher suites, None if it announces none."""
    sak_use: SakUse | None = None
    xpn: Xpn | None = None
    sees: frozenset[bytes] = frozenset()
    """MIs in its Live Peer List."""

    @property
    def sci(self) -> Sci:
        """The secure channel that it transmits on."""
        return self.basic.sci

    def receives(self, ki: KeyIdentifier) -> bool:
        """Whether it reports receiving under that key, in either slot."""
        use = self.sak_use
        return use is not None and any(slot.ki == ki and slot.rx for slot in (use.latest, use.old))

    @property
    def uses(self) -> frozenset[KeyIdentifier]:
        """The keys that it reports transmitting under."""
        use = self.sak_use
        return frozenset() if use is None else frozenset(slot.ki for slot in (use.latest, use.old) if slot.tx)

    def transmits(self, ki: KeyIdentifier) -> bool:
        """Whether it reports transmitting under that key, in either slot."""
        use = self.sak_use
        return use is not None and any(slot.ki == ki and slot.tx for slot in (use.latest, use.old))


@dataclass(frozen=True, slots=True)
class Identity:
    """Who we are in a CA: what a successor of this process needs to go on as the same member."""

    ckn: bytes
    mi: bytes
    mn: int
    """At least the last message number sent; gaps do no harm."""
    kn: int
    """At least the last key number given."""


class Participant:
    """The actor of one CA."""

    def __init__(
        self,
        *,
        cak: Cak,
        sci: Sci,
        priority: int,
        suspension_limit_s: float,
        entropy: Callable[[int], bytes],
        outputs: list[Output],
        now: float,
        identity: Identity | None = None,
    ) -> None:
        self.cak = cak
        self._sci = sci
        self._priority = priority
        self._suspension_limit_s = suspension_limit_s
        self._entropy = entropy
        self._outputs = outputs
        self.eligible = True
        self.mi = b""
        self.mn = 0
        self.kn = 0
        self.peers: dict[bytes, Peer] = {}
        self.server: bytes | None = None
        """MI of the elected key server, our own included; None while nobody is live."""
        self.new_info = True
        """The peers should hear of us now."""
        self.hello_at = now
        self.ramp = 0
        self.used_sak = False
        """SAK Use has been sent under this MI: hostap then wants it in every MKPDU."""
        self.icv_failures = 0
        self.icv_failed_at: float | None = None
        self.heard_at: float | None = None
        """When the last authentic MKPDU came."""
        self._sent: deque[tuple[int, float]] = deque()
        self._former_mi = b""
        self._former_sent: deque[tuple[int, float]] = deque()
        """What was sent under our former MI: a peer that lists it is there, though it does not know the new one."""
        self._gone: OrderedDict[bytes, tuple[int, float]] = OrderedDict()
        """Last MN of MIs that left, and until when they may not return at all: MKPDUs still under way
        must not bring back what they replaced."""
        if identity is None:
            self.take_new_mi("start")
        else:
            self.mi, self.mn, self.kn = identity.mi, identity.mn, identity.kn

    # ------------------------------------------------------------------ ourselves

    @property
    def ckn(self) -> bytes:
        """Name of the CA."""
        return self.cak.ckn

    @property
    def live(self) -> list[Peer]:
        """Peers that have proved to be there now."""
        return [peer for peer in self.peers.values() if peer.live]

    @property
    def potential(self) -> list[Peer]:
        """Peers that hold the CAK and have not yet shown that they hear us."""
        return [peer for peer in self.peers.values() if not peer.live]

    @property
    def mutual(self) -> bool:
        """Whether every live peer sees every other one."""
        mis = {peer.mi for peer in self.live}
        return all(mis - {peer.mi} <= peer.sees for peer in self.live)

    @property
    def elected_self(self) -> bool:
        """Whether we are the key server."""
        return self.server == self.mi

    @property
    def server_peer(self) -> Peer | None:
        """The elected key server where it is a peer."""
        return self.peers.get(self.server) if self.server is not None else None

    @property
    def server_rank(self) -> tuple[int, bytes] | None:
        """The elected server's place in the order of 9.5: priority, then SCI; less is better."""
        if self.elected_self:
            return self._priority, self._sci.pack()
        peer = self.server_peer
        return None if peer is None else (peer.basic.priority, peer.sci.pack())

    def take_new_mi(self, why: str) -> None:
        """Become a new member (9.4.2). Peers keep the old one until the new one is live to them.

        To the key server that is a change of its live peer list: it must make a new SAK.
        """
        was_server = self.elected_self
        self._former_mi, self._former_sent, self._sent = self.mi, self._sent, deque()
        self.mi = self._entropy(MI_SIZE)
        self.mn = self.kn = 0
        self.used_sak = False
        self.new_info = True
        if was_server:
            self.server = self.mi
        self._outputs.append(fact("actor.new_mi", ckn=self.ckn.hex(), mi=self.mi.hex(), why=why))

    def next_mn(self, now: float) -> int:
        """Return the message number for the MKPDU sent now."""
        if self.mn >= _NUMBER_RENEWAL:
            self.take_new_mi("message numbers used up")
        self.mn += 1
        self._sent.append((self.mn, now))
        self._forget_sent(now)
        return self.mn

    def next_kn(self) -> int:
        """Return the number of the next SAK that we make, from 1 under each MI."""
        if self.kn >= _NUMBER_RENEWAL:
            self.take_new_mi("key numbers used up")
        self.kn += 1
        return self.kn

    def _forget_sent(self, now: float) -> None:
        for sent in (self._sent, self._former_sent):
            while sent and sent[0][1] < now - MKA_LIFE_TIME_S:
                sent.popleft()

    # ------------------------------------------------------------------ receiving

    def receive(self, pdu: Mkpdu, now: float) -> Peer:
        """Take an authentic MKPDU (9.4.3). Raises MkpduError where it must be ignored."""
        basic = pdu.basic
        if basic.version < 1:
            raise MkpduError(DropReason.VERSION, "MKA version 0")
        if basic.sci.mac == self._sci.mac:
            # Our own frame on a looped wire, or a station with our address: no reason to change MI.
            raise MkpduError(DropReason.OWN_FRAME, f"an MKPDU of our own SCI {basic.sci} came back")
        if basic.mi == self.mi:
            self.take_new_mi(f"{basic.sci} has the same one")
            raise MkpduError(DropReason.MI_COLLISION, f"{basic.sci} has our MI")
        peer = self.peers.get(basic.mi)
        last, barred_until = (peer.mn, 0.0) if peer is not None else self._gone.get(basic.mi, (0, 0.0))
        if basic.mn <= last:
            raise MkpduError(DropReason.MN_NOT_RISING, f"MN {basic.mn} after {last} from {basic.sci}")
        if now < barred_until:
            raise MkpduError(DropReason.MI_REPLACED, f"{basic.sci} has a newer MI")
        if peer is None and len(self.peers) >= PEERS_MAX:
            raise MkpduError(DropReason.PEER_TABLE_FULL, f"{basic.sci} would be peer {PEERS_MAX + 1}")
        self.heard_at = now
        proven = self._lists_us(pdu, now)
        expires_at = now + MKA_LIFE_TIME_S
        if pdu.xpn is not None and pdu.xpn.suspension_s:
            expires_at = now + max(MKA_LIFE_TIME_S, min(pdu.xpn.suspension_s, self._suspension_limit_s))
        if peer is None:
            peer = Peer(basic.mi, basic.mn, basic, False, expires_at, now, now)
            self.peers[basic.mi] = peer
            self.new_info = True
            self._peer_fact("peer.potential", peer)
        peer.mn, peer.basic, peer.last_seen = basic.mn, basic, now
        offers = pdu.announcement.offers if pdu.announcement is not None else None
        if offers is not None:
            peer.offers = tuple(offer.suite for offer in offers if offer.suite is not None)
        peer.sees = frozenset(entry.mi for entry in pdu.live)
        if pdu.sak_use is not None:
            peer.sak_use, peer.xpn = pdu.sak_use, pdu.xpn
        if proven or not peer.live or self._lists_former_us(pdu):
            peer.expires_at = expires_at
        if proven and not peer.live:
            self._welcome(peer, now)
        elif peer.live and not proven:
            self.new_info = True  # it has lost sight of us, or of itself: it should hear us before we expire
        self.elect()
        return peer

    def _lists_us(self, pdu: Mkpdu, now: float) -> bool:
        """Whether the sender lists our MI with a message number of the last MKA Life Time."""
        self._forget_sent(now)
        for entry in (*pdu.live, *pdu.potential):
            if entry.mi == self.mi:
                if entry.mn > self.mn:
                    self.take_new_mi(f"{pdu.basic.sci} heard MN {entry.mn} under it, we are at {self.mn}")
                    return False
                return bool(self._sent) and entry.mn >= self._sent[0][0]
        return False

    def _lists_former_us(self, pdu: Mkpdu) -> bool:
        """Whether the sender lists the MI that we had a moment ago: so it is there now, that is all.

        hostap ignores a new MI until the old one has expired there, which may take as long as our
        own patience with it: without this we would lose it just before it turns to us.
        """
        return any(
            entry.mi == self._former_mi and bool(self._former_sent) and entry.mn >= self._former_sent[0][0]
            for entry in (*pdu.live, *pdu.potential)
        )

    def _welcome(self, peer: Peer, now: float) -> None:
        """A potential peer becomes live; the same station's former MI, if any, is gone by that."""
        peer.live, peer.since = True, now
        for other in [o for o in self.peers.values() if o.sci == peer.sci and o is not peer]:
            self._leave(other, now + MKA_LIFE_TIME_S)
            self._peer_fact("peer.replaced", other)
        self.new_info = True
        self._peer_fact("peer.live", peer)

    def _leave(self, peer: Peer, barred_until: float) -> None:
        del self.peers[peer.mi]
        self._gone[peer.mi] = peer.mn, barred_until
        self._gone.move_to_end(peer.mi)
        while len(self._gone) > GONE_MAX:
            self._gone.popitem(last=False)

    def expire(self, now: float) -> None:
        """Forget peers not heard of within the MKA Life Time."""
        for peer in [p for p in self.peers.values() if now >= p.expires_at]:
            self._leave(peer, now)
            self.new_info = True
            self._peer_fact("peer.lost", peer)
        self.elect()

    def postpone(self, seconds: float) -> None:
        """We were not running: what the peers sent meanwhile may still wait to be read."""
        for peer in self.peers.values():
            peer.expires_at += seconds

    def _peer_fact(self, name: str, peer: Peer) -> None:
        self._outputs.append(
            fact(
                name,
                ckn=self.ckn.hex(),
                sci=str(peer.sci),
                mi=peer.mi.hex(),
                mn=peer.mn,
                version=peer.basic.version,
            )
        )

    # ------------------------------------------------------------------- election

    def elect(self) -> None:
        """Elect the key server (9.5): lowest priority, then lowest SCI, of ourselves and willing live peers.

        A peer is a candidate while its Key Server bit is set. Priority 255 never is, by the standard;
        deployed code treats it as an ordinary number, so where nobody has a better one it counts here
        too, rather than leaving a link without key server.
        """
        live = self.live
        if not live:
            self._elected(None)
            return
        candidates = [(self._priority, self._sci.pack(), self.mi)]
        candidates += [(p.basic.priority, p.sci.pack(), p.mi) for p in live if p.basic.key_server]
        willing = [candidate for candidate in candidates if candidate[0] != PRIORITY_NEVER]
        if not willing and all(peer.basic.priority == PRIORITY_NEVER for peer in live):
            willing = candidates
        self._elected(min(willing)[2] if willing else None)

    def _elected(self, server: bytes | None) -> None:
        if server == self.server:
            return
        self.server = server
        self.new_info = True
        who = "us" if self.elected_self else str(self.peers[server].sci) if server else "nobody"
        self._outputs.append(fact("server.elected", ckn=self.ckn.hex(), server=who))

    # -------------------------------------------------------------------- sending

    def peer_entries(self, *, live: bool) -> tuple[PeerEntry, ...]:
        """The live or the potential peer list."""
        return tuple(PeerEntry(peer.mi, peer.mn) for peer in self.peers.values() if peer.live is live)

    def hello_sent(self, now: float, interval_s: float) -> None:
        """Set the time of the next hello: quickly one after the other at first (fast start)."""
        self.new_info = False
        if self.ramp < len(RAMP_S) and not self.live:
            interval_s = min(interval_s, RAMP_S[self.ramp])
            self.ramp += 1
        else:
            self.ramp = len(RAMP_S)
        self.hello_at = now + interval_s
