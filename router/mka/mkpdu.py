"""MKPDUs as octets: every parameter set of IEEE 802.1X-2020 11.11, parsed and serialised side by side.

    DA(6) SA(6) 888E | EAPOL version(1) type 5(1) length(2) | basic parameter set | other sets | ICV(16)

Reading is done in two steps, because nothing inside may be believed before the ICV is:

1. `Frame.parse` checks the envelope and finds the CKN, which says whose ICK to verify with.
2. `Mkpdu.parse` takes the authenticated octets apart.

Every set but the first is `type(1) x(1) flags(4 bits) length(12 bits) body padding`, where the
length counts neither the four octets of the header nor the padding to a multiple of four. Unknown
sets are skipped, of a repeated set the first counts, and any order is accepted. We send ascending
types, as deployed implementations do. All bounds are checked in one place, `_Cursor`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final

from router.errors import ProtocolError
from router.model import CipherSuite, Confidentiality, MacAddress, Sci

PAE_GROUP_ADDRESS: Final = MacAddress(bytes.fromhex("0180c2000003"))
"""Nearest non-TPMR bridge group address, the destination of MKPDUs (11.1.1)."""
ETHERTYPE_EAPOL: Final = 0x888E
EAPOL_VERSION: Final = 3
EAPOL_TYPE_MKA: Final = 5
MKA_VERSION: Final = 3
"""What we send: 802.1X-2018 and later. Versions 1 (2010) and 2 (2014) are understood too."""
ALGORITHM_AGILITY: Final = 0x0080C201
ICV_SIZE: Final = 16
MI_SIZE: Final = 12
CKN_SIZE_MAX: Final = 32
SUITE_ID_MISPRINTED: Final = 0x0080020001000001
"""GCM-AES-128 as 802.1AE-2006 misprinted it; still in use by deployed code."""

_ENVELOPE_SIZE = 14 + 4
_BASIC_SIZE = 32
"""Octets of the basic parameter set before the CKN, its own four header octets included."""
_MKPDU_SIZE_MIN = 32


class DropReason(Enum):
    """Why an MKPDU, or one thing it asks for, was not accepted. The value is the counter's name."""

    # The envelope (11.4, 11.11.2).
    FRAME_SHORT = "frame_short"
    NOT_EAPOL = "not_eapol"
    INDIVIDUAL_DA = "individual_da"
    EAPOL_VERSION = "eapol_version"
    EAPOL_TYPE = "eapol_type"
    EAPOL_LENGTH = "eapol_length"
    BASIC_LENGTH = "basic_length"
    # Authentication.
    CKN_UNKNOWN = "ckn_unknown"
    ALGORITHM_AGILITY = "algorithm_agility"
    ICV = "icv"
    # Parameter sets (11.11.3).
    SET_TRUNCATED = "set_truncated"
    PEER_LIST_LENGTH = "peer_list_length"
    SAK_USE_LENGTH = "sak_use_length"
    DISTRIBUTED_SAK_LENGTH = "distributed_sak_length"
    DISTRIBUTED_CAK_LENGTH = "distributed_cak_length"
    KMD_LENGTH = "kmd_length"
    ANNOUNCEMENT_TLV = "announcement_tlv"
    XPN_LENGTH = "xpn_length"
    ICV_INDICATOR = "icv_indicator"
    SCI_INVALID = "sci_invalid"
    # The participant (9.4).
    VERSION = "version"
    OWN_FRAME = "own_frame"
    MI_COLLISION = "mi_collision"
    MN_NOT_RISING = "mn_not_rising"
    MI_REPLACED = "mi_replaced"
    PEER_TABLE_FULL = "peer_table_full"
    # A Distributed SAK that is not taken (9.8).
    SAK_NOT_FROM_SERVER = "sak_not_from_server"
    SAK_PLAIN_TEXT = "sak_plain_text"
    SAK_USED_BEFORE = "sak_used_before"
    SAK_SUITE = "sak_suite"
    SAK_CONFIDENTIALITY = "sak_confidentiality"
    SAK_UNWRAP = "sak_unwrap"
    SAK_PEER_UNKNOWN = "sak_peer_unknown"
    SAK_OTHER_SERVER = "sak_other_server"


