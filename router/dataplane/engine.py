"""The C engine as Python sees it: workers, channels, features. See csrc/engine.h for the theory.

    engine = Engine(workers=2)
    channel = engine.open_channel(ChannelPolicy(device="port1", ...))
    feature = channel.add_feature("a1.1101", vlan=1101, mtu=8500, rate_bps=0)
    channel.install_receive(...); channel.install_transmit(...); channel.enable_transmit(0)
    channel.set_carrier(up=True)

Packets move on threads that C made; no call here is ever on their way. Every call may wait some
microseconds for a worker's batch to end. Errors are `DataplaneError`, with the errno where it was
the system that refused.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from router.dataplane._native import ffi, lib
from router.errors import DataplaneError
from router.model import CipherSuite, Confidentiality, MacAddress, Sci
from router.secy import SaKey

SYSTEM: Final = -1000
"""An errno e comes back as SYSTEM - e (PORT_SYSTEM in csrc/port.h)."""

SALT_SIZE: Final = 12
MEASURE_TURNS: Final = 3


class Path(Enum):
    """How a port's frames travel (csrc/port.h)."""

    PACKET = "packet"
    """AF_PACKET both ways."""
    XDP_TX = "xdp-tx"
    """AF_XDP out, AF_PACKET in."""
    XDP = "xdp"
    """AF_XDP both ways."""

    @property
    def number(self) -> int:
        """Its number in C."""
        numbers = {Path.PACKET: lib.ENGINE_PACKET, Path.XDP_TX: lib.ENGINE_XDP_TX, Path.XDP: lib.ENGINE_XDP}
        return int(numbers[self])


@dataclass(frozen=True, slots=True)
class ChannelPolicy:
    """An uplink and the policy of its SecY, fixed for the channel's life."""

    device: str
    sci: Sci
    suite: CipherSuite
    port_mtu: int
    """Octets of payload that the port carries, MACsec included."""
    replay_window: int
    include_sci: bool = True
    path: Path = Path.PACKET
    out_workers: tuple[int, ...] = (0,)
    """Of each lane, the worker that sends; several lanes send at once under one SC (csrc/engine.h)."""
    in_workers: tuple[int, ...] = (0,)
    """Of each lane, the worker that receives; as many."""


def check(code: int) -> int:
    """Return a result that is no error; raise DataplaneError for one that is."""
    if code >= 0:
        return code
    text = ffi.new("char[160]")
    message = str(ffi.string(lib.engine_error(code, text, len(text))).decode())
    raise DataplaneError(message, SYSTEM - code if code <= SYSTEM else errno.EINVAL)


def device_carrier(device: str) -> bool:
    """Tell whether a device is up and has a carrier. Raises DataplaneError."""
    return bool(check(lib.device_carrier(device.encode())))


def device_mac(device: str) -> MacAddress:
    """Read a device's MAC address. Raises DataplaneError."""
    octets = ffi.new("uint8_t[6]")
    check(lib.device_mac(device.encode(), octets))
    return MacAddress(bytes(octets))


def measure_paths() -> dict[Path, int]:
    """Measure what a frame costs on each path on this machine, in ns of CPU, the cheapest first.

    The paths take turns, and the best of each counts: the machine may have other work. A path that
    does not work here is not in the result. Takes about half a second.
    """
    costs: dict[Path, int] = {}
    for path in (*Path,) * MEASURE_TURNS:
        ns = ffi.new("uint64_t *")
        with suppress(DataplaneError):
            check(lib.engine_measure(path.number, ns))
            costs[path] = min(int(ns[0]), costs.get(path, int(ns[0])))
    return dict(sorted(costs.items(), key=lambda item: item[1]))


def _names(name_of: Callable[[int], Any]) -> tuple[str, ...]:
    names: list[str] = []
    while (name := name_of(len(names))) != ffi.NULL:
        names.append(str(ffi.string(name).decode()))
    return tuple(names)


SECY_COUNTERS: Final = _names(lib.counter_name)
ENGINE_COUNTERS: Final = _names(lib.engine_counter_name)
FEATURE_COUNTERS: Final = ("out_packets", "out_octets", "in_packets", "in_octets")


