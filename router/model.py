"""Small frozen types that every part shares. No behaviour beyond parsing and printing.

`inet_pton` and `inet_ntop` are pure functions that happen to live in `socket`; this is the
one module below the cores that imports them, because `ipaddress` costs ten times as much on
a full table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, IntEnum
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import Final, NamedTuple, NewType

ROUTE_PROTOCOL: Final = 205
"""rtnetlink protocol number on every route, nexthop object and address that we make: our mark."""

MACSEC_OVERHEAD: Final = 32
"""Octets that MACsec adds with an explicit SCI: SecTAG 16, ICV 16 (IEEE 802.1AE-2018 9.3)."""

VLAN_OVERHEAD: Final = 4
"""Octets of one 802.1Q tag."""

ChannelId = NewType("ChannelId", str)
"""A channel's name, unique in the configuration file."""


class Afi(Enum):
    """Address family of a prefix, session or address."""

    IPV4 = 4
    IPV6 = 6

    @property
    def size(self) -> int:
        """Octets of an address."""
        return 4 if self is Afi.IPV4 else 16

    def __str__(self) -> str:
        return "ipv4" if self is Afi.IPV4 else "ipv6"


def pack_address(text: str) -> bytes:
    """Return an IPv4 or IPv6 address in network order. Raises ValueError."""
    try:
        return inet_pton(AF_INET6 if ":" in text else AF_INET, text)
    except OSError as error:
        raise ValueError(f"{text!r} is not an IP address") from error


def show_address(packed: bytes) -> str:
    """Print an address of 4 or 16 octets in its canonical form."""
    return inet_ntop(AF_INET if len(packed) == 4 else AF_INET6, packed)


class Prefix(NamedTuple):
    """An IP prefix; orders by family size, address, length. Host bits are zero."""

    address: bytes
    length: int

    @classmethod
    def parse(cls, text: str) -> Prefix:
        """Parse `10.0.0.0/8`. Raises ValueError, also where host bits are set."""
        address, slash, length = text.partition("/")
        packed = pack_address(address)
        bits = len(packed) * 8
        if not slash:
            return cls(packed, bits)
        if not (length.isascii() and length.isdigit()) or int(length) > bits:
            raise ValueError(f"{text!r}: the length must be 0 to {bits}")
        prefix = cls(packed, int(length))
        if int.from_bytes(packed) & ((1 << (bits - prefix.length)) - 1):
            raise ValueError(f"{text!r} has host bits set")
        return prefix

    @property
    def afi(self) -> Afi:
        """The prefix's address family."""
        return Afi.IPV4 if len(self.address) == 4 else Afi.IPV6

    def contains(self, other: Prefix) -> bool:
        """Tell whether `other` is this prefix or a more specific one of it."""
        if len(self.address) != len(other.address) or other.length < self.length:
            return False
        shift = len(self.address) * 8 - self.length
        return int.from_bytes(self.address) >> shift == int.from_bytes(other.address) >> shift

    def overlaps(self, other: Prefix) -> bool:
        """Tell whether one contains the other."""
        return self.contains(other) or other.contains(self)

    def __str__(self) -> str:
        return f"{show_address(self.address)}/{self.length}"


class Nexthop(NamedTuple):
    """Where a packet goes next: a neighbour's address on one of our devices."""

    device: str
    address: bytes

    def __str__(self) -> str:
        return f"{show_address(self.address)} dev {self.device}"


_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")


@dataclass(frozen=True, slots=True, order=True)
class MacAddress:
    """An IEEE 802 MAC address (6 octets)."""

    octets: bytes

    def __post_init__(self) -> None:
        if len(self.octets) != 6:
            raise ValueError("a MAC address has 6 octets")

    @classmethod
    def parse(cls, text: str) -> MacAddress:
        """Parse `02:00:00:00:00:01`. Raises ValueError."""
        if not _MAC.fullmatch(text):
            raise ValueError(f"{text!r} is not a MAC address (02:00:00:00:00:01)")
        return cls(bytes.fromhex(text.replace(":", "")))

    def __str__(self) -> str:
        return self.octets.hex(":")