class MkpduError(ProtocolError):
    """An MKPDU was refused; `reason` is the name it is counted under."""

    def __init__(self, reason: DropReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ParameterSet(IntEnum):
    """Parameter set types (table 11-6)."""

    LIVE_PEER_LIST = 1
    POTENTIAL_PEER_LIST = 2
    SAK_USE = 3
    DISTRIBUTED_SAK = 4
    DISTRIBUTED_CAK = 5
    KMD = 6
    ANNOUNCEMENT = 7
    XPN = 8
    ICV_INDICATOR = 255


class Capability(IntEnum):
    """MACsec Capability (11.5.4, table 11-6): what the SecY can do."""

    NONE = 0
    INTEGRITY_ONLY = 1
    CONFIDENTIALITY_0 = 2
    CONFIDENTIALITY_0_30_50 = 3


class _Cursor:
    """Reads octets in order. Every bound is checked here; running out names `reason`."""

    def __init__(self, octets: bytes, reason: DropReason) -> None:
        self._octets = octets
        self._reason = reason
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._octets) - self._at

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise MkpduError(self._reason, f"{size} octets wanted at offset {self._at}, {self.left} left")
        self._at += size
        return self._octets[self._at - size : self._at]

    def integer(self, size: int) -> int:
        return int.from_bytes(self.take(size))


@dataclass(frozen=True, slots=True, order=True)
class KeyIdentifier:
    """KI (9.8): the key server's member identifier and its key number."""

    mi: bytes
    kn: int

    @classmethod
    def unpack(cls, octets: bytes) -> KeyIdentifier:
        """Take the 16 octets of `pack`."""
        return cls(octets[:MI_SIZE], int.from_bytes(octets[MI_SIZE : MI_SIZE + 4]))

    def pack(self) -> bytes:
        """Return the 16 octets: MI, then KN in network order."""
        return self.mi + self.kn.to_bytes(4)

    def __str__(self) -> str:
        return f"{self.mi.hex()}:{self.kn}"


NO_KEY: Final = KeyIdentifier(bytes(MI_SIZE), 0)
"""What stands in an empty slot of SAK Use."""


@dataclass(frozen=True, slots=True)
class PeerEntry:
    """One line of a peer list: a member and the last message number heard from it."""

    mi: bytes
    mn: int


@dataclass(frozen=True, slots=True)
class Basic:
    """Basic Parameter Set (figure 11-8)."""

    sci: Sci
    mi: bytes
    mn: int
    ckn: bytes
    """1 to 32 octets."""
    key_server: bool
    priority: int
    """Key Server Priority, 0 best, 255 never by the standard."""
    macsec_desired: bool = True
    capability: int = Capability.CONFIDENTIALITY_0
    version: int = MKA_VERSION

    @classmethod
    def parse(cls, cursor: _Cursor) -> Basic:
        """Read the set. Raises MkpduError."""
        version, priority = cursor.integer(1), cursor.integer(1)
        flags = cursor.integer(2)
        length = flags & 0x0FFF
        if not _BASIC_SIZE - 4 < length <= _BASIC_SIZE - 4 + CKN_SIZE_MAX:
            raise MkpduError(
                DropReason.BASIC_LENGTH, f"basic parameter set of {length} octets, 29 to 60 allowed"
            )
        sci, mi, mn = cursor.take(8), cursor.take(MI_SIZE), cursor.integer(4)
        cursor.take(4)  # algorithm agility: `Frame.parse` has judged it
        ckn = cursor.take(length - (_BASIC_SIZE - 4))
        cursor.take(-length % 4)
        if sci[6:] == b"\0\0":
            raise MkpduError(DropReason.SCI_INVALID, f"SCI {sci.hex()} has port 0")
        return cls(
            Sci.unpack(sci), mi, mn, ckn, bool(flags & 0x8000), priority,
            bool(flags & 0x4000), flags >> 12 & 3, version,
        )  # fmt: skip

    def serialize(self) -> bytes:
        """Return the set, padded."""
        length = _BASIC_SIZE - 4 + len(self.ckn)
        flags = self.key_server << 15 | self.macsec_desired << 14 | self.capability << 12 | length
        octets = bytes((self.version, self.priority)) + flags.to_bytes(2) + self.sci.pack() + self.mi
        octets += self.mn.to_bytes(4) + ALGORITHM_AGILITY.to_bytes(4) + self.ckn
        return octets + bytes(-length % 4)