class Channel:
    """One uplink with its SecY and its features. Made by `Engine.open_channel`."""

    def __init__(self, policy: ChannelPolicy, handle: Any) -> None:
        self.policy = policy
        self._channel = handle
        self.path = next(path for path in Path if path.number == lib.channel_path(handle))
        self.zero_copy = bool(lib.channel_zero_copy(handle))
        self.backend = str(ffi.string(lib.channel_backend(handle)).decode())
        """Name of the cipher backend in use."""
        self.note = str(ffi.string(lib.channel_note(handle)).decode())
        """To be logged if not empty: a faster backend was passed over, and why."""

    def close(self, *, keep: bool) -> None:
        """Wipe the keys, close the port; remove the TAPs, or `keep` them without carrier."""
        lib.channel_free(self._channel, keep)
        self._channel = ffi.NULL

    # -- features

    def add_feature(self, device: str, *, vlan: int | None, mtu: int, rate_bps: int) -> int:
        """Make the TAP of a VLAN (None: untagged) and return the feature's number."""
        vid = lib.ENGINE_UNTAGGED if vlan is None else vlan
        return check(lib.channel_feature_add(self._channel, device.encode(), vid, mtu, rate_bps // 8))

    def set_feature(self, feature: int, *, mtu: int, rate_bps: int) -> None:
        """Change a live feature; no packet is lost by it."""
        check(lib.channel_feature_set(self._channel, feature, mtu, rate_bps // 8))

    def remove_feature(self, feature: int) -> None:
        """Remove the TAP."""
        check(lib.channel_feature_remove(self._channel, feature))

    def set_carrier(self, *, up: bool) -> None:
        """Give all features carrier, or take it away."""
        check(lib.channel_carrier(self._channel, up))

    # -- the SecY

    def install_transmit(self, an: int, key: SaKey, next_pn: int) -> None:
        """Install a transmit SA, not yet used."""
        self._install(key, lambda keying: lib.channel_tx_install(self._channel, an, keying, next_pn))

    def enable_transmit(self, an: int) -> None:
        """Send under this AN from the next batch on."""
        check(lib.channel_tx_enable(self._channel, an))

    def delete_transmit(self, an: int) -> int:
        """Remove a transmit SA; return the PN that its frames never reached, 0 if it was used up."""
        next_pn = ffi.new("uint64_t *")
        check(lib.channel_tx_delete(self._channel, an, next_pn))
        return int(next_pn[0])

    def add_receive_sc(self, sci: Sci) -> None:
        """Create a receive SC."""
        check(lib.channel_rx_add(self._channel, sci.pack()))

    def remove_receive_sc(self, sci: Sci) -> None:
        """Remove a receive SC with its SAs."""
        check(lib.channel_rx_remove(self._channel, sci.pack()))

    def install_receive(self, sci: Sci, an: int, key: SaKey, lowest_pn: int) -> None:
        """Install a receive SA, not yet active."""
        packed = sci.pack()
        self._install(
            key, lambda keying: lib.channel_rx_install(self._channel, packed, an, keying, lowest_pn)
        )

    def enable_receive(self, sci: Sci, an: int, *, active: bool) -> None:
        """Let frames of this SA in, or stop doing so."""
        check(lib.channel_rx_enable(self._channel, sci.pack(), an, active))

    def raise_receive_pn(self, sci: Sci, an: int, lowest_pn: int) -> None:
        """Raise the lowest acceptable PN."""
        check(lib.channel_rx_raise(self._channel, sci.pack(), an, lowest_pn))

    def delete_receive(self, sci: Sci, an: int) -> None:
        """Remove a receive SA."""
        check(lib.channel_rx_delete(self._channel, sci.pack(), an))

    def set_clear(self, *, clear: bool) -> None:
        """Let all frames pass in clear from the next batch on, or none."""
        check(lib.channel_set_clear(self._channel, clear))

    def set_confidentiality(self, confidentiality: Confidentiality) -> None:
        """Encrypt so much of each frame; the offset is that of received frames too."""
        encrypt = confidentiality is not Confidentiality.INTEGRITY_ONLY
        check(lib.channel_set_confidentiality(self._channel, encrypt, confidentiality.offset))

    @property
    def encoding_an(self) -> int | None:
        """The AN that frames are sent under."""
        an = int(lib.channel_encoding_an(self._channel))
        return None if an < 0 else an

    def next_pn(self, an: int) -> int:
        """PN of the next frame; 0 if the SA is used up or there is none."""
        return int(lib.channel_tx_next_pn(self._channel, an))

    def lowest_pn(self, sci: Sci, an: int) -> int:
        """Lowest acceptable PN; 0 if there is no such SA."""
        return int(lib.channel_rx_lowest_pn(self._channel, sci.pack(), an))

    def _install(self, key: SaKey, call: Callable[[Any], int]) -> None:
        if self.policy.suite.is_xpn and len(key.salt) != SALT_SIZE:
            raise DataplaneError(f"a salt has {SALT_SIZE} octets", errno.EINVAL)
        sak = key.sak.reveal()
        pointer = ffi.from_buffer(sak)
        try:
            keying = ffi.new("struct secy_key *")
            keying.sak, keying.sak_len, keying.ssci = pointer, len(sak), key.ssci
            keying.salt = key.salt.ljust(SALT_SIZE, b"\0")
            check(call(keying))
        finally:
            lib.wipe(pointer, len(sak))  # the copy that reveal() made is ours alone

    # -- counters

    def secy_counters(self) -> dict[str, int]:
        """802.1AE counters and named drops, out and in."""
        return {n: int(lib.channel_secy_counter(self._channel, i)) for i, n in enumerate(SECY_COUNTERS)}

    def counters(self) -> dict[str, int]:
        """What happened to packets outside the SecY."""
        return {n: int(lib.channel_counter(self._channel, i)) for i, n in enumerate(ENGINE_COUNTERS)}

    def lane_counters(self) -> list[dict[str, int]]:
        """The same, lane by lane."""
        return [
            {
                name: int(lib.channel_lane_counter(self._channel, lane, i))
                for i, name in enumerate(ENGINE_COUNTERS)
            }
            for lane in range(lib.channel_lanes(self._channel))
        ]

    def feature_counters(self, feature: int) -> dict[str, int]:
        """Packets and octets as the kernel handed them over and took them."""
        values = (int(lib.feature_counter(self._channel, feature, i)) for i in range(len(FEATURE_COUNTERS)))
        return dict(zip(FEATURE_COUNTERS, values, strict=True))


class Engine:
    """The worker threads. Close all channels, then the engine."""

    def __init__(self, workers: int, *, pin: bool = False) -> None:
        """Start `workers` threads, one meant for each core; with `pin`, kept on cores 0, 1, ..."""
        out = ffi.new("struct engine **")
        check(lib.engine_new(workers, pin, out))
        self._engine = out[0]
        self.workers = workers

    def open_channel(self, policy: ChannelPolicy, backend: str | None = None) -> Channel:
        """Open a port and start to move its frames. Raises DataplaneError."""
        if not 0 < len(policy.out_workers) == len(policy.in_workers) <= lib.ENGINE_LANES_MAX:
            raise DataplaneError(f"a channel has 1 to {lib.ENGINE_LANES_MAX} lanes", errno.EINVAL)
        config = ffi.new("struct channel_config *")
        config.device = policy.device.encode()
        config.path = policy.path.number
        config.lanes = len(policy.out_workers)
        config.out_worker, config.in_worker = policy.out_workers, policy.in_workers
        secy = config.secy
        secy.suite = policy.suite.value
        secy.sci = policy.sci.pack()
        secy.frame_max = policy.port_mtu + 14
        secy.replay_window = policy.replay_window
        secy.replay_protect = 1
        secy.validate = lib.SECY_STRICT
        secy.protect = secy.encrypt = 1
        secy.include_sci = policy.include_sci
        secy.end_station = not policy.include_sci and policy.sci.port == 1
        secy.pop_vlan = 1
        out = ffi.new("struct channel **")
        name = ffi.NULL if backend is None else ffi.new("char[]", backend.encode())
        check(lib.channel_new(self._engine, config, name, out))
        return Channel(policy, out[0])

    def close(self) -> None:
        """End the threads."""
        lib.engine_free(self._engine)
        self._engine = ffi.NULL
