"""Captures of the wires, and the proof that nothing on them was in clear.

dumpcap writes one pcapng per wire, on the edge's end: what is seen there has been on the wire. The
first octets of each frame are enough for the proof; whole frames are kept only on request.
"""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from router.errors import LabError
from router.lab.node import Node, stop
from router.lab.poll import until

ETHERTYPE_MACSEC: Final = 0x88E5
ETHERTYPE_EAPOL: Final = 0x888E
ETHERTYPE_SLOW: Final = 0x8809
"""Slow protocols: LACP, on the members of a LAG, below MACsec."""

SNAPLEN: Final = 96
START_TIMEOUT_S: Final = 15.0

SECTION_HEADER: Final = 0x0A0D0D0A
BYTE_ORDER: Final = 0x1A2B3C4D
ENHANCED_PACKET: Final = 6
SIMPLE_PACKET: Final = 3


class Capture:
    """dumpcap on one device, from `start` to `stop`."""

    def __init__(self, node: Node, device: str, path: Path, *, whole: bool = False) -> None:
        self.node = node
        self.device = device
        self.path = path
        self._whole = whole
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, in place of a former one's file. Frames are seen from the return of `ready` on."""
        self.path.unlink(missing_ok=True)
        snaplen = [] if self._whole else ["-s", str(SNAPLEN)]
        argv = ["dumpcap", "-q", "-n", "-i", self.device, "-B", "8", *snaplen, "-w", str(self.path)]
        self._process = self.node.start(argv, self.path.with_suffix(".log"))

    def ready(self) -> None:
        """Wait until it captures. Raises LabError."""
        until(
            self._writes,
            START_TIMEOUT_S,
            lambda: f"dumpcap on {self.node.name}:{self.device} does not capture",
        )

    def _writes(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            log = self.path.with_suffix(".log").read_text(errors="replace").strip()
            raise LabError(f"dumpcap on {self.node.name}:{self.device} ended: {log}")
        # It opens its file once the device is open and the filter is in place.
        return self.path.exists() and self.path.stat().st_size > 0

    def stop(self) -> None:
        """End it; the file is complete then."""
        if self._process is not None:
            stop(self._process)
            self.path.with_suffix(".log").unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Frame:
    """One captured frame: its number (from 1, as Wireshark counts) and first octets."""

    number: int
    octets: bytes

    @property
    def ethertype(self) -> int:
        """Type of what follows the two addresses; 0 where the frame is too short to have one."""
        return int.from_bytes(self.octets[12:14]) if len(self.octets) >= 14 else 0

    def __str__(self) -> str:
        destination, source = self.octets[:6].hex(":"), self.octets[6:12].hex(":")
        return f"frame {self.number}: {source} > {destination} type {self.ethertype:04x}"


def frames(path: Path) -> Iterator[Frame]:
    """The frames of a pcapng file, of every interface in it. Raises LabError where it is not one.

    A block that is cut off at the end (the capture was killed) ends the iteration.
    """
    data = path.read_bytes()
    if len(data) < 12 or int.from_bytes(data[:4]) != SECTION_HEADER:
        raise LabError(f"{path} is not a pcapng file")
    order, position, number = "<", 0, 0
    while position + 12 <= len(data):
        if int.from_bytes(data[position : position + 4]) == SECTION_HEADER:
            magic = int.from_bytes(data[position + 8 : position + 12], "little")
            order = "<" if magic == BYTE_ORDER else ">"
        kind, length = struct.unpack_from(f"{order}II", data, position)
        if length < 12 or position + length > len(data):
            return
        if kind == ENHANCED_PACKET:
            captured = struct.unpack_from(f"{order}I", data, position + 20)[0]
            number += 1
            yield Frame(number, data[position + 28 : position + 28 + captured])
        elif kind == SIMPLE_PACKET:
            number += 1
            yield Frame(number, data[position + 12 : position + length - 4])
        position += length


def cleartext_frames(path: Path, *, lag: bool = False) -> list[Frame]:
    """Every frame that is neither MACsec nor EAPOL (nor LACP, on the member of a LAG)."""
    allowed = {ETHERTYPE_MACSEC, ETHERTYPE_EAPOL} | ({ETHERTYPE_SLOW} if lag else set())
    return [frame for frame in frames(path) if frame.ethertype not in allowed]


def protected_frames(path: Path) -> int:
    """How many MACsec frames there are: a capture without any proves nothing."""
    return sum(1 for frame in frames(path) if frame.ethertype == ETHERTYPE_MACSEC)
