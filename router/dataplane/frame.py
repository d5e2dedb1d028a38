"""MACsec frame by frame in plain Python: the readable twin of csrc/secy*.c.

It is what the C is tested against, and the place to read how IEEE 802.1AE-2018 treats a frame:

    DA(6) SA(6) 88E5 | TCI/AN SL PN(4) [SCI(8)] | secure data | ICV(16)
    TCI/AN: V=0 ES SC SCB E C AN(2)

Secure data is everything of the user's frame behind SA, an inner VLAN tag included. DA, SA and
the SecTAG are authenticated; secure data is encrypted too, except for the confidentiality offset.
Nothing here is fast. Driven by: `protect`, `validate`, and the calls that install and remove SAs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, IntFlag
from typing import Final, NamedTuple, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from router.errors import DataplaneError
from router.model import CipherSuite, MacAddress, Sci
from router.secy import SaKey

ETHERTYPE_MACSEC: Final = b"\x88\xe5"
ETHERTYPE_VLAN: Final = b"\x81\x00"
ETHERTYPE_SERVICE_VLAN: Final = b"\x88\xa8"
ICV_SIZE: Final = 16
SHORT_LENGTH_MAX: Final = 47
"""Greatest SL; from 48 octets of secure data on SL is 0 (9.7)."""
SECURE_DATA_MIN: Final = 2
"""Secure data holds at least the EtherType."""
CONFIDENTIALITY_OFFSETS: Final = (0, 30, 50)
REPLAY_WINDOW_MAX: Final = (1 << 30) - 1

# Ours.
RECEIVE_SC_MAX: Final = 8
REMEMBERED_MAX: Final = 1 << 20
"""Packet numbers below the highest one within which duplicates are refused."""


class Tci(IntFlag):
    """Bits of the SecTAG's first octet (9.5)."""

    VERSION = 0x80
    END_STATION = 0x40
    SCI = 0x20
    SINGLE_COPY_BROADCAST = 0x10
    ENCRYPTED = 0x08
    CHANGED = 0x04
    AN_MASK = 0x03


class Validate(Enum):
    """What a receiver does with frames that prove nothing (validateFrames, 10.7.8)."""

    STRICT = 0
    """Dropped."""
    CHECK = 1
    """Counted and delivered, unless they are encrypted."""
    DISABLED = 2
    """Delivered without a look at the ICV, unless they are encrypted."""


class Verdict(Enum):
    """How a frame's way through the SecY ended: the 802.1AE counter that it is counted under."""

    OUT_PROTECTED = "out_pkts_protected"
    OUT_ENCRYPTED = "out_pkts_encrypted"
    OUT_UNTAGGED = "out_pkts_untagged"
    OUT_TOO_LONG = "out_pkts_too_long"
    OUT_TOO_SHORT = "out_pkts_too_short"
    OUT_NO_SA = "out_pkts_no_sa"
    OUT_PN_EXHAUSTED = "out_pkts_pn_exhausted"
    OUT_NOT_SEALED = "out_pkts_not_sealed"
    IN_OK = "in_pkts_ok"
    IN_UNTAGGED = "in_pkts_untagged"
    IN_UNKNOWN_SCI = "in_pkts_unknown_sci"
    IN_UNUSED_SA = "in_pkts_unused_sa"
    IN_UNCHECKED = "in_pkts_unchecked"
    IN_DELAYED = "in_pkts_delayed"
    IN_INVALID = "in_pkts_invalid"
    IN_TOO_SHORT = "in_pkts_too_short"
    IN_NO_TAG = "in_pkts_no_tag"
    IN_BAD_TAG = "in_pkts_bad_tag"
    IN_NO_SCI = "in_pkts_no_sci"
    IN_NOT_USING_SA = "in_pkts_not_using_sa"
    IN_LATE = "in_pkts_late"
    IN_NOT_VALID = "in_pkts_not_valid"
    IN_OVERRUN = "in_pkts_overrun"

    @property
    def delivers(self) -> bool:
        """Whether the frame goes on; otherwise it is dropped."""
        return self in _DELIVERS


_DELIVERS: Final = frozenset(
    {
        Verdict.OUT_PROTECTED,
        Verdict.OUT_ENCRYPTED,
        Verdict.OUT_UNTAGGED,
        Verdict.IN_OK,
        Verdict.IN_UNTAGGED,
        Verdict.IN_UNKNOWN_SCI,
        Verdict.IN_UNUSED_SA,
        Verdict.IN_UNCHECKED,
        Verdict.IN_DELAYED,
        Verdict.IN_INVALID,
    }
)


