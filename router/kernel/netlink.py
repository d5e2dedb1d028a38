"""The real kernel: observe what is there, apply one action at a time.

Devices are ours where their alias starts with our mark; addresses, routes and nexthop objects
where they carry our protocol number. Anything else of the same name is refused, never touched.
Links and addresses are few and go through pyroute2; routes are many and go through `FibSocket`.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from socket import AF_INET, AF_INET6
from typing import Any, Final

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkDumpInterrupted, NetlinkError
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from router.errors import KernelError, Unsupported
from router.fib_ops import FibOp
from router.kernel import nft
from router.kernel.events import EventSockets
from router.kernel.fib import FibSocket
from router.kernel.guard import GuardMechanism, detect_guard
from router.kernel.links import TAP_KIND, CreatedLink, read_links
from router.kernel.macsec import ICV_OCTETS, VALIDATE_STRICT, macsec
from router.kernel.secy import KernelSecy
from router.model import ROUTE_PROTOCOL
from router.reconcile.diff import Action, Verb
from router.reconcile.kernel import Event, FibFailure, Neighbour, ObservedFib, RulesEvent
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

BOND_MODE_8023AD: Final = 4
BOND_HASH_LAYER34: Final = 1
BOND_MIIMON_MS: Final = 100
IFA_F_NODAD: Final = 0x02
RULES_MAX_AGE_S: Final = 10.0
"""nftables are read again after this time even where no notification came."""
DUMP_ATTEMPTS: Final = 8
NUD_NAMES: Final = {
    0x01: "incomplete",
    0x02: "reachable",
    0x04: "stale",
    0x08: "delay",
    0x10: "probe",
    0x20: "failed",
    0x40: "noarp",
    0x80: "permanent",
}


class NetlinkKernel:
    """The kernel of the network namespace that the process is in. Make it with `open()`."""

    def __init__(self, route: AsyncIPRoute, guards: GuardMechanism, proc_sys: Path) -> None:
        self._route = route
        self._guards = guards
        self._proc_sys = proc_sys
        self._fib = FibSocket()
        self._events = EventSockets(self._fib.port_id)
        self._secys: dict[str, KernelSecy] = {}
        self._lock = asyncio.Lock()
        """A netlink socket does one dump at a time; callers are several tasks."""
        self._filters: tuple[float, dict[Key, Object]] | None = None

    @classmethod
    async def open(cls, proc_sys: Path = Path("/proc/sys")) -> NetlinkKernel:
        """Open the sockets and find out how this kernel guards a port. Raises KernelError."""
        ifinfmsg.ifinfo.register_link_kind(module={"macsec": macsec})
        route = AsyncIPRoute(ext_ack=True)
        await route.setup_endpoint()
        return cls(route, await detect_guard(route), proc_sys)

    async def close(self) -> None:
        """Close the sockets; nothing in the kernel changes."""
        for secy in self._secys.values():
            await secy.close()
        self._events.close()
        self._fib.close()
        self._route.close()

    async def next_events(self) -> list[Event]:
        """Wait for notifications and return all that are there, oldest first."""
        events = await self._events.next_events()
        if any(isinstance(event, RulesEvent) for event in events):
            self._filters = None
        return events

    async def apply_fib(self, ops: Sequence[FibOp]) -> list[FibFailure]:
        """Apply routes and nexthops in order, packed; return those that were refused."""
        return await self._fib.apply(ops)

    async def observe_fib(self) -> ObservedFib:
        """Read nexthop objects, groups and routes of our protocol number."""
        return await self._fib.observe()

    def secy(self, device: str) -> KernelSecy:
        """Return the SecY behind a macsec device, which need not exist yet."""
        return self._secys.setdefault(device, KernelSecy(device))

    # -- observing

    async def link_facts(self) -> Mapping[str, LinkFacts]:
        """Read every device, with counters."""
        async with self._lock:
            return self._facts()

    def _facts(self) -> Mapping[str, LinkFacts]:
        return read_links(self._fib)[0]

    async def observe(self, desired: DesiredState) -> ObservedState:
        """Read what carries our mark, every link's facts, and the sysctls that `desired` names."""
        async with self._lock:
            links, objects = read_links(self._fib)
            unmarked = await self._addresses(desired, links, objects)
            objects.update(await self._filter_objects(links))
        for sysctl in desired.sysctls:
            value = self._read_sysctl(sysctl.path)
            if value is not None:
                objects[sysctl.key] = Sysctl(sysctl.path, value, sysctl.device)
        return ObservedState(links, objects, frozenset(unmarked))

    async def _addresses(
        self, desired: DesiredState, links: Mapping[str, LinkFacts], objects: dict[Key, Object]
    ) -> set[Key]:
        below = {o.device: o.below for o in desired.objects if isinstance(o, Address)}
        ours = {o.name: o.key for o in objects.values() if isinstance(o, CreatedLink)}
        names = {facts.index: name for name, facts in links.items()}
        unmarked = set()
        for message in await self._dump(self._route.get_addr):
            device = names.get(message["index"])
            if device is None or (message["family"] == AF_INET6 and message["scope"] != 0):
                continue
            text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            under = below.get(device) or ours.get(device) or Key(PortLink.KIND, device)
            address = Address(device, text, message["prefixlen"], under)
            objects[address.key] = address
            if message.get_attr("IFA_PROTO") != ROUTE_PROTOCOL:
                unmarked.add(address.key)
        return unmarked

    async def _filter_objects(self, links: Mapping[str, LinkFacts]) -> Mapping[Key, Object]:
        """Return guards and control-plane rules; from memory while nobody has changed nftables."""
        now = asyncio.get_running_loop().time()
        found: dict[Key, Object] = {}
        if self._filters is None or now - self._filters[0] > RULES_MAX_AGE_S:
            listing = await nft.list_table("inet")
            if listing is not None:
                rules = nft.parse_rules(listing)
                found[rules.key] = rules
            self._filters = (now, found)
        found = dict(self._filters[1])
        indexes = {name: facts.index for name, facts in links.items()}
        for guard in (await self._guards.observe(indexes)).values():
            found[guard.key] = guard
        return found

    def _read_sysctl(self, path: Sequence[str]) -> str | None:
        try:
            return self._proc_sys.joinpath(*path).read_text().strip()
        except OSError:
            return None

    async def neighbours(self, device: str) -> Sequence[Neighbour]:
        """Read the neighbour table of a device, IPv4 and IPv6."""
        async with self._lock:
            index = self._require(device).index
            messages = [
                message
                for family in (AF_INET, AF_INET6)
                for message in await self._dump(self._route.get_neighbours, family=family, ifindex=index)
            ]
        found = []
        for message in messages:
            state = NUD_NAMES.get(message["state"], str(message["state"]))
            if state == "noarp":
                continue  # multicast groups, not neighbours
            found.append(Neighbour(message.get_attr("NDA_DST"), message.get_attr("NDA_LLADDR"), state))
        return found

    async def _dump(self, what: Any, **arguments: object) -> list[Any]:
        """Read a whole dump, again where the kernel says that it changed meanwhile."""
        for _ in range(DUMP_ATTEMPTS):
            try:
                messages: AsyncIterator[Any] = await what(**arguments)
                return [message async for message in messages]
            except NetlinkDumpInterrupted:
                continue
            except NetlinkError as error:
                raise KernelError(f"netlink dump: {_reason(error)}", error.code) from error
        raise KernelError("the interface table changes faster than it can be read", errno.EINTR)

    # -- applying

    async def apply(self, action: Action) -> None:
        """Do one action. Raises KernelError; repeating one that succeeded succeeds."""
        async with self._lock:
            await self._apply(action)

    async def _apply(self, action: Action) -> None:
        removing = action.verb is Verb.DELETE
        match action.object:
            case PortLink() as port:
                await self._set_port(port)
            case BondLink() | MacsecLink() | VrfLink() | VlanLink() | TapLink() as link:
                await (self._delete_link(link) if removing else self._put_link(link))
            case Address() as address:
                await (self._delete_address(address) if removing else self._put_address(address))
            case EgressGuard() as guard:
                await (self._delete_guard(guard) if removing else self._put_guard(guard))
            case Sysctl() as sysctl:
                self._write_sysctl(sysctl.path, sysctl.value)
            case ControlPlaneRules() as rules:
                self._filters = None
                await (nft.delete_rules() if removing else nft.apply_rules(rules))

    def _require(self, device: str) -> LinkFacts:
        facts = self._facts().get(device)
        if facts is None:
            raise KernelError(f"{device}: no such device", errno.ENODEV)
        return facts

    async def _set_port(self, port: PortLink) -> None:
        facts = self._facts().get(port.name)
        if facts is None:
            raise KernelError(
                f"{port.name}: no such device; plug it in, or correct the port's name in the configuration",
                errno.ENODEV,
            )
        if port.guarded and port.up:
            guards = await self._guards.observe({port.name: facts.index})
            if port.name not in guards:
                raise KernelError(f"{port.name} has no egress guard: it stays down", errno.EPERM)
        if facts.mtu != port.mtu:
            with _errors(f"{port.name}: mtu {port.mtu}"):
                await self._route.link("set", index=facts.index, mtu=port.mtu)
        master = port.bond or port.vrf
        if master and facts.master != master:
            above = self._require(master)
            if port.bond and facts.up:  # a bond takes only members that are down
                await self._route.link("set", index=facts.index, state="down")
            with _errors(f"{port.name}: member of {master}"):
                await self._route.link("set", index=facts.index, master=above.index)
        with _errors(f"{port.name}: {'up' if port.up else 'down'}"):
            await self._route.link("set", index=facts.index, state="up" if port.up else "down")

    async def _put_link(self, link: CreatedLink) -> None:
        """Create a device, or correct one that is ours. It comes up last, fully configured."""
        links = self._facts()
        facts = links.get(link.name)
        if isinstance(link, TapLink):
            await self._finish(link, await self._take_tap(link, facts), links)
            return
        if facts is not None and not facts.ours:
            raise KernelError(
                f"{link.name} exists already and is not ours (its alias does not start with {MARK});"
                f" rename or delete it",
                errno.EEXIST,
            )
        what = f"{link.name}: {link}"
        attributes = _link_attributes(link, links)
        if facts is None:
            with _errors(what):
                await self._create(link, attributes)
            facts = self._require(link.name)
        elif isinstance(link, BondLink | MacsecLink):
            changes = {k: v for k, v in attributes.items() if k not in _not_ours(link)}
            with _errors(what):
                await self._route.link("set", index=facts.index, kind=link.KIND, **changes)
        await self._finish(link, facts, links)

    async def _take_tap(self, link: TapLink, facts: LinkFacts | None) -> LinkFacts:
        """Mark the TAP that the data plane has made as ours. Raises KernelError where there is none."""
        if facts is None:
            raise KernelError(f"{link.name}: waits for the data plane to make it", errno.ENODEV)
        if facts.kind != TAP_KIND or (facts.alias and not facts.ours):
            raise KernelError(
                f"{link.name} exists already and is not the data plane's; rename or delete it", errno.EEXIST
            )
        if not facts.ours:
            with _errors(f"{link.name}: alias"):
                await self._route.link("set", index=facts.index, ifalias=f"{MARK}{link.KIND}")
        return facts

    async def _create(
        self, link: BondLink | MacsecLink | VrfLink | VlanLink, attributes: dict[str, Any]
    ) -> None:
        await self._route.link("add", ifname=link.name, kind=link.KIND, **attributes)
        facts = self._require(link.name)
        await self._route.link("set", index=facts.index, ifalias=f"{MARK}{link.KIND}")
        if isinstance(link, BondLink | MacsecLink):
            self._write_sysctl(("net", "ipv6", "conf", link.name, "disable_ipv6"), "1")

    async def _finish(self, link: CreatedLink, facts: LinkFacts, links: Mapping[str, LinkFacts]) -> None:
        """Set what every kind of link has: VRF, MTU, state."""
        if isinstance(link, BondLink):
            return  # its PortLink sets MTU and state, behind the guard
        wanted: dict[str, Any] = {}
        if isinstance(link, VlanLink | TapLink) and facts.master != link.vrf:
            if link.vrf and link.vrf not in links:
                raise KernelError(f"{link.name}: VRF {link.vrf} does not exist", errno.ENODEV)
            wanted["master"] = links[link.vrf].index if link.vrf else 0
        if not isinstance(link, VrfLink) and facts.mtu != link.mtu:
            wanted["mtu"] = link.mtu
        for name, value in wanted.items():
            with _errors(f"{link.name}: {name} {value}"):
                await self._route.link("set", index=facts.index, **{name: value})
        up = True if isinstance(link, VrfLink) else link.up
        if facts.up != up:
            with _errors(f"{link.name}: {'up' if up else 'down'}"):
                await self._route.link("set", index=facts.index, state="up" if up else "down")

    async def _delete_link(self, link: CreatedLink) -> None:
        facts = self._facts().get(link.name)
        if facts is None:
            return
        if not facts.ours:
            raise KernelError(f"{link.name} is not ours any more: it stays", errno.EPERM)
        with _errors(f"{link.name}: delete", absent=(errno.ENODEV,)):
            await self._route.link("del", index=facts.index)

    async def _put_address(self, address: Address) -> None:
        facts = self._require(address.device)
        is_v6 = ":" in address.address
        # No broadcast address: these are links between two routers, and LANs that do without.
        extra: dict[str, Any] = {"flags": IFA_F_NODAD} if is_v6 else {}
        with _errors(f"{address.device}: address {address.address}", absent=(errno.EEXIST,)):
            await self._route.addr(
                "replace",
                index=facts.index,
                family=AF_INET6 if is_v6 else AF_INET,
                address=address.address,
                local=address.address,
                prefixlen=address.prefix_length,
                proto=ROUTE_PROTOCOL,
                **extra,
            )

    async def _delete_address(self, address: Address) -> None:
        facts = self._facts().get(address.device)
        if facts is None:
            return
        with _errors(
            f"{address.device}: address {address.address}", absent=(errno.EADDRNOTAVAIL, errno.ENODEV)
        ):
            await self._route.addr(
                "del",
                index=facts.index,
                family=AF_INET6 if ":" in address.address else AF_INET,
                address=address.address,
                prefixlen=address.prefix_length,
            )

    async def _put_guard(self, guard: EgressGuard) -> None:
        facts = self._require(guard.device)
        await self._guards.install(guard, facts.index)

    async def _delete_guard(self, guard: EgressGuard) -> None:
        facts = self._facts().get(guard.device)
        if facts is not None:
            await self._guards.remove(guard, facts.index)

    def _write_sysctl(self, path: Sequence[str], value: str) -> None:
        try:
            self._proc_sys.joinpath(*path).write_text(value)
        except FileNotFoundError as error:
            raise Unsupported(
                f"sysctl {'/'.join(path)}: this kernel has no such file", errno.ENOENT
            ) from error
        except OSError as error:
            message = f"sysctl {'/'.join(path)} = {value}: {error.strerror}"
            raise KernelError(message, error.errno or 0) from error


