"""The data plane's process: owns the engine, does what routerd wants and what keyd orders.

    python -m router.dataplane.process --run-dir DIR --state-dir DIR [--workers N] [--pin]

It speaks JSON, one object a line, one answer a line, on RUN_DIR/dataplane.sock (mode 0600). Keys
pass over this socket and are kept nowhere but in the engine's memory.

    {"want": [channel, ...]}          the whole wanted set (`router.dataplane.wanted`)
    {"status": true}                  everything that runs, with counters
    {"secy": NAME, "do": CALL, ...}   one call of `router.secy.SecY` on a channel
Every answer is {"ok": true, ...} or {"ok": false, "error": "...", "errno": N}.

A want is compared with what runs, and only the difference is done; so is it again on each link
notification, which is how a port that comes late or is made anew is picked up. The last want is
kept in STATE_DIR/dataplane.json and taken up again after a restart. The keys are not: a data
plane that died comes back with ports and TAPs, without carrier, and waits for keyd. A packet
number never goes back under one key: keyd starts a new SA above the last `next_pn` it has seen.

A TAP has carrier while its port has and the SecY can send; so routes over a channel that cannot
be used are gone from the kernel's table before anybody has read a log. The TAPs outlive the
process, without carrier but with what routerd put on them; one that is no longer wanted is removed.

Of root's privileges it keeps CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF and CAP_IPC_LOCK, its threads too; what
needs more comes first: the paths are measured in a namespace made for it.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from router import log as logging
from router.dataplane import engine as native
from router.dataplane.engine import Channel, ChannelPolicy, Engine
from router.dataplane.wanted import WantedChannel, WantedFeature
from router.errors import DataplaneError, KernelError
from router.model import Confidentiality, Sci, Secret
from router.privileges import Capability, harden, keep_only
from router.secy import SaKey

LOOK_S: Final = 0.25
"""How often carrier is looked at besides notifications: an SA can run out of packet numbers."""
LINE_MAX: Final = 1 << 20
_RTMGRP_LINK: Final = 1


@dataclass(slots=True)
class Sa:
    """An SA as installed; its key is in the engine only."""

    key_id: bytes
    ssci: int
    active: bool = False


@dataclass(slots=True)
class RunningFeature:
    """A TAP that exists."""

    wanted: WantedFeature
    number: int
    ifindex: int


@dataclass(slots=True)
class RunningChannel:
    """A channel that is open, with what the engine cannot tell about its SAs."""

    wanted: WantedChannel
    channel: Channel
    ifindex: int
    features: dict[str, RunningFeature] = field(default_factory=dict)
    transmit: dict[int, Sa] = field(default_factory=dict)
    receive: dict[Sci, dict[int, Sa]] = field(default_factory=dict)
    carrier: bool = False
    unprotected: bool = False
    confidentiality: Confidentiality = Confidentiality.OFFSET_0

    @property
    def operational(self) -> bool:
        """Whether frames can be sent: there is an encoding SA and it has packet numbers left."""
        an = self.channel.encoding_an
        return an is not None and self.channel.next_pn(an) != 0


def _ifindex(device: str) -> int:
    try:
        return socket.if_nametoindex(device)
    except OSError:
        return 0


def _why_no_tap(device: str, error: DataplaneError) -> str:
    """What went wrong with a TAP, and what to do about it."""
    if error.errno in {errno.ENOENT, errno.ENODEV, errno.ENXIO}:
        return f"no TAP without /dev/net/tun: {error} - modprobe tun"
    if error.errno in {errno.EACCES, errno.EPERM}:
        return f"no TAP: {error} - the data plane needs CAP_NET_ADMIN and /dev/net/tun"
    if error.errno in {errno.EBUSY, errno.EINVAL}:
        return f"no TAP: {error} - rename or delete the device that has the name {device}"
    return f"no TAP: {error}"


def _refuse(message: str, number: int) -> DataplaneError:
    return DataplaneError(message, number)


class Dataplane:
    """The wanted set, the running one, and the SecY calls. No socket, no task: those are `serve`'s."""

    def __init__(
        self, engine: Engine, state_file: Path | None, log: Any, costs: dict[native.Path, int]
    ) -> None:
        self._engine = engine
        self._state_file = state_file
        self._log = log
        self._wanted: tuple[WantedChannel, ...] = ()
        self._running: dict[str, RunningChannel] = {}
        self._errors: dict[str, str] = {}
        """By name of a channel or feature: why it is not as wanted."""
        self._costs = costs
        """ns per frame by path; the cheapest first."""
        self._spent: dict[tuple[str, bytes], int] = {}
        """By channel and key id: the least PN that was never sent under this key."""

    # -- the wanted set

    def load(self) -> None:
        """Take up the want of before the restart, if there is one."""
        if self._state_file is None or not self._state_file.exists():
            return
        try:
            channels = json.loads(self._state_file.read_text())["channels"]
            self._wanted = tuple(map(WantedChannel.from_json, channels))
        except (ValueError, KeyError, TypeError) as error:
            self._log.warning("state.unreadable", file=str(self._state_file), reason=str(error))
        self.reconcile()

    def want(self, channels: Sequence[WantedChannel]) -> dict[str, str]:
        """Make it so; return what could not be done, by name. Raises ValueError for nonsense."""
        names = [c.name for c in channels]
        devices = [f.device for c in channels for f in c.features]
        ports = [c.device for c in channels]
        for what, values in (("channel", names), ("feature", devices), ("port", ports)):
            for value in values:
                if values.count(value) > 1:
                    raise ValueError(f"{what} {value} is there twice")
        if tuple(channels) != self._wanted:
            self._wanted = tuple(channels)
            self._save()
        self.reconcile()
        return dict(self._errors)

    def _save(self) -> None:
        if self._state_file is None:
            return
        fresh = self._state_file.with_name(self._state_file.name + ".new")
        fresh.write_text(json.dumps({"channels": [c.to_json() for c in self._wanted]}))
        fresh.rename(self._state_file)

    def reconcile(self) -> None:
        """Compare what is wanted with what runs, and do the difference."""
        errors: dict[str, str] = {}
        wanted = {channel.name: channel for channel in self._wanted}
        for name in [name for name in self._running if name not in wanted]:
            self._close(name, "not wanted any more", keep=False)
        for channel in self._wanted:
            try:
                self._reconcile_channel(channel, errors)
            except DataplaneError as error:
                errors[channel.name] = f"{channel.device}: {error}"
        for name, reason in errors.items():
            if self._errors.get(name) != reason:
                self._log.warning("object.error", name=name, reason=reason)
        for name in self._errors.keys() - errors.keys():
            self._log.info("object.ok", name=name)
        self._errors = errors
        self.look()

    def _reconcile_channel(self, wanted: WantedChannel, errors: dict[str, str]) -> None:
        ifindex = _ifindex(wanted.device)
        running = self._running.get(wanted.name)
        if running is not None:
            self._remove_features(running, wanted)
            if running.ifindex != ifindex:
                self._close(wanted.name, "the port was removed or made anew")
            elif _secy_of(running.wanted) != _secy_of(wanted):
                self._close(wanted.name, "its policy changed")
            elif (mac := native.device_mac(wanted.device)) != running.channel.policy.sci.mac:
                self._close(wanted.name, f"the port's MAC address became {mac}")
        running = self._running.get(wanted.name) or self._open(wanted, ifindex)
        running.wanted = wanted
        if running.unprotected and not wanted.may_open:
            self._set_controlled_port(running, unprotected=False)
        for feature in wanted.features:
            try:
                self._reconcile_feature(running, feature.device, feature)
            except DataplaneError as error:
                errors[feature.device] = str(error)

    def _open(self, wanted: WantedChannel, ifindex: int) -> RunningChannel:
        sci = Sci(native.device_mac(wanted.device), wanted.sci_port)
        out_workers, in_workers = self._idle_workers(wanted.cores)
        policy = ChannelPolicy(
            device=wanted.device,
            sci=sci,
            suite=wanted.suite,
            port_mtu=wanted.port_mtu,
            replay_window=wanted.replay_window,
            include_sci=wanted.include_sci,
            out_workers=out_workers,
            in_workers=in_workers,
        )
        channel = self._open_fastest(policy) if wanted.path == "auto" else self._open_on(policy, wanted.path)
        running = RunningChannel(wanted, channel, ifindex)
        self._running[wanted.name] = running
        self._log.info(
            "channel.opened",
            channel=wanted.name,
            port=wanted.device,
            sci=str(sci),
            suite=str(wanted.suite),
            path=channel.path.value,
            zero_copy=channel.zero_copy,
            backend=channel.backend,
            cores=len(out_workers),
        )
        if len(out_workers) < wanted.cores:
            self._log.warning("channel.cores", wanted=wanted.cores, there_are=len(out_workers))
        if channel.note:
            self._log.warning("cipher.backend", note=channel.note)
        return running

    def _open_on(self, policy: ChannelPolicy, path: str) -> Channel:
        try:
            return self._engine.open_channel(replace(policy, path=native.Path(path)))
        except ValueError:
            ways = ", ".join(way.value for way in native.Path)
            raise _refuse(f"path {path!r} is none of auto, {ways}", errno.EINVAL) from None

    def _open_fastest(self, policy: ChannelPolicy) -> Channel:
        """Zero-copy where the driver has it; else the path that costs least on this machine."""
        try:
            channel = self._engine.open_channel(replace(policy, path=native.Path.XDP))
            if channel.zero_copy:
                return channel
            channel.close(keep=True)
        except DataplaneError:
            pass  # no AF_XDP on this device
        for path in self._costs:
            with suppress(DataplaneError):
                return self._engine.open_channel(replace(policy, path=path))
        return self._engine.open_channel(policy)

    def _idle_workers(self, lanes: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Choose the workers that send and those that receive: idle ones, different ones if there are any."""
        load = [0] * self._engine.workers
        for running in self._running.values():
            policy = running.channel.policy
            for worker in (*policy.out_workers, *policy.in_workers):
                load[worker] += 1
        order = sorted(range(len(load)), key=lambda worker: (load[worker], worker))
        lanes = min(lanes, len(order))
        apart = max(1, min(lanes, len(order) - lanes))
        return (
            tuple(order[:lanes]),
            tuple(order[(lane + apart) % len(order)] for lane in range(lanes)),
        )

    def _close(self, name: str, reason: str, *, keep: bool = True) -> None:
        running = self._running.pop(name)
        for an in list(running.transmit):
            self._delete_transmit_sa(running, an)
        running.channel.close(keep=keep)
        self._log.info("channel.closed", channel=name, reason=reason)

    def _remove_features(self, running: RunningChannel, wanted: WantedChannel) -> None:
        """Remove the TAPs that are not wanted, or that somebody else has deleted."""
        wants = {feature.device: feature for feature in wanted.features}
        for device, have in list(running.features.items()):
            want = wants.get(device)
            if want is None or want.vlan != have.wanted.vlan or _ifindex(device) != have.ifindex:
                running.channel.remove_feature(have.number)
                del running.features[device]
                self._log.info("feature.removed", feature=device)

    def _reconcile_feature(self, running: RunningChannel, device: str, want: WantedFeature) -> None:
        have = running.features.get(device)
        if have is None:
            try:
                number = running.channel.add_feature(
                    device, vlan=want.vlan, mtu=want.mtu, rate_bps=want.rate_bps
                )
            except DataplaneError as error:
                raise _refuse(_why_no_tap(device, error), error.errno) from error
            running.features[device] = RunningFeature(want, number, _ifindex(device))
            running.carrier = False  # the new one has none yet
            self._log.info("feature.added", feature=device, vlan=want.vlan, mtu=want.mtu)
        elif have.wanted != want:
            running.channel.set_feature(have.number, mtu=want.mtu, rate_bps=want.rate_bps)
            have.wanted = want
            self._log.info("feature.changed", feature=device, mtu=want.mtu, rate_bps=want.rate_bps)

    def look(self) -> None:
        """Give the TAPs of each channel the carrier that they should have."""
        for name, running in self._running.items():
            try:
                sends = running.operational or running.unprotected
                up = sends and native.device_carrier(running.wanted.device)
            except DataplaneError:
                up = False  # the port is gone; a notification is on its way
            if up == running.carrier:
                continue
            try:
                running.channel.set_carrier(up=up)
            except DataplaneError as error:
                self._log.warning("carrier.failed", channel=name, reason=str(error))
                continue
            running.carrier = up
            self._log.info("carrier", channel=name, up=up)

    def close(self) -> None:
        """Wipe the keys and end the threads; the TAPs stay."""
        for name in list(self._running):
            self._close(name, "shutdown")
        self._engine.close()

    # -- the SecY: each call succeeds again where it has succeeded

    def secy(self, name: str, call: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Do one call. Raises DataplaneError; KeyError, TypeError, ValueError for nonsense."""
        running = self._running.get(name)
        if running is None:
            reason = self._errors.get(name, "no such channel")
            raise _refuse(f"{name}: {reason}", errno.ENODEV)
        if call == "observe":
            return {"state": self._observe(running)}
        if call not in _CALLS:
            raise ValueError(f"a SecY cannot {call!r}")
        getattr(self, f"_{call}")(running, **_arguments(arguments))
        self.look()
        return {}

    def _observe(self, running: RunningChannel) -> dict[str, Any]:
        channel = running.channel
        return {
            "device": running.wanted.name,
            "sci": str(channel.policy.sci),
            "suite": str(channel.policy.suite),
            "operational": running.operational,
            "encoding_an": channel.encoding_an or 0,
            "unprotected": running.unprotected,
            "confidentiality": running.confidentiality.label,
            "transmit": [_sa(an, sa, channel.next_pn(an)) for an, sa in sorted(running.transmit.items())],
            "receive": [
                {
                    "sci": str(sci),
                    "active": True,
                    "sas": [_sa(an, sa, channel.lowest_pn(sci, an)) for an, sa in sorted(sas.items())],
                }
                for sci, sas in running.receive.items()
            ],
            "counters": channel.secy_counters(),
        }

    def _create_receive_sc(self, running: RunningChannel, sci: Sci) -> None:
        running.channel.add_receive_sc(sci)
        running.receive.setdefault(sci, {})

    def _delete_receive_sc(self, running: RunningChannel, sci: Sci) -> None:
        if sci in running.receive:
            running.channel.remove_receive_sc(sci)
            del running.receive[sci]

    def _receive_sas(self, running: RunningChannel, sci: Sci) -> dict[int, Sa]:
        if sci not in running.receive:
            raise _refuse(f"{running.wanted.name}: no receive SC {sci}", errno.ENODEV)
        return running.receive[sci]

    def _create_receive_sa(
        self, running: RunningChannel, sci: Sci, an: int, key: SaKey, lowest_pn: int
    ) -> None:
        sas = self._receive_sas(running, sci)
        if not _is_there(sas, an, key):
            running.channel.install_receive(sci, an, key, lowest_pn)
            sas[an] = Sa(key.key_id, key.ssci)

    def _enable_receive_sa(self, running: RunningChannel, sci: Sci, an: int, *, active: bool = True) -> None:
        sa = _installed(self._receive_sas(running, sci), an)
        running.channel.enable_receive(sci, an, active=active)
        sa.active = active

    def _update_receive_pn(self, running: RunningChannel, sci: Sci, an: int, lowest_pn: int) -> None:
        _installed(self._receive_sas(running, sci), an)
        running.channel.raise_receive_pn(sci, an, lowest_pn)

    def _delete_receive_sa(self, running: RunningChannel, sci: Sci, an: int) -> None:
        sas = running.receive.get(sci, {})
        if an in sas:
            running.channel.delete_receive(sci, an)
            del sas[an]

    def _create_transmit_sa(self, running: RunningChannel, an: int, key: SaKey, next_pn: int) -> None:
        if _is_there(running.transmit, an, key):
            return
        if any(sa.key_id == key.key_id for sa in running.transmit.values()):
            raise _refuse("this key is in use under another AN", errno.EBUSY)
        least = self._spent.get((running.wanted.name, key.key_id), 1)
        if least == 0 or next_pn < least:
            raise _refuse("a packet number never goes back under one key", errno.EINVAL)
        running.channel.install_transmit(an, key, next_pn)
        running.transmit[an] = Sa(key.key_id, key.ssci)

    def _enable_transmit_sa(self, running: RunningChannel, an: int) -> None:
        sa = _installed(running.transmit, an)
        running.channel.enable_transmit(an)
        sa.active = True

    def _delete_transmit_sa(self, running: RunningChannel, an: int) -> None:
        sa = running.transmit.pop(an, None)
        if sa is not None:
            least = running.channel.delete_transmit(an)
            self._spent[running.wanted.name, sa.key_id] = least

    def _set_controlled_port(self, running: RunningChannel, *, unprotected: bool) -> None:
        if unprotected and not running.wanted.may_open:
            raise _refuse(
                f"{running.wanted.name} is must-secure: it never passes frames in clear", errno.EPERM
            )
        running.channel.set_clear(clear=unprotected)
        if running.unprotected != unprotected:
            (self._log.warning if unprotected else self._log.info)(
                "port.controlled", channel=running.wanted.name, unprotected=unprotected
            )
        running.unprotected = unprotected

    def _set_confidentiality(self, running: RunningChannel, confidentiality: Confidentiality) -> None:
        if confidentiality.offset and running.wanted.suite.is_xpn:
            raise _refuse(f"{running.wanted.suite} has no confidentiality offset", errno.EINVAL)
        running.channel.set_confidentiality(confidentiality)
        running.confidentiality = confidentiality

    # -- status

    def status(self) -> dict[str, Any]:
        """Everything, with counters."""
        return {
            "workers": self._engine.workers,
            "path_costs_ns": {path.value: ns for path, ns in self._costs.items()},
            "channels": {c.name: self._channel_status(c) for c in self._wanted},
        }

    def _channel_status(self, wanted: WantedChannel) -> dict[str, Any]:
        running = self._running.get(wanted.name)
        status: dict[str, Any] = {"device": wanted.device, "error": self._errors.get(wanted.name)}
        if running is None:
            return {**status, "open": False}
        channel = running.channel
        return {
            **status,
            "open": True,
            "sci": str(channel.policy.sci),
            "suite": str(wanted.suite),
            "path": channel.path.value,
            "zero_copy": channel.zero_copy,
            "backend": channel.backend,
            "out_workers": channel.policy.out_workers,
            "in_workers": channel.policy.in_workers,
            "lanes": channel.lane_counters(),
            "carrier": running.carrier,
            "operational": running.operational,
            "counters": channel.counters(),
            "secy_counters": channel.secy_counters(),
            "features": {
                f.device: {
                    "vlan": f.vlan,
                    "mtu": f.mtu,
                    "rate_bps": f.rate_bps,
                    "error": self._errors.get(f.device),
                    **(
                        channel.feature_counters(running.features[f.device].number)
                        if f.device in running.features
                        else {}
                    ),
                }
                for f in wanted.features
            },
        }


_CALLS: Final = frozenset(
    {
        "create_receive_sc",
        "delete_receive_sc",
        "create_receive_sa",
        "enable_receive_sa",
        "update_receive_pn",
        "delete_receive_sa",
        "create_transmit_sa",
        "enable_transmit_sa",
        "delete_transmit_sa",
        "set_controlled_port",
        "set_confidentiality",
    }
)


def _secy_of(wanted: WantedChannel) -> tuple[object, ...]:
    """Return what cannot change without a new SecY."""
    return (
        wanted.device,
        wanted.suite,
        wanted.replay_window,
        wanted.include_sci,
        wanted.sci_port,
        wanted.port_mtu,
        wanted.path,
        wanted.cores,
    )


def _is_there(sas: dict[int, Sa], an: int, key: SaKey) -> bool:
    """Tell whether this SA is installed. Raises DataplaneError where the AN holds another key."""
    if an in sas and sas[an].key_id != key.key_id:
        raise _refuse(f"AN {an} holds another key; delete that SA first", errno.EBUSY)
    return an in sas


def _installed(sas: dict[int, Sa], an: int) -> Sa:
    if an not in sas:
        raise _refuse(f"no SA is installed under AN {an}", errno.ENODEV)
    return sas[an]


def _sa(an: int, sa: Sa, pn: int) -> dict[str, Any]:
    return {"an": an, "active": sa.active, "next_pn": pn, "key_id": sa.key_id.hex(), "ssci": sa.ssci}


def _arguments(given: dict[str, Any]) -> dict[str, Any]:
    arguments = dict(given)
    if "sci" in arguments:
        arguments["sci"] = Sci.parse(arguments["sci"])
    if "key" in arguments:
        key = arguments["key"]
        arguments["key"] = SaKey(
            Secret(bytes.fromhex(key["sak"])),
            bytes.fromhex(key["key_id"]),
            int(key["ssci"]),
            bytes.fromhex(key["salt"]),
        )
    if "confidentiality" in arguments:
        arguments["confidentiality"] = Confidentiality.parse(arguments["confidentiality"])
    if not isinstance(arguments.get("unprotected", False), bool):
        raise ValueError("unprotected is true or false")  # noqa: TRY004 - as all nonsense is told
    for name in ("an", "next_pn", "lowest_pn"):
        if name in arguments and not isinstance(arguments[name], int):
            raise ValueError(f"{name} is a number")
    if not 0 <= arguments.get("an", 0) <= 3:
        raise ValueError("an association number is 0 to 3")
    for name in ("next_pn", "lowest_pn"):
        if not 0 < arguments.get(name, 1) < 1 << 64:
            raise ValueError(f"{name} is 1 to 2^64-1")
    return arguments


# -- the socket and the tasks


def answer(dataplane: Dataplane, line: bytes) -> dict[str, Any]:
    """Do what one line asks; never raises for what a client may send."""
    try:
        request = dict(json.loads(line))
        if "want" in request:
            errors = dataplane.want([WantedChannel.from_json(c) for c in request["want"]])
            return {"ok": True, "errors": errors}
        if "status" in request:
            return {"ok": True, **dataplane.status()}
        if "secy" in request:
            arguments = {k: v for k, v in request.items() if k not in {"secy", "do"}}
            return {"ok": True, **dataplane.secy(request["secy"], request["do"], arguments)}
    except KernelError as error:
        return {"ok": False, "error": str(error), "errno": error.errno}
    except OSError as error:
        return {"ok": False, "error": str(error), "errno": error.errno or errno.EIO}
    except (ValueError, KeyError, TypeError) as error:
        # The text of these may quote what was sent; a key is in none but hex errors, which do not.
        return {"ok": False, "error": f"{type(error).__name__}: {error}", "errno": errno.EINVAL}
    return {"ok": False, "error": "unknown request: want, status or secy", "errno": errno.EINVAL}


async def _serve_client(
    dataplane: Dataplane, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    with suppress(ConnectionError, ValueError):  # ValueError: a line beyond LINE_MAX
        while line := await reader.readline():
            writer.write(json.dumps(answer(dataplane, line)).encode() + b"\n")
            await writer.drain()
    writer.close()


def _link_socket() -> socket.socket:
    """A netlink socket that tells of every change of a device."""
    notifications = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    notifications.bind((0, _RTMGRP_LINK))
    notifications.setblocking(False)
    return notifications


def _drain(notifications: socket.socket, changed: asyncio.Event) -> None:
    with suppress(OSError):  # nothing left, or ENOBUFS: something was there in any case
        while notifications.recv(1 << 16):
            pass
    changed.set()


async def serve(dataplane: Dataplane, run_dir: Path) -> None:
    """Serve the socket and follow the devices until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    stop, changed = asyncio.Event(), asyncio.Event()

    def end() -> None:
        stop.set()
        changed.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    notifications = _link_socket()
    loop.add_reader(notifications, _drain, notifications, changed)
    path = run_dir / "dataplane.sock"
    path.unlink(missing_ok=True)
    mask = os.umask(0o177)
    try:
        server = await asyncio.start_unix_server(
            lambda reader, writer: _serve_client(dataplane, reader, writer), path, limit=LINE_MAX
        )
    finally:
        os.umask(mask)
    async with server:
        while not stop.is_set():
            try:
                await asyncio.wait_for(changed.wait(), LOOK_S)
            except TimeoutError:
                dataplane.look()
                continue
            changed.clear()
            if not stop.is_set():
                dataplane.reconcile()
    loop.remove_reader(notifications)
    notifications.close()
    path.unlink(missing_ok=True)


def path_costs(file: Path) -> dict[native.Path, int]:
    """What the paths cost on this machine, the cheapest first: from the file, or measured and kept there.

    The file goes with the next boot, so it holds for the kernel that it was measured on; a data plane
    that is restarted does not spend a second on it. Raises OSError.
    """
    try:
        costs = {native.Path(path): int(ns) for path, ns in json.loads(file.read_text()).items()}
    except (OSError, ValueError, AttributeError):
        costs = native.measure_paths()
        file.write_text(json.dumps({path.value: ns for path, ns in costs.items()}))
    return costs


def main(argv: Sequence[str] | None = None) -> int:
    """Run the process; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="lastmile-dataplane")
    parser.add_argument("--run-dir", required=True, type=Path)
    parser.add_argument("--state-dir", required=True, type=Path)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="engine threads")
    parser.add_argument("--pin", action="store_true", help="keep worker i on core i")
    options = parser.parse_args(argv)
    harden()
    options.run_dir.mkdir(parents=True, exist_ok=True)
    options.state_dir.mkdir(parents=True, exist_ok=True)
    log = logging.configure("dataplane")
    costs = path_costs(options.run_dir / "path-costs.json")  # in a namespace of its own: CAP_SYS_ADMIN
    log.info("paths.measured", ns={path.value: ns for path, ns in costs.items()})
    keep_only(Capability.NET_ADMIN, Capability.NET_RAW, Capability.BPF, Capability.IPC_LOCK)
    engine = Engine(options.workers, pin=options.pin)  # its threads have what this one has left
    dataplane = Dataplane(engine, options.state_dir / "dataplane.json", log, costs)
    dataplane.load()
    asyncio.run(serve(dataplane, options.run_dir))
    dataplane.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
