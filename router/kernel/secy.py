"""The SecY in the kernel: macsec generic netlink behind `router.secy.SecY`.

Traps that this module takes care of (kernel 6.1): a packet number must have exactly the suite's
width; an SA that is active cannot be deleted, and neither can one whose AN is taken be replaced;
the encoding SA is a property of the link, not of the family; there are no notifications; keys
never come back, only their 16-octet ids. A macsec device sends nothing while its encoding SA is
missing or inactive, so every order of calls here fails closed; with `protect off` and validation
below strict it passes plain frames both ways, which is the open mode of should-secure.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pyroute2.netlink import NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST
from pyroute2.netlink.exceptions import NetlinkError

from router.errors import KernelError, Unsupported
from router.kernel.macsec import (
    GENL_VERSION,
    VALIDATE_CHECK,
    VALIDATE_STRICT,
    Command,
    MacsecMessage,
    MacsecSocket,
    suite_from_kernel,
)
from router.model import Confidentiality, Sci
from router.secy import ReceiveScState, SaKey, SaState, SecyCounters, SecyState

KEY_ID_OCTETS: Final = 16
SALT_OCTETS: Final = 12
RTM_NEWLINK: Final = 16
IFLA_LINKINFO: Final = 18
IFLA_INFO_KIND: Final = 1
IFLA_INFO_DATA: Final = 2
IFLA_MACSEC_ENCODING_SA: Final = 6
IFLA_MACSEC_ENCRYPT: Final = 7
IFLA_MACSEC_PROTECT: Final = 8
IFLA_MACSEC_VALIDATION: Final = 13
ANSWER_TIMEOUT_S: Final = 5.0
_NLMSGHDR: Final = struct.Struct("=IHHII")
_IFINFOMSG: Final = struct.Struct("=BBHiII")

Sa = dict[str, list[tuple[str, object]]]


class KernelSecy:
    """One macsec device. The device may come and go; each call finds it by name."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._family: MacsecSocket | None = None

    async def close(self) -> None:
        """Close the netlink socket."""
        if self._family is not None:
            self._family.close()
            self._family = None

    # -- reading

    async def observe(self) -> SecyState:
        """Read state and counters. Raises KernelError, with ENODEV where there is no such device."""
        message = await self._dump()
        secy = _attributes(message.get_attr("MACSEC_ATTR_SECY"))
        suite = suite_from_kernel(secy["MACSEC_SECY_ATTR_CIPHER_SUITE"])
        transmit = tuple(_sa_state(sa) for sa in message.get_attr("MACSEC_ATTR_TXSA_LIST") or ())
        receive = tuple(_receive_sc(sc) for sc in message.get_attr("MACSEC_ATTR_RXSC_LIST") or ())
        encoding_an = int(secy["MACSEC_SECY_ATTR_ENCODING_SA"])
        return SecyState(
            device=self._device,
            sci=Sci.unpack(bytes(secy["MACSEC_SECY_ATTR_SCI"])),
            suite=suite,
            operational=any(sa.an == encoding_an and sa.active for sa in transmit),
            encoding_an=encoding_an,
            transmit=transmit,
            receive=receive,
            counters=_counters(message),
            confidentiality=(
                Confidentiality.OFFSET_0
                if secy["MACSEC_SECY_ATTR_ENCRYPT"]
                else Confidentiality.INTEGRITY_ONLY
            ),
            unprotected=not secy["MACSEC_SECY_ATTR_PROTECT"]
            or secy["MACSEC_SECY_ATTR_VALIDATE"] != VALIDATE_STRICT,
        )

    # -- receive

    async def create_receive_sc(self, sci: Sci) -> None:
        """Create an enabled receive SC; one that is there is enabled."""
        try:
            await self._request(Command.ADD_RXSC, rxsc=_rxsc(sci, active=True))
        except KernelError as error:
            if error.errno != errno.EEXIST:
                raise
            await self._request(Command.UPD_RXSC, rxsc=_rxsc(sci, active=True))

    async def delete_receive_sc(self, sci: Sci) -> None:
        """Delete a receive SC with all its SAs."""
        await self._delete(Command.DEL_RXSC, rxsc=_rxsc(sci))

    async def create_receive_sa(self, sci: Sci, an: int, key: SaKey, lowest_pn: int) -> None:
        """Install a receive SA, not yet active. Raises KernelError where the AN holds another key."""
        try:
            await self._request(Command.ADD_RXSA, rxsc=_rxsc(sci), sa=_sa(an, key=key, pn=lowest_pn))
        except KernelError as error:
            state = await self.observe() if error.errno in {errno.EBUSY, errno.EEXIST} else None
            sas = [sa for sc in state.receive if sc.sci == sci for sa in sc.sas] if state else []
            if not any(sa.an == an and sa.key_id == key.key_id for sa in sas):
                raise

    async def enable_receive_sa(self, sci: Sci, an: int, *, active: bool = True) -> None:
        """Let frames of this SA in, or stop doing so."""
        await self._request(Command.UPD_RXSA, rxsc=_rxsc(sci), sa=_sa(an, active=active))

    async def update_receive_pn(self, sci: Sci, an: int, lowest_pn: int) -> None:
        """Raise the lowest acceptable PN; a lower one than the kernel's is ignored."""
        state = await self.observe()
        for sc in state.receive:
            for sa in sc.sas:
                if sc.sci == sci and sa.an == an and sa.next_pn < lowest_pn:
                    octets = _pn_octets(lowest_pn, is_xpn=state.suite.is_xpn)
                    await self._request(Command.UPD_RXSA, rxsc=_rxsc(sci), sa=_sa(an, pn_octets=octets))

    async def delete_receive_sa(self, sci: Sci, an: int) -> None:
        """Remove a receive SA (deactivating it first: the kernel refuses an active one)."""
        await self._delete(Command.UPD_RXSA, rxsc=_rxsc(sci), sa=_sa(an, active=False))
        await self._delete(Command.DEL_RXSA, rxsc=_rxsc(sci), sa=_sa(an))

    # -- transmit

    async def create_transmit_sa(self, an: int, key: SaKey, next_pn: int) -> None:
        """Install a transmit SA, not yet active. Raises KernelError where the AN holds another key."""
        try:
            await self._request(Command.ADD_TXSA, sa=_sa(an, key=key, pn=next_pn))
        except KernelError as error:
            state = await self.observe() if error.errno in {errno.EBUSY, errno.EEXIST} else None
            if state is None or not any(sa.an == an and sa.key_id == key.key_id for sa in state.transmit):
                raise

    async def enable_transmit_sa(self, an: int) -> None:
        """Send under this AN from the next frame on (activate it, then make it the encoding SA)."""
        await self._request(Command.UPD_TXSA, sa=_sa(an, active=True))
        self._change(f"encoding SA {an}", (IFLA_MACSEC_ENCODING_SA, an))

    async def delete_transmit_sa(self, an: int) -> None:
        """Remove a transmit SA (deactivating it first)."""
        await self._delete(Command.UPD_TXSA, sa=_sa(an, active=False))
        await self._delete(Command.DEL_TXSA, sa=_sa(an))

    # -- policy

    async def set_controlled_port(self, *, unprotected: bool) -> None:
        """Let all frames pass in clear, or none; both directions in one message."""
        validation = VALIDATE_CHECK if unprotected else VALIDATE_STRICT
        self._change(
            f"controlled port {'unprotected' if unprotected else 'protected'}",
            (IFLA_MACSEC_PROTECT, int(not unprotected)),
            (IFLA_MACSEC_VALIDATION, validation),
        )

    async def set_confidentiality(self, confidentiality: Confidentiality) -> None:
        """Encrypt whole frames, or nothing of them. Raises Unsupported for an offset."""
        if confidentiality.offset:
            raise Unsupported(
                f"{self._device}: Linux' MACsec has no confidentiality offset {confidentiality.offset}:"
                " use `secy: fastpath`, or confidentiality offset-0",
                errno.EOPNOTSUPP,
            )
        encrypt = confidentiality is Confidentiality.OFFSET_0
        self._change(f"encrypt {'on' if encrypt else 'off'}", (IFLA_MACSEC_ENCRYPT, int(encrypt)))

    # -- netlink

    def _change(self, what: str, *settings: tuple[int, int]) -> None:
        """Change settings of the link. Raises KernelError."""
        code = _change_link(self._index(), settings)
        if code:
            reason = errno.errorcode.get(code, str(code))
            raise KernelError(f"{self._device}: macsec {what}: {reason}", code)

    def _index(self) -> int:
        try:
            return socket.if_nametoindex(self._device)
        except OSError as error:
            raise KernelError(f"{self._device}: no such device", errno.ENODEV) from error

    async def _socket(self) -> MacsecSocket:
        if self._family is None:
            family = MacsecSocket(ext_ack=True)
            try:
                await family.setup_endpoint()
            except NetlinkError as error:
                family.close()
                message = "this kernel has no macsec (modprobe macsec; CONFIG_MACSEC)"
                raise Unsupported(message, error.code) from error
            self._family = family
        return self._family

    async def _dump(self) -> Any:
        index = self._index()
        family = await self._socket()
        message = MacsecMessage()
        message["cmd"], message["version"] = Command.GET_TXSC, GENL_VERSION
        try:
            replies = await family.nlm_request(
                message, msg_type=family.prid, msg_flags=NLM_F_REQUEST | NLM_F_DUMP
            )
            found = [r async for r in replies if r.get_attr("MACSEC_ATTR_IFINDEX") == index]
        except NetlinkError as error:
            raise self._error(Command.GET_TXSC.name, error) from error
        if not found:
            raise KernelError(f"{self._device} is not a macsec device", errno.ENODEV)
        return found[0]

    async def _request(self, command: Command, *, rxsc: Sa | None = None, sa: Sa | None = None) -> None:
        index = self._index()
        family = await self._socket()
        message = MacsecMessage()
        message["cmd"], message["version"] = command, GENL_VERSION
        attributes: list[tuple[str, object]] = [("MACSEC_ATTR_IFINDEX", index)]
        if rxsc:
            attributes.append(("MACSEC_ATTR_RXSC_CONFIG", rxsc))
        if sa:
            attributes.append(("MACSEC_ATTR_SA_CONFIG", sa))
        message["attrs"] = attributes
        try:
            flags = NLM_F_REQUEST | NLM_F_ACK
            async for _ in await family.nlm_request(message, msg_type=family.prid, msg_flags=flags):
                pass
        except NetlinkError as error:
            raise self._error(command.name, error) from None  # the cause's message would hold the key

    async def _delete(self, command: Command, *, rxsc: Sa | None = None, sa: Sa | None = None) -> None:
        """Do a request whose object may be gone already."""
        try:
            await self._request(command, rxsc=rxsc, sa=sa)
        except KernelError as error:
            if error.errno != errno.ENODEV:
                raise

    def _error(self, what: str, error: NetlinkError) -> KernelError:
        reason = errno.errorcode.get(error.code, str(error.code))
        return KernelError(f"{self._device}: macsec {what}: {reason}", error.code)


