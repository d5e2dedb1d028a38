"""A kernel in memory with the same interface, which can fail on demand.

It keeps the real one's habits that matter: a link that goes down takes its nexthop objects
with it, an emptied group goes too and its routes with it; a device's end takes everything on
it; a parent's MTU bounds its children's; a same-named device without our mark is refused.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import strerror

from router.errors import KernelError, Unsupported
from router.fib_ops import FibOp, GroupReplace, NexthopDelete, NexthopReplace, RouteDelete, RouteReplace
from router.model import (
    MACSEC_OVERHEAD,
    VLAN_OVERHEAD,
    Confidentiality,
    MacAddress,
    Nexthop,
    Prefix,
    Sci,
)
from router.reconcile.diff import Action, Verb
from router.reconcile.kernel import Event, EventsLost, FibEvent, FibFailure, LinkEvent, Neighbour, ObservedFib
from router.reconcile.objects import (
    MARK,
    Address,
    BondLink,
    ControlPlaneRules,
    DesiredState,
    EgressGuard,
    Key,
    LinkFacts,
    MacsecLink,
    Object,
    ObservedState,
    PortLink,
    Sysctl,
    TapLink,
    VlanLink,
    VrfLink,
)
from router.secy import ReceiveScState, SaKey, SaState, SecyCounters, SecyState

CreatedLink = BondLink | MacsecLink | VrfLink | VlanLink | TapLink


@dataclass
class _Fault:
    kind: str
    errno: int
    times: int


@dataclass
class FakeSecy:
    """A SecY in memory. Refuses as the kernel does; `transmit` and `receive` are open to tests."""

    device: str
    kernel: FakeKernel
    encoding_an: int = 0
    transmit: dict[int, SaState] = field(default_factory=dict)
    receive: dict[Sci, dict[int, SaState]] = field(default_factory=dict)
    counters: SecyCounters = field(default_factory=SecyCounters)

    def forget(self) -> None:
        """Lose everything, as with the device's end."""
        self.encoding_an = 0
        self.transmit.clear()
        self.receive.clear()

    def _link(self) -> MacsecLink:
        link = self.kernel.ours.get(Key(MacsecLink.KIND, self.device))
        if not isinstance(link, MacsecLink):
            raise KernelError(f"{self.device}: no such device", errno.ENODEV)
        self.kernel.check_fault("secy")
        return link

    async def observe(self) -> SecyState:
        """Read state and counters."""
        link = self._link()
        sa = self.transmit.get(self.encoding_an)
        mac = MacAddress.parse(self.kernel.links[self.device].mac)
        return SecyState(
            self.device,
            Sci(mac, link.sci_port),
            link.suite,
            sa is not None and sa.active,
            self.encoding_an,
            tuple(self.transmit.values()),
            tuple(ReceiveScState(sci, True, tuple(sas.values())) for sci, sas in self.receive.items()),
            self.counters,
            Confidentiality.INTEGRITY_ONLY if link.may_bare else Confidentiality.OFFSET_0,
            link.may_open,
        )

    async def create_receive_sc(self, sci: Sci) -> None:
        """Create an enabled receive SC."""
        self._link()
        self.receive.setdefault(sci, {})

    async def delete_receive_sc(self, sci: Sci) -> None:
        """Delete a receive SC with all its SAs."""
        self._link()
        self.receive.pop(sci, None)

    def _sas(self, sci: Sci) -> dict[int, SaState]:
        self._link()
        if sci not in self.receive:
            raise KernelError(f"{self.device}: no receive SC {sci}", errno.ENODEV)
        return self.receive[sci]

    async def create_receive_sa(self, sci: Sci, an: int, key: SaKey, lowest_pn: int) -> None:
        """Install a receive SA, not yet active."""
        self._create(self._sas(sci), an, key, lowest_pn)

    async def enable_receive_sa(self, sci: Sci, an: int, *, active: bool = True) -> None:
        """Let frames of this SA in, or stop doing so."""
        sas = self._sas(sci)
        sas[an] = replace(self._existing(sas, an), active=active)

    async def update_receive_pn(self, sci: Sci, an: int, lowest_pn: int) -> None:
        """Raise the lowest acceptable PN."""
        sas = self._sas(sci)
        sa = self._existing(sas, an)
        sas[an] = replace(sa, next_pn=max(sa.next_pn, lowest_pn))

    async def delete_receive_sa(self, sci: Sci, an: int) -> None:
        """Remove a receive SA."""
        self._sas(sci).pop(an, None)

    async def create_transmit_sa(self, an: int, key: SaKey, next_pn: int) -> None:
        """Install a transmit SA, not yet active."""
        self._link()
        self._create(self.transmit, an, key, next_pn)

    async def enable_transmit_sa(self, an: int) -> None:
        """Activate an SA and make it the encoding SA."""
        self._link()
        self.transmit[an] = replace(self._existing(self.transmit, an), active=True)
        self.encoding_an = an

    async def delete_transmit_sa(self, an: int) -> None:
        """Remove a transmit SA."""
        self._link()
        self.transmit.pop(an, None)

    async def set_controlled_port(self, *, unprotected: bool) -> None:
        """Let all frames pass in clear, or none."""
        link = self._link()
        self.kernel.ours[link.key] = replace(link, may_open=unprotected)

    async def set_confidentiality(self, confidentiality: Confidentiality) -> None:
        """Encrypt whole frames, or nothing of them."""
        link = self._link()
        if confidentiality.offset:
            raise Unsupported(f"{self.device}: no confidentiality offset here", errno.EOPNOTSUPP)
        self.kernel.ours[link.key] = replace(link, may_bare=confidentiality is Confidentiality.INTEGRITY_ONLY)

    def _create(self, sas: dict[int, SaState], an: int, key: SaKey, pn: int) -> None:
        if an in sas and sas[an].key_id != key.key_id:
            raise KernelError(f"{self.device}: AN {an} is in use", errno.EBUSY)
        if an not in sas:
            if pn < 1 or len(key.sak) != self._link().suite.key_size:
                raise KernelError(f"{self.device}: bad PN or key length", errno.EINVAL)
            sas[an] = SaState(an, active=False, next_pn=pn, key_id=key.key_id, ssci=key.ssci)

    def _existing(self, sas: dict[int, SaState], an: int) -> SaState:
        if an not in sas:
            raise KernelError(f"{self.device}: no SA {an}", errno.ENODEV)
        return sas[an]


