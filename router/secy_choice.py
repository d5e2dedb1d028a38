"""Who does MACsec on each channel: what the configuration says, and for `auto` what the kernel has.

Pure, and the same answer in every process that asks about the same kernel. A VRF that the kernel
has not is no reason to choose the data plane: its TAPs would be in no VRF either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Literal

from router.config.effective import Channel, EffectiveConfig
from router.model import ChannelId

KIND_TITLES: Final = MappingProxyType({"macsec": "MACsec (macsec)", "vlan": "VLANs (8021q)"})


@dataclass(frozen=True, slots=True)
class SecyChoice:
    """Which SecY a channel has, and why."""

    secy: Literal["kernel", "fastpath"]
    reason: str


def choose(channel: Channel, lacking: Sequence[str]) -> SecyChoice:
    """Choose for one channel; `lacking` are the link kinds that the kernel has not."""
    if channel.secy != "auto":
        return SecyChoice(channel.secy, "configured")
    if lacking:
        missing = " and no ".join(KIND_TITLES.get(kind, kind) for kind in lacking)
        return SecyChoice("fastpath", f"auto: this kernel has no {missing}")
    return SecyChoice("kernel", "auto: this kernel has MACsec and VLANs")


def settle(
    config: EffectiveConfig, lacking: Sequence[str]
) -> tuple[EffectiveConfig, Mapping[ChannelId, SecyChoice]]:
    """Return the configuration without any `auto`, and each channel's choice."""
    choices = {channel.id: choose(channel, lacking) for channel in config.channels}
    channels = tuple(replace(channel, secy=choices[channel.id].secy) for channel in config.channels)
    return replace(config, channels=channels), choices
