"""The KaY: MACsec key agreement of one port (IEEE 802.1X-2020 clause 9), without any I/O.

It is driven by: MKPDUs (`receive`), the time promised by `next_timer` (`handle_timer`), answers of
the SecY (`succeeded`, `failed`), what the SecY shows (`observe`), the key chain (`set_keys`), the
port's carrier (`carrier`), and the operator (`rekey`). What it wants done is one ordered list,
`take_outputs`. `now` is monotonic seconds; the wall clock never enters, `keychain` turns it into
the set of keys to run.

**Several CAs, one SecY.** Each live CAK has a participant of its own: own member identifier, peers,
election. One of them is *principal* (9.17): the key in the SecY comes from there. The key server
decides: as server we take the newest key under which all the peers are live that we protect now;
as any other member we follow the participant on which the server distributes a new SAK. So a CAK
is rolled over like a SAK, without a lost frame, and one that never gets a live peer changes nothing.

**When a SAK is made** is not remembered as a request but derived from the facts at every step
(`_reason_for_sak`), so none is ever forgotten for coming at a bad moment.

**A SAK is never installed twice.** KIs and SAKs seen are remembered; whenever keys are lost other
than by a rollover we take a new member identifier, which makes any key server make a new SAK.

Beyond the standard: fast start, tolerance for having been stopped (`_woken`), and a watchdog for key
servers that never distribute.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from router.errors import ControlError
from router.mka.cp import MKA_LIFE_TIME_S, SAK_RETIRE_TIME_S, TAKES_KEY, Connect, Cp, CpState, Slot
from router.mka.events import Output, PortState, SendMkpdu, UpdateReceivePn, fact
from router.mka.explain import (
    KaySnapshot,
    KeySnapshot,
    ParticipantSnapshot,
    PeerSnapshot,
    UnknownCkn,
)
from router.mka.keys import Cak, Sak, SsciOrder, rebuild_pn, sscis
from router.mka.mkpdu import (
    PAE_GROUP_ADDRESS,
    Announcement,
    Basic,
    Capability,
    DistributedSak,
    DropReason,
    Frame,
    KeyIdentifier,
    KeyUse,
    Mkpdu,
    MkpduError,
    PeerEntry,
    SakUse,
    SuiteOffer,
    Xpn,
    envelope,
)
from router.mka.participant import Identity, Participant, Peer
from router.model import CipherSuite, Confidentiality, MacAddress, Sci, Secret
from router.secy import SecyCounters, SecyState

# Of the standard (table 9-3, 9.8).
MKA_HELLO_TIME_S: Final = 2.0
MKA_BOUNDED_HELLO_TIME_S: Final = 0.5
PENDING_PN_EXHAUSTION: Final = 0xC000_0000
PENDING_PN_EXHAUSTION_XPN: Final = 0xC000_0000_0000_0000
# Of ours.
SAK_RETRY_S: Final = 2.0
"""Before a key that the SecY refused is tried again, or replaced."""
WATCHDOG_S: Final = 15.0
"""Without any key from a live key server, before we ask for one by a new MI; doubled each time."""
FORGOTTEN_S: Final = 7.0
"""The same where it uses a key that we do not hold: hostap drops the need for another one that comes
within 6 s of the last, and never thinks of it again."""
WATCHDOG_MAX_S: Final = 240.0
NEW_MI_SPACING_S: Final = 5.0
FORGOTTEN_USES: Final = 3
"""MKPDUs in a row without a key that their sender used before, until we replace the key."""
LATE_S: Final = 1.0
"""A timer later than this means that we were stopped."""
HISTORY_MAX: Final = 256
UNKNOWN_CKNS_MAX: Final = 8
_STEPS_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class KayConfig:
    """One port's key agreement policy."""

    sci: Sci
    """Our secure channel; its MAC address is the source of our MKPDUs."""
    priority: int = 16
    """Key Server Priority, 0 best, 255 never."""
    suites: tuple[CipherSuite, ...] = (CipherSuite.GCM_AES_XPN_256,)
    """Acceptable cipher suites, best first. As key server we take the first that all peers offer."""
    confidentiality: Confidentiality = Confidentiality.OFFSET_0
    """What we distribute as key server."""
    accept: frozenset[Confidentiality] = frozenset({Confidentiality.OFFSET_0})
    """What we accept from a key server."""
    must_secure: bool = True
    """False is should-secure: plain frames pass once no peer has proved a CAK for an MKA Life Time."""
    sak_lifetime_s: float = 0.0
    """Age at which the key server replaces a SAK; 0 is never by time."""
    pn_exhaustion: int | None = None
    """PN at which the key server replaces a SAK; None is 75 % of the suite's (9.8)."""
    sak_retire_time_s: float = SAK_RETIRE_TIME_S
    """How long frames under the old SAK are taken after a rollover. Less than the standard's counts only
    once all members have said that they transmit under the new one; at least what the wire can delay."""
    delay_protection: bool = False
    """Report LPNs every 0.5 s and raise receive PNs by those of peers that do (9.10)."""
    ssci_order: SsciOrder = SsciOrder.DESCENDING_SCI
    icv_indicator: bool = False
    """Send the ICV Indicator set, which some switches want."""
    announce: bool = True
    """Send the MACsec Cipher Suites announcement."""
    mixed_suites: bool = False
    """Our SecY can hold SAs of two suites at once, so that a change of suite loses nothing."""
    suspension_limit_s: float = 0.0
    """Longest silence that a peer may ask for (9.18); 0 grants none, 120 is the standard's most."""
    destination: MacAddress = PAE_GROUP_ADDRESS


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """A CAK to take part with now."""

    ckn: bytes
    cak: Secret
    eligible: bool = True
    """May be made principal by our own choice: its start time has come and its end time has not."""


