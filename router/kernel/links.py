"""Links as the kernel shows them, read with `struct`: a whole table of devices in a millisecond.

pyroute2 decodes every attribute of a link, which is 1 to 5 ms a device; the reconciler looks
every second and after every notification, and needs ten of them.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from typing import Final

from router.kernel.fib import FibSocket, attributes
from router.kernel.macsec import VALIDATE_STRICT, suite_from_kernel
from router.reconcile.objects import (
    BondLink,
    Key,
    LinkFacts,
    MacsecLink,
    Object,
    TapLink,
    VlanLink,
    VrfLink,
)

CreatedLink = BondLink | MacsecLink | VrfLink | VlanLink | TapLink
TAP_KIND: Final = "tun"
"""What the kernel calls the link kind of TUN and TAP devices."""

# The specification's (linux/if_link.h).
RTM_GETLINK: Final = 18
IFLA_ADDRESS: Final = 1
IFLA_IFNAME: Final = 3
IFLA_MTU: Final = 4
IFLA_LINK: Final = 5
IFLA_MASTER: Final = 10
IFLA_OPERSTATE: Final = 16
IFLA_LINKINFO: Final = 18
IFLA_IFALIAS: Final = 20
IFLA_STATS64: Final = 23
IFLA_CARRIER: Final = 33
IFLA_INFO_KIND: Final = 1
IFLA_INFO_DATA: Final = 2
IFLA_VLAN_ID: Final = 1
IFLA_VRF_TABLE: Final = 1
IFLA_BOND_MIN_LINKS: Final = 18
IFLA_BOND_AD_LACP_RATE: Final = 21
IFLA_MACSEC_SCI: Final = 1
IFLA_MACSEC_CIPHER_SUITE: Final = 4
IFLA_MACSEC_WINDOW: Final = 5
IFLA_MACSEC_ENCRYPT: Final = 7
IFLA_MACSEC_PROTECT: Final = 8
IFLA_MACSEC_INC_SCI: Final = 9
IFLA_MACSEC_REPLAY_PROTECT: Final = 12
IFLA_MACSEC_VALIDATION: Final = 13
IFF_UP: Final = 0x1
OPERSTATES: Final = ("unknown", "notpresent", "down", "lowerlayerdown", "testing", "dormant", "up")
STATS: Final = (
    "rx_packets",
    "tx_packets",
    "rx_bytes",
    "tx_bytes",
    "rx_errors",
    "tx_errors",
    "rx_dropped",
    "tx_dropped",
    "multicast",
    "collisions",
)
"""The first members of struct rtnl_link_stats64."""

_IFINFOMSG: Final = struct.Struct("=BBHiII")
_STATS: Final = struct.Struct(f"={len(STATS)}Q")
_U32: Final = struct.Struct("=I")
_U64: Final = struct.Struct("=Q")

NO_REPLAY_PROTECTION: Final = -1
"""Replay window that stands for a macsec device without replay protection: equal to no desired one."""


def read_links(sock: FibSocket) -> tuple[dict[str, LinkFacts], dict[Key, Object]]:
    """Read every device, and those that carry our mark as objects too. Raises KernelError."""
    bodies = sock.dump(RTM_GETLINK, _IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0, 0))
    messages = [(_IFINFOMSG.unpack_from(body), dict(attributes(body[_IFINFOMSG.size :]))) for body in bodies]
    names = {header[3]: _text(values[IFLA_IFNAME]) for header, values in messages}
    links: dict[str, LinkFacts] = {}
    objects: dict[Key, Object] = {}
    for header, values in messages:
        info = dict(attributes(values[IFLA_LINKINFO])) if IFLA_LINKINFO in values else {}
        facts = _facts(header, values, info, names)
        links[facts.name] = facts
        if facts.ours and IFLA_INFO_DATA in info:
            parent = names.get(_u32(values, IFLA_LINK), "")
            link = _our_link(facts, dict(attributes(info[IFLA_INFO_DATA])), parent)
            if link is not None:
                objects[link.key] = link
    return links, objects


def _facts(
    header: tuple[int, ...],
    values: Mapping[int, memoryview],
    info: Mapping[int, memoryview],
    names: Mapping[int, str],
) -> LinkFacts:
    state = values[IFLA_OPERSTATE][0] if IFLA_OPERSTATE in values else 0
    stats = _STATS.unpack_from(values[IFLA_STATS64]) if IFLA_STATS64 in values else ()
    return LinkFacts(
        name=_text(values[IFLA_IFNAME]),
        index=header[3],
        kind=_text(info[IFLA_INFO_KIND]) if IFLA_INFO_KIND in info else None,
        alias=_text(values[IFLA_IFALIAS]) if IFLA_IFALIAS in values else "",
        mac=bytes(values[IFLA_ADDRESS]).hex(":") if IFLA_ADDRESS in values else "",
        mtu=_u32(values, IFLA_MTU),
        up=bool(header[4] & IFF_UP),
        carrier=IFLA_CARRIER in values and bool(values[IFLA_CARRIER][0]),
        operstate=OPERSTATES[state] if state < len(OPERSTATES) else "unknown",
        master=names.get(_u32(values, IFLA_MASTER)),
        stats=dict(zip(STATS, stats, strict=False)),
    )


def _our_link(facts: LinkFacts, data: Mapping[int, memoryview], parent: str) -> CreatedLink | None:
    """Turn a link into the object that we would have asked for."""
    match facts.kind:
        case "macsec":
            replay = _u8(data, IFLA_MACSEC_REPLAY_PROTECT) == 1
            protects = _u8(data, IFLA_MACSEC_PROTECT) == 1
            strict = _u8(data, IFLA_MACSEC_VALIDATION) == VALIDATE_STRICT
            return MacsecLink(
                facts.name,
                parent,
                facts.mtu,
                sci_port=int.from_bytes(data[IFLA_MACSEC_SCI][6:8], "big"),
                suite=suite_from_kernel(_U64.unpack(data[IFLA_MACSEC_CIPHER_SUITE])[0]),
                replay_window=_u32(data, IFLA_MACSEC_WINDOW) if replay else NO_REPLAY_PROTECTION,
                send_sci=_u8(data, IFLA_MACSEC_INC_SCI) == 1,
                up=facts.up,
                may_open=not (protects and strict),
                may_bare=_u8(data, IFLA_MACSEC_ENCRYPT) != 1,
            )
        case "vlan":
            vid = int.from_bytes(data[IFLA_VLAN_ID], "little" if _IS_LITTLE else "big")
            return VlanLink(facts.name, parent, vid, facts.mtu, facts.master, up=facts.up)
        case kind if kind == TAP_KIND:
            return TapLink(facts.name, facts.mtu, facts.master, up=facts.up)
        case "vrf":
            return VrfLink(facts.name, _u32(data, IFLA_VRF_TABLE))
        case "bond":
            fast = _u8(data, IFLA_BOND_AD_LACP_RATE) == 1
            return BondLink(facts.name, fast, _u32(data, IFLA_BOND_MIN_LINKS))
        case _:
            return None


_IS_LITTLE: Final = socket.htons(1) != 1


def _text(value: memoryview) -> str:
    return bytes(value).rstrip(bytes(1)).decode(errors="replace")


def _u8(values: Mapping[int, memoryview], kind: int) -> int:
    return values[kind][0] if kind in values else 0


def _u32(values: Mapping[int, memoryview], kind: int) -> int:
    return int(_U32.unpack(values[kind])[0]) if kind in values else 0