@dataclass(frozen=True, slots=True, order=True)
class Sci:
    """Secure Channel Identifier (802.1AE-2018 7.1.2): MAC address and 16-bit port."""

    mac: MacAddress
    port: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.port <= 0xFFFF:
            raise ValueError("an SCI's port is 1 to 65535")

    @classmethod
    def parse(cls, text: str) -> Sci:
        """Parse `02:00:00:00:00:01/1` (the port may be left out and is 1 then). Raises ValueError."""
        mac, slash, port = text.partition("/")
        if slash and not (port.isascii() and port.isdigit()):
            raise ValueError(f"{text!r}: an SCI is MAC/PORT")
        return cls(MacAddress.parse(mac), int(port) if slash else 1)

    @classmethod
    def unpack(cls, octets: bytes) -> Sci:
        """Take the 8 octets as they stand in a SecTAG or MKPDU."""
        return cls(MacAddress(octets[:6]), int.from_bytes(octets[6:8]))

    def pack(self) -> bytes:
        """Return the 8 octets as they stand in a SecTAG."""
        return self.mac.octets + self.port.to_bytes(2)

    def __str__(self) -> str:
        return f"{self.mac}/{self.port}"


class CipherSuite(Enum):
    """The cipher suites of 802.1AE-2018 clause 14, by their 64-bit identifiers."""

    GCM_AES_128 = 0x0080C20001000001
    GCM_AES_256 = 0x0080C20001000002
    GCM_AES_XPN_128 = 0x0080C20001000003
    GCM_AES_XPN_256 = 0x0080C20001000004

    @classmethod
    def parse(cls, text: str) -> CipherSuite:
        """Parse `gcm-aes-xpn-256`. Raises ValueError."""
        try:
            return cls[text.upper().replace("-", "_")]
        except KeyError:
            raise ValueError(f"{text!r} is none of {', '.join(map(str, cls))}") from None

    @property
    def key_size(self) -> int:
        """Octets of a SAK: 16 or 32."""
        return 16 if self in {CipherSuite.GCM_AES_128, CipherSuite.GCM_AES_XPN_128} else 32

    @property
    def is_xpn(self) -> bool:
        """Whether packet numbers have 64 bits (extended packet numbering)."""
        return self in {CipherSuite.GCM_AES_XPN_128, CipherSuite.GCM_AES_XPN_256}

    @property
    def pn_max(self) -> int:
        """The last packet number that may be used under one SAK."""
        return (1 << 64) - 1 if self.is_xpn else (1 << 32) - 1

    def __str__(self) -> str:
        return self.name.lower().replace("_", "-")


class Confidentiality(IntEnum):
    """What of a frame's secure data is encrypted; the numbers are MKA's (802.1X-2020 11.11.3)."""

    INTEGRITY_ONLY = 0
    """Nothing: frames are authentic, and readable."""
    OFFSET_0 = 1
    """All of it."""
    OFFSET_30 = 2
    """All but the first 30 octets (an IPv4 header and its ports stay readable)."""
    OFFSET_50 = 3
    """All but the first 50 octets."""

    @classmethod
    def parse(cls, text: str) -> Confidentiality:
        """Parse `integrity-only`, `offset-0`, `offset-30` or `offset-50`. Raises ValueError."""
        for candidate in cls:
            if candidate.label == text:
                return candidate
        raise ValueError(f"{text!r} is none of {', '.join(c.label for c in cls)}")

    @property
    def label(self) -> str:
        """Its name in the configuration."""
        return self.name.lower().replace("_", "-")

    @property
    def offset(self) -> int:
        """Octets at the start of the secure data that stay readable, where any is encrypted at all."""
        return {Confidentiality.OFFSET_30: 30, Confidentiality.OFFSET_50: 50}.get(self, 0)

    @property
    def rank(self) -> int:
        """How much it hides: a greater rank hides more."""
        order = (self.INTEGRITY_ONLY, self.OFFSET_50, self.OFFSET_30, self.OFFSET_0)
        return order.index(self)


class Secret:
    """Octets that must never be printed. `reveal()` is the only way out; `wipe()` ends it."""

    __slots__ = ("_octets",)

    def __init__(self, octets: bytes) -> None:
        self._octets = bytearray(octets)

    def reveal(self) -> bytes:
        """Return the octets; the caller keeps the copy out of argv, logs and files."""
        return bytes(self._octets)

    def wipe(self) -> None:
        """Overwrite our copy with zeros. Copies that Python or a library made are out of reach."""
        self._octets[:] = bytes(len(self._octets))

    def __len__(self) -> int:
        return len(self._octets)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._octets == other._octets

    def __hash__(self) -> int:
        return hash(bytes(self._octets))

    def __repr__(self) -> str:
        return "<redacted>"

    __str__ = __repr__

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a Secret is not serialised")