@dataclass(frozen=True, slots=True)
class Handover:
    """What a successor process needs, beside the SecY as it stands, to go on unnoticed by the peers.

    Not secret. A stored one stays good for as long as its numbers are not below those sent since:
    store it with message numbers some thousand ahead, and again before those are reached.
    """

    key_id: bytes
    """Of the key in use, empty where there is none."""
    key_ckn: bytes
    """CKN that it comes from, empty where that is not known."""
    identities: tuple[Identity, ...]


class Kay:
    """The key agreement entity of one port."""

    def __init__(
        self,
        config: KayConfig,
        *,
        now: float,
        entropy: Callable[[int], bytes],
        used_keys: Iterable[bytes] = (),
    ) -> None:
        """Start with no key.

        `entropy(n)` gives n random octets; `used_keys` are key ids that a former process reported with
        `sak.known`, none of which is ever installed again.
        """
        self.config = config
        self._entropy = entropy
        self._outputs: list[Output] = []
        self._cp = Cp(
            sci=config.sci,
            mixed_suites=config.mixed_suites,
            outputs=self._outputs,
            sak_retire_time_s=config.sak_retire_time_s,
        )
        self._participants: dict[bytes, Participant] = {}
        """By CKN, in order of preference: the newest key first."""
        self._principal: Participant | None = None
        self._carrier = True
        self._promised: float | None = None
        self._adopted_until: float | None = None
        self._resume: dict[bytes, Identity] = {}
        self._plain_chosen = False
        self._open_from = now + MKA_LIFE_TIME_S
        """should-secure: not opened in clear before, so that a peer with a key can be heard first."""
        # Keys.
        self._known: OrderedDict[bytes, int] = OrderedDict()
        """Highest KN known under each key server MI."""
        self._sak_digests: deque[bytes] = deque(maxlen=HISTORY_MAX)
        self._an = 3
        self._made: DistributedSak | None = None
        """The SAK that we distribute as key server, wrapped."""
        self._made_ki: KeyIdentifier | None = None
        self._made_at = float("-inf")
        self._made_mutual = True
        """All members saw each other when it was made."""
        self._receiving_once: set[bytes] = set()
        """Members that have reported receiving under the key that we distribute."""
        self._uses_missing: Counter[bytes] = Counter()
        self._not_before = float("-inf")
        self._rekey_reason = ""
        self._refused_ki: KeyIdentifier | None = None
        self._new_mi_at = float("-inf")
        self._keyless_since: float | None = now
        """Since when the key server has left us without the key that it uses."""
        self._asked = 0
        """How often in a row we asked it anew."""
        # Packet numbers.
        self._pn: dict[KeyIdentifier, tuple[int, int, float]] = {}
        """Our next PN one sample ago and now, and when the latter was taken."""
        self._pn_rate = 0.0
        self._receive_pn: dict[tuple[Sci, int], int] = {}
        self._lpn_told: dict[tuple[Sci, int], int] = {}
        self._counters: SecyCounters | None = None
        self._invalid_only = 0
        self._missing_sas = 0
        # For explain.
        self.drops: Counter[DropReason] = Counter()
        self._unknown_ckns: OrderedDict[bytes, UnknownCkn] = OrderedDict()
        self._refusal = ""
        self._made_reason = ""
        for key_id in used_keys:
            self._remember(KeyIdentifier.unpack(key_id))

    # --------------------------------------------------------------------- driving

    def receive(self, octets: bytes, now: float) -> None:
        """Take an Ethernet frame of type 888E."""
        self._woken(now)
        try:
            self._receive(octets, now)
        except MkpduError as error:
            self._drop(error)
        self._settle(now)

    def handle_timer(self, now: float) -> None:
        """The time promised by `next_timer` has come; calling at any other time is harmless."""
        self._settle(now)

    def next_timer(self) -> float | None:
        """When `handle_timer` wants to be called, None while nothing is due ever."""
        return self._promised

    def take_outputs(self) -> list[Output]:
        """Hand over what to do now, in order."""
        outputs = list(self._outputs)
        self._outputs.clear()
        return outputs

    def succeeded(self, operation: int, now: float) -> None:
        """The SecY carried out the operation with that id."""
        self._cp.succeeded(operation)
        self._settle(now)

    def failed(self, operation: int, reason: str, now: float) -> None:
        """The SecY refused the operation with that id."""
        self._cp.failed(operation, reason, now)
        self._settle(now)

    def carrier(self, now: float, *, up: bool) -> None:
        """The port has gained or lost its carrier."""
        if up and not self._carrier:
            self._open_from = now + MKA_LIFE_TIME_S
            for participant in self._participants.values():
                participant.ramp = 0
                participant.new_info = True
        self._carrier = up
        self._settle(now)

    def set_keys(self, keys: Iterable[KeyEntry], now: float) -> None:
        """Run one participant per key, the preferred (newest) first; those not named end.

        A CKN that comes with another CAK is another key.
        """
        former, self._participants = self._participants, {}
        for key in keys:
            participant = former.get(key.ckn)
            if participant is not None and participant.cak.is_of(key.cak):
                del former[key.ckn]
            else:
                participant = Participant(
                    cak=Cak(key.ckn, key.cak),
                    sci=self.config.sci,
                    priority=self.config.priority,
                    suspension_limit_s=self.config.suspension_limit_s,
                    entropy=self._entropy,
                    outputs=self._outputs,
                    now=now,
                    identity=self._resume.pop(key.ckn, None),
                )
                if self._cp.port is not PortState.UNPROTECTED:
                    self._open_from = now + MKA_LIFE_TIME_S
            participant.eligible = key.eligible
            self._participants[key.ckn] = participant
        for participant in former.values():
            if participant is self._principal:
                self._principal = None
            participant.cak.wipe()
            self._outputs.append(fact("key.ended", ckn=participant.ckn.hex()))
        self._settle(now)

    def rekey(self, now: float) -> None:
        """Make a new SAK now. Raises ControlError where that is a peer's to do, or nobody is there."""
        principal = self._principal
        if principal is None or not principal.live:
            raise ControlError("no peer is live under any key: there is no SAK to replace")
        if not principal.elected_self:
            server = principal.server_peer
            raise ControlError(f"the key server is {server.sci if server else 'unknown'}: rekey there")
        self._rekey_reason = "command"
        self._settle(now)

    def handover(self) -> Handover:
        """What to store for a successor."""
        used = self._cp.in_use
        return Handover(
            used.key.ki.pack() if used is not None else b"",
            used.key.ckn if used is not None else b"",
            tuple(Identity(p.ckn, p.mi, p.mn, p.kn) for p in self._participants.values()),
        )

    def adopt(self, state: SecyState, now: float, handover: Handover | None = None) -> None:
        """Keep what a former process left in the SecY in use (at start, before `set_keys`).

        With a handover we go on as the same members: peers notice nothing. Without, we are new ones
        whom the key server gives a new SAK; hostap does so only when it has forgotten the old ones.
        The old identity is not resumed where peers may believe that it has a key that we cannot know:
        in the middle of a rollover, or when the SAs are gone.
        Nothing is known of the keys but their ids, so they are never installed again. If no peer is
        live within the MKA Life Time they go, as they would have without it.
        """
        used = next((sa for sa in state.transmit if sa.an == state.encoding_an and sa.active), None)
        for sa in state.transmit:
            if sa is not used:
                self._cp.stray_transmit(sa.an)
            self._remember(KeyIdentifier.unpack(sa.key_id))
        for channel in state.receive:
            for sa in channel.sas:
                if used is None or sa.an != used.an:
                    self._cp.stray_receive(channel.sci, sa.an, keep=used is not None)
                self._remember(KeyIdentifier.unpack(sa.key_id))
        if used is None:
            if state.unprotected:  # and stays so, unless a peer proves a key
                self._open_from = now
                self._settle(now)
            return
        members = {self.config.sci: used.ssci}
        members |= {c.sci: sa.ssci for c in state.receive for sa in c.sas if sa.an == used.an}
        ki = KeyIdentifier.unpack(used.key_id)
        alone = len(state.transmit) == 1 and all(len(c.sas) == 1 for c in state.receive)
        ckn = b""
        if handover is not None and alone:
            ckn = handover.key_ckn if handover.key_id == used.key_id else b""
            self._resume = {identity.ckn: identity for identity in handover.identities}
        self._cp.adopt(
            Sak(
                ki,
                used.an,
                state.suite,
                state.confidentiality,
                Secret(b""),
                members,
                frozenset(),
                ckn,
                now,
            )
        )
        self._an = used.an
        self._adopted_until = now + MKA_LIFE_TIME_S
        self._outputs.append(fact("sak.adopted", ki=str(ki), an=used.an))
        self._settle(now)

    # ------------------------------------------------------------------- receiving

    def _receive(self, octets: bytes, now: float) -> None:
        frame = Frame.parse(octets)
        participant = self._participants.get(frame.ckn)
        if participant is None:
            self._saw_unknown(frame, now)
            raise MkpduError(DropReason.CKN_UNKNOWN, f"{frame.source} uses CKN {frame.ckn.hex()}")
        if not participant.cak.verify(frame.protected, frame.icv):
            participant.icv_failures += 1
            participant.icv_failed_at = now
            raise MkpduError(DropReason.ICV, f"{frame.source} knows CKN {frame.ckn.hex()} but not our CAK")
        pdu = Mkpdu.parse(frame.mkpdu)
        peer = participant.receive(pdu, now)
        # Distributed SAK before SAK Use: the latter may speak of the key in the former.
        if pdu.distributed_sak is not None:
            try:
                self._distributed(participant, peer, pdu, pdu.distributed_sak, now)
            except MkpduError as error:
                self._drop(error)
        if pdu.sak_use is not None:
            self._used(participant, peer, pdu.sak_use, pdu.xpn)
        if self._made_ki is not None and participant is self._principal:
            self._count_receiving(peer, pdu.sak_use)

    def _drop(self, error: MkpduError) -> None:
        self.drops[error.reason] += 1
        self._outputs.append(fact("mkpdu.dropped", reason=error.reason.value, detail=str(error)))

    def _saw_unknown(self, frame: Frame, now: float) -> None:
        known = self._unknown_ckns.pop(frame.ckn, None)
        self._unknown_ckns[frame.ckn] = UnknownCkn(
            frame.ckn, frame.source, now, known.count + 1 if known else 1
        )
        while len(self._unknown_ckns) > UNKNOWN_CKNS_MAX:
            self._unknown_ckns.popitem(last=False)

    def _distributed(
        self, participant: Participant, peer: Peer, pdu: Mkpdu, offer: DistributedSak, now: float
    ) -> None:
        """Judge a Distributed SAK (9.8.4, 9.17). Raises MkpduError where it is not taken."""
        if participant.server != peer.mi or all(entry.mi != participant.mi for entry in pdu.live):
            raise MkpduError(
                DropReason.SAK_NOT_FROM_SERVER,
                f"{peer.sci} distributes, but is not the live key server we elected",
            )
        if not offer.wrapped:
            self._plain_chosen = not self.config.must_secure
            if self.config.must_secure:
                raise MkpduError(
                    DropReason.SAK_PLAIN_TEXT, f"key server {peer.sci} orders plain text: refused"
                )
            return
        ki = KeyIdentifier(peer.mi, offer.kn)
        if ki == self._refused_ki and now < self._not_before:
            return
        for slot in (self._cp.latest, self._cp.old):
            if slot is not None and slot.key.ki == ki:
                if not slot.key.ckn:
                    self._claim_adopted(slot, participant)
                return
        if self._cp.new_sak is not None and self._cp.new_sak.ki == ki:
            return
        if self._known.get(ki.mi, 0) >= ki.kn:
            # It counts on a key that we must not install again: as a new member we get another.
            self._ask_anew("the key server distributes a key that was used before", now)
            raise MkpduError(DropReason.SAK_USED_BEFORE, f"key {ki} was known before")
        suite = offer.suite
        if suite is None or suite not in self.config.suites:
            name = (
                str(suite) if suite else f"{offer.suite_id:016x}" if offer.suite_id else "of a wrong key size"
            )
            self._refusal = f"key server {peer.sci} chose suite {name}, allowed here: " + ", ".join(
                map(str, self.config.suites)
            )
            raise MkpduError(DropReason.SAK_SUITE, self._refusal)
        # With XPN the field has no meaning that implementations agree on: SONiC sends 0 and encrypts.
        confidentiality = self.config.confidentiality if suite.is_xpn else offer.confidentiality
        if not suite.is_xpn and confidentiality not in self.config.accept:
            self._refusal = (
                f"key server {peer.sci} orders {confidentiality.label}, our policy is"
                f" {self.config.confidentiality.label}: refused - set macsec.confidentiality alike at both ends"
            )
            raise MkpduError(DropReason.SAK_CONFIDENTIALITY, self._refusal)
        sak = participant.cak.unwrap(offer.wrapped)
        if sha256(sak.reveal()).digest() in self._sak_digests:
            raise MkpduError(DropReason.SAK_USED_BEFORE, f"key {ki} repeats a SAK of another number")
        members = self._members_of(participant, peer, pdu, suite)
        mis = frozenset({peer.mi} | {entry.mi for entry in pdu.live})
        self._follow(participant)
        self._refusal = ""
        self._plain_chosen = False
        self._cp.new_sak = Sak(ki, offer.an, suite, confidentiality, sak, members, mis, participant.ckn, now)
        self._outputs.append(
            fact("sak.received", ki=str(ki), an=offer.an, suite=str(suite), server=str(peer.sci))
        )

    def _follow(self, participant: Participant) -> None:
        """The elected server distributes a new SAK on this participant: it becomes principal (9.17).

        Unless the principal's own server is another and a better one. Raises MkpduError then.
        """
        principal = self._principal
        if principal is participant:
            return
        if principal is not None and principal.live:
            theirs, ours = participant.server_rank, principal.server_rank
            if ours is not None and theirs is not None and ours < theirs:
                raise MkpduError(
                    DropReason.SAK_OTHER_SERVER,
                    f"CKN {participant.ckn.hex()} has a worse key server than the principal",
                )
        self._make_principal(participant, "its key server distributes a new SAK")

    def _members_of(
        self, participant: Participant, server: Peer, pdu: Mkpdu, suite: CipherSuite
    ) -> dict[Sci, int]:
        """SCIs and SSCIs of all that hold the key: the server and its live list (9.8.1, 10.7.1 of 802.1AE).

        A version 3 server lists members in the order of their SSCIs and tells its own; that order is
        taken as it stands, whatever our configured one. Raises MkpduError where a member's SCI is not known yet:
        the server repeats the SAK, and that member says hello.
        """
        listed: list[Sci] = []
        for entry in pdu.live:
            if entry.mi == participant.mi:
                listed.append(self.config.sci)
            elif (member := participant.peers.get(entry.mi)) is not None:
                listed.append(member.sci)
            else:
                raise MkpduError(
                    DropReason.SAK_PEER_UNKNOWN, f"member {entry.mi.hex()} has not been heard yet"
                )
        if not suite.is_xpn:
            return dict.fromkeys([server.sci, *listed], 0)
        told = pdu.key_server_ssci
        if 1 <= told <= len(listed) + 1:
            listed.insert(told - 1, server.sci)
            return {sci: ssci for ssci, sci in enumerate(listed, 1)}
        return sscis([server.sci, *listed], self.config.ssci_order)

    def _used(self, participant: Participant, peer: Peer, use: SakUse, xpn: Xpn | None) -> None:
        """Take LPNs and the state of a key from a peer's SAK Use (9.8, 9.10)."""
        for slot, high in (
            (use.latest, xpn.latest_lpn_high if xpn else None),
            (use.old, xpn.old_lpn_high if xpn else None),
        ):
            ours = next(
                (s for s in (self._cp.latest, self._cp.old) if s is not None and s.key.ki == slot.ki), None
            )
            if ours is None:
                continue
            if not ours.key.ckn:
                self._claim_adopted(ours, participant)
            lpn = slot.lpn
            place = (peer.sci, ours.key.an)
            if ours.key.suite.is_xpn:
                lpn = (
                    high << 32 | lpn if high is not None else rebuild_pn(lpn, self._receive_pn.get(place, 1))
                )
            if lpn >= self._exhaustion(ours.key) and ours.key is self._newest():
                self._rekey_reason = self._rekey_reason or f"packet numbers of {peer.sci} at {lpn}"
            if (
                self.config.delay_protection
                and use.delay_protect
                and lpn > self._lpn_told.get(place, 1)
                and ours.rx
            ):
                self._lpn_told[place] = lpn
                self._outputs.append(UpdateReceivePn(self._cp.next_id(), peer.sci, ours.key.an, lpn))

    def _count_receiving(self, peer: Peer, use: SakUse | None) -> None:
        """As key server, note who has the key that we distribute, and who had it and says so no more."""
        assert self._made_ki is not None
        if use is not None and peer.receives(self._made_ki):
            self._receiving_once.add(peer.mi)
            self._uses_missing.pop(peer.mi, None)
        elif peer.mi in self._receiving_once:
            self._uses_missing[peer.mi] += 1

    def _claim_adopted(self, slot: Slot, participant: Participant) -> None:
        """A peer uses the key that we adopted: we know its CA by that."""
        key = slot.key
        slot.key = Sak(
            key.ki, key.an, key.suite, key.confidentiality, key.sak, key.members, key.member_mis,
            participant.ckn, key.created_at,
        )  # fmt: skip

    # -------------------------------------------------------------------- deciding

    def _woken(self, now: float) -> None:
        """Give peers as much longer as we were stopped beyond the promised time.

        Their MKPDUs may wait unread behind the timer; the SAs in the SecY went on meanwhile.
        """
        if self._promised is not None and now > self._promised + LATE_S:
            late = now - self._promised
            for participant in self._participants.values():
                participant.postpone(late)
            if self._adopted_until is not None:
                self._adopted_until += late
            self._outputs.append(fact("kay.late", seconds=round(late, 3)))
            self._promised = None

    def _settle(self, now: float) -> None:
        """Bring everything to rest, then say what changed."""
        self._woken(now)
        for _ in range(_STEPS_MAX):
            for participant in self._participants.values():
                participant.expire(now)
            self._choose_principal()
            self._feed_cp(now)
            self._make_sak(now)
            moved = self._cp.run(now)
            if self._collect(now):
                moved = True
            if not moved:
                break
        else:
            raise AssertionError(f"the KaY does not come to rest: CP in {self._cp.state}")
        self._watch(now)
        self._flush(now)
        self._promised = self._deadline(now)

    def _choose_principal(self) -> None:
        principal = self._principal
        candidates = [p for p in self._participants.values() if p.live and p.server is not None]
        if principal is not None and principal.live:
            if not principal.elected_self:
                return  # the key server chooses, by distributing
            protected = {peer.sci for peer in principal.live}
            for participant in candidates:
                if participant is principal and principal.eligible:
                    return  # nothing newer is good
                if not participant.eligible or participant is principal:
                    continue
                if participant.elected_self and protected <= {peer.sci for peer in participant.live}:
                    self._make_principal(participant, "newest key with all peers live")
                    return
            return
        if candidates:
            best = next((p for p in candidates if p.eligible), candidates[0])
            self._make_principal(
                best, "first key with a live peer" if principal is None else "no peer is live there"
            )

    def _make_principal(self, participant: Participant, why: str) -> None:
        self._principal = participant
        self._made = self._made_ki = None
        for other in self._participants.values():
            other.new_info = True
        self._outputs.append(fact("principal", ckn=participant.ckn.hex(), why=why))

    def _connect(self, now: float) -> Connect:
        if any(participant.live for participant in self._participants.values()):
            return Connect.AUTHENTICATED if self._plain_chosen else Connect.SECURE
        self._plain_chosen, self._refusal = False, ""
        if self._adopted_until is not None and now < self._adopted_until:
            return Connect.SECURE
        if self.config.must_secure or not self._carrier or now < self._open_from:
            return Connect.PENDING
        return Connect.UNAUTHENTICATED

    def _feed_cp(self, now: float) -> None:
        cp, principal = self._cp, self._principal
        cp.elected_self = principal is not None and principal.elected_self
        if cp.elected_self:
            self._plain_chosen = False
        cp.connect = self._connect(now)
        cp.all_receiving = cp.all_transmitting = cp.server_transmitting = False
        if cp.latest is None or principal is None:
            return
        key = cp.latest.key
        members = [peer for peer in principal.live if peer.mi in key.member_mis]
        cp.all_receiving = bool(members) and all(peer.receives(key.ki) for peer in members)
        cp.all_transmitting = bool(principal.live) and all(peer.transmits(key.ki) for peer in principal.live)
        server = principal.server_peer
        cp.server_transmitting = server is not None and server.transmits(key.ki)

    def _collect(self, now: float) -> bool:
        """React to what the CP reports; tell whether that may have changed anything for it."""
        cp, changed = self._cp, False
        if cp.new_info:
            cp.new_info = False
            for participant in self._participants.values():
                if participant is self._principal or participant.used_sak:
                    participant.new_info = True
        if cp.latest is not None and cp.latest.exposed:
            self._remember(cp.latest.key.ki, cp.latest.key.sak)
        if cp.latest is not None and cp.latest.rx:
            self._adopted_until = None
        if cp.refusal is not None:
            slot, reason = cp.refusal
            cp.refusal, key = None, slot.key
            if slot.exposed:
                self._remember(key.ki, key.sak)
            self._refusal = f"the SecY refused key {key.ki}: {reason}"
            self._refused_ki = key.ki
            self._not_before = now + SAK_RETRY_S
            if self._made_ki == key.ki:
                self._made = self._made_ki = None
            changed = True
        if cp.keys_lost:
            cp.keys_lost = False
            self._adopted_until = None
            self._made = self._made_ki = None
            for participant in self._participants.values():
                participant.take_new_mi("keys were lost")
            changed = True
        return changed

    def _ask_anew(self, why: str, now: float) -> None:
        """Become a new member everywhere, so that the key server makes a new SAK; not too often.

        Everywhere, because the server may count on another CA than the one we think principal.
        """
        if now >= self._new_mi_at + NEW_MI_SPACING_S:
            self._new_mi_at = now
            for participant in self._participants.values():
                participant.take_new_mi(why)

    def _watch(self, now: float) -> None:
        """A live key server that leaves us without its key is asked anew: others forget requests."""
        server = self._principal.server_peer if self._principal is not None else None
        if server is None or self._refusal or self._plain_chosen:
            self._keyless_since = None
        elif self._in_step(server):
            self._keyless_since, self._asked = None, 0
        elif self._keyless_since is None:
            self._keyless_since = now
        elif now >= self._keyless_since + self._patience_s():
            self._keyless_since = now
            self._asked += 1
            self._ask_anew("no SAK came from the key server", now)

    def _in_step(self, server: Peer) -> bool:
        """Whether we hold a key, and one that the key server transmits under if it does at all.

        Ours may be another one: made when we were key server ourselves, for want of the better one.
        """
        ours = {slot.key.ki for slot in (self._cp.latest, self._cp.old) if slot is not None}
        return bool(ours) and (not server.uses or bool(ours & server.uses))

    def _patience_s(self) -> float:
        """How long to wait for a key: longer each time, since asking voids what a slow server prepares."""
        server = self._principal.server_peer if self._principal is not None else None
        first = FORGOTTEN_S if server is not None and server.uses else WATCHDOG_S
        return float(min(first * 2 ** min(self._asked, 8), WATCHDOG_MAX_S))

    # ------------------------------------------------------------------ making SAKs

    def _newest(self) -> Sak | None:
        """The key that was last agreed, in use or on its way."""
        cp = self._cp
        if cp.new_sak is not None:
            return cp.new_sak
        slot = cp.latest if cp.latest is not None else cp.old
        return None if slot is None else slot.key

    def _exhaustion(self, key: Sak) -> int:
        if self.config.pn_exhaustion is not None:
            return self.config.pn_exhaustion
        return PENDING_PN_EXHAUSTION_XPN if key.suite.is_xpn else PENDING_PN_EXHAUSTION

    def _suite_for(self, peers: Iterable[Peer]) -> CipherSuite | None:
        """The first of ours that every peer offers; one that announces nothing takes what comes."""
        offers = [set(peer.offers) for peer in peers if peer.offers is not None]
        return next((suite for suite in self.config.suites if all(suite in offer for offer in offers)), None)

    def _reason_for_sak(self, principal: Participant, suite: CipherSuite, now: float) -> str:
        """Why the key server must make a SAK now (9.8.1); empty where it need not."""
        key = self._newest()
        if key is None or self._made_ki is None:
            return "no key of ours is in use"
        if key.ki != self._made_ki or key.ki.mi != principal.mi:
            return "the key is another server's or another identity's"
        members = {principal.mi} | {peer.mi for peer in principal.live}
        if key.member_mis != members:
            return "peers changed"
        if principal.mutual and not self._made_mutual:
            # hostap installs receive SAs for those that it sees at that moment, and drops them with a
            # former MI of the same station: only a new SAK gives it the missing ones.
            return "members have found each other"
        if key.suite is not suite:
            return f"suite {suite} instead of {key.suite}"
        if self._rekey_reason:
            return self._rekey_reason
        if any(count >= FORGOTTEN_USES for mi, count in self._uses_missing.items() if mi in members):
            return "a peer has lost the key"
        if self.config.sak_lifetime_s and now >= key.created_at + self.config.sak_lifetime_s:
            return "age"
        return ""

    def _make_sak(self, now: float) -> None:
        """As key server, make and start to use a new SAK where there is reason to."""
        principal = self._principal
        if principal is None or not principal.elected_self:
            self._made = self._made_ki = None
            self._rekey_reason = ""
            return
        if (
            self._cp.state not in TAKES_KEY
            or self._cp.connect is not Connect.SECURE
            or self._cp.new_sak is not None
        ):
            return
        peers = principal.live
        unwilling = [p for p in peers if not p.basic.macsec_desired or p.basic.capability == Capability.NONE]
        if unwilling:
            self._refusal = f"peer {unwilling[0].sci} does not want MACsec"
            return
        suite = self._suite_for(peers)
        if suite is None:
            self._refusal = "no cipher suite is offered by all peers and allowed here"
            return
        reason = self._reason_for_sak(principal, suite, now)
        if not reason:
            self._refusal = ""
        if not reason or now < self._not_before:
            return
        if principal.potential and now < self._made_at + MKA_LIFE_TIME_S:
            return  # whoever is about to become live would need yet another one
        kn = principal.next_kn()
        mis = [principal.mi, *(peer.mi for peer in peers)]
        sak = principal.cak.derive_sak(
            nonce=self._entropy(suite.key_size), members=mis, kn=kn, size=suite.key_size
        )
        members = dict.fromkeys([self.config.sci, *(peer.sci for peer in peers)], 0)
        if suite.is_xpn:
            members = sscis(members, self.config.ssci_order)
        ki = KeyIdentifier(principal.mi, kn)
        key = Sak(
            ki, self._next_an(), suite, self.config.confidentiality, sak, members, frozenset(mis), principal.ckn, now
        )  # fmt: skip
        self._cp.new_sak = key
        # The short form for GCM-AES-128: hostap rejects the standard's explicit identifier.
        suite_id = None if suite is CipherSuite.GCM_AES_128 else suite.value
        self._made = DistributedSak(key.an, kn, principal.cak.wrap(sak), key.confidentiality, suite_id)
        self._made_ki, self._made_at, self._made_reason = ki, now, reason
        self._made_mutual = principal.mutual
        self._receiving_once.clear()
        self._uses_missing.clear()
        self._rekey_reason = self._refusal = ""
        self._outputs.append(fact("sak.made", ki=str(ki), an=key.an, suite=str(suite), why=reason))

    def _next_an(self) -> int:
        """The port's next association number, one that no key in the SecY has."""
        taken = {slot.key.an for slot in (self._cp.latest, self._cp.old) if slot is not None}
        taken |= self._cp.stray_ans
        newest = self._newest()
        an = newest.an if newest is not None else self._an
        for _ in range(4):
            an = (an + 1) % 4
            if an not in taken:
                break
        self._an = an
        return an

    def _remember(self, ki: KeyIdentifier, sak: Secret | None = None) -> None:
        """Never install this key again."""
        if self._known.get(ki.mi, 0) >= ki.kn:
            return
        self._known[ki.mi] = ki.kn
        self._known.move_to_end(ki.mi)
        while len(self._known) > HISTORY_MAX:
            self._known.popitem(last=False)
        if sak is not None:
            self._sak_digests.append(sha256(sak.reveal()).digest())

    # --------------------------------------------------------------------- sending

    def _flush(self, now: float) -> None:
        interval = MKA_BOUNDED_HELLO_TIME_S if self.config.delay_protection else MKA_HELLO_TIME_S
        for participant in self._participants.values():
            if self._carrier and (participant.new_info or now >= participant.hello_at):
                self._outputs.append(SendMkpdu(self._mkpdu(participant, now)))
                participant.hello_sent(now, interval)

    def _mkpdu(self, participant: Participant, now: float) -> bytes:
        mn = participant.next_mn(now)
        offer, ssci = self._offer_of(participant)
        live = participant.peer_entries(live=True)
        if ssci:
            live = self._by_ssci(participant, live)
        use, xpn = self._sak_use_of(participant)
        announcement = None
        if self.config.announce:
            announcement = Announcement.of_suites(
                tuple(SuiteOffer(suite.value, self._capability) for suite in self.config.suites)
            )
        pdu = Mkpdu(
            basic=Basic(
                self.config.sci,
                participant.mi,
                mn,
                participant.ckn,
                key_server=participant.server is None or participant.elected_self,
                priority=self.config.priority,
                capability=self._capability,
            ),
            live=live,
            potential=participant.peer_entries(live=False),
            key_server_ssci=ssci & 0xFF,
            sak_use=use,
            distributed_sak=offer,
            announcement=announcement,
            xpn=xpn,
            icv_indicator=self.config.icv_indicator,
        )
        protected = envelope(self.config.sci.mac, pdu.serialize(), self.config.destination)
        return protected + participant.cak.icv(protected)

    @property
    def _capability(self) -> Capability:
        offsets = {Confidentiality.OFFSET_30, Confidentiality.OFFSET_50}
        if offsets & {self.config.confidentiality, *self.config.accept} and not any(
            suite.is_xpn for suite in self.config.suites
        ):
            return Capability.CONFIDENTIALITY_0_30_50
        if {self.config.confidentiality, *self.config.accept} == {Confidentiality.INTEGRITY_ONLY}:
            return Capability.INTEGRITY_ONLY
        return Capability.CONFIDENTIALITY_0

    def _offer_of(self, participant: Participant) -> tuple[DistributedSak | None, int]:
        """The SAK to distribute with this MKPDU and our SSCI under it, 0 where that is not told.

        From when our own SecY receives under it until all members do; never with another live list
        than it was made for, since the list says who holds it.
        """
        if participant is not self._principal or self._made is None or not participant.elected_self:
            return None, 0
        slot = next(
            (s for s in (self._cp.latest, self._cp.old) if s is not None and s.key.ki == self._made_ki), None
        )
        members = {participant.mi} | {peer.mi for peer in participant.live}
        if slot is None or not slot.rx or slot.key.member_mis != members:
            return None, 0
        if all(peer.mi in self._receiving_once for peer in participant.live):
            return None, 0
        return self._made, slot.key.members[self.config.sci] if slot.key.suite.is_xpn else 0

    def _by_ssci(self, participant: Participant, live: tuple[PeerEntry, ...]) -> tuple[PeerEntry, ...]:
        """Sort the live list as version 3 wants it beside a Distributed SAK of an XPN suite."""
        ranks = sscis(
            [self.config.sci, *(participant.peers[entry.mi].sci for entry in live)], self.config.ssci_order
        )
        return tuple(sorted(live, key=lambda entry: ranks[participant.peers[entry.mi].sci]))

    def _sak_use_of(self, participant: Participant) -> tuple[SakUse | None, Xpn | None]:
        """Report the keys that belong to this CA (9.8.3), and their LPNs' high halves where XPN."""
        slots = [
            slot if slot is not None and slot.key.ckn == participant.ckn else None
            for slot in (self._cp.latest, self._cp.old)
        ]
        if slots == [None, None] and not participant.used_sak:
            return None, None
        participant.used_sak = True
        uses, highs, is_xpn = [], [], False
        for slot in slots:
            if slot is None:
                uses.append(KeyUse())
                highs.append(0)
                continue
            lpn = max(1, self._pn.get(slot.key.ki, (1, 1, 0.0))[0])
            is_xpn = is_xpn or slot.key.suite.is_xpn
            uses.append(KeyUse(slot.key.ki, slot.key.an, slot.tx, slot.rx, lpn & 0xFFFFFFFF))
            highs.append(lpn >> 32)
        use = SakUse(uses[0], uses[1], delay_protect=self.config.delay_protection)
        return use, Xpn(highs[0], highs[1]) if is_xpn else None

    # ------------------------------------------------------------------- observing

    def observe(self, state: SecyState, now: float) -> None:
        """Take what the SecY shows: call once per hello interval, and when its counters jump."""
        slots = [slot for slot in (self._cp.latest, self._cp.old) if slot is not None]
        by_an = {sa.an: sa for sa in state.transmit}
        for slot in slots:
            sa = by_an.get(slot.key.an)
            if sa is None or not slot.tx:
                continue
            before, current, taken = self._pn.get(slot.key.ki, (1, 1, now))
            if now - taken >= MKA_BOUNDED_HELLO_TIME_S or slot.key.ki not in self._pn:
                if now > taken:
                    self._pn_rate = (sa.next_pn - current) / (now - taken)
                before, current, taken = current, sa.next_pn, now
            self._pn[slot.key.ki] = (before, current, taken)
            if slot.key is self._newest() and sa.next_pn >= self._exhaustion(slot.key):
                self._rekey_reason = self._rekey_reason or f"our packet numbers at {sa.next_pn}"
        held = {slot.key.ki for slot in slots}
        self._pn = {ki: sample for ki, sample in self._pn.items() if ki in held}
        self._receive_pn = {(c.sci, sa.an): sa.next_pn for c in state.receive for sa in c.sas}
        self._lpn_told = {place: pn for place, pn in self._lpn_told.items() if place in self._receive_pn}
        self._check_sas(state, now)
        self._check_counters(state.counters)
        self._settle(now)

    def _check_sas(self, state: SecyState, now: float) -> None:
        """Notice SAs that somebody else took away: their PNs are lost, so the key must go."""
        slot = self._cp.in_use
        settled = self._cp.state in {CpState.RETIRE, CpState.ABANDON} and self._cp.idle
        if slot is None or not settled or not slot.tx:
            self._missing_sas = 0
            return
        transmits = any(sa.an == slot.key.an and sa.key_id == slot.key.ki.pack() for sa in state.transmit)
        receives = {c.sci for c in state.receive for sa in c.sas if sa.an == slot.key.an}
        others = set(slot.key.members) - {self.config.sci}
        self._missing_sas = 0 if transmits and others <= receives else self._missing_sas + 1
        if self._missing_sas >= 2:  # the first may be older than our last operation
            self._missing_sas = 0
            self._outputs.append(fact("secy.sa_missing", an=slot.key.an, ki=str(slot.key.ki)))
            self._made = self._made_ki = None
            self._ask_anew("the SecY has lost the SAs in use", now)

    def _check_counters(self, counters: SecyCounters) -> None:
        """Count observations with invalid frames and not one good."""
        if self._counters is not None and self._cp.port is PortState.SECURED:
            new = counters - self._counters
            if new.in_pkts_ok > 0:
                self._invalid_only = 0
            elif new.in_pkts_not_valid + new.in_pkts_invalid > 0:
                self._invalid_only += 1
        self._counters = counters

    # ------------------------------------------------------------------- deadlines

    def _deadline(self, now: float) -> float | None:
        times: list[float] = []
        for participant in self._participants.values():
            if self._carrier:
                times.append(participant.hello_at)
            times += [peer.expires_at for peer in participant.peers.values()]
        times += self._cp.timers()
        if self._adopted_until is not None:
            times.append(self._adopted_until)
        if not self.config.must_secure:
            times.append(self._open_from)
        if self._keyless_since is not None:
            times.append(self._keyless_since + self._patience_s())
        principal = self._principal
        if principal is not None and principal.elected_self:
            key = self._newest()
            times += [self._not_before, self._made_at + MKA_LIFE_TIME_S]
            if key is not None and self.config.sak_lifetime_s:
                times.append(key.created_at + self.config.sak_lifetime_s)
        # What is past had its chance in this very call: it waits for something else now.
        return min((time for time in times if time > now), default=None)

    # --------------------------------------------------------------------- explain

    @property
    def port(self) -> PortState:
        """The controlled port as last ordered."""
        return self._cp.port

    @property
    def state(self) -> CpState:
        """State of the CP machine."""
        return self._cp.state

    def snapshot(self, now: float) -> KaySnapshot:
        """Everything that explains the port's state; holds no secret."""
        used = self._cp.in_use
        latest = self._cp.latest
        return KaySnapshot(
            port=self._cp.port,
            state=self._cp.state,
            connect=self._cp.connect,
            principal=self._principal.ckn if self._principal is not None else None,
            participants=tuple(self._participant_snapshot(p) for p in self._participants.values()),
            current=self._key_snapshot(used, now) if used is not None else None,
            next=self._key_snapshot(latest, now) if latest is not None and latest is not used else None,
            refusal=self._refusal,
            suspicion=self._suspicion(),
            drops=tuple(sorted((reason.value, count) for reason, count in self.drops.items())),
            unknown_ckns=tuple(self._unknown_ckns.values()),
            transitions=tuple(self._cp.transitions),
        )

    def _participant_snapshot(self, participant: Participant) -> ParticipantSnapshot:
        if participant.elected_self:
            server: Sci | None = self.config.sci
        else:
            peer = participant.server_peer
            server = peer.sci if peer is not None else None
        rank = participant.server_rank
        return ParticipantSnapshot(
            ckn=participant.ckn,
            mi=participant.mi,
            mn=participant.mn,
            eligible=participant.eligible,
            principal=participant is self._principal,
            server=server,
            server_reason="" if rank is None else f"priority {rank[0]} and SCI {server} are the lowest of the willing",
            heard_at=participant.heard_at,
            icv_failures=participant.icv_failures,
            icv_failed_at=participant.icv_failed_at,
            peers=tuple(
                PeerSnapshot(
                    peer.sci, peer.mi, peer.mn, peer.live, peer.last_seen, peer.since, peer.basic.priority,
                    peer.basic.version, peer.offers,
                )
                for peer in participant.peers.values()
            ),
        )  # fmt: skip

    def _key_snapshot(self, slot: Slot, now: float) -> KeySnapshot:
        key = slot.key
        pn = self._pn.get(key.ki, (1, 1, now))[1]
        left = key.suite.pn_max - pn
        return KeySnapshot(
            ki=key.ki,
            ckn=key.ckn,
            an=key.an,
            suite=key.suite,
            confidentiality=key.confidentiality,
            rx=slot.rx,
            tx=slot.tx,
            age_s=now - key.created_at,
            next_pn=pn,
            exhaustion_s=left / self._pn_rate if self._pn_rate > 0 and slot is self._cp.in_use else None,
            ssci=key.members.get(self.config.sci, 0),
            reason=self._made_reason if key.ki == self._made_ki else "distributed by the key server",
        )

    def _suspicion(self) -> str:
        """The most likely cause of trouble in one sentence; empty where there is none."""
        if self._cp.port is PortState.SECURED:
            if self._invalid_only >= 2:
                used = self._cp.in_use
                cause = (
                    "SSCI order or suite suspected" if used and used.key.suite.is_xpn else "suite suspected"
                )
                return f"secured but every frame NotValid: {cause}"
            return self._refusal
        if self._refusal:
            return self._refusal
        if self._plain_chosen:
            return "the key server, which holds our key, orders plain text"
        failed = [p for p in self._participants.values() if p.icv_failures and p.heard_at is None]
        if failed:
            return f"a peer knows CKN {failed[0].ckn.hex()} but its ICV is wrong: the CAKs differ"
        if not self._participants:
            return "no key is valid now"
        if all(not p.peers for p in self._participants.values()):
            if self._unknown_ckns:
                seen = ", ".join(ckn.hex() for ckn in self._unknown_ckns)
                return f"a peer uses only unknown CKNs: {seen}"
            return "no MKPDU has been received"
        if all(not p.live for p in self._participants.values()):
            return "a peer is heard, but it does not hear us"
        if self._principal is not None and self._principal.server is None:
            return "nobody is willing to be key server (priority 255)"
        return ""
