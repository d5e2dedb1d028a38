"""What we ask of the kernel, one frozen object per thing, each with a name and what it stands on.

A desired state is a tuple of these in the order in which they are built. An observed state is
the same vocabulary read back, so that "what must change" is a comparison of equals. An object's
`needs` are the keys of the objects it stands on: where one of those is in error, the object is
not touched. That is how the router fails closed: a port needs its egress guard.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

from router.model import CipherSuite

MARK = "lastmile:"
"""Start of the link alias (IFLA_IFALIAS) of every device that we made."""


class Key(NamedTuple):
    """What an object is called: unique within a state."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


class _Thing:
    """What all objects share."""

    __slots__ = ()
    KIND: ClassVar[str]

    @property
    def needs(self) -> tuple[Key, ...]:
        """What it stands on."""
        return ()


class _Device(_Thing):
    """A link: called what its device is called."""

    __slots__ = ()
    name: str

    @property
    def key(self) -> Key:
        """What it is called."""
        return Key(self.KIND, self.name)


@dataclass(frozen=True, slots=True)
class EgressGuard(_Thing):
    """Nothing but the named EtherTypes may leave or enter a device. Stands before the port is up."""

    KIND: ClassVar = "guard"
    device: str
    ethertypes: tuple[int, ...]
    """Sorted."""

    def __post_init__(self) -> None:
        assert self.ethertypes == tuple(sorted(self.ethertypes)), "guards compare by their order"

    @property
    def key(self) -> Key:
        """What it is called."""
        return Key(self.KIND, self.device)

    def __str__(self) -> str:
        return f"guard on {self.device} passes only {', '.join(f'{t:#06x}' for t in self.ethertypes)}"


@dataclass(frozen=True, slots=True)
class PortLink(_Device):
    """A device that is not ours: we set its MTU and state, and keep IP off it where it is a channel's."""

    KIND: ClassVar = "port"
    name: str
    mtu: int
    up: bool
    guarded: bool
    """A channel's port: carries no IP, and comes up only behind its guard."""
    bond: str | None = None
    """The LAG that it is a member of."""
    vrf: str | None = None
    """The VRF that it is a member of (a LAN port)."""

    @property
    def needs(self) -> tuple[Key, ...]:
        """What it stands on."""
        guard = (Key(EgressGuard.KIND, self.name),) if self.guarded else ()
        bond = (Key("bond", self.bond),) if self.bond else ()
        return guard + bond + ((Key("vrf", self.vrf),) if self.vrf else ())

    def __str__(self) -> str:
        member = f" in {self.bond or self.vrf}" if self.bond or self.vrf else ""
        return f"port {self.name}{member} mtu {self.mtu} {'up' if self.up else 'down'}"


@dataclass(frozen=True, slots=True)
class BondLink(_Device):
    """A LAG (IEEE 802.1AX) of ports. Its members are `PortLink`s that name it."""

    KIND: ClassVar = "bond"
    name: str
    lacp_fast: bool
    min_links: int

    def __str__(self) -> str:
        rate = "fast" if self.lacp_fast else "slow"
        return f"bond {self.name} 802.3ad lacp-rate {rate} min-links {self.min_links}"


@dataclass(frozen=True, slots=True)
class MacsecLink(_Device):
    """A macsec device. Its SCI is the parent's MAC and `sci_port`.

    Two settings may be the key daemon's: whether a should-secure port is open in clear, and whether
    frames are encrypted where the policy is integrity only. There, `may_...` is desired; as observed,
    it tells what is, and `settled` says that either is right.
    """

    KIND: ClassVar = "macsec"
    name: str
    parent: str
    mtu: int
    sci_port: int
    suite: CipherSuite
    replay_window: int
    """Frames. 0 is strict order."""
    send_sci: bool
    up: bool
    may_open: bool = False
    """Desired: frames may pass in clear when the key daemon says so. Observed: they pass in clear now."""
    may_bare: bool = False
    """Desired: frames may be authentic only, not encrypted. Observed: they are not encrypted now."""

    @property
    def needs(self) -> tuple[Key, ...]:
        """What it stands on."""
        return (Key(PortLink.KIND, self.parent),)

    def settled(self, was: MacsecLink) -> bool:
        """Tell whether `was`, as observed, is what this one asks for."""
        return self == replace(
            was, may_open=was.may_open or self.may_open, may_bare=was.may_bare or self.may_bare
        )

    def rebuild_reason(self, was: MacsecLink) -> str | None:
        """Say what a live macsec device cannot change (kernel: EINVAL), if that is what differs."""
        if was.parent != self.parent:
            return f"parent {was.parent} -> {self.parent}"
        if was.suite is not self.suite:
            return f"suite {was.suite} -> {self.suite}"
        if was.sci_port != self.sci_port:
            return f"SCI port {was.sci_port} -> {self.sci_port}"
        return None

    def __str__(self) -> str:
        return (
            f"macsec {self.name} on {self.parent} {self.suite} port {self.sci_port} window {self.replay_window}"
            f" sci {'on' if self.send_sci else 'off'} mtu {self.mtu} {'up' if self.up else 'down'}"
            f"{' may pass frames IN CLEAR' if self.may_open else ''}"
            f"{' may not encrypt' if self.may_bare else ''}"
        )


