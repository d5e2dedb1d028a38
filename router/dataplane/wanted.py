"""What routerd asks of the data plane: the whole wanted set, every time. Values, and their JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from router.model import CipherSuite


@dataclass(frozen=True, slots=True)
class WantedFeature:
    """One VLAN of a channel, seen by the kernel as a TAP."""

    device: str
    """The TAP's name."""
    vlan: int | None
    """VID 1 to 4094; None: frames without a tag."""
    mtu: int
    """Octets of IP."""
    rate_bps: int = 0
    """Bits of Ethernet frames per second that may leave; 0 is no limit."""


@dataclass(frozen=True, slots=True)
class WantedChannel:
    """One uplink with its SecY."""

    name: str
    """What the SecY is called: the name that the macsec device would have."""
    device: str
    """The uplink port."""
    suite: CipherSuite
    replay_window: int
    include_sci: bool
    sci_port: int
    port_mtu: int
    features: tuple[WantedFeature, ...]
    path: str = "auto"
    """`auto`, `packet`, `xdp-tx` or `xdp`."""
    cores: int = 1
    """Cores that send at once, at most; 1 keeps the order of packet numbers (csrc/engine.h)."""
    may_open: bool = False
    """Frames may pass in clear when the key daemon says so (should-secure)."""

    def to_json(self) -> dict[str, Any]:
        """The form it has on the socket and in the state file."""
        return {**asdict(self), "suite": str(self.suite)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> WantedChannel:
        """The inverse of `to_json`. Raises KeyError, TypeError, ValueError."""
        features = tuple(WantedFeature(**feature) for feature in data["features"])
        suite = CipherSuite.parse(data["suite"])
        return cls(**{**data, "suite": suite, "features": features})