@dataclass(frozen=True, slots=True)
class KeyUse:
    """One of the two keys in SAK Use: which, and what its owner does with it."""

    ki: KeyIdentifier = NO_KEY
    an: int = 0
    tx: bool = False
    rx: bool = False
    lpn: int = 1
    """Lowest acceptable PN, low 32 bits. 1, never 0, in an empty slot: hostap drops the set else."""


@dataclass(frozen=True, slots=True)
class SakUse:
    """MACsec SAK Use (figure 11-11)."""

    latest: KeyUse = KeyUse()
    old: KeyUse = KeyUse()
    plain_tx: bool = False
    plain_rx: bool = False
    delay_protect: bool = False
    supported: bool = True
    """False is the set of length 0: its sender does no MACsec."""

    @classmethod
    def parse(cls, second: int, flags: int, body: bytes) -> SakUse:
        """Read header octets 1 and 2 and the body. Raises MkpduError."""
        plain_tx, plain_rx, delay = bool(flags & 8), bool(flags & 4), bool(flags & 1)
        if not body:
            return cls(plain_tx=plain_tx, plain_rx=plain_rx, delay_protect=delay, supported=False)
        if len(body) != 40:
            raise MkpduError(DropReason.SAK_USE_LENGTH, f"SAK Use of {len(body)} octets, 0 or 40 allowed")

        def use(octets: bytes, bits: int) -> KeyUse:
            ki = KeyIdentifier.unpack(octets)
            return KeyUse(ki, bits >> 2, bool(bits & 2), bool(bits & 1), int.from_bytes(octets[16:20]))

        return cls(use(body[:20], second >> 4), use(body[20:], second & 15), plain_tx, plain_rx, delay)

    def serialize(self) -> bytes:
        """Return the set."""
        flags = self.plain_tx << 3 | self.plain_rx << 2 | self.delay_protect
        if not self.supported:
            return _set(ParameterSet.SAK_USE, b"", flags=flags)
        second, body = 0, b""
        for use in (self.latest, self.old):
            second = second << 4 | use.an << 2 | use.tx << 1 | use.rx
            body += use.ki.pack() + use.lpn.to_bytes(4)
        return _set(ParameterSet.SAK_USE, body, second=second, flags=flags)


@dataclass(frozen=True, slots=True)
class DistributedSak:
    """Distributed SAK (figures 11-12 and 11-13). `wrapped` empty means plain text: no MACsec."""

    an: int = 0
    kn: int = 0
    wrapped: bytes = b""
    """RFC 3394 wrap of the SAK with the KEK, 24 or 40 octets."""
    confidentiality: Confidentiality = Confidentiality.OFFSET_0
    suite_id: int | None = None
    """None is the short form, which means GCM-AES-128."""

    @property
    def suite(self) -> CipherSuite | None:
        """The cipher suite, None where the identifier is unknown or its key size does not fit."""
        if self.suite_id in {None, SUITE_ID_MISPRINTED}:
            suite = CipherSuite.GCM_AES_128
        else:
            try:
                suite = CipherSuite(self.suite_id)
            except ValueError:
                return None
        return suite if len(self.wrapped) == suite.key_size + 8 else None

    @classmethod
    def parse(cls, second: int, body: bytes) -> DistributedSak:
        """Read header octet 1 and the body. Raises MkpduError."""
        an, confidentiality = second >> 6, Confidentiality(second >> 4 & 3)
        if not body:
            return cls(an, confidentiality=confidentiality)
        kn = int.from_bytes(body[:4])
        if len(body) == 28:
            return cls(an, kn, body[4:], confidentiality)
        if len(body) in {36, 52}:
            return cls(an, kn, body[12:], confidentiality, int.from_bytes(body[4:12]))
        raise MkpduError(
            DropReason.DISTRIBUTED_SAK_LENGTH,
            f"Distributed SAK of {len(body)} octets, 0, 28, 36 or 52 allowed",
        )

    def serialize(self) -> bytes:
        """Return the set."""
        body = b""
        if self.wrapped:
            suite = b"" if self.suite_id is None else self.suite_id.to_bytes(8)
            body = self.kn.to_bytes(4) + suite + self.wrapped
        return _set(ParameterSet.DISTRIBUTED_SAK, body, second=self.an << 6 | self.confidentiality << 4)