@dataclass(frozen=True, slots=True)
class Policy:
    """What a SecY does, fixed for its life."""

    suite: CipherSuite
    sci: Sci
    """Ours: names the transmit SC."""
    frame_max: int = 9216
    """Octets that the port carries, SecTAG and ICV included, FCS not."""
    replay_protect: bool = True
    replay_window: int = 0
    """Frames, 0 to 2^30-1; 0 is strict order."""
    validate: Validate = Validate.STRICT
    protect: bool = True
    """False: frames leave untagged."""
    encrypt: bool = True
    """False: integrity only."""
    confidentiality_offset: int = 0
    """Leading octets of secure data left readable: 0, 30 or 50."""
    include_sci: bool = True
    end_station: bool = False
    """ES bit: our SCI is our MAC address and port 1."""
    single_copy_broadcast: bool = False
    pop_vlan: bool = False
    """On receipt take the outermost 802.1Q tag off and report its TCI."""
    clear_tags: int = 0
    """0 to 2: outermost VLAN tags that stand in clear before the SecTAG, unauthenticated."""

    def __post_init__(self) -> None:
        if self.include_sci and (self.end_station or self.single_copy_broadcast):
            raise DataplaneError("ES and SCB exclude an explicit SCI (IEEE 802.1AE-2018 9.5)")
        if self.confidentiality_offset not in CONFIDENTIALITY_OFFSETS:
            raise DataplaneError("a confidentiality offset is 0, 30 or 50")
        if not 0 <= self.replay_window <= REPLAY_WINDOW_MAX:
            raise DataplaneError("a replay window is 0 to 2^30-1 frames")
        if not 0 <= self.clear_tags <= 2:
            raise DataplaneError("clear VLAN tags before the SecTAG are 0 to 2")
        if not 0 <= self.frame_max <= 0xFFFF:
            raise DataplaneError("frame_max is 0 to 65535 octets")

    @property
    def tci(self) -> Tci:
        """TCI of sent frames, AN 0."""
        tci = Tci(0)
        if self.include_sci:
            tci |= Tci.SCI
        if self.end_station:
            tci |= Tci.END_STATION
        if self.single_copy_broadcast:
            tci |= Tci.SINGLE_COPY_BROADCAST
        if self.encrypt:
            tci |= Tci.ENCRYPTED | Tci.CHANGED
        return tci


class Result(NamedTuple):
    """What became of one frame."""

    verdict: Verdict
    frame: bytes = b""
    """Empty where it was dropped."""
    vlan: int | None = None
    """TCI of the tag that was popped."""


class SecTag(NamedTuple):
    """A received SecTAG and where its secure data lies."""

    tci: Tci
    an: int
    pn_low: int
    sci: bytes | None
    data_at: int
    data_len: int


def parse_sectag(frame: bytes) -> SecTag | None:
    """Read the SecTAG of a frame whose EtherType is MACsec's; None if it must be discarded (9.12)."""
    if len(frame) < 20:
        return None
    tci, short_length = Tci(frame[14] & ~Tci.AN_MASK), frame[15]
    if Tci.VERSION in tci or short_length > SHORT_LENGTH_MAX:  # includes the reserved bits of SL
        return None
    if Tci.SCI in tci and tci & (Tci.END_STATION | Tci.SINGLE_COPY_BROADCAST):
        return None
    if (Tci.ENCRYPTED in tci) != (Tci.CHANGED in tci):
        return None
    data_at = 28 if Tci.SCI in tci else 20
    available = len(frame) - data_at - ICV_SIZE
    if short_length == 0:
        data_len = available
        if data_len <= SHORT_LENGTH_MAX:
            return None
    else:
        data_len = short_length  # what follows the ICV is Ethernet's padding
        if data_len < SECURE_DATA_MIN or data_len > available:
            return None
    return SecTag(
        tci=tci,
        an=frame[14] & Tci.AN_MASK,
        pn_low=int.from_bytes(frame[16:20]),
        sci=frame[20:28] if Tci.SCI in tci else None,
        data_at=data_at,
        data_len=data_len,
    )


def build_sectag(tci: Tci, an: int, data_len: int, pn: int, sci: bytes) -> bytes:
    """Return a SecTAG of 8 or 16 octets, EtherType included."""
    short_length = data_len if data_len <= SHORT_LENGTH_MAX else 0
    head = ETHERTYPE_MACSEC + bytes((tci | an, short_length)) + (pn & 0xFFFFFFFF).to_bytes(4)
    return head + (sci if Tci.SCI in tci else b"")


