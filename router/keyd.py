"""The key daemon: the one process that reads MACsec keys, and keeps every channel's SecY keyed.

    python -m router.keyd --config FILE --run-dir DIR [--state-dir DIR]

Each channel has a keyer. With MKA (`MkaKeyer`) it reads the channel's key chain, runs one KaY
(`router.mka.driver`) and tells it which CAKs are live by the time of day. With static keys (lab only)
it is `router.static_keys`. It looks on every link notification and every second.

It runs on the accepted configuration (`router.accepted`), reads it again on SIGHUP or when it
changes, and keeps the old one where the new one cannot be used. RUN_DIR/keyd.sock (mode 0600) takes
one JSON object per line and answers with one:

    {"verb": "status"}                          {"ok": true, "channels": {NAME: ChannelKeys, ...}}
    {"verb": "rekey", "channel": NAME}          {"ok": true} or {"ok": false, "error": SENTENCE}
    {"verb": "reload"}                          key files are read again

**What survives what.** routerd's death: everything. Our own: two of us run (`router.standby`), and
the one that waits goes on in the same second. The SAs stay in the SecY, and nothing is lost for an
MKA Life Time; a successor adopts them and goes on as the same member, by RUN_DIR/keyd/*.handover. Ids
of installed keys are in RUN_DIR/keyd/*.used, so no SAK is installed twice. (Both are mode 0600.) Where
both die at once, the first that is back does the same, if need be with fresh keys.

**An upgrade**: end the spare by SIGTERM; when the new one waits (`lastmile status -v`), the active.

**Secrets.** Only this process reads CAKs. It keeps CAP_NET_ADMIN and CAP_NET_RAW alone, cannot be
traced or dump core (that swap is encrypted or off is the operator's part). Our own copies of keys are
overwritten when they end; copies that Python or the crypto library made (`bytes` are immutable) live
until the allocator reuses their place. Whoever can read this process' memory has the keys.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from router import log as logging
from router.accepted import load_accepted
from router.config.effective import Channel, EffectiveConfig, MacsecMode
from router.config.keys import Chain, load_chain, stamp
from router.config.secrets import resolve_sak
from router.dataplane.client import DataplaneClient
from router.dataplane.secy import FastpathSecY
from router.errors import ConfigError, ControlError, KernelError
from router.kernel.events import EventSockets
from router.kernel.secy import KernelSecy
from router.kernel.support import lacking_kinds
from router.key_status import channel_keys
from router.key_use import KeyUse
from router.mka.driver import HandoverFile, KayDriver, UsedKeys
from router.mka.kay import KayConfig, KeyEntry
from router.mka.keychain import expiry_warning
from router.mka.keys import SsciOrder
from router.model import Confidentiality, MacAddress, Sci
from router.privileges import Capability, harden, keep_only
from router.reconcile.kernel import EventsLost, LinkEvent
from router.secy import SecY
from router.secy_choice import settle
from router.standby import KEYD_LOCK, wait_for_turn
from router.static_keys import PnHistory, ResolveSak, StaticKeyer

POLL_S: Final = 1.0
REQUEST_MAX: Final = 65536
"""Octets of one request on the control socket."""


_UNKNOWN_SCI: Final = Sci(MacAddress(bytes(6)))
"""Until the SecY has told its own."""


def accepted_confidentiality(channel: Channel) -> frozenset[Confidentiality]:
    """Return what a key server may order: all that hides at least as much as our policy asks for.

    Offsets only where the SecY has them: in our data plane, and without XPN.
    """
    policy = channel.macsec.confidentiality
    offsets = channel.secy == "fastpath" and not any(suite.is_xpn for suite in channel.macsec.suites)
    return frozenset(
        order for order in Confidentiality if order.rank >= policy.rank and (offsets or not order.offset)
    )


def kay_config(channel: Channel) -> KayConfig:
    """Turn a channel's policy into the KaY's."""
    macsec, mka = channel.macsec, channel.macsec.mka
    return KayConfig(
        sci=_UNKNOWN_SCI,
        priority=mka.priority,
        suites=macsec.suites,
        confidentiality=macsec.confidentiality,
        accept=accepted_confidentiality(channel),
        must_secure=macsec.mode is MacsecMode.MUST_SECURE,
        sak_lifetime_s=float(mka.rekey_interval_s),
        sak_retire_time_s=mka.sak_retire_time_ms / 1000,
        delay_protection=mka.delay_protection,
        ssci_order=SsciOrder.DESCENDING_SCI if mka.ssci_order == "standard" else SsciOrder.ASCENDING_SCI,
        icv_indicator=mka.icv_indicator,
        announce=mka.announce,
    )


class MkaKeyer:
    """One channel's key chain and key agreement."""

    def __init__(
        self,
        channel: Channel,
        profile: str,
        secy: SecY,
        run_dir: Path,
        log: Any,
        *,
        wall: Callable[[], float],
    ) -> None:
        self.channel = channel
        self._wall = wall
        self.chain = Chain()
        self.profile = profile
        self._log = log.bind(channel=channel.id)
        self._stamp: tuple[object, ...] | None = None
        self._running: object = None
        self._warned = ""
        used_dir = run_dir / "keyd"
        used_dir.mkdir(mode=0o700, exist_ok=True)
        self.driver = KayDriver(
            port=channel.port,
            # With our data plane there is no macsec device: the SecY goes where the port goes.
            device=channel.port if channel.secy == "fastpath" else channel.macsec_device,
            config=kay_config(channel),
            secy=secy,
            used_keys=UsedKeys(used_dir / f"{channel.id}.used"),
            handover=HandoverFile(used_dir / f"{channel.id}.handover"),
            log=self._log,
        )
        self._task = asyncio.create_task(self.driver.run())

    async def tick(self, now: float) -> None:
        """Read the chain where its files changed, and run the keys that are live now (wall clock)."""
        if self._task.done():
            self._task.result()  # ends the daemon: its supervisor starts another, which adopts the SAs
        found = stamp(self.channel.macsec)
        if found != self._stamp:
            await self._load(found)
        entries = self._entries(self.chain)
        running = [(entry.ckn, entry.eligible) for entry in entries], self._stamp
        if running != self._running:
            self._running = running
            self.driver.set_keys(entries)
        warning = expiry_warning(self.chain.keys, now) if self.chain.keys else "the channel has no key"
        # Warned when it begins and when its urgency changes, not at every look.
        kind = warning.partition(" in ")[0]
        if kind != self._warned:
            self._warned = kind
            if warning:
                self._log.warning("keys.expiry", reason=warning)

    async def _load(self, found: tuple[object, ...]) -> None:
        """Read the chain in a thread: a key's command may take its time, a hello may not."""
        macsec, name = self.channel.macsec, str(self.channel.id)
        chain = await asyncio.to_thread(load_chain, macsec, self.profile, name)
        before = {key.ckn: key for key in self.chain.keys}
        keys = tuple(
            before.pop(key.ckn) if key.ckn in before and before[key.ckn].cak == key.cak else key
            for key in chain.keys
        )
        # A participant works with the key that it was started with: one whose key changed ends first.
        self.driver.set_keys(tuple(entry for entry in self._entries(self.chain) if entry.ckn not in before))
        for key in before.values():
            key.cak.wipe()
        kept = [
            replace(key, start=found_key.start, end=found_key.end)
            for key, found_key in zip(keys, chain.keys, strict=True)
        ]
        self.chain, self._stamp = replace(chain, keys=tuple(kept)), found
        for problem in chain.problems:
            self._log.warning("keys.problem", reason=problem)
        self._log.info("keys.loaded", ckns=[key.ckn.hex() for key in chain.keys])

    def _entries(self, chain: Chain) -> tuple[KeyEntry, ...]:
        return chain.running(self._wall(), self.channel.macsec.mka.clock_skew_s)

    def forget_files(self) -> None:
        """Have the chain read again at the next look."""
        self._stamp = None

    async def close(self) -> None:
        """End key agreement here; the SAs stay."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        self.driver.close()
        self.chain.wipe()


class Keyd:
    """All channels, one loop."""

    def __init__(
        self,
        load: Callable[[], EffectiveConfig],
        secy: Callable[[Channel], SecY],
        history: PnHistory,
        resolve_sak: ResolveSak,
        log: Any,
        *,
        run_dir: Path | None = None,
        use: KeyUse | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._load = load
        self._secy = secy
        self._history = history
        self._resolve_sak = resolve_sak
        self._log = log
        self._run_dir = run_dir
        self._use = use if use is not None else KeyUse(None)
        self._wall = wall
        self._keyers: dict[str, StaticKeyer | MkaKeyer] = {}
        self._leaving: list[MkaKeyer] = []
        self.wake = asyncio.Event()
        """Set it to have the loop look at once."""

    def reload(self) -> bool:
        """Read the configuration again; keep the old one where it cannot be used."""
        try:
            config = self._load()
        except (ConfigError, OSError) as error:
            self._log.warning("config.refused", reason=str(error), running=bool(self._keyers))
            return False
        profiles = {interconnect.name: interconnect.profile for interconnect in config.interconnects}
        keyers: dict[str, StaticKeyer | MkaKeyer] = {}
        for channel in config.channels:
            old = self._keyers.pop(channel.id, None)
            profile = profiles[channel.interconnect]
            if old is not None and _same(old, channel, profile):
                keyers[channel.id] = old
                continue
            if isinstance(old, MkaKeyer):
                self._leaving.append(old)
                old.driver.close()
            keyers[channel.id] = self._keyer(channel, profile)
        for keyer in self._keyers.values():
            if isinstance(keyer, MkaKeyer):
                self._leaving.append(keyer)
                keyer.driver.close()
        self._keyers = keyers
        self._log.info("config.loaded", channels=sorted(keyers))
        return True

    def _keyer(self, channel: Channel, profile: str) -> StaticKeyer | MkaKeyer:
        secy = self._secy(channel)
        if channel.macsec.static is not None:
            return StaticKeyer(channel, secy, self._history, self._resolve_sak, self._log)
        assert self._run_dir is not None, "key agreement needs a run directory"
        return MkaKeyer(channel, profile, secy, self._run_dir, self._log, wall=self._wall)

    async def tick(self) -> None:
        """Look at every channel once."""
        now = self._wall()
        while self._leaving:
            await self._leaving.pop().close()
        for keyer in self._keyers.values():
            await keyer.tick(now)
            if isinstance(keyer, MkaKeyer):
                self._note_use(keyer, now)
        if self._history.dirty:
            try:
                self._history.save()
            except OSError as error:
                self._log.warning("state.not_saved", reason=str(error))

    def _note_use(self, keyer: MkaKeyer, now: float) -> None:
        """Remember when a channel goes over to another CAK: the bake time of the next one counts from there."""
        seen = keyer.driver.snapshot()
        if seen is None or seen.current is None or not seen.current.ckn:
            return
        try:
            if self._use.note(keyer.channel.id, seen.current.ckn, now):
                self._log.info("keys.rotated", channel=keyer.channel.id, ckn=seen.current.ckn.hex())
        except OSError as error:
            self._log.warning("state.not_saved", reason=str(error))

    def link(self, event: LinkEvent) -> None:
        """A device has appeared, changed or gone."""
        for keyer in self._keyers.values():
            if isinstance(keyer, MkaKeyer):
                keyer.driver.link(event.device, up=event.up)
                # The data plane's TAPs lose their carrier with it: the first sign of its death.
                if keyer.channel.secy == "fastpath" and event.device.startswith(f"{keyer.channel.id}."):
                    keyer.driver.look()

    async def run(self, stopping: asyncio.Event, changed: Callable[[], bool]) -> None:
        """Work until `stopping`. `changed` tells whether the configuration has to be read again."""
        while not stopping.is_set():
            if changed():
                self.reload()
            await self.tick()
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self.wake.wait()
            self.wake.clear()
        for keyer in self._keyers.values():
            if isinstance(keyer, MkaKeyer):
                await keyer.close()
        with suppress(OSError):
            self._history.save()

    # The control socket

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer one request. Raises ControlError."""
        match request:
            case {"verb": "status"}:
                return {"channels": {name: self._describe(keyer) for name, keyer in self._keyers.items()}}
            case {"verb": "rekey", "channel": str(name)}:
                self._mka(name).driver.rekey()
                return {}
            case {"verb": "reload"}:
                for keyer in self._keyers.values():
                    if isinstance(keyer, MkaKeyer):
                        keyer.forget_files()
                self.wake.set()
                return {}
            case _:
                raise ControlError("unknown request")

    def _mka(self, name: str) -> MkaKeyer:
        keyer = self._keyers.get(name)
        if keyer is None:
            raise ControlError(f"there is no channel {name!r}; there are {', '.join(self._keyers)}")
        if not isinstance(keyer, MkaKeyer):
            raise ControlError(f"channel {name} has static keys: nothing is agreed upon there")
        return keyer

    def _describe(self, keyer: StaticKeyer | MkaKeyer) -> dict[str, Any]:
        if isinstance(keyer, StaticKeyer):
            return {"kind": "static", "state": keyer.state}
        loop = asyncio.get_running_loop()
        return channel_keys(keyer.channel, keyer.chain, keyer.driver, now=loop.time(), wall=self._wall())