@dataclass(frozen=True, slots=True)
class DistributedCak:
    """Distributed CAK (figure 11-14): group CAKs. Read and written, not acted upon: ours are pre-shared."""

    wrapped: bytes
    """24 octets."""
    ckn: bytes

    @classmethod
    def parse(cls, body: bytes) -> DistributedCak:
        """Read the body. Raises MkpduError."""
        if not 24 < len(body) <= 24 + CKN_SIZE_MAX:
            raise MkpduError(DropReason.DISTRIBUTED_CAK_LENGTH, f"Distributed CAK of {len(body)} octets")
        return cls(body[:24], body[24:])

    def serialize(self) -> bytes:
        """Return the set."""
        return _set(ParameterSet.DISTRIBUTED_CAK, self.wrapped + self.ckn)


class TlvType(IntEnum):
    """EAPOL-Announcement TLVs (table 11-8)."""

    ACCESS_INFORMATION = 111
    MACSEC_CIPHER_SUITES = 112
    KEY_MANAGEMENT_DOMAIN = 113
    NID = 114


@dataclass(frozen=True, slots=True)
class SuiteOffer:
    """One line of the MACsec Cipher Suites TLV (11.12.4)."""

    suite_id: int
    capability: int

    @property
    def suite(self) -> CipherSuite | None:
        """The suite, None if we do not know it."""
        if self.suite_id == SUITE_ID_MISPRINTED:
            return CipherSuite.GCM_AES_128
        try:
            return CipherSuite(self.suite_id)
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class Announcement:
    """Announcement (figure 11-15): TLVs of 7-bit type and 9-bit length."""

    tlvs: tuple[tuple[int, bytes], ...]

    @classmethod
    def of_suites(cls, offers: tuple[SuiteOffer, ...]) -> Announcement:
        """Say which cipher suites may be used."""
        value = b"".join(o.capability.to_bytes(2) + o.suite_id.to_bytes(8) for o in offers)
        return cls(((TlvType.MACSEC_CIPHER_SUITES, value),))

    @property
    def offers(self) -> tuple[SuiteOffer, ...] | None:
        """The announced cipher suites, None if the TLV is absent."""
        for kind, value in self.tlvs:
            if kind == TlvType.MACSEC_CIPHER_SUITES:
                return tuple(
                    SuiteOffer(int.from_bytes(value[at + 2 : at + 10]), value[at + 1] & 3)
                    for at in range(0, len(value), 10)
                )
        return None

    @classmethod
    def parse(cls, body: bytes) -> Announcement:
        """Read the body. Raises MkpduError."""
        cursor = _Cursor(body, DropReason.ANNOUNCEMENT_TLV)
        tlvs = []
        while cursor.left:
            head = cursor.integer(2)
            kind, value = head >> 9, cursor.take(head & 0x1FF)
            if kind == TlvType.MACSEC_CIPHER_SUITES and len(value) % 10:
                raise MkpduError(
                    DropReason.ANNOUNCEMENT_TLV, f"cipher suites of {len(value)} octets, 10 each"
                )
            tlvs.append((kind, value))
        return cls(tuple(tlvs))

    def serialize(self) -> bytes:
        """Return the set."""
        body = b"".join((kind << 9 | len(value)).to_bytes(2) + value for kind, value in self.tlvs)
        return _set(ParameterSet.ANNOUNCEMENT, body)


@dataclass(frozen=True, slots=True)
class Xpn:
    """XPN (figure 11-16): the high halves of the two LPNs of SAK Use. MKA version 2 and later."""

    latest_lpn_high: int = 0
    old_lpn_high: int = 0
    suspension_s: int = 0
    """MKA suspension time asked for (9.18), seconds."""

    @classmethod
    def parse(cls, second: int, body: bytes) -> Xpn:
        """Read header octet 1 and the body. Raises MkpduError."""
        if len(body) != 8:
            raise MkpduError(DropReason.XPN_LENGTH, f"XPN of {len(body)} octets, 8 allowed")
        return cls(int.from_bytes(body[:4]), int.from_bytes(body[4:]), second)

    def serialize(self) -> bytes:
        """Return the set."""
        body = self.latest_lpn_high.to_bytes(4) + self.old_lpn_high.to_bytes(4)
        return _set(ParameterSet.XPN, body, second=self.suspension_s)


