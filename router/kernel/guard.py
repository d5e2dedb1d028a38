"""The egress guard: nothing but MACsec and EAPOL leaves or enters a channel's port.

Two mechanisms, found out and not assumed: the nftables netdev egress hook (kernel 5.16 and
CONFIG_NETFILTER_EGRESS), else tc clsact with matchall and gact. Without either a channel's port
must stay down. Both survive the death of every process of ours, and both hold for frames that
a program writes to the port itself (AF_PACKET). nftables reads the EtherType from the frame; tc
goes by what the sender declared to the kernel, so a root program that forges just that gets by.

With tc, a filter that passes each EtherType stands in each direction, and behind them one that drops
the rest, each with handle 205, our mark. An EtherType has a preference of its own, because the kernel
takes no other protocol at one that is in use: so a list can grow and shrink without a gap.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from router.errors import KernelError, Unsupported
from router.kernel import nft
from router.model import ROUTE_PROTOCOL
from router.reconcile.objects import EgressGuard

ETH_P_ALL: Final = 0x0003
CLSACT_INGRESS: Final = 0xFFFFFFF2
CLSACT_EGRESS: Final = 0xFFFFFFF3
DIRECTIONS: Final = (CLSACT_EGRESS, CLSACT_INGRESS)
PREFERENCES: Final = MappingProxyType({0x888E: 11, 0x88E5: 12, 0x8809: 13, 0x8100: 14})
"""Of the filters that pass, by EtherType: EAPOL, MACsec, slow protocols, 802.1Q."""
PREFERENCE_DROP: Final = 100
ACTION_OK: Final = 0
ACTION_SHOT: Final = 2


class GuardMechanism(Protocol):
    """One way to guard a port."""

    async def observe(self, links: Mapping[str, int]) -> dict[str, EgressGuard]:
        """Return the complete guards by device; `links` maps names to ifindexes."""

    async def install(self, guard: EgressGuard, index: int) -> None:
        """Put a guard in place. Never opens a gap where one is there."""

    async def remove(self, guard: EgressGuard, index: int) -> None:
        """Take a guard away; one that is not there is no error."""


class NftGuard:
    """Guards in `table netdev lastmile`."""

    async def observe(self, links: Mapping[str, int]) -> dict[str, EgressGuard]:
        """Read our chains back."""
        guards = nft.parse_guards(await nft.list_table("netdev") or [])
        return {device: guard for device, guard in guards.items() if device in links}

    async def install(self, guard: EgressGuard, index: int) -> None:  # noqa: ARG002 - nftables goes by name
        """Replace the device's chains in one transaction."""
        await nft.apply_guard(guard)

    async def remove(self, guard: EgressGuard, index: int) -> None:  # noqa: ARG002 - nftables goes by name
        """Delete the device's chains."""
        await nft.delete_guard(guard)


class _Filter(NamedTuple):
    """A matchall filter with one gact action."""

    preference: int
    protocol: int
    action: int | None


DROP: Final = _Filter(PREFERENCE_DROP, ETH_P_ALL, ACTION_SHOT)