_FIXED: Final = frozenset({"link", "macsec_port", "macsec_cipher_suite", "macsec_icv_len", "bond_mode"})
"""Attributes that a live device does not take (the kernel answers EINVAL), or that we never change."""


def _not_ours(link: BondLink | MacsecLink) -> frozenset[str]:
    """Return the attributes that are not to be set on a live device: fixed, or the key daemon's business."""
    fixed = _FIXED
    if isinstance(link, MacsecLink) and link.may_open:
        fixed |= {"macsec_protect", "macsec_validation"}
    if isinstance(link, MacsecLink) and link.may_bare:
        fixed |= {"macsec_encrypt"}
    return fixed


def _link_attributes(
    link: BondLink | MacsecLink | VrfLink | VlanLink, links: Mapping[str, LinkFacts]
) -> dict[str, Any]:
    """Return pyroute2's keywords for a link of ours. Raises KernelError where its parent is missing."""
    match link:
        case MacsecLink():
            return {
                "link": _parent(link.name, link.parent, links),
                "macsec_port": link.sci_port,
                "macsec_cipher_suite": link.suite.value,
                "macsec_icv_len": ICV_OCTETS,
                "macsec_encrypt": int(not link.may_bare),
                "macsec_protect": 1,  # it is born closed, whatever may open it later
                "macsec_inc_sci": int(link.send_sci),
                # REPLAY_PROTECT is refused without WINDOW in the same message.
                "macsec_window": link.replay_window,
                "macsec_replay_protect": 1,
                "macsec_validation": VALIDATE_STRICT,
            }
        case VlanLink():
            return {"link": _parent(link.name, link.parent, links), "vlan_id": link.vid}
        case VrfLink():
            return {"vrf_table": link.table}
        case BondLink():
            return {
                "bond_mode": BOND_MODE_8023AD,
                "bond_miimon": BOND_MIIMON_MS,
                "bond_min_links": link.min_links,
                "bond_ad_lacp_rate": int(link.lacp_fast),
                "bond_xmit_hash_policy": BOND_HASH_LAYER34,
            }


def _parent(device: str, parent: str, links: Mapping[str, LinkFacts]) -> int:
    if parent not in links:
        raise KernelError(f"{device}: its parent {parent} does not exist", errno.ENODEV)
    return links[parent].index


def _reason(error: NetlinkError) -> str:
    """Return the errno's text with the kernel's own explanation, where it gave one."""
    text = os.strerror(error.code) if error.code > 0 else str(error)
    detail = error.args[1] if len(error.args) > 1 and isinstance(error.args[1], str) else ""
    return f"{text}: {detail}" if detail and detail != text else text


@contextmanager
def _errors(what: str, absent: tuple[int, ...] = ()) -> Generator[None]:
    """Turn netlink's errors into ours; errnos in `absent` mean that there was nothing to do."""
    try:
        yield
    except NetlinkError as error:
        if error.code not in absent:
            raise KernelError(f"{what}: {_reason(error)}", error.code) from error
