"""routerd's side of the data plane: say what is wanted, read what runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from router.config.effective import EffectiveConfig, MacsecMode
from router.dataplane.client import DataplaneClient
from router.dataplane.wanted import WantedChannel, WantedFeature
from router.model import ChannelId


def wanted_channels(
    config: EffectiveConfig, channels: Iterable[ChannelId], *, shape: bool = True
) -> tuple[WantedChannel, ...]:
    """Derive the wanted set for those channels that use the data plane. Pure.

    With `shape`, a feature may send at the bandwidth of its connection.
    """
    wanted: list[WantedChannel] = []
    for name in channels:
        channel = config.channel(name)
        if not channel.enabled:
            continue
        features = tuple(
            WantedFeature(
                device=feature.device,
                vlan=feature.vlan,
                mtu=connection.mtu,
                rate_bps=connection.bandwidth_mbps * 1_000_000 if shape else 0,
            )
            for connection in config.connections
            for feature in connection.features
            if feature.channel == name
        )
        wanted.append(
            WantedChannel(
                name=channel.macsec_device,
                device=channel.port,
                suite=channel.macsec.suite,
                replay_window=channel.macsec.replay_window,
                include_sci=channel.macsec.include_sci,
                sci_port=channel.macsec.sci_port,
                port_mtu=channel.port_mtu,
                features=features,
                may_open=channel.macsec.mode is MacsecMode.SHOULD_SECURE,
                cores=channel.cores,
            )
        )
    return tuple(wanted)


class DataplaneControl:
    """What routerd may ask. Raises DataplaneError where the data plane is not there."""

    def __init__(self, client: DataplaneClient) -> None:
        self._client = client

    async def want(self, channels: Iterable[WantedChannel]) -> dict[str, str]:
        """Set the whole wanted set; the same again does nothing. Return what is in error, by name."""
        answer = await self._client.request({"want": [channel.to_json() for channel in channels]})
        return dict(answer["errors"])

    async def status(self) -> dict[str, Any]:
        """Read `workers` and `channels`: by name, with path, carrier, counters, features."""
        return await self._client.request({"status": True})
