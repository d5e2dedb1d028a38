"""Which kinds of links this kernel has, asked without making one.

A request to make a link without what its kind requires is always refused: with EOPNOTSUPP where
the kind is not there (the kernel has tried to load its module first), else with something else.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable
from typing import Final

from router.errors import KernelError

RTM_NEWLINK: Final = 16
NLMSG_ERROR: Final = 2
NLM_F_REQUEST_ACK: Final = 0x001 | 0x004
NLM_F_CREATE_EXCL: Final = 0x200 | 0x400
IFLA_IFNAME: Final = 3
IFLA_LINKINFO: Final = 18
IFLA_INFO_KIND: Final = 1
PROBE_NAME: Final = b"lastmile-probe\0"

_HEADER: Final = struct.Struct("=IHHII")
_IFINFOMSG: Final = struct.Struct("=BBHiII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_ERRNO: Final = struct.Struct("=i")


def _attribute(kind: int, value: bytes) -> bytes:
    data = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value
    return data.ljust((len(data) + 3) & ~3, b"\0")


def _request(kind: str) -> bytes:
    info = _attribute(IFLA_LINKINFO, _attribute(IFLA_INFO_KIND, kind.encode() + b"\0"))
    body = _IFINFOMSG.pack(0, 0, 0, 0, 0, 0) + _attribute(IFLA_IFNAME, PROBE_NAME) + info
    return (
        _HEADER.pack(_HEADER.size + len(body), RTM_NEWLINK, NLM_F_REQUEST_ACK | NLM_F_CREATE_EXCL, 1, 0)
        + body
    )


def lacking_kinds(kinds: Iterable[str] = ("macsec", "vlan")) -> tuple[str, ...]:
    """Return those link kinds that this kernel has not. Raises KernelError (EPERM without CAP_NET_ADMIN)."""
    lacking = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as netlink:
        for kind in kinds:
            netlink.send(_request(kind))
            reply = netlink.recv(4096)
            _, message, _, _, _ = _HEADER.unpack_from(reply)
            number = -_ERRNO.unpack_from(reply, _HEADER.size)[0]
            if message != NLMSG_ERROR or number == 0:
                raise KernelError(f"link kind {kind}: an unexpected answer from the kernel", errno.EPROTO)
            if number == errno.EPERM:
                raise KernelError(f"link kind {kind}: {os.strerror(number)}", number)
            if number == errno.EOPNOTSUPP:
                lacking.append(kind)
    return tuple(lacking)
