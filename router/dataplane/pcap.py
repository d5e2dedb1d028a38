"""Capture files, as tcpdump and Wireshark write them: pcap and pcapng in, pcap out.

Only what MACsec needs: whole Ethernet frames with their times, one after the other, so that a
capture of any size passes through. pcapng is read as draft-ietf-opsawg-pcapng says, both byte
orders, several sections and interfaces; written is pcap with nanoseconds.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO, Final, NamedTuple

from router.errors import ConfigError

LINKTYPE_ETHERNET: Final = 1
FRAME_SIZE_MAX: Final = 262_144
"""Octets of a captured frame beyond which the file is taken to be damaged."""

_PCAP_MICRO: Final = 0xA1B2C3D4
_PCAP_NANO: Final = 0xA1B23C4D
_SECTION_HEADER: Final = 0x0A0D0D0A
_BYTE_ORDER_MAGIC: Final = 0x1A2B3C4D
_INTERFACE: Final = 1
_SIMPLE_PACKET: Final = 3
_ENHANCED_PACKET: Final = 6
_OPTION_TSRESOL: Final = 9
_OPTION_TSOFFSET: Final = 14


class Captured(NamedTuple):
    """One frame of a capture."""

    time_ns: int
    """Nanoseconds since 1970; 0 where the file has none."""
    frame: bytes
    truncated: bool
    """The capture kept only the frame's beginning (snap length)."""


class _Interface(NamedTuple):
    units_per_s: int
    offset_s: int
    snap_size: int


def read_capture(stream: BinaryIO) -> Iterator[Captured]:
    """Yield all frames in order. Raises ConfigError where the file is not a whole Ethernet capture."""
    magic = stream.read(4)
    if magic == _SECTION_HEADER.to_bytes(4):
        return _read_pcapng(stream)
    for order in "<", ">":
        if len(magic) == 4 and (number := struct.unpack(order + "I", magic)[0]) in {_PCAP_MICRO, _PCAP_NANO}:
            return _read_pcap(stream, order, 1 if number == _PCAP_NANO else 1000)
    raise ConfigError("not a capture: neither pcap nor pcapng - write it with tcpdump -w or dumpcap")


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise ConfigError("the capture ends in the middle of a record - it was not written to its end")
    return data


def _checked_size(size: int) -> int:
    if size > FRAME_SIZE_MAX:
        raise ConfigError(f"the capture has a frame of {size} octets - it is damaged")
    return size


def _check_link(link: int) -> None:
    if link != LINKTYPE_ETHERNET:
        raise ConfigError(f"the capture's link type is {link}, not Ethernet (1) - capture on the port itself")


def _read_pcap(stream: BinaryIO, order: str, unit_ns: int) -> Iterator[Captured]:
    _check_link(struct.unpack(order + "16xI", _exactly(stream, 20))[0] & 0xFFFF)
    while head := stream.read(16):
        if len(head) != 16:
            raise ConfigError("the capture ends in the middle of a record - it was not written to its end")
        seconds, fraction, size, original = struct.unpack(order + "4I", head)
        frame = _exactly(stream, _checked_size(size))
        yield Captured(seconds * 1_000_000_000 + fraction * unit_ns, frame, original > size)


def _read_pcapng(stream: BinaryIO) -> Iterator[Captured]:
    order = "<"
    interfaces: list[_Interface] = []
    kind_octets = _SECTION_HEADER.to_bytes(4)  # read_capture has read it
    while kind_octets:
        if len(kind_octets) != 4:
            raise ConfigError("the capture ends in the middle of a block - it was not written to its end")
        if kind_octets == _SECTION_HEADER.to_bytes(4):
            length_octets, magic = _exactly(stream, 4), _exactly(stream, 4)
            order = "<" if magic == _BYTE_ORDER_MAGIC.to_bytes(4, "little") else ">"
            interfaces = []
            done = 12
        else:
            length_octets = _exactly(stream, 4)
            done = 8
        (kind,) = struct.unpack(order + "I", kind_octets)
        (length,) = struct.unpack(order + "I", length_octets)
        if length < done + 4 or length % 4:
            raise ConfigError(f"the capture has a block of {length} octets - it is damaged")
        body = _exactly(stream, _checked_size(length - done - 4))
        _exactly(stream, 4)
        if kind == _INTERFACE:
            interfaces.append(_interface(body, order))
        elif kind == _ENHANCED_PACKET:
            yield _enhanced(body, order, interfaces)
        elif kind == _SIMPLE_PACKET:
            yield _simple(body, order, interfaces)
        kind_octets = stream.read(4)


def _interface(body: bytes, order: str) -> _Interface:
    if len(body) < 8:
        raise ConfigError("the capture has a broken interface block")
    link, snap_size = struct.unpack(order + "HxxI", body[:8])
    _check_link(link)
    units_per_s, offset_s = 1_000_000, 0
    at = 8
    while at + 4 <= len(body):
        code, size = struct.unpack(order + "HH", body[at : at + 4])
        value = body[at + 4 : at + 4 + size]
        if code == 0:
            break
        if code == _OPTION_TSRESOL and size == 1:
            units_per_s = 1 << (value[0] & 0x7F) if value[0] & 0x80 else 10 ** value[0]
        elif code == _OPTION_TSOFFSET and size == 8:
            (offset_s,) = struct.unpack(order + "q", value)
        at += 4 + -(-size // 4) * 4
    return _Interface(units_per_s, offset_s, snap_size)


def _enhanced(body: bytes, order: str, interfaces: list[_Interface]) -> Captured:
    if len(body) < 20:
        raise ConfigError("the capture has a broken packet block")
    number, high, low, size, original = struct.unpack(order + "5I", body[:20])
    if number >= len(interfaces) or size > len(body) - 20:
        raise ConfigError("the capture has a broken packet block")
    interface = interfaces[number]
    time_ns = (high << 32 | low) * 1_000_000_000 // interface.units_per_s
    return Captured(
        time_ns + interface.offset_s * 1_000_000_000, body[20 : 20 + size], truncated=original > size
    )


def _simple(body: bytes, order: str, interfaces: list[_Interface]) -> Captured:
    if len(body) < 4 or not interfaces:
        raise ConfigError("the capture has a broken packet block")
    (original,) = struct.unpack(order + "I", body[:4])
    size = min(original, interfaces[0].snap_size or original)
    if size > len(body) - 4:
        raise ConfigError("the capture has a broken packet block")
    return Captured(0, body[4 : 4 + size], truncated=original > size)


class PcapWriter:
    """Writes Ethernet frames as pcap with nanoseconds."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        header = struct.pack("<IHHiIII", _PCAP_NANO, 2, 4, 0, 0, FRAME_SIZE_MAX, LINKTYPE_ETHERNET)
        stream.write(header)

    def write(self, time_ns: int, frame: bytes | memoryview) -> None:
        """Append a frame; times before 1970 or after 2106 are written as 0."""
        seconds, fraction = divmod(time_ns, 1_000_000_000)
        if not 0 <= seconds < 1 << 32:
            seconds = fraction = 0
        self._stream.write(struct.pack("<4I", seconds, fraction, len(frame), len(frame)))
        self._stream.write(frame)