def _change_link(index: int, settings: Sequence[tuple[int, int]]) -> int:
    """Set octet-sized attributes of a macsec link by RTM_NEWLINK, all or none; returns the kernel's errno.

    A packet's time, no wait.
    """
    data = b"".join(_attribute(kind, bytes((value,))) for kind, value in settings)
    info = _attribute(IFLA_INFO_KIND, b"macsec\0") + _attribute(IFLA_INFO_DATA, data)
    body = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, index, 0, 0) + _attribute(IFLA_LINKINFO, info)
    header = _NLMSGHDR.pack(_NLMSGHDR.size + len(body), RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as route:
        route.settimeout(ANSWER_TIMEOUT_S)
        try:
            route.send(header + body)
            answer = route.recv(8192)
        except OSError as error:
            return error.errno or errno.EIO
    return -int.from_bytes(answer[16:20], "little" if _IS_LITTLE else "big", signed=True)


def _attribute(kind: int, value: bytes) -> bytes:
    size = 4 + len(value)
    return struct.pack("=HH", size, kind) + value + bytes(-size % 4)


def _rxsc(sci: Sci, *, active: bool | None = None) -> Sa:
    attributes: list[tuple[str, object]] = [("MACSEC_RXSC_ATTR_SCI", sci.pack())]
    if active is not None:
        attributes.append(("MACSEC_RXSC_ATTR_ACTIVE", int(active)))
    return {"attrs": attributes}


def _sa(
    an: int,
    *,
    active: bool | None = None,
    key: SaKey | None = None,
    pn: int | None = None,
    pn_octets: bytes | None = None,
) -> Sa:
    attributes: list[tuple[str, object]] = [("MACSEC_SA_ATTR_AN", an)]
    if key is not None:
        assert len(key.key_id) == KEY_ID_OCTETS
        assert len(key.salt) in {0, SALT_OCTETS}
        attributes.append(("MACSEC_SA_ATTR_KEYID", key.key_id))
        attributes.append(("MACSEC_SA_ATTR_KEY", key.sak.reveal()))
        active = False if active is None else active
        if key.salt:
            attributes.append(("MACSEC_SA_ATTR_SSCI", key.ssci.to_bytes(4, "big")))
            attributes.append(("MACSEC_SA_ATTR_SALT", key.salt))
        if pn is not None:
            pn_octets = _pn_octets(pn, is_xpn=bool(key.salt))
    if pn_octets is not None:
        attributes.append(("MACSEC_SA_ATTR_PN", pn_octets))
    if active is not None:
        attributes.append(("MACSEC_SA_ATTR_ACTIVE", int(active)))
    return {"attrs": attributes}


def _pn_octets(pn: int, *, is_xpn: bool) -> bytes:
    return pn.to_bytes(8 if is_xpn else 4, "little" if _IS_LITTLE else "big")


_IS_LITTLE: Final = socket.htons(1) != 1


def _attributes(nested: Any) -> Mapping[str, Any]:
    return dict(nested["attrs"]) if nested is not None else {}


def _sa_state(sa: Any) -> SaState:
    values = _attributes(sa)
    ssci = values.get("MACSEC_SA_ATTR_SSCI")
    return SaState(
        an=values["MACSEC_SA_ATTR_AN"],
        active=bool(values["MACSEC_SA_ATTR_ACTIVE"]),
        next_pn=int.from_bytes(bytes(values["MACSEC_SA_ATTR_PN"]), "little" if _IS_LITTLE else "big"),
        key_id=bytes(values["MACSEC_SA_ATTR_KEYID"]),
        ssci=int.from_bytes(bytes(ssci), "big") if ssci is not None else 0,
    )


def _receive_sc(sc: Any) -> ReceiveScState:
    return ReceiveScState(
        sci=Sci.unpack(bytes(sc.get_attr("MACSEC_RXSC_ATTR_SCI"))),
        active=bool(sc.get_attr("MACSEC_RXSC_ATTR_ACTIVE")),
        sas=tuple(_sa_state(sa) for sa in sc.get_attr("MACSEC_RXSC_ATTR_SA_LIST") or ()),
    )


def _counters(message: Any) -> SecyCounters:
    out = _attributes(message.get_attr("MACSEC_ATTR_TXSC_STATS"))
    secy = _attributes(message.get_attr("MACSEC_ATTR_SECY_STATS"))
    received: dict[str, int] = {}
    for sc in message.get_attr("MACSEC_ATTR_RXSC_LIST") or ():
        for name, value in _attributes(sc.get_attr("MACSEC_RXSC_ATTR_STATS")).items():
            if name.startswith("IN_"):
                received[name] = received.get(name, 0) + value
    values = {n.lower(): v for n, v in {**out, **secy, **received}.items() if n.startswith(("IN_", "OUT_"))}
    return SecyCounters(**values)