def recover_pn(low: int, lowest: int) -> int:
    """Return the 64-bit PN with this low half, given the lowest acceptable PN (10.6.2)."""
    high = lowest >> 32
    if lowest & 0x80000000 and not low & 0x80000000:
        high += 1
    return (high << 32 | low) & 0xFFFFFFFFFFFFFFFF


def make_iv(suite: CipherSuite, key: SaKey, sci: bytes, pn: int) -> bytes:
    """Return the 12-octet IV of a frame (14.5, 14.7)."""
    if not suite.is_xpn:
        return sci + pn.to_bytes(4)
    number = key.ssci.to_bytes(4) + pn.to_bytes(8)
    return bytes(a ^ b for a, b in zip(number, key.salt, strict=True))


class ReplayWindow:
    """Which packet numbers are still accepted: check, authenticate, then commit (10.6.5)."""

    def __init__(self, window: int, lowest: int) -> None:
        self._window = window
        self._floor = lowest
        self._highest = lowest - 1
        self._seen: set[int] = set()

    @property
    def lowest(self) -> int:
        """Lowest acceptable PN."""
        edge = self._highest + 1 - self._window
        return min(max(edge, self._floor), 0xFFFFFFFFFFFFFFFF)

    def check(self, pn: int) -> bool:
        """Tell whether a frame with this PN may be authenticated. Changes nothing."""
        if pn < max(self._highest + 1 - self._window, self._floor):
            return False
        return pn not in self._seen or self._highest - pn >= REMEMBERED_MAX

    def commit(self, pn: int) -> bool:
        """Record an authenticated PN; False if it became late or was seen since the check."""
        if not self.check(pn):
            return False
        self._highest = max(self._highest, pn)
        self._seen.add(pn)
        kept = min(self._window, REMEMBERED_MAX)
        if len(self._seen) > 2 * kept + 64:
            self._seen = {seen for seen in self._seen if self._highest - seen < kept}
        return True

    def raise_lowest(self, lowest: int) -> None:
        """Accept nothing below `lowest` from now on (delay protection)."""
        self._floor = max(self._floor, lowest)
        self._highest = max(self._highest, self._floor - 1)


@dataclass(slots=True)
class _TransmitSa:
    key: SaKey
    cipher: AESGCM
    next_pn: int | None
    """None: exhausted."""


@dataclass(slots=True)
class _ReceiveSa:
    key: SaKey
    cipher: AESGCM
    replay: ReplayWindow
    active: bool = False


_Sa = TypeVar("_Sa", _TransmitSa, _ReceiveSa)