class FakeKernel:
    """Holds links, addresses, rules and routes. `ports` exist from the start, without our mark."""

    def __init__(self, ports: Sequence[str] = ()) -> None:
        self.links: dict[str, LinkFacts] = {}
        self.ours: dict[Key, Object] = {}
        """Our links, guards and rules."""
        self.addresses: dict[Key, Address] = {}
        self.unmarked: set[Key] = set()
        self.sysctls: dict[tuple[str, ...], str] = {}
        self.nexthops: dict[int, Nexthop] = {}
        self.groups: dict[int, tuple[int, ...]] = {}
        self.routes: dict[tuple[int, Prefix], int] = {}
        self.applied: list[Action] = []
        self.lose_events = False
        self._carrier: dict[str, bool] = {}
        self._faults: list[_Fault] = []
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._secys: dict[str, FakeSecy] = {}
        self._index = 0
        for port in ports:
            self.add_port(port)

    # -- what tests do to it

    def add_port(self, name: str, *, mtu: int = 1500, up: bool = False, kind: str | None = None) -> None:
        """Plug a port in."""
        self._index += 1
        mac = f"02:00:00:00:{self._index >> 8:02x}:{self._index & 0xFF:02x}"
        self.links[name] = LinkFacts(
            name, self._index, kind, "", mac, mtu, up, carrier=True, operstate="up" if up else "down"
        )
        self._tell(LinkEvent(name, up, 0.0))

    def remove_link(self, name: str) -> None:
        """Delete a device by hand, or pull it out."""
        for key, above in list(self.ours.items()):
            if isinstance(above, MacsecLink | VlanLink) and above.parent == name:
                self.remove_link(above.name)
            elif isinstance(above, EgressGuard) and above.device == name:
                del self.ours[key]
        self._flush_nexthops(name)
        self.links.pop(name, None)
        if name in self._secys:
            self._secys[name].forget()
        for address in [a for a in self.addresses.values() if a.device == name]:
            self.addresses.pop(address.key)
            self.unmarked.discard(address.key)
        for link in [o for o in self.ours.values() if isinstance(o, CreatedLink) and o.name == name]:
            del self.ours[link.key]
        for path in [p for p in self.sysctls if name in p]:
            del self.sysctls[path]
        self.links.update({n: replace(f, master=None) for n, f in self.links.items() if f.master == name})
        self._tell(LinkEvent(name, up=False, at=0.0))

    def set_carrier(self, name: str, *, carrier: bool) -> None:
        """Pull or plug a cable: everything stacked on the device follows."""
        for device in (name, *self._above(name)):
            self.links[device] = replace(self.links[device], carrier=carrier)
            if not carrier:
                self._flush_nexthops(device)
            self._tell(LinkEvent(device, carrier and self.links[device].up, 0.0))

    def fail(self, kind: str, code: int, times: int = 1) -> None:
        """Refuse the next `times` operations on objects of `kind` (`macsec`, `route`, `secy`, ...)."""
        self._faults.append(_Fault(kind, code, times))

    def check_fault(self, kind: str) -> None:
        """Raise KernelError where a failure of `kind` was asked for."""
        for fault in self._faults:
            if fault.kind == kind and fault.times > 0:
                fault.times -= 1
                raise KernelError(f"{kind}: {strerror(fault.errno)}", fault.errno)

    def lose(self) -> None:
        """Deliver what ENOBUFS delivers."""
        self._events.put_nowait(EventsLost())

    # -- the interface

    async def observe(self, desired: DesiredState) -> ObservedState:
        """Read everything."""
        self.check_fault("observe")
        objects: dict[Key, Object] = dict(self.ours)
        for key, link in self.ours.items():
            if isinstance(link, MacsecLink):
                objects[key] = replace(link, mtu=self.links[link.name].mtu, up=self.links[link.name].up)
            elif isinstance(link, VlanLink | TapLink):
                facts = self.links[link.name]
                objects[key] = replace(link, mtu=facts.mtu, up=facts.up, vrf=facts.master)
        objects.update(self.addresses)
        for sysctl in desired.sysctls:
            exists = sysctl.device is None or sysctl.device in self.links
            if exists:
                value = self.sysctls.get(sysctl.path, "default")
                objects[sysctl.key] = Sysctl(sysctl.path, value, sysctl.device)
        return ObservedState(dict(self.links), objects, frozenset(self.unmarked))

    async def apply(self, action: Action) -> None:
        """Do one action."""
        target = action.object
        self.check_fault(target.key.kind)
        removing = action.verb is Verb.DELETE
        match target:
            case PortLink():
                self._set_port(target)
            case BondLink() | MacsecLink() | VrfLink() | VlanLink() | TapLink():
                if removing:
                    self.remove_link(target.name)
                else:
                    self._put_link(target)
            case Address():
                self._require(target.device)
                if removing:
                    self.addresses.pop(target.key, None)
                else:
                    self.addresses[target.key] = target
                    self.unmarked.discard(target.key)
            case EgressGuard() | ControlPlaneRules():
                if isinstance(target, EgressGuard):
                    self._require(target.device)
                if removing:
                    self.ours.pop(target.key, None)
                else:
                    self.ours[target.key] = target
            case Sysctl():
                if target.device is not None:
                    self._require(target.device)
                self.sysctls[target.path] = target.value
        self.applied.append(action)

    async def apply_fib(self, ops: Sequence[FibOp]) -> list[FibFailure]:
        """Apply routes and nexthops; return those that were refused."""
        failures = []
        for op in ops:
            try:
                self.check_fault("route" if isinstance(op, RouteReplace | RouteDelete) else "nexthop")
                self._fib(op)
            except KernelError as error:
                failures.append(FibFailure(op, error.errno, str(error)))
        return failures

    async def observe_fib(self) -> ObservedFib:
        """Read nexthops, groups and routes."""
        return ObservedFib(dict(self.nexthops), dict(self.groups), dict(self.routes))

    async def next_events(self) -> list[Event]:
        """Wait for notifications."""
        events = [await self._events.get()]
        while not self._events.empty():
            events.append(self._events.get_nowait())
        return events

    async def link_facts(self) -> Mapping[str, LinkFacts]:
        """Read every device."""
        return dict(self.links)

    async def neighbours(self, device: str) -> Sequence[Neighbour]:
        """There are none."""
        self._require(device)
        return ()

    def secy(self, device: str) -> FakeSecy:
        """Return the SecY behind a macsec device."""
        return self._secys.setdefault(device, FakeSecy(device, self))

    async def close(self) -> None:
        """Nothing to close."""

    # -- how it behaves

    def _tell(self, event: Event) -> None:
        if not self.lose_events:
            self._events.put_nowait(event)

    def _require(self, device: str) -> LinkFacts:
        if device not in self.links:
            raise KernelError(f"{device}: no such device", errno.ENODEV)
        return self.links[device]

    def _above(self, name: str) -> list[str]:
        above = []
        for link in self.ours.values():
            if isinstance(link, MacsecLink | VlanLink) and link.parent == name:
                above += [link.name, *self._above(link.name)]
        return above

    def _set_port(self, port: PortLink) -> None:
        facts = self._require(port.name)
        if port.guarded and port.up and Key(EgressGuard.KIND, port.name) not in self.ours:
            raise KernelError(f"{port.name} has no egress guard: it stays down", errno.EPERM)
        master = port.bond or port.vrf
        if master:
            self._require(master)
        self._set(replace(facts, mtu=port.mtu, master=master or facts.master), up=port.up)

    def _set(self, facts: LinkFacts, *, up: bool) -> None:
        self.links[facts.name] = replace(facts, up=up, operstate="up" if up else "down")
        for device in self._above(facts.name):
            link = self.links[device]
            is_vlan = link.kind == VlanLink.KIND
            overhead = VLAN_OVERHEAD if is_vlan else MACSEC_OVERHEAD
            below = self.links[self._parent(device)]
            # A VLAN device goes down with its parent and comes back with it; macsec does not.
            self.links[device] = replace(
                link, mtu=min(link.mtu, below.mtu - overhead), up=(up and below.up) if is_vlan else link.up
            )
            if not up:
                self._flush_nexthops(device)
        if not up:
            self._flush_nexthops(facts.name)
        self._tell(LinkEvent(facts.name, up and facts.carrier, 0.0))

    def _parent(self, name: str) -> str:
        for link in self.ours.values():
            if isinstance(link, MacsecLink | VlanLink) and link.name == name:
                return link.parent
        raise AssertionError(name)

    def _put_link(self, link: CreatedLink) -> None:
        facts = self.links.get(link.name)
        if isinstance(link, TapLink):
            if facts is None:
                raise KernelError(f"{link.name}: waits for the data plane to make it", errno.ENODEV)
            if facts.kind == "tun":
                facts = replace(facts, alias=f"{MARK}{link.KIND}")
        if facts is not None and not facts.ours:
            raise KernelError(f"{link.name} exists already and is not ours", errno.EEXIST)
        mac = ""
        if isinstance(link, MacsecLink | VlanLink):
            below = self._require(link.parent)
            overhead = MACSEC_OVERHEAD if isinstance(link, MacsecLink) else VLAN_OVERHEAD
            if link.mtu > below.mtu - overhead:
                raise KernelError(f"{link.name}: mtu {link.mtu}: Numerical result out of range", errno.ERANGE)
            if isinstance(link, VlanLink) and link.up and not below.up:
                raise KernelError(f"{link.name}: up: Network is down", errno.ENETDOWN)
            for other in self.ours.values():
                if (
                    not (isinstance(link, VlanLink) and isinstance(other, VlanLink))
                    or other.name == link.name
                ):
                    continue
                if (other.parent, other.vid) == (link.parent, link.vid):
                    raise KernelError(f"{link.name}: VLAN device already exists", errno.EEXIST)
            mac = below.mac
        if facts is None:
            self._index += 1
            facts = LinkFacts(
                link.name,
                self._index,
                link.KIND,
                f"{MARK}{link.KIND}",
                mac or f"02:00:00:00:{self._index >> 8:02x}:{self._index & 0xFF:02x}",
                1500,
                up=False,
                carrier=True,
                operstate="down",
            )
        was = self.ours.get(link.key)
        if isinstance(link, MacsecLink):
            # What the key daemon has set stays where the link allows it; it is born closed.
            known = was if isinstance(was, MacsecLink) else replace(link, may_open=False)
            link = replace(
                link,
                may_open=known.may_open and link.may_open,
                may_bare=known.may_bare and link.may_bare,
            )
        self.ours[link.key] = link
        match link:
            case MacsecLink():
                self._set(replace(facts, mtu=link.mtu), up=link.up)
            case VlanLink() | TapLink():
                if link.vrf:
                    self._require(link.vrf)
                self._set(replace(facts, mtu=link.mtu, master=link.vrf), up=link.up)
            case VrfLink():
                self._set(facts, up=True)
            case BondLink():
                self.links[link.name] = facts

    def _fib(self, op: FibOp) -> None:
        match op:
            case NexthopReplace(identifier, nexthop):
                facts = self._require(nexthop.device)
                if not (facts.up and facts.carrier):
                    raise KernelError(f"{nexthop.device}: Network is down", errno.ENETDOWN)
                self.nexthops[identifier] = nexthop
            case GroupReplace(identifier, _, members):
                if any(member not in self.nexthops for member in members):
                    raise KernelError("Invalid nexthop id in group", errno.EINVAL)
                self.groups[identifier] = members
            case NexthopDelete(identifier):
                self.nexthops.pop(identifier, None)
                self.groups.pop(identifier, None)
                self._drop_members()
            case RouteReplace(table, prefix, nexthop_id):
                if nexthop_id not in self.nexthops and nexthop_id not in self.groups:
                    raise KernelError("Nexthop id does not exist", errno.EINVAL)
                self.routes[table, prefix] = nexthop_id
            case RouteDelete(table, prefix):
                self.routes.pop((table, prefix), None)

    def _flush_nexthops(self, device: str) -> None:
        gone = [i for i, nexthop in self.nexthops.items() if nexthop.device == device]
        for identifier in gone:
            del self.nexthops[identifier]
        if gone:
            self._drop_members()
            self._tell(FibEvent("nexthop"))

    def _drop_members(self) -> None:
        for identifier, members in list(self.groups.items()):
            left = tuple(m for m in members if m in self.nexthops)
            if left:
                self.groups[identifier] = left
            else:
                del self.groups[identifier]
        alive = self.nexthops.keys() | self.groups.keys()
        self.routes = {route: i for route, i in self.routes.items() if i in alive}