@dataclass(frozen=True, slots=True)
class VrfLink(_Device):
    """A VRF device with its routing table."""

    KIND: ClassVar = "vrf"
    name: str
    table: int

    def rebuild_reason(self, was: VrfLink) -> str | None:
        """Say what a VRF device cannot change."""
        return f"table {was.table} -> {self.table}" if was.table != self.table else None

    def __str__(self) -> str:
        return f"vrf {self.name} table {self.table}"


@dataclass(frozen=True, slots=True)
class VlanLink(_Device):
    """An 802.1Q device on a macsec device."""

    KIND: ClassVar = "vlan"
    name: str
    parent: str
    vid: int
    mtu: int
    vrf: str | None
    up: bool

    @property
    def needs(self) -> tuple[Key, ...]:
        """What it stands on."""
        below = (Key(MacsecLink.KIND, self.parent),)
        return (*below, Key(VrfLink.KIND, self.vrf)) if self.vrf else below

    def rebuild_reason(self, was: VlanLink) -> str | None:
        """Say what a VLAN device cannot change."""
        if was.parent != self.parent:
            return f"parent {was.parent} -> {self.parent}"
        return f"vid {was.vid} -> {self.vid}" if was.vid != self.vid else None

    def __str__(self) -> str:
        vrf = f" vrf {self.vrf}" if self.vrf else ""
        return f"vlan {self.name} on {self.parent} vid {self.vid}{vrf} mtu {self.mtu} {'up' if self.up else 'down'}"


@dataclass(frozen=True, slots=True)
class TapLink(_Device):
    """What a `VlanLink` is with our data plane: a TAP that its process makes; the rest is done here."""

    KIND: ClassVar = "tap"
    name: str
    mtu: int
    vrf: str | None
    up: bool

    @property
    def needs(self) -> tuple[Key, ...]:
        """What it stands on."""
        return (Key(VrfLink.KIND, self.vrf),) if self.vrf else ()

    def __str__(self) -> str:
        vrf = f" vrf {self.vrf}" if self.vrf else ""
        return f"tap {self.name}{vrf} mtu {self.mtu} {'up' if self.up else 'down'}"


@dataclass(frozen=True, slots=True)
class Address(_Thing):
    """An interface address, marked as ours by IFA_PROTO."""

    KIND: ClassVar = "address"
    device: str
    address: str
    """Canonical text, without length."""
    prefix_length: int
    below: Key
    """The link it is on."""

    @property
    def key(self) -> Key:
        """What it is called."""
        return Key(self.KIND, f"{self.address}/{self.prefix_length} dev {self.device}")

    @property
    def needs(self) -> tuple[Key, ...]:
        """What it stands on."""
        return (self.below,)

    def __str__(self) -> str:
        return str(self.key)


@dataclass(frozen=True, slots=True)
class Sysctl(_Thing):
    """A file below /proc/sys and its text. A per-device one is desired while its device exists."""

    KIND: ClassVar = "sysctl"
    path: tuple[str, ...]
    """Path components: device names may contain dots."""
    value: str
    device: str | None = None

    @property
    def key(self) -> Key:
        """What it is called."""
        return Key(self.KIND, "/".join(self.path))

    def __str__(self) -> str:
        return f"{self.key} = {self.value}"


@dataclass(frozen=True, slots=True, order=True)
class PeerRule:
    """Who may talk BGP and BFD to us, and on which device."""

    device: str
    address: str


@dataclass(frozen=True, slots=True)
class ControlPlaneRules(_Thing):
    """nftables: tcp/179 and udp/3784 only from and to these peers on their devices."""

    KIND: ClassVar = "rules"
    peers: tuple[PeerRule, ...]
    """Sorted."""
    intact: bool = True
    """False only as observed: something in our table was changed by hand."""

    @property
    def key(self) -> Key:
        """What it is called."""
        return Key(self.KIND, "control-plane")

    def __str__(self) -> str:
        broken = "" if self.intact else " (changed by another program)"
        return f"rules control-plane: BGP and BFD only with {len(self.peers)} peers{broken}"


Link = PortLink | BondLink | MacsecLink | VrfLink | VlanLink | TapLink
Object = EgressGuard | Link | Address | Sysctl | ControlPlaneRules


@dataclass(frozen=True, slots=True)
class DesiredState:
    """Everything that must be true of the kernel, in the order in which it is built."""

    objects: tuple[Object, ...] = ()

    @property
    def sysctls(self) -> tuple[Sysctl, ...]:
        """The files that observing must read."""
        return tuple(o for o in self.objects if isinstance(o, Sysctl))


@dataclass(frozen=True, slots=True)
class LinkFacts:
    """A device as the kernel shows it, ours or not."""

    name: str
    index: int
    kind: str | None
    """Link kind (`macsec`, `veth`), None for hardware."""
    alias: str
    mac: str
    mtu: int
    up: bool
    """Administratively up."""
    carrier: bool
    operstate: str
    master: str | None = None
    stats: Mapping[str, int] = field(default_factory=dict, hash=False, compare=False)

    @property
    def ours(self) -> bool:
        """Whether it carries our mark."""
        return self.alias.startswith(MARK)


@dataclass(frozen=True, slots=True)
class ObservedState:
    """What the kernel has: our objects, and the bare facts of every device."""

    links: Mapping[str, LinkFacts] = field(default_factory=dict, hash=False)
    objects: Mapping[Key, Object] = field(default_factory=dict, hash=False)
    """Objects that carry our mark, and the sysctls that were asked for."""
    unmarked: frozenset[Key] = frozenset()
    """Addresses that are there without our mark: good enough where desired, never removed."""
