"""Drives one KaY: an EAPOL socket on the port, one timer, and a SecY that does as it is told.

    port (88-8E) --frames--> Kay --MKPDUs--> port
                              | operations, in order, one at a time
                              v
                            SecY --results, PNs, counters--> Kay

MKPDUs do not wait for the SecY: the KaY claims nothing to a peer before the SecY has answered. A
SecY that is made anew (another suite, somebody deleted it) has lost its SAs: the KaY notices, and
only a fresh SAK is ever installed again.

Two files on tmpfs are for a successor of this process, each written before what it tells of leaves
us: the ids of the keys that were installed, so that none is ever installed twice, and who we are to
the peers (`Handover`), so that it goes on as the same member. A successor that starts within the
MKA Life Time adopts the SAs in use, and not one frame is lost; the PNs are the SecY's and go on.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import socket
import struct
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from router.errors import ControlError, KernelError
from router.mka.events import (
    ConfigureSecy,
    CreateReceiveSa,
    CreateReceiveSc,
    CreateTransmitSa,
    DeleteReceiveSa,
    DeleteReceiveSc,
    DeleteTransmitSa,
    EnableReceive,
    EnableTransmit,
    Fact,
    PortState,
    SecyOperation,
    SendMkpdu,
    SetControlledPort,
    UpdateReceivePn,
)
from router.mka.explain import KaySnapshot
from router.mka.kay import HISTORY_MAX, Handover, Kay, KayConfig, KeyEntry
from router.mka.mkpdu import MI_SIZE, PAE_GROUP_ADDRESS
from router.mka.participant import Identity
from router.model import CipherSuite, Confidentiality, Sci
from router.secy import SecY, SecyState

# Of the standard and of Linux.
ETHERTYPE_EAPOL: Final = 0x888E
SOL_PACKET: Final = 263
PACKET_ADD_MEMBERSHIP: Final = 1
PACKET_MR_MULTICAST: Final = 0
PACKET_IGNORE_OUTGOING: Final = 23
SIOCGIFFLAGS: Final = 0x8913
IFF_UP: Final = 0x1
IFF_RUNNING: Final = 0x40
# Ours.
FRAME_MAX: Final = 2048
READ_BURST: Final = 64
"""Frames taken in one go, before others have their turn."""
POLL_S: Final = 1.0
POLL_DELAY_PROTECTION_S: Final = 0.25
"""PNs are sampled this often: LPNs are to be at most one bounded hello old."""
LOG_WINDOW_S: Final = 60.0
"""Dropped MKPDUs are logged once per reason in so many seconds."""
RETRY_S: Final = 0.2
"""Between looks for a device that is not there yet; notifications make it quicker."""
MN_AHEAD: Final = 1024
"""Message numbers that a stored handover is ahead of those sent: half an hour of hellos without a write."""


@dataclass(slots=True)
class DriverCounters:
    """What the driver counts."""

    mkpdus_received: int = 0
    mkpdus_sent: int = 0
    send_errors: int = 0
    secy_operations: int = 0
    secy_refusals: int = 0
    saks_installed: int = 0


class UsedKeys:
    """Key ids of this port that were installed, in a file on tmpfs; None keeps nothing.

    The last one of each key server's MI stands for all before it: key numbers only rise.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._last: OrderedDict[bytes, bytes] = OrderedDict()
        if path is not None and path.exists():
            for line in path.read_text().split():
                with suppress(ValueError):
                    self._remember(bytes.fromhex(line))

    def __iter__(self) -> Any:
        return iter(tuple(self._last.values()))

    def add(self, key_id: bytes) -> None:
        """Remember, before the key is used. Raises OSError."""
        self._remember(key_id)
        if self._path is not None:
            _replace(self._path, "".join(f"{key.hex()}\n" for key in self))

    def _remember(self, key_id: bytes) -> None:
        mi = key_id[:MI_SIZE]
        self._last[mi] = max(key_id, self._last.get(mi, b""))
        self._last.move_to_end(mi)
        while len(self._last) > HISTORY_MAX:
            self._last.popitem(last=False)


