"""Static keys (lab only): installed by hand, never agreed upon, and still never a packet number twice.

For each channel the keyer waits for the macsec device, installs the receive SC and SA, then the
transmit SA. Where the device was deleted and made again, the keys are installed again, but **a
packet number never goes back under one SAK**: with AES-GCM a repeated (key, PN) gives the plaintext
away. So it remembers, per channel and SAK, a ceiling that no sent PN has reached; it is on disk
before it is needed, and a new transmit SA starts at the ceiling:

    sent so far ....... next_pn ... | margin ... ceiling <- a rebuilt device starts here

An SA that is in the kernel with our key's id is adopted as it is. One that ran out of packet
numbers is left inactive: only another SAK helps.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from router.config.effective import Channel, SecretRef, StaticKeys
from router.errors import ConfigError, KernelError
from router.model import CipherSuite, Secret
from router.secy import SaKey, SaState, SecY, SecyState

SAVE_S: Final = 10.0
"""The state file is written at least this often while traffic flows."""
MARGIN_XPN: Final = 1 << 24
MARGIN: Final = 1 << 20
"""Packet numbers between what was sent and the ceiling, without XPN: 4096 rebuilds use a SAK up."""
MARGIN_GROWTH: Final = 4
"""The margin is at least so many times what was sent between two looks."""
UNSEEN_S_MAX: Final = 60
"""For each second in which nobody looked, up to this many, one more margin is skipped. A receiver
with XPN follows a jump of up to 2^31 (802.1AE-2018 10.6.2); 61 margins of 2^24 are below that."""
FIRST_PN: Final = 1

ResolveSak = Callable[[SecretRef, int], Secret]


def key_id(sak: Secret) -> bytes:
    """Name a SAK by 16 octets that do not tell it."""
    return hashlib.sha256(b"lastmile static SAK\0" + sak.reveal()).digest()[:16]


@dataclass(frozen=True, slots=True)
class PnRecord:
    """What is remembered of one SAK on one channel."""

    ceiling: int
    """No frame was sent with this PN or a higher one."""
    seen_at: float
    """Wall-clock time in seconds at which the kernel was last asked."""

    def start(self, now: float, margin: int) -> int:
        """Return the PN at which a new transmit SA may start."""
        unseen = min(max(int(now - self.seen_at - SAVE_S), 0), UNSEEN_S_MAX)
        return self.ceiling + unseen * margin


class PnHistory:
    """Packet numbers by channel and key, in one file, written whole or not at all."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._sent: dict[tuple[str, str], PnRecord] = {}
        self._received: dict[tuple[str, str], int] = {}
        self.dirty = False

    def load(self) -> None:
        """Read the file. Raises OSError, and ValueError where it is damaged."""
        if self._path is None or not self._path.exists():
            return
        data = json.loads(self._path.read_text())
        for entry in data["transmit"]:
            record = PnRecord(int(entry["ceiling"]), float(entry["seen_at"]))
            self._sent[str(entry["channel"]), str(entry["key_id"])] = record
        for entry in data["receive"]:
            self._received[str(entry["channel"]), str(entry["key_id"])] = int(entry["lowest_pn"])

    def save(self) -> None:
        """Write the file with mode 0600 and wait until it is on disk. Raises OSError."""
        self.dirty = False
        if self._path is None:
            return
        data = {
            "transmit": [{"channel": c, "key_id": k, **asdict(r)} for (c, k), r in self._sent.items()],
            "receive": [
                {"channel": c, "key_id": k, "lowest_pn": pn} for (c, k), pn in self._received.items()
            ],
        }
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = self._path.with_name(self._path.name + ".new")
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "w") as file:
            json.dump(data, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(self._path)

    def sent(self, channel: str, key: bytes) -> PnRecord | None:
        """Return what is known of a transmit key."""
        return self._sent.get((channel, key.hex()))

    def received(self, channel: str, key: bytes) -> int:
        """Return the lowest acceptable PN of a receive key."""
        return self._received.get((channel, key.hex()), FIRST_PN)

    def note_sent(self, channel: str, key: bytes, next_pn: int, margin: int, now: float) -> None:
        """Keep the ceiling above `next_pn`; it is on disk when this returns. Raises OSError."""
        place = channel, key.hex()
        known = self._sent.get(place)
        if known is None or known.ceiling - next_pn < margin // 2:
            self._sent[place] = PnRecord(next_pn + margin, now)
            self.save()
        elif now - known.seen_at >= SAVE_S:
            self._sent[place] = replace(known, seen_at=now)
            self.dirty = True

    def note_received(self, channel: str, key: bytes, lowest_pn: int) -> None:
        """Remember how far a peer's packet numbers have come; saved with the rest."""
        if lowest_pn > self._received.get((channel, key.hex()), FIRST_PN):
            self._received[channel, key.hex()] = lowest_pn


class StaticKeyer:
    """Keeps one channel's SecY keyed with static SAKs."""

    def __init__(
        self, channel: Channel, secy: SecY, history: PnHistory, resolve_sak: ResolveSak, log: Any
    ) -> None:
        self.channel = channel
        self._secy = secy
        self._history = history
        self._resolve_sak = resolve_sak
        self._log = log.bind(channel=channel.id, device=channel.macsec_device)
        self._state = ""
        self._last_pn: tuple[bytes, int] | None = None
        self._reserved: tuple[bytes, int] | None = None
        """A key and a first PN for it that is on disk but was not used, because the kernel refused."""

    async def tick(self, now: float) -> None:
        """Look once and do what is missing. Problems are logged when they change, and tried again."""
        static = self.channel.macsec.static
        if static is None:
            self._become("no_keys", reason="the channel has no static keys")
            return
        try:
            state = await self._secy.observe()
            await self._key(static, state, now)
        except KernelError as error:
            self._become("waiting", reason=str(error))
        except ConfigError as error:
            self._become("key_unusable", reason=str(error))
        except OSError as error:
            # No place for the ceiling: sending on would risk a repeated PN after a rebuild.
            self._become("state_not_saved", reason=str(error))

    def _become(self, event: str, **facts: object) -> None:
        """Log a state once, when it begins."""
        state = f"{event} {sorted(facts.items())}"
        if state != self._state:
            self._state = state
            (self._log.info if event == "keyed" else self._log.warning)(f"secy.{event}", **facts)

    async def _key(self, static: StaticKeys, state: SecyState, now: float) -> None:
        suite = self.channel.macsec.suite
        if state.suite is not suite:
            self._become("waiting", reason=f"the device has suite {state.suite}, not {suite} yet")
            return
        if state.confidentiality is not self.channel.macsec.confidentiality:
            await self._secy.set_confidentiality(self.channel.macsec.confidentiality)
        receive = self._load(static.receive.sak, suite, static.receive.ssci, static.salt)
        transmit = self._load(static.transmit.sak, suite, static.transmit.ssci, static.salt)
        try:
            await self._receive(static, state, receive)
            if await self._transmit(static, state, transmit, now):
                self._become("keyed", suite=str(suite), an=static.transmit.an)
        finally:
            receive.sak.wipe()
            transmit.sak.wipe()

    def _load(self, ref: SecretRef, suite: CipherSuite, ssci: int, salt: bytes) -> SaKey:
        sak = self._resolve_sak(ref, suite.key_size)
        return SaKey(sak, key_id(sak), ssci, salt) if suite.is_xpn else SaKey(sak, key_id(sak))

    async def _receive(self, static: StaticKeys, state: SecyState, key: SaKey) -> None:
        for sc in state.receive:
            if sc.sci != static.peer_sci:
                await self._secy.delete_receive_sc(sc.sci)
        mine = next((sc for sc in state.receive if sc.sci == static.peer_sci), None)
        if mine is None or not mine.active:
            await self._secy.create_receive_sc(static.peer_sci)
        an = static.receive.an
        installed: SaState | None = None
        for sa in mine.sas if mine else ():
            if sa.an == an and sa.key_id == key.key_id:
                installed = sa
            else:
                await self._secy.delete_receive_sa(static.peer_sci, sa.an)
        if installed is None:
            lowest_pn = self._history.received(self.channel.id, key.key_id)
            await self._secy.create_receive_sa(static.peer_sci, an, key, lowest_pn)
            self._log.info("receive_sa.installed", sci=str(static.peer_sci), an=an, lowest_pn=lowest_pn)
        else:
            self._history.note_received(self.channel.id, key.key_id, installed.next_pn)
        if installed is None or not installed.active:
            await self._secy.enable_receive_sa(static.peer_sci, an)

    async def _transmit(self, static: StaticKeys, state: SecyState, key: SaKey, now: float) -> bool:
        """Keep the transmit SA installed; tell whether it can send."""
        an = static.transmit.an
        installed: SaState | None = None
        for sa in state.transmit:
            if sa.an == an and sa.key_id == key.key_id:
                installed = sa
            else:
                await self._secy.delete_transmit_sa(sa.an)
        suite = self.channel.macsec.suite
        if installed is not None:
            if installed.next_pn == 0:
                self._become("exhausted", reason="all packet numbers are used: the channel needs another SAK")
                return False
            self._history.note_sent(
                self.channel.id,
                key.key_id,
                installed.next_pn,
                self._margin(key.key_id, installed.next_pn),
                now,
            )
        else:
            known = self._history.sent(self.channel.id, key.key_id)
            margin = MARGIN_XPN if suite.is_xpn else MARGIN
            if self._reserved and self._reserved[0] == key.key_id:
                next_pn = self._reserved[1]
            else:
                next_pn = known.start(now, margin) if known else FIRST_PN
            if next_pn >= suite.pn_max:
                self._become("exhausted", reason="all packet numbers are used: the channel needs another SAK")
                return False
            # The ceiling is on disk before the first frame can leave.
            self._history.note_sent(self.channel.id, key.key_id, next_pn, margin, now)
            self._reserved = key.key_id, next_pn
            await self._secy.create_transmit_sa(an, key, next_pn)
            self._reserved = None
            self._log.info("transmit_sa.installed", an=an, next_pn=next_pn)
        if installed is None or not installed.active or state.encoding_an != an:
            await self._secy.enable_transmit_sa(an)
        return True

    def _margin(self, key: bytes, next_pn: int) -> int:
        """Return the margin that fits the present rate."""
        last = self._last_pn[1] if self._last_pn and self._last_pn[0] == key else next_pn
        self._last_pn = key, next_pn
        least = MARGIN_XPN if self.channel.macsec.suite.is_xpn else MARGIN
        return max(least, MARGIN_GROWTH * (next_pn - last))

    @property
    def state(self) -> str:
        """What it last said of itself, in words."""
        return self._state