def _same(keyer: StaticKeyer | MkaKeyer, channel: Channel, profile: str) -> bool:
    return keyer.channel == channel and (isinstance(keyer, StaticKeyer) or keyer.profile == profile)


async def _serve_control(keyd: Keyd, path: Path) -> asyncio.Server:
    """Listen on the control socket. Raises OSError."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                try:
                    request = json.loads(line)
                    answer = {"ok": True, **keyd.answer(request if isinstance(request, dict) else {})}
                except (ControlError, ValueError) as error:
                    answer = {"ok": False, "error": str(error)}
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError):
            pass  # the other side went away, or sent a line without end
        finally:
            writer.close()

    path.unlink(missing_ok=True)
    mask = os.umask(0o177)
    try:
        return await asyncio.start_unix_server(talk, path, limit=REQUEST_MAX)
    finally:
        os.umask(mask)


def give_up_privileges() -> None:
    """Keep what netlink and the EAPOL sockets need, forbid core dumps and tracing. Raises OSError."""
    harden()
    keep_only(Capability.NET_ADMIN, Capability.NET_RAW)


class _Accepted:
    """The accepted configuration, or the file itself where none was accepted yet."""

    def __init__(self, file: Path, run_dir: Path) -> None:
        self._file = file
        self._run_dir = run_dir
        self._stamp: tuple[int, int] | None = None
        self.asked = True

    def load(self) -> EffectiveConfig:
        """Read it. Raises ConfigError, OSError."""
        if (self._run_dir / "accepted.yaml").exists():
            return load_accepted(self._run_dir)
        # Only here: the parser costs a successor half of its start, while the peers' patience runs out.
        from router.config.load import load

        return load(self._file).effective

    def changed(self) -> bool:
        """Tell whether it must be read again."""
        try:
            status = (self._run_dir / "accepted.yaml").stat()
            stamp = (status.st_ino, status.st_mtime_ns)
        except OSError:
            stamp = None
        if self.asked or stamp != self._stamp:
            self._stamp, self.asked = stamp, False
            return True
        return False


async def serve(
    load: Callable[[], EffectiveConfig],
    changed: Callable[[], bool],
    run_dir: Path,
    state_dir: Path | None,
    *,
    wrap: Callable[[SecY], SecY] | None = None,
) -> None:
    """Run until SIGTERM or SIGINT. `wrap` puts something around each SecY, for tests."""
    log = logging.configure("keyd")
    history = PnHistory((state_dir or run_dir) / "packet-numbers.json")
    try:
        history.load()
    except (OSError, ValueError, KeyError, TypeError) as error:
        # Starting over at PN 1 could repeat packet numbers. Refuse, and say how to go on.
        raise ConfigError(
            f"{state_dir or run_dir}/packet-numbers.json is damaged ({error}): packet numbers might repeat;"
            " give the channels new SAKs, then remove the file"
        ) from error
    use = KeyUse((state_dir or run_dir) / KeyUse.FILE)
    try:
        use.load()
    except (OSError, ValueError) as error:
        log.warning("state.unreadable", file=KeyUse.FILE, reason=str(error))
    secys: dict[str, KernelSecy] = {}

    dataplane = DataplaneClient(run_dir)

    def secy_of(channel: Channel) -> SecY:
        secy: SecY
        if channel.secy == "fastpath":
            secy = FastpathSecY(dataplane, channel.macsec_device)
        else:
            secy = secys.setdefault(channel.macsec_device, KernelSecy(channel.macsec_device))
        return wrap(secy) if wrap is not None else secy

    def load_settled() -> EffectiveConfig:
        config = load()
        automatic = any(channel.secy == "auto" for channel in config.channels)
        try:
            return settle(config, lacking_kinds() if automatic else ())[0]
        except KernelError as error:
            raise ConfigError(f"cannot find out what this kernel can do: {error}") from error

    keyd = Keyd(
        load_settled,
        secy_of,
        history,
        resolve_sak,
        log,
        run_dir=run_dir,
        use=use,
    )
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        stopping.set()
        keyd.wake.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    events = EventSockets.links_only()

    async def watch() -> None:
        while True:
            for event in await events.next_events():
                if isinstance(event, LinkEvent):
                    keyd.link(event)
                if isinstance(event, LinkEvent | EventsLost):
                    keyd.wake.set()

    watcher = asyncio.create_task(watch())
    control = await _serve_control(keyd, run_dir / "keyd.sock")
    try:
        await keyd.run(stopping, changed)
    finally:
        watcher.cancel()
        control.close()
        events.close()
        await dataplane.close()
        for secy in secys.values():
            await secy.close()
    # The SAs stay: forwarding goes on, and the next keyd adopts them.
    log.info("keyd.stopped")


async def _main(file: Path, run_dir: Path, state_dir: Path | None) -> None:
    accepted = _Accepted(file, run_dir)

    def hang_up() -> None:
        accepted.asked = True

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hang_up)
    await serve(accepted.load, accepted.changed, run_dir, state_dir)


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m router.keyd`."""
    parser = argparse.ArgumentParser(prog="lastmile-keyd", description="Keeps every channel's SecY keyed.")
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--run-dir", required=True, type=Path)
    parser.add_argument("--state-dir", type=Path)
    options = parser.parse_args(argv)
    # A spare has no configuration to read again; by SIGTERM it ends at once, as by default.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if os.geteuid() == 0:
        give_up_privileges()
    try:
        turn = wait_for_turn(options.run_dir / KEYD_LOCK)
        try:
            asyncio.run(_main(options.config, options.run_dir, options.state_dir))
        finally:
            os.close(turn)
    except (ConfigError, KernelError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
