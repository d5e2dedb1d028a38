"""The key daemon itself: its deaths, which cost nothing; operators' keys; another cipher suite.

As in `mka`, probes go once per millisecond over the channel itself, and every scenario ends with
the capture of the wire: nothing may ever have been on it in clear.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Final

from router.lab.capture import ETHERTYPE_MACSEC, frames
from router.lab.lab import Lab
from router.lab.poll import reached, until
from router.lab.report import Report
from router.lab.scenarios.mka import Channel, router_settled
from router.standby import KEYD_LOCK, Role, roles

SPARE_TIMEOUT_S: Final = 60.0
"""A guest on a busy machine takes ten seconds to load a Python program, and loads two at once."""
BACK_TIMEOUT_S: Final = 30.0
SAMPLE_S: Final = 5.0
FROZEN_S: Final = 4.0
"""Less than an MKA Life Time."""


class KeyDaemons:
    """The router's two key daemons."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._lock = channel.lab.router.run_directory / KEYD_LOCK

    def pid(self, role: Role) -> int:
        """Process id of the one with this role, 0 where there is none."""
        return next((pid for pid, has in roles(self._lock).items() if has == role), 0)

    def wait_spare(self) -> int:
        """Wait until the spare has loaded. Returns its process id. Raises LabError."""
        return until(lambda: self.pid("spare"), SPARE_TIMEOUT_S, lambda: "no spare key daemon waits")

    def answers(self) -> bool:
        """Whether the active one says that the channel is secured."""
        return self._channel.state().get("port") == "secured"


def restart(lab: Lab, report: Report) -> None:
    """The active key daemon is killed, ended, frozen, and killed together with its spare."""
    channel = Channel(lab, report)
    channel.start()
    channel.wait_secured("secured")
    daemons = KeyDaemons(channel)
    spare = daemons.wait_spare()
    report.figure("spare_rss", round(_memory(spare, "Rss") / 1000, 1), "MB")
    report.figure("spare_pss", round(_memory(spare, "Pss") / 1000, 1), "MB")
    keys = _Keys(channel)
    for how, number in (
        ("killed", signal.SIGKILL),
        ("ended", signal.SIGTERM),
        ("killed again", signal.SIGKILL),
    ):
        spare, active = daemons.wait_spare(), daemons.pid("active")
        with channel.probes(f"keyd is {how}"):
            os.kill(active, number)
            took = reached(lambda s=spare: daemons.pid("active") == s, BACK_TIMEOUT_S, 0.005)  # type: ignore[misc]
            back = reached(daemons.answers, BACK_TIMEOUT_S, 0.02)
            keys.look(f"keyd is {how}")
            # The successor is a whole member: it takes part in the next rotation.
            channel.far_keyd.ask(verb="rekey", channel="edge")
            fresh = reached(
                lambda: channel.current() not in {"", *keys.used} and router_settled(channel), 20.0, 0.05
            )
        detail = f"has the lock after {took or -1:.3f} s, says secured {back or -1:.2f} s later"
        report.check(f"keyd is {how}: its spare goes on", took is not None and back is not None, detail)
        report.check(f"keyd is {how}: the next rotation ends", fresh is not None, channel.current())
        report.figure(f"taken_over_after_{how.replace(' ', '_')}", round((took or 0) + (back or 0), 2), "s")
        keys.look(f"after keyd was {how}")
    daemons.wait_spare()
    with channel.probes(f"keyd is frozen for {FROZEN_S:.0f} s"):
        active = daemons.pid("active")
        os.kill(active, signal.SIGSTOP)
        time.sleep(FROZEN_S)
        os.kill(active, signal.SIGCONT)
        reached(daemons.answers, BACK_TIMEOUT_S)
    _both(channel, daemons, keys)
    transmit, receive, scs = channel.sas(lab.network.router, channel.device)
    report.check("no stale SA", len(transmit) == len(receive) == scs == 1, f"tx {transmit}, rx {receive}")
    channel.nothing_in_clear()
    for name, path in ((name, capture.path) for name, capture in lab.captures.items()):
        problem, count = numbers_rise(path, bytes.fromhex(channel.edge.router_sci_mac.replace(":", "")))
        detail = problem or f"{count} frames of the router"
        report.check(
            f"wire {name}: no packet number comes twice under a key", not problem and count > 0, detail
        )


def _both(channel: Channel, daemons: KeyDaemons, keys: _Keys) -> None:
    """Both die at once: what is lost is stated; the channel comes back by itself."""
    report = channel.report
    daemons.wait_spare()
    prober = channel.prober()
    prober.start()
    dead = set(roles(channel.lab.router.run_directory / KEYD_LOCK))
    for pid in dead:
        os.kill(pid, signal.SIGKILL)
    up = reached(lambda: daemons.pid("active") not in {0, *dead}, SPARE_TIMEOUT_S, 0.05)
    back = reached(lambda: daemons.answers() and channel.passes(), SPARE_TIMEOUT_S, 0.1)
    reached(lambda: router_settled(channel), 10.0)
    outage = prober.stop()
    detail = f"a new one after {up or -1:.1f} s, secured {back or -1:.1f} s later"
    report.check("both are killed at once: it comes back", up is not None and back is not None, detail)
    report.figure("both_killed_lost", f"{outage.lost} of {outage.sent}", "probes")
    report.figure("both_killed_longest_outage", outage.longest_ms, "ms")
    keys.look("both killed")


class _Keys:
    """The router's keys so far, and the highest packet number seen under the one in use."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.used: list[str] = [channel.current()]
        """KIs, the one in use last."""
        self._pn = 0

    def _current(self) -> tuple[str, int]:
        current = self._channel.state().get("current") or {}
        return str(current.get("ki", "")), int(current.get("next_pn", 0))

    def look(self, when: str) -> None:
        """Check that the key in use goes on or has never been in use before."""
        # A daemon that has just adopted a key samples its packet number within a second.
        reached(lambda: self._current()[0] != self.used[-1] or self._current()[1] >= self._pn, SAMPLE_S)
        ki, pn = self._current()
        same = ki == self.used[-1]
        good = bool(ki) and (pn >= self._pn if same else ki not in self.used)
        how = f"goes on from PN {self._pn} to {pn}" if same else "is a fresh one"
        self._channel.report.check(f"{when}: the key goes on, or is fresh", good, f"{ki} {how}")
        self._pn = pn
        if not same:
            self.used.append(ki)


def numbers_rise(path: Path, source: bytes) -> tuple[str, int]:
    """Follow the packet numbers (their low 32 bits) that a station sends: each AN's only rise.

    A key that is taken into use under another AN begins at 1. Returns what is wrong, empty where
    nothing is, and the number of frames.
    """
    last: dict[int, int] = {}
    now, count = -1, 0
    for frame in frames(path):
        if frame.ethertype != ETHERTYPE_MACSEC or frame.octets[6:12] != source:
            continue
        count += 1
        an, pn = frame.octets[14] & 3, int.from_bytes(frame.octets[16:20])
        if pn <= last.get(an, 0) and (an == now or pn != 1):
            return f"{frame}: AN {an} PN {pn} after {last[an]}", count
        last[an], now = pn, an
    return "", count


def _memory(pid: int, what: str) -> int:
    """Kilobytes of a process: `Rss`, or `Pss` with shared pages divided among their users."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1])
    return 0