class HandoverFile:
    """Who we are to the peers, in a file on tmpfs; None keeps nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._stored: Handover | None = None

    def load(self, sci: Sci) -> Handover | None:
        """Read what a former process with this SCI left; a damaged file is as good as none."""
        if self._path is None:
            return None
        try:
            data = json.loads(self._path.read_text())
            if Sci.parse(str(data["sci"])) != sci:
                return None
            return Handover(
                bytes.fromhex(data["key_id"]),
                bytes.fromhex(data["key_ckn"]),
                tuple(
                    Identity(bytes.fromhex(i["ckn"]), bytes.fromhex(i["mi"]), int(i["mn"]), int(i["kn"]))
                    for i in data["identities"]
                ),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, sci: Sci, handover: Handover) -> None:
        """Have on file what covers `handover`, before any of it is said to a peer. Raises OSError."""
        if self._path is None or _covers(self._stored, handover):
            return
        ahead = replace(
            handover, identities=tuple(replace(i, mn=i.mn + MN_AHEAD) for i in handover.identities)
        )
        data = {
            "sci": str(sci),
            "key_id": ahead.key_id.hex(),
            "key_ckn": ahead.key_ckn.hex(),
            "identities": [
                {"ckn": i.ckn.hex(), "mi": i.mi.hex(), "mn": i.mn, "kn": i.kn} for i in ahead.identities
            ],
        }
        try:
            _replace(self._path, json.dumps(data))
        except OSError:
            # An older one would have a successor repeat message numbers: it had better be a stranger.
            self._stored = None
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
            raise
        self._stored = ahead


def _covers(stored: Handover | None, now: Handover) -> bool:
    """Tell whether a stored handover is still good: the same but for message numbers, and those ahead."""
    if stored is None or len(stored.identities) != len(now.identities):
        return False
    if (stored.key_id, stored.key_ckn) != (now.key_id, now.key_ckn):
        return False
    pairs = zip(stored.identities, now.identities, strict=True)
    return all(replace(then, mn=i.mn) == i and i.mn <= then.mn for then, i in pairs)


def _replace(path: Path, text: str) -> None:
    """Write a file of mode 0600 whole or not at all. Raises OSError."""
    fresh = path.with_name(path.name + ".new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(text)
    fresh.rename(path)


def open_port(port: str) -> socket.socket:
    """Open a socket for the EAPOL frames of a port. Raises OSError."""
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    try:
        membership = struct.pack(
            "iHH8s", socket.if_nametoindex(port), PACKET_MR_MULTICAST, 6, PAE_GROUP_ADDRESS.octets
        )
        raw.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, membership)
        raw.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        raw.bind((port, ETHERTYPE_EAPOL))
    except OSError:
        raw.close()
        raise
    return raw


def carrier_of(any_socket: socket.socket, port: str) -> bool | None:
    """Tell whether frames can pass a port, None where it is not there."""
    request = struct.pack("16sH22x", port.encode(), 0)
    try:
        answer = fcntl.ioctl(any_socket, SIOCGIFFLAGS, request)
    except OSError:
        return None
    flags = int(struct.unpack_from("=H", answer, 16)[0])
    return flags & (IFF_UP | IFF_RUNNING) == IFF_UP | IFF_RUNNING


class KayDriver:
    """One port's key agreement, from the appearance of its SecY until `close`.

    `config` gets its SCI from the SecY. `wall` has no place here: `set_keys` is called by whoever
    knows the time of day.
    """

    def __init__(
        self,
        *,
        port: str,
        device: str,
        config: KayConfig,
        secy: SecY,
        used_keys: UsedKeys,
        log: Any,
        handover: HandoverFile | None = None,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.port = port
        self.device = device
        self.counters = DriverCounters()
        self.problem = "the driver has just started"
        """Why there is no KaY, or why the SecY cannot be read; empty where all is well."""
        self.wanted_suite: CipherSuite | None = None
        """The suite agreed upon, where the device has another and must be made anew for it."""
        self.unprotected = False
        """Frames pass in clear: as last seen of the SecY, or done to it."""
        self.port_problem = ""
        """Why the SecY did not open or close when it was last told to."""
        self.state: SecyState | None = None
        """The SecY as last seen."""
        self._config = config
        self._secy = secy
        self._used_keys = used_keys
        self._handover = handover if handover is not None else HandoverFile(None)
        self._log = log
        self._entropy = entropy
        self._kay: Kay | None = None
        self._keys: tuple[KeyEntry, ...] = ()
        self._socket: socket.socket | None = None
        self._indexes = (0, 0)
        self._carrier = True
        self._timer: asyncio.TimerHandle | None = None
        self._operations: deque[SecyOperation] = deque()
        self._ordered = asyncio.Event()
        self._look_now = asyncio.Event()
        self._secy_lock = asyncio.Lock()
        self._confidentiality: Confidentiality | None = None
        """As last ordered by the KaY."""
        self._encoding_wrong = 0
        self._port_wrong = 0
        self._logged_drops: dict[str, float] = {}
        self._loop = asyncio.get_running_loop()

    # Asked by the key daemon

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._operate())
            group.create_task(self._watch())

    def close(self) -> None:
        """Let go of the port. The SAs stay: a successor adopts them."""
        if self._timer is not None:
            self._timer.cancel()
        self._close_socket()

    def set_keys(self, keys: tuple[KeyEntry, ...]) -> None:
        """Run these keys, the preferred one first."""
        self._keys = keys
        if self._kay is not None:
            self._kay.set_keys(keys, self._loop.time())
            self._pump()

    def rekey(self) -> None:
        """Make a new SAK. Raises ControlError where that is not ours to do now."""
        if self._kay is None:
            raise ControlError(f"no key agreement runs: {self.problem}")
        self._kay.rekey(self._loop.time())
        self._pump()

    def link(self, device: str, *, up: bool) -> None:
        """A device has appeared, changed or gone."""
        if device == self.port:
            self._carrier = up
            if self._kay is not None:
                self._kay.carrier(self._loop.time(), up=up)
                self._pump()
        if device in {self.port, self.device}:
            self._look_now.set()

    def _see_carrier(self) -> None:
        """Take the carrier as it is: we came without it, or the notification of a change was lost.

        Else its return would mean nothing to us, and the peers waited for our next regular hello.
        """
        up = carrier_of(self._socket, self.port) if self._socket is not None else None
        if up is not None and up is not self._carrier:
            self._carrier = up
            if self._kay is not None:
                self._kay.carrier(self._loop.time(), up=up)
                self._pump()

    def look(self) -> None:
        """Look at the SecY at once."""
        self._look_now.set()

    def snapshot(self) -> KaySnapshot | None:
        """What explains the port's state; None where no KaY runs."""
        return None if self._kay is None else self._kay.snapshot(self._loop.time())

    # Watching the SecY

    async def _watch(self) -> None:
        interval = POLL_DELAY_PROTECTION_S if self._config.delay_protection else POLL_S
        while True:
            await self._look()
            with suppress(TimeoutError):
                async with asyncio.timeout(interval if self.state is not None else RETRY_S):
                    await self._look_now.wait()
            self._look_now.clear()

    async def _look(self) -> None:
        was_away = self.state is None
        try:
            async with self._secy_lock:
                self.state = state = await self._secy.observe()
                self.unprotected = state.unprotected
            self._bind_port()
            self._see_carrier()
        except (KernelError, OSError) as error:
            self.state = None
            self.problem = str(error)
            return
        self.problem = ""
        kay, now = self._kay, self._loop.time()
        if self.wanted_suite in {None, state.suite}:
            self.wanted_suite = None
        suites = self._suites_on(state.suite)
        if kay is None or kay.config.sci != state.sci or set(kay.config.suites) != set(suites):
            self._start(state, now)
            return
        kay.config = replace(kay.config, suites=suites)
        index = socket.if_nametoindex(self.device)
        if index != self._indexes[1] or was_away:
            # Made anew, or a data plane that was restarted: one look more makes sure of what the KaY suspects after the first.
            self._indexes = (self._indexes[0], index)
            kay.observe(state, now)
        kay.observe(state, now)
        self._pump()
        await self._keep_sending(kay, state)
        await self._keep_port(kay)

    async def _keep_sending(self, kay: Kay, state: SecyState) -> None:
        """Put the encoding SA right where somebody else changed it. Found twice: our own change may be under way."""
        key = kay.snapshot(self._loop.time()).current
        wrong = (
            key is not None and key.tx and not self._operations and state.encoding_an != key.an
            and any(sa.an == key.an and sa.key_id == key.ki.pack() for sa in state.transmit)
        )  # fmt: skip
        self._encoding_wrong = self._encoding_wrong + 1 if wrong else 0
        if key is None or self._encoding_wrong < 2:
            return
        self._log.warning("secy.encoding_sa_changed", found=state.encoding_an, wanted=key.an)
        with suppress(KernelError):
            async with self._secy_lock:
                await self._secy.enable_transmit_sa(key.an)

    async def _keep_port(self, kay: Kay) -> None:
        """Have the SecY as open as the KaY says: it was made anew, or somebody else changed it.

        Found twice: our own change may be under way.
        """
        wrong = not self._operations and self.unprotected is not (kay.port is PortState.UNPROTECTED)
        self._port_wrong = self._port_wrong + 1 if wrong else 0
        if self._port_wrong < 2:
            return
        self._log.warning("secy.port_changed", unprotected=self.unprotected, wanted=kay.port.value)
        with suppress(KernelError):
            async with self._secy_lock:
                await self._set_port(kay.port)

    def _start(self, state: SecyState, now: float) -> None:
        """Begin key agreement, with what a former process left in the SecY."""
        self._operations.clear()
        self._indexes = (self._indexes[0], socket.if_nametoindex(self.device))
        config = replace(self._config, sci=state.sci, suites=self._suites_on(state.suite))
        kay = self._kay = Kay(config, now=now, entropy=self._entropy, used_keys=self._used_keys)
        self._log.info("kay.started", sci=str(state.sci), suite=str(state.suite))
        if state.transmit or state.unprotected or any(sc.sas for sc in state.receive):
            handover = self._handover.load(state.sci)
            kay.adopt(state, now, handover)
            self._log.info("kay.adopted", same_member=handover is not None)
        if not self._carrier:
            kay.carrier(now, up=False)
        kay.set_keys(self._keys, now)
        self._pump()

    def _suites_on(self, suite: CipherSuite) -> tuple[CipherSuite, ...]:
        """Return the acceptable suites, best first, while the SecY has `suite`.

        A SecY cannot change its suite while it runs, so what it has is preferred. One that is not
        configured any more is kept all the same until whoever made the SecY makes it anew: that is done
        one channel at a time, and all of them would stop at once if we were first.
        """
        if suite not in self._config.suites:
            return (suite,)
        return (suite, *(other for other in self._config.suites if other is not suite))

    # The port

    def _bind_port(self) -> None:
        """Keep a socket on the port that is there now. Raises OSError."""
        index = socket.if_nametoindex(self.port)
        if self._socket is not None and index == self._indexes[0]:
            return
        self._close_socket()
        self._socket = open_port(self.port)
        self._indexes = (index, self._indexes[1])
        self._loop.add_reader(self._socket, self._read)

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def _read(self) -> None:
        assert self._socket is not None
        for _ in range(READ_BURST):
            try:
                frame = self._socket.recv(FRAME_MAX)
            except BlockingIOError:
                break
            except OSError:  # the port went down: it is said once, and the link's events tell more
                break
            self.counters.mkpdus_received += 1
            if self._kay is not None:
                self._kay.receive(frame, self._loop.time())
        self._pump()

    def _send(self, frame: bytes) -> None:
        if self._socket is None:
            return
        try:
            self._socket.send(frame)
        except OSError as error:
            # Lost like on the wire: the next hello says the same.
            self.counters.send_errors += 1
            if error.errno not in {errno.ENETDOWN, errno.ENXIO, errno.ENOBUFS, errno.EAGAIN}:
                self._log.warning("mkpdu.not_sent", reason=os.strerror(error.errno or 0))
        else:
            self.counters.mkpdus_sent += 1

    # The KaY's outputs

    def _pump(self) -> None:
        """Do what the KaY wants, and arm its timer."""
        kay = self._kay
        if kay is None:
            return
        outputs = kay.take_outputs()
        if outputs:
            try:
                self._handover.keep(kay.config.sci, kay.handover())
            except OSError as error:
                self._log.error("handover.not_kept", reason=str(error))
        for output in outputs:
            match output:
                case SendMkpdu(frame):
                    self._send(frame)
                case Fact():
                    self._fact(output)
                case _:
                    self._operations.append(output)
                    self._ordered.set()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        when = kay.next_timer()
        if when is not None:
            self._timer = self._loop.call_at(when, self._due)

    def _due(self) -> None:
        self._timer = None
        if self._kay is not None:
            self._kay.handle_timer(self._loop.time())
            self._pump()

    def _fact(self, fact: Fact) -> None:
        fields = dict(fact.fields)
        if fact.name == "sak.known":
            try:
                self._used_keys.add(bytes.fromhex(str(fields["key_id"])))
            except OSError as error:
                self._log.error("sak.not_remembered", reason=str(error))
            return
        if fact.name == "mkpdu.dropped":
            # Whoever is on the wire chooses how often this happens.
            reason, now = str(fields["reason"]), self._loop.time()
            if now < self._logged_drops.get(reason, float("-inf")) + LOG_WINDOW_S:
                return
            self._logged_drops[reason] = now
        self._log.info(fact.name, **fields)

    async def _operate(self) -> None:
        """Carry out the SecY's operations, one after the other."""
        while True:
            await self._ordered.wait()
            self._ordered.clear()
            while self._operations:
                operation, kay = self._operations.popleft(), self._kay
                try:
                    async with self._secy_lock:
                        await self._apply(operation)
                except KernelError as error:
                    self.counters.secy_refusals += 1
                    self._log.info("secy.refused", operation=type(operation).__name__, reason=str(error))
                    if kay is not None and kay is self._kay:
                        kay.failed(operation.id, str(error), self._loop.time())
                else:
                    self.counters.secy_operations += 1
                    if kay is not None and kay is self._kay:
                        kay.succeeded(operation.id, self._loop.time())
                self._pump()

    async def _apply(self, operation: SecyOperation) -> None:
        """Carry out one operation. Raises KernelError."""
        secy = self._secy
        match operation:
            case ConfigureSecy(_, suite, confidentiality):
                await self._configure(suite, confidentiality)
            case CreateReceiveSc(_, sci):
                await secy.create_receive_sc(sci)
            case DeleteReceiveSc(_, sci):
                await secy.delete_receive_sc(sci)
            case CreateReceiveSa(_, sci, an, key, lowest_pn):
                try:
                    await secy.create_receive_sa(sci, an, key, lowest_pn)
                except KernelError as error:
                    if error.errno != errno.ENODEV:
                        raise
                    # The device was made anew, and its SC went with it.
                    await secy.create_receive_sc(sci)
                    await secy.create_receive_sa(sci, an, key, lowest_pn)
            case EnableReceive(_, sci, an):
                await secy.enable_receive_sa(sci, an)
            case UpdateReceivePn(_, sci, an, lowest_pn):
                await secy.update_receive_pn(sci, an, lowest_pn)
            case DeleteReceiveSa(_, sci, an):
                await secy.delete_receive_sa(sci, an)
            case CreateTransmitSa(_, an, key, next_pn):
                if self.unprotected:  # closing it was refused: a claim to protect frames would be a lie
                    raise KernelError(f"{self.device} still passes frames in clear and cannot be closed")
                if self._confidentiality is not None:  # a SecY made anew since then has its default again
                    await self._encrypt(self._confidentiality)
                await secy.create_transmit_sa(an, key, next_pn)
            case EnableTransmit(_, an):
                await secy.enable_transmit_sa(an)
                self.counters.saks_installed += 1
            case DeleteTransmitSa(_, an):
                await secy.delete_transmit_sa(an)
            case SetControlledPort(_, state):
                if self._operations and isinstance(self._operations[0], SetControlledPort):
                    return  # closed and opened again in one breath: the latter alone is done
                await self._set_port(state)
                self._log.info("port.state", state=state.value)

    @property
    def port_state(self) -> PortState:
        """The controlled port as it is, whatever was ordered: a refused order changes nothing."""
        ordered = PortState.CLOSED if self._kay is None else self._kay.port
        if self.unprotected:
            return PortState.UNPROTECTED
        return PortState.CLOSED if ordered is PortState.UNPROTECTED else ordered

    async def _set_port(self, state: PortState) -> None:
        """Open the SecY, or close it. Raises KernelError.

        One that protects frames passes none without an active SA, so that a must-secure port never
        needs an order.
        """
        wanted = state is PortState.UNPROTECTED
        assert not (wanted and self._config.must_secure)
        if wanted is self.unprotected:
            return
        try:
            await self._secy.set_controlled_port(unprotected=wanted)
        except KernelError as error:
            self.port_problem = str(error)
            raise
        self.unprotected, self.port_problem = wanted, ""
        if wanted:
            self._log.warning(
                "port.open_in_clear", reason="should-secure, and no peer proves a key: FRAMES PASS IN CLEAR"
            )
        else:
            self._log.warning("port.no_longer_in_clear")

    async def _configure(self, suite: CipherSuite, confidentiality: Confidentiality) -> None:
        """See that the SecY has the suite; ask for another device where it has not. Raises KernelError."""
        state = await self._secy.observe()
        if state.suite is not suite:
            self.wanted_suite = suite
            raise KernelError(f"{self.device} has suite {state.suite} and is made anew for {suite}")
        self.wanted_suite = None
        self.state = state
        await self._encrypt(confidentiality)
        self._confidentiality = confidentiality

    async def _encrypt(self, confidentiality: Confidentiality) -> None:
        """Have the SecY encrypt so much of each frame. Raises KernelError."""
        if self.state is None or self.state.confidentiality is confidentiality:
            return
        was = self.state.confidentiality
        await self._secy.set_confidentiality(confidentiality)
        self.state = replace(self.state, confidentiality=confidentiality)
        self._log.info("secy.confidentiality", was=was.label, now=confidentiality.label)