def _set(kind: ParameterSet, body: bytes, *, second: int = 0, flags: int = 0) -> bytes:
    """Put header and padding around a body."""
    return bytes((kind, second)) + (flags << 12 | len(body)).to_bytes(2) + body + bytes(-len(body) % 4)


def _peers(kind: ParameterSet, entries: tuple[PeerEntry, ...], second: int = 0) -> bytes:
    return _set(kind, b"".join(entry.mi + entry.mn.to_bytes(4) for entry in entries), second=second)


def _parse_peers(body: bytes) -> tuple[PeerEntry, ...]:
    if len(body) % 16:
        raise MkpduError(DropReason.PEER_LIST_LENGTH, f"peer list of {len(body)} octets, 16 each")
    return tuple(
        PeerEntry(body[at : at + MI_SIZE], int.from_bytes(body[at + MI_SIZE : at + 16]))
        for at in range(0, len(body), 16)
    )


@dataclass(frozen=True, slots=True)
class Mkpdu:
    """One MKPDU without its ICV. None and empty mean that the set is absent."""

    basic: Basic
    live: tuple[PeerEntry, ...] = ()
    potential: tuple[PeerEntry, ...] = ()
    key_server_ssci: int = 0
    """Low octet of the key server's SSCI: version 3, live list, XPN suites; else 0."""
    sak_use: SakUse | None = None
    distributed_sak: DistributedSak | None = None
    distributed_cak: DistributedCak | None = None
    kmd: bytes | None = None
    """Key Management Domain, UTF-8 of at most 253 octets."""
    announcement: Announcement | None = None
    xpn: Xpn | None = None
    icv_indicator: bool = False

    @classmethod
    def parse(cls, octets: bytes) -> Mkpdu:
        """Take apart what lies between the EAPOL header and the ICV. Raises MkpduError."""
        cursor = _Cursor(octets, DropReason.SET_TRUNCATED)
        basic = Basic.parse(cursor)
        bodies: dict[int, tuple[int, int, bytes]] = {}
        icv_indicator = False
        while cursor.left:
            kind, second, head = cursor.integer(1), cursor.integer(1), cursor.integer(2)
            length = head & 0x0FFF
            if kind == ParameterSet.ICV_INDICATOR:
                # Its body is the ICV itself, which the caller has cut off.
                if length != ICV_SIZE or cursor.left:
                    raise MkpduError(
                        DropReason.ICV_INDICATOR, f"ICV of {length} octets, {cursor.left} before it"
                    )
                icv_indicator = True
                break
            body = cursor.take(length)
            cursor.take(-length % 4)
            bodies.setdefault(kind, (second, head >> 12, body))

        def find(kind: ParameterSet) -> tuple[int, int, bytes] | None:
            return bodies.get(kind)

        live, potential = find(ParameterSet.LIVE_PEER_LIST), find(ParameterSet.POTENTIAL_PEER_LIST)
        use, sak = find(ParameterSet.SAK_USE), find(ParameterSet.DISTRIBUTED_SAK)
        cak, kmd = find(ParameterSet.DISTRIBUTED_CAK), find(ParameterSet.KMD)
        announcement, xpn = find(ParameterSet.ANNOUNCEMENT), find(ParameterSet.XPN)
        if kmd is not None and len(kmd[2]) > 253:
            raise MkpduError(DropReason.KMD_LENGTH, f"KMD of {len(kmd[2])} octets, at most 253 allowed")
        return cls(
            basic=basic,
            live=_parse_peers(live[2]) if live else (),
            potential=_parse_peers(potential[2]) if potential else (),
            key_server_ssci=live[0] if live else 0,
            sak_use=SakUse.parse(*use) if use else None,
            distributed_sak=DistributedSak.parse(sak[0], sak[2]) if sak else None,
            distributed_cak=DistributedCak.parse(cak[2]) if cak else None,
            kmd=kmd[2] if kmd else None,
            announcement=Announcement.parse(announcement[2]) if announcement else None,
            xpn=Xpn.parse(xpn[0], xpn[2]) if xpn else None,
            icv_indicator=icv_indicator,
        )

    def serialize(self) -> bytes:
        """Return the octets between the EAPOL header and the ICV."""
        octets = self.basic.serialize()
        if self.live:
            octets += _peers(ParameterSet.LIVE_PEER_LIST, self.live, self.key_server_ssci)
        if self.potential:
            octets += _peers(ParameterSet.POTENTIAL_PEER_LIST, self.potential)
        if self.sak_use:
            octets += self.sak_use.serialize()
        if self.distributed_sak:
            octets += self.distributed_sak.serialize()
        if self.distributed_cak:
            octets += self.distributed_cak.serialize()
        if self.kmd is not None:
            octets += _set(ParameterSet.KMD, self.kmd)
        if self.announcement:
            octets += self.announcement.serialize()
        if self.xpn:
            octets += self.xpn.serialize()
        if self.icv_indicator:
            octets += bytes((ParameterSet.ICV_INDICATOR, 0)) + ICV_SIZE.to_bytes(2)
        return octets


