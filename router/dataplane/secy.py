"""The SecY in our data plane: `router.secy.SecY` over RUN_DIR/dataplane.sock.

A SecY is called by the name that its macsec device would have. Where the data plane has no such
channel (yet), or is not running, calls raise DataplaneError with ENODEV or ENOTCONN; a data plane
that was restarted shows a SecY without SAs, and whoever keys it starts above the last PN seen.
"""

from __future__ import annotations

from typing import Any

from router.dataplane.client import DataplaneClient
from router.model import CipherSuite, Confidentiality, Sci
from router.secy import ReceiveScState, SaKey, SaState, SecyCounters, SecyState


class FastpathSecY:
    """One channel's SecY."""

    def __init__(self, client: DataplaneClient, device: str) -> None:
        self._client = client
        self._device = device

    async def observe(self) -> SecyState:
        """Read state and counters."""
        answer = await self._do("observe")
        return _state(answer["state"])

    async def create_receive_sc(self, sci: Sci) -> None:
        """Create an enabled receive SC."""
        await self._do("create_receive_sc", sci=str(sci))

    async def delete_receive_sc(self, sci: Sci) -> None:
        """Delete a receive SC with all its SAs."""
        await self._do("delete_receive_sc", sci=str(sci))

    async def create_receive_sa(self, sci: Sci, an: int, key: SaKey, lowest_pn: int) -> None:
        """Install a receive SA, not yet active."""
        await self._do("create_receive_sa", sci=str(sci), an=an, key=_key(key), lowest_pn=lowest_pn)

    async def enable_receive_sa(self, sci: Sci, an: int, *, active: bool = True) -> None:
        """Let frames of this SA in, or stop doing so."""
        await self._do("enable_receive_sa", sci=str(sci), an=an, active=active)

    async def update_receive_pn(self, sci: Sci, an: int, lowest_pn: int) -> None:
        """Raise the lowest acceptable PN (delay protection)."""
        await self._do("update_receive_pn", sci=str(sci), an=an, lowest_pn=lowest_pn)

    async def delete_receive_sa(self, sci: Sci, an: int) -> None:
        """Remove a receive SA."""
        await self._do("delete_receive_sa", sci=str(sci), an=an)

    async def create_transmit_sa(self, an: int, key: SaKey, next_pn: int) -> None:
        """Install a transmit SA, not yet active."""
        await self._do("create_transmit_sa", an=an, key=_key(key), next_pn=next_pn)

    async def enable_transmit_sa(self, an: int) -> None:
        """Send under this AN from the next frame on."""
        await self._do("enable_transmit_sa", an=an)

    async def delete_transmit_sa(self, an: int) -> None:
        """Remove a transmit SA."""
        await self._do("delete_transmit_sa", an=an)

    async def set_controlled_port(self, *, unprotected: bool) -> None:
        """Let all frames pass in clear, or none. Refused (EPERM) where the channel is must-secure."""
        await self._do("set_controlled_port", unprotected=unprotected)

    async def set_confidentiality(self, confidentiality: Confidentiality) -> None:
        """Encrypt so much of each frame from the next batch on."""
        await self._do("set_confidentiality", confidentiality=confidentiality.label)

    async def _do(self, call: str, **arguments: object) -> dict[str, Any]:
        return await self._client.request({"secy": self._device, "do": call, **arguments})


def _key(key: SaKey) -> dict[str, object]:
    return {
        "sak": key.sak.reveal().hex(),
        "key_id": key.key_id.hex(),
        "ssci": key.ssci,
        "salt": key.salt.hex(),
    }


def _sa(data: dict[str, Any]) -> SaState:
    return SaState(data["an"], data["active"], data["next_pn"], bytes.fromhex(data["key_id"]), data["ssci"])


def _state(data: dict[str, Any]) -> SecyState:
    counters = data["counters"]
    return SecyState(
        device=data["device"],
        sci=Sci.parse(data["sci"]),
        suite=CipherSuite.parse(data["suite"]),
        operational=data["operational"],
        encoding_an=data["encoding_an"],
        transmit=tuple(map(_sa, data["transmit"])),
        receive=tuple(
            ReceiveScState(Sci.parse(sc["sci"]), sc["active"], tuple(map(_sa, sc["sas"])))
            for sc in data["receive"]
        ),
        counters=SecyCounters(
            **{name: counters[name] for name in SecyCounters.__dataclass_fields__ if name in counters}
        ),
        confidentiality=Confidentiality.parse(data["confidentiality"]),
        unprotected=data["unprotected"],
    )