class TcGuard:
    """Guards as tc filters on clsact."""

    def __init__(self, route: AsyncIPRoute) -> None:
        self._route = route

    async def observe(self, links: Mapping[str, int]) -> dict[str, EgressGuard]:
        """Read the filters of both directions of every device that has any back."""
        qdiscs = await self._route.get_qdiscs()
        busy = {m["index"] async for m in qdiscs if m.get_attr("TCA_KIND") == "clsact"}
        guards = {}
        for device, index in links.items():
            if index not in busy:
                continue
            found = [await self._direction(index, parent) for parent in DIRECTIONS]
            if found[0] and found[0] == found[1]:
                guards[device] = EgressGuard(device, found[0])
        return guards

    async def _filters(self, index: int, parent: int) -> set[_Filter]:
        """Read our filters of one direction."""
        found = set()
        async for message in await self._route.get_filters(index=index, parent=parent):
            # The kernel lists an empty line per chain of filters before the filters themselves.
            if message["handle"] == ROUTE_PROTOCOL and message.get_attr("TCA_KIND") == "matchall":
                preference, protocol = message["info"] >> 16, _swap(message["info"] & 0xFFFF)
                found.add(_Filter(preference, protocol, _gact(message)))
        return found

    async def _direction(self, index: int, parent: int) -> tuple[int, ...]:
        """Return the EtherTypes that pass in one direction, empty where the guard is not whole."""
        found = await self._filters(index, parent)
        passes = [f.protocol for f in found if f.action == ACTION_OK and f.protocol != ETH_P_ALL]
        return tuple(sorted(passes)) if DROP in found else ()

    async def install(self, guard: EgressGuard, index: int) -> None:
        """Install the filters: the passing ones first, so that a live channel loses nothing.

        What stands already stays: the kernel replaces no matchall filter, and to delete the one that
        drops would open a gap.
        """
        try:
            await self._route.tc("add", "clsact", index)
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise _error(guard.device, error) from error
        wanted = [_Filter(PREFERENCES[ethertype], ethertype, ACTION_OK) for ethertype in guard.ethertypes]
        for parent in DIRECTIONS:
            there = await self._filters(index, parent)
            for each in (*wanted, DROP):
                if each in there:
                    continue
                await self._delete(index, parent, each)  # one in its place that does something else
                try:
                    await self._route.tc(
                        "add-filter",
                        "matchall",
                        index,
                        handle=ROUTE_PROTOCOL,
                        parent=parent,
                        prio=each.preference,
                        protocol=each.protocol,
                        action="ok" if each.action == ACTION_OK else "shot",
                    )
                except NetlinkError as error:
                    raise _error(guard.device, error) from error
            for each in there - {*wanted, DROP}:
                if not any(each.preference == new.preference for new in (*wanted, DROP)):
                    await self._delete(index, parent, each)

    async def remove(self, guard: EgressGuard, index: int) -> None:  # noqa: ARG002 - the mark tells ours
        """Delete our filters; the clsact qdisc stays, somebody else may use it."""
        for parent in DIRECTIONS:
            for each in await self._filters(index, parent):
                await self._delete(index, parent, each)

    async def _delete(self, index: int, parent: int, doomed: _Filter) -> None:
        try:
            await self._route.tc(
                "del-filter",
                "matchall",
                index,
                parent=parent,
                prio=doomed.preference,
                protocol=doomed.protocol,
            )
        except NetlinkError as error:
            if error.code not in {errno.ENOENT, errno.EINVAL, errno.ENODEV}:
                raise KernelError(f"ifindex {index}: tc del-filter: {error}", error.code) from error


async def detect_guard(route: AsyncIPRoute) -> GuardMechanism:
    """Return the mechanism that this kernel has. tc says on first use whether it can."""
    return NftGuard() if await nft.has_egress_hook() else TcGuard(route)


def _gact(message: Any) -> int | None:
    """Return the number of a filter's one gact action."""
    options = message.get_attr("TCA_OPTIONS")
    actions = options.get_attr("TCA_MATCHALL_ACT") if options is not None else None
    action = actions.get_attr("TCA_ACT_PRIO_1") if actions is not None else None
    if action is None or action.get_attr("TCA_ACT_KIND") != "gact":
        return None
    number: int = action.get_attr("TCA_ACT_OPTIONS").get_attr("TCA_GACT_PARMS")["action"]
    return number


def _swap(protocol: int) -> int:
    """Turn a protocol as it stands in `tcm_info` (network order) around."""
    return int.from_bytes(protocol.to_bytes(2, "little"), "big")


def _error(device: str, error: NetlinkError) -> KernelError:
    if error.code in {errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL}:
        return Unsupported(
            f"{device}: this kernel has neither the nftables egress hook (CONFIG_NETFILTER_EGRESS, 5.16)"
            " nor tc clsact with matchall and gact (modprobe sch_ingress cls_matchall act_gact):"
            " the port stays down, because nothing would keep cleartext off it",
            error.code,
        )
    return KernelError(f"{device}: tc guard: {error}", error.code)