@dataclass(frozen=True, slots=True)
class Frame:
    """The envelope of an MKPDU: what must hold before its ICV can be verified."""

    source: MacAddress
    ckn: bytes
    """As the frame claims; not yet authenticated."""
    protected: bytes
    """What the ICV covers: destination address up to the last parameter set."""
    icv: bytes

    @property
    def mkpdu(self) -> bytes:
        """The octets for `Mkpdu.parse`."""
        return self.protected[_ENVELOPE_SIZE:]

    @classmethod
    def parse(cls, octets: bytes) -> Frame:
        """Check steps 1 to 4 of 11.11.2 on a whole Ethernet frame. Raises MkpduError.

        Octets after the EAPOL length are Ethernet padding and ignored.
        """
        cursor = _Cursor(octets, DropReason.FRAME_SHORT)
        destination, source = cursor.take(6), cursor.take(6)
        if cursor.integer(2) != ETHERTYPE_EAPOL:
            raise MkpduError(DropReason.NOT_EAPOL, "the EtherType is not 888e")
        if not destination[0] & 1:
            raise MkpduError(
                DropReason.INDIVIDUAL_DA, f"sent to the individual address {destination.hex(':')}"
            )
        version, kind, length = cursor.integer(1), cursor.integer(1), cursor.integer(2)
        if version < EAPOL_VERSION:
            raise MkpduError(DropReason.EAPOL_VERSION, f"EAPOL version {version}, MKA needs 3")
        if kind != EAPOL_TYPE_MKA:
            raise MkpduError(DropReason.EAPOL_TYPE, f"EAPOL type {kind} is not MKA")
        if length < _MKPDU_SIZE_MIN or length % 4 or length > cursor.left:
            raise MkpduError(DropReason.EAPOL_LENGTH, f"EAPOL length {length} of {cursor.left} octets")
        basic = cursor.take(length)[:-ICV_SIZE]
        ckn_size = (int.from_bytes(basic[2:4]) & 0x0FFF) - (_BASIC_SIZE - 4)
        if not 0 < ckn_size <= CKN_SIZE_MAX or _BASIC_SIZE + ckn_size > len(basic):
            raise MkpduError(DropReason.BASIC_LENGTH, f"a CKN of {ckn_size} octets does not fit")
        agility = int.from_bytes(basic[28:32])
        if agility != ALGORITHM_AGILITY:  # says how the ICV is made, so it comes before the ICV
            raise MkpduError(DropReason.ALGORITHM_AGILITY, f"algorithm agility {agility:08x}, we do 0080c201")
        end = _ENVELOPE_SIZE + length - ICV_SIZE
        return cls(
            MacAddress(source),
            basic[_BASIC_SIZE : _BASIC_SIZE + ckn_size],
            octets[:end],
            octets[end : end + ICV_SIZE],
        )


def envelope(source: MacAddress, mkpdu: bytes, destination: MacAddress = PAE_GROUP_ADDRESS) -> bytes:
    """Return what the ICV must cover: Ethernet and EAPOL header, then the MKPDU."""
    head = destination.octets + source.octets + ETHERTYPE_EAPOL.to_bytes(2)
    return head + bytes((EAPOL_VERSION, EAPOL_TYPE_MKA)) + (len(mkpdu) + ICV_SIZE).to_bytes(2) + mkpdu