@dataclass(slots=True)
class ReferenceSecy:
    """A SecY in Python. Same calls, verdicts and counters as `router.dataplane.frames.Secy`."""

    policy: Policy
    counters: Counter[str] = field(default_factory=Counter)
    _transmit: dict[int, _TransmitSa] = field(default_factory=dict)
    _encoding_an: int | None = None
    _receive: dict[bytes, dict[int, _ReceiveSa]] = field(default_factory=dict)

    # --- installing and removing SAs

    def install_transmit(self, an: int, key: SaKey, next_pn: int = 1) -> None:
        """Install a transmit SA, not yet used."""
        self._check_new(an, key, next_pn, self._transmit)
        self._transmit[an] = _TransmitSa(key, AESGCM(key.sak.reveal()), next_pn)

    def enable_transmit(self, an: int) -> None:
        """Send under this AN from the next frame on."""
        self._installed(self._transmit, an)
        self._encoding_an = an

    def delete_transmit(self, an: int) -> None:
        """Remove a transmit SA; if frames were sent under it, none leaves any more."""
        self._installed(self._transmit, an)
        del self._transmit[an]
        if self._encoding_an == an:
            self._encoding_an = None

    def add_receive_sc(self, sci: Sci) -> None:
        """Create a receive SC; one that is there stays as it is."""
        if len(self._receive) == RECEIVE_SC_MAX and sci.pack() not in self._receive:
            raise DataplaneError("the table of receive SCs is full")
        self._receive.setdefault(sci.pack(), {})

    def remove_receive_sc(self, sci: Sci) -> None:
        """Remove a receive SC with all its SAs."""
        self._channel(sci)
        del self._receive[sci.pack()]

    def install_receive(self, sci: Sci, an: int, key: SaKey, lowest_pn: int = 1) -> None:
        """Install a receive SA, not yet active."""
        channel = self._channel(sci)
        self._check_new(an, key, lowest_pn, channel)
        replay = ReplayWindow(self.policy.replay_window, lowest_pn)
        channel[an] = _ReceiveSa(key, AESGCM(key.sak.reveal()), replay)

    def enable_receive(self, sci: Sci, an: int, *, active: bool = True) -> None:
        """Let frames of this SA in, or stop doing so."""
        self._installed(self._channel(sci), an).active = active

    def raise_receive_pn(self, sci: Sci, an: int, lowest_pn: int) -> None:
        """Raise the lowest acceptable PN."""
        self._installed(self._channel(sci), an).replay.raise_lowest(lowest_pn)

    def delete_receive(self, sci: Sci, an: int) -> None:
        """Remove a receive SA."""
        channel = self._channel(sci)
        self._installed(channel, an)
        del channel[an]

    def next_pn(self, an: int) -> int:
        """PN of the next frame sent under this AN; 0 if it is exhausted or there is no SA."""
        return self._transmit[an].next_pn or 0 if an in self._transmit else 0

    def lowest_pn(self, sci: Sci, an: int) -> int:
        """Lowest acceptable PN; 0 if there is no such SA."""
        channel = self._receive.get(sci.pack(), {})
        return channel[an].replay.lowest if an in channel else 0

    def _channel(self, sci: Sci) -> dict[int, _ReceiveSa]:
        if sci.pack() not in self._receive:
            raise DataplaneError("no such receive SC")
        return self._receive[sci.pack()]

    def _check_new(self, an: int, key: SaKey, pn: int, table: Iterable[int]) -> None:
        if not 0 <= an <= 3:
            raise DataplaneError("an association number is 0 to 3")
        if an in table:
            raise DataplaneError("this AN holds an SA; delete it first")
        if len(key.sak) != self.policy.suite.key_size:
            raise DataplaneError("the key's size does not fit the cipher suite (16 or 32 octets)")
        if (key.ssci != 0) != self.policy.suite.is_xpn:
            raise DataplaneError("an XPN suite needs an SSCI other than 0, the others need 0")
        if self.policy.suite.is_xpn and len(key.salt) != 12:
            raise DataplaneError("a salt has 12 octets")
        if not 1 <= pn <= self.policy.suite.pn_max:
            raise DataplaneError("the packet number is 0 or beyond the suite's last one")

    @staticmethod
    def _installed(table: dict[int, _Sa], an: int) -> _Sa:
        if an not in table:
            raise DataplaneError("no SA is installed under this AN")
        return table[an]

    # --- frames out

    def protect(self, frames: Iterable[bytes], vlan: int | None = None) -> list[Result]:
        """Protect frames in order; push an 802.1Q tag with TCI `vlan` first, inside the protection."""
        return [self._count(self._protect(frame, vlan)) for frame in frames]

    def _protect(self, frame: bytes, vlan: int | None) -> Result:
        policy = self.policy
        grows = 4 if vlan is not None else 0
        if policy.protect:
            if self._encoding_an is None:
                return Result(Verdict.OUT_NO_SA)
            grows += (16 if policy.include_sci else 8) + ICV_SIZE
        if len(frame) < 14:
            return Result(Verdict.OUT_TOO_SHORT)
        if len(frame) + grows > policy.frame_max:
            return Result(Verdict.OUT_TOO_LONG)

        addresses, clear, data = _split_clear_tags(frame, policy.clear_tags if policy.protect else 0)
        if vlan is not None:
            data = ETHERTYPE_VLAN + vlan.to_bytes(2) + data
        if not policy.protect:
            return Result(Verdict.OUT_UNTAGGED, addresses + data)

        an = self._encoding_an
        assert an is not None
        sa = self._transmit[an]
        if sa.next_pn is None:
            return Result(Verdict.OUT_PN_EXHAUSTED)
        pn = sa.next_pn
        sa.next_pn = pn + 1 if pn < policy.suite.pn_max else None

        sectag = build_sectag(policy.tci, an, len(data), pn, policy.sci.pack())
        readable = policy.confidentiality_offset if policy.encrypt else len(data)
        sealed = sa.cipher.encrypt(
            make_iv(policy.suite, sa.key, policy.sci.pack(), pn),
            data[readable:],
            addresses + sectag + data[:readable],
        )
        kind = "encrypted" if policy.encrypt else "protected"
        self.counters[f"out_octets_{kind}"] += len(data)
        return Result(
            Verdict.OUT_ENCRYPTED if policy.encrypt else Verdict.OUT_PROTECTED,
            addresses + clear + sectag + data[:readable] + sealed,
        )

    # --- frames in

    def validate(self, frames: Iterable[bytes]) -> list[Result]:
        """Validate frames in order and take SecTAG and ICV off."""
        return [self._count(self._validate(bytes(frame))) for frame in frames]

    def _validate(self, frame: bytes) -> Result:
        policy = self.policy
        strict = policy.validate is Validate.STRICT
        if len(frame) < 14:
            return Result(Verdict.IN_TOO_SHORT)
        addresses, clear, rest = _split_clear_tags(frame, policy.clear_tags)
        if not rest.startswith(ETHERTYPE_MACSEC):
            if strict:
                return Result(Verdict.IN_NO_TAG)
            return self._deliver(Verdict.IN_UNTAGGED, addresses, b"", clear + rest)
        frame = addresses + rest
        tag = parse_sectag(frame)
        if tag is None or (tag.pn_low == 0 and not policy.suite.is_xpn):
            return Result(Verdict.IN_BAD_TAG)

        data = frame[tag.data_at : tag.data_at + tag.data_len]
        icv = frame[tag.data_at + tag.data_len :][:ICV_SIZE]
        changed = Tci.CHANGED in tag.tci
        must_drop = strict or changed

        sci = self._find_sci(frame, tag)
        if sci is None:
            if must_drop:
                return Result(Verdict.IN_NO_SCI)
            return self._deliver(Verdict.IN_UNKNOWN_SCI, addresses, clear, data)
        sa = self._receive[sci].get(tag.an)
        if sa is None or not sa.active:
            if must_drop:
                return Result(Verdict.IN_NOT_USING_SA)
            return self._deliver(Verdict.IN_UNUSED_SA, addresses, clear, data)
        if policy.validate is Validate.DISABLED and not changed:
            return self._deliver(Verdict.IN_UNCHECKED, addresses, clear, data)

        pn = recover_pn(tag.pn_low, sa.replay.lowest) if policy.suite.is_xpn else tag.pn_low
        if policy.replay_protect and not sa.replay.check(pn):
            return Result(Verdict.IN_LATE)

        readable = policy.confidentiality_offset if changed else len(data)
        try:
            opened = sa.cipher.decrypt(
                make_iv(policy.suite, sa.key, sci, pn),
                data[readable:] + icv,
                frame[: tag.data_at] + data[:readable],
            )
        except InvalidTag:
            if must_drop:
                return Result(Verdict.IN_NOT_VALID)
            return self._deliver(Verdict.IN_INVALID, addresses, clear, data)
        self.counters["in_octets_decrypted" if changed else "in_octets_validated"] += len(data)
        fresh = sa.replay.commit(pn)
        assert fresh or not policy.replay_protect
        late = not fresh and pn < sa.replay.lowest
        verdict = Verdict.IN_DELAYED if late else Verdict.IN_OK
        return self._deliver(verdict, addresses, clear, data[:readable] + opened)

    def _find_sci(self, frame: bytes, tag: SecTag) -> bytes | None:
        """Return the SCI that a SecTAG means (7.1.2, 9.5), None if no receive SC has it."""
        if tag.sci is not None:
            sci: bytes | None = tag.sci
        elif Tci.END_STATION in tag.tci:
            sci = Sci(MacAddress(frame[6:12])).pack()
        else:  # point to point: the only peer there is
            sci = next(iter(self._receive)) if len(self._receive) == 1 else None
        return sci if sci in self._receive else None

    def _deliver(self, verdict: Verdict, addresses: bytes, clear: bytes, data: bytes) -> Result:
        if self.policy.pop_vlan and len(data) >= 6 and data.startswith(ETHERTYPE_VLAN):
            vlan = int.from_bytes(data[2:4])
            return Result(verdict, addresses + clear + data[4:], vlan)
        return Result(verdict, addresses + clear + data)

    def _count(self, result: Result) -> Result:
        self.counters[result.verdict.value] += 1
        return result


def _split_clear_tags(frame: bytes, limit: int) -> tuple[bytes, bytes, bytes]:
    """Split a frame into addresses, at most `limit` VLAN tags, and the rest from its type on."""
    at = 12
    while (
        at < 12 + 4 * limit
        and at + 6 <= len(frame)
        and frame[at : at + 2] in {ETHERTYPE_VLAN, ETHERTYPE_SERVICE_VLAN}
    ):
        at += 4
    return frame[:12], frame[12:at], frame[at:]
