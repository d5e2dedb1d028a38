"""Policies of a channel: fail open as an explicit choice.

The far end begins without key agreement: its macsec device passes plain frames, as a switch port
without MACsec would. Then it gets the key, loses its key daemon, and at last the router's policy is
changed to must-secure while the far end still speaks in clear. The wire is captured in parts, and in
each part the router's own frames are told from the far end's.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any, Final

from router.lab.capture import ETHERTYPE_EAPOL, ETHERTYPE_MACSEC, Frame, frames
from router.lab.lab import Lab
from router.lab.network import write_private
from router.lab.poll import reached, until
from router.lab.report import Report
from router.lab.scenarios.keyd import KeyDaemons
from router.lab.scenarios.mka import MKA_LIFE_TIME_S, SECURE_TIMEOUT_S, START_TIMEOUT_S, Channel

OPEN_TIMEOUT_S: Final = 30.0
STRANGER: Final = "02:00:00:0f:0f:0f"
"""Source of the plain frames that are slipped in while the channel is secured."""
SLIPPED_IN: Final = 10
PROBED_S: Final = 3.0


def should_secure(lab: Lab, report: Report) -> None:
    """In clear while the far end proves no key, protected as soon as it does, and loud about it."""
    channel = Channel(lab, report)
    until(
        lambda: bool(channel.far_state()), START_TIMEOUT_S, lambda: "the far end's key daemon does not start"
    )
    channel.far.stop()
    _far_end_in_clear(channel)
    channel.start()
    _opens(channel, "no key agreement at the far end")
    _keyd_dies_while_open(channel)
    _becomes_secured(channel)
    _stays_secured(channel)
    _opens_again(channel)
    _becomes_must_secure(channel)
    _becomes_should_secure(channel)


# The phases


def _opens(channel: Channel, what: str) -> None:
    report = channel.report
    seconds = reached(lambda: _port(channel) == "unprotected" and channel.passes(), OPEN_TIMEOUT_S, 0.2)
    detail = f"after {seconds:.1f} s" if seconds is not None else str(channel.state())[:200]
    report.check(f"{what}: traffic passes in clear", seconds is not None, detail)
    with channel.probes(f"{what}: in clear"):
        time.sleep(PROBED_S)
    macsec = _macsec(channel)
    report.check(
        f"{what}: status --json says so",
        macsec.get("unprotected") is True and macsec.get("mode") == "should-secure",
        f"{macsec.get('mode')}, unprotected {macsec.get('unprotected')}",
    )
    verdict = channel.lab.router.channels()[channel.edge.channel]
    report.check(
        f"{what}: the verdict says so",
        "FRAMES PASS IN CLEAR" in verdict["reason"] and verdict["verdict"] != "up",
        f"{verdict['verdict']}: {verdict['reason']}",
    )
    table = _say(channel, "status")
    loud = next((line for line in table.splitlines() if "PASS IN CLEAR NOW" in line), "")
    report.check(f"{what}: status says so aloud", loud and "IN CLEAR " in table, loud)
    first = _say(channel, "keys", "explain", channel.edge.channel).splitlines()[:2]
    report.check(
        f"{what}: keys explain says so first",
        len(first) == 2 and "unprotected" in first[0] and "PASS IN CLEAR" in first[1],
        " / ".join(first),
    )
    log = channel.lab.router.log.read_text(errors="replace")
    report.check(f"{what}: the log warns of it", "port.open_in_clear" in log)


def _keyd_dies_while_open(channel: Channel) -> None:
    daemons = KeyDaemons(channel)
    pid = daemons.pid("active")
    with channel.probes("keyd is killed while the port is open"):
        os.kill(pid, signal.SIGKILL)
        back = reached(
            lambda: _port(channel) == "unprotected" and daemons.pid("active") not in {0, pid}, OPEN_TIMEOUT_S
        )
    channel.report.check("keyd is killed while open: open under its successor", back is not None)


def _becomes_secured(channel: Channel) -> None:
    """The far end gets the key: measured is what the change costs."""
    report = channel.report
    prober = channel.prober()
    prober.start()
    began = time.monotonic()
    channel.far.start()
    secured = reached(lambda: _port(channel) == "secured" and channel.passes(), SECURE_TIMEOUT_S, 0.05)
    took = time.monotonic() - began
    time.sleep(1.0)
    outage = prober.stop()
    report.check("the far end gets the key: secured", secured is not None, f"{took:.1f} s after its start")
    report.figure("lost_when_secured", outage.lost, "ms")
    report.figure("longest_outage_when_secured", outage.longest_ms, "ms")
    report.check(
        "at most a life time is lost when it is secured",
        outage.sent > 0 and outage.longest_ms <= MKA_LIFE_TIME_S * 1000,
        f"{outage.lost} of {outage.sent} lost, longest {outage.longest_ms} ms",
    )
    ours = [frame for frame in _captured(channel) if _source(frame) == channel.edge.router_sci_mac]
    clear = [frame.number for frame in ours if _is_clear(frame)]
    protected = [frame.number for frame in ours if frame.ethertype == ETHERTYPE_MACSEC]
    report.check(
        "on the wire: the router's last frame in clear comes before its first protected one",
        clear and protected and max(clear) < min(protected),
        f"{len(clear)} in clear up to frame {max(clear, default=0)},"
        f" {len(protected)} protected from frame {min(protected, default=0)}",
    )
    channel.lab.start_captures()


def _stays_secured(channel: Channel) -> None:
    """While a peer proves a key no plain frame leaves, and none that comes is taken."""
    report = channel.report
    before = _macsec(channel)
    with channel.probes("secured"):
        _slip_in(channel)
        time.sleep(PROBED_S)
    after = _macsec(channel)
    refused = after["in_pkts_no_tag"] - before["in_pkts_no_tag"]
    taken = after["in_pkts_untagged"] - before["in_pkts_untagged"]
    if channel.lab.secy != "fastpath":  # whose port does not even take them off the device
        report.check("plain frames slipped in are refused", refused >= SLIPPED_IN, f"{refused} refused")
    report.check("no plain frame is taken while secured", taken == 0, f"{taken} taken")
    report.check("status: not in clear any more", not after["unprotected"], str(after["unprotected"]))
    seen = _captured(channel)
    clear = [frame for frame in seen if _is_clear(frame) and _source(frame) != STRANGER]
    protected = sum(frame.ethertype == ETHERTYPE_MACSEC for frame in seen)
    report.check(
        "on the wire: nothing in clear while secured",
        protected > 0 and not clear,
        f"{protected} protected, {len(clear)} in clear" + (f", {clear[0]}" if clear else ""),
    )
    channel.lab.start_captures()


def _opens_again(channel: Channel) -> None:
    """The far end's key daemon ends, and its device speaks in clear from then on."""
    report = channel.report
    began = time.monotonic()
    channel.far.stop()
    _far_end_in_clear(channel)
    opened = reached(lambda: _port(channel) == "unprotected", 3 * MKA_LIFE_TIME_S, 0.05)
    took = time.monotonic() - began
    report.figure("opens_again_after", round(took, 1), "s")
    report.check(
        "the far end's key daemon ends: opens again after the life time, not before",
        opened is not None and MKA_LIFE_TIME_S - 2.5 < took < MKA_LIFE_TIME_S + 3.0,
        f"after {took:.1f} s",
    )
    _opens(channel, "the far end's key daemon has ended")


def _becomes_must_secure(channel: Channel) -> None:
    """A reload with must-secure closes at once, and it was announced."""
    lab, report = channel.lab, channel.report
    _write_policy(channel, "must-secure")
    planned = _say(channel, "plan", str(lab.network.config))
    report.check(
        "plan announces that nothing passes in clear any more",
        "should-secure -> must-secure" in planned and "nothing passes in clear" in planned,
        next((line.strip() for line in planned.splitlines() if "MACsec policy" in line), planned[-200:]),
    )
    prober = channel.prober()  # connected while there is a route: the data plane's devices lose carrier
    began = time.monotonic()
    code, answer = lab.router.request("POST", "/v1/reload", {})
    report.check("the reload is taken", code == http.client.OK, str(answer)[:200])
    closed = reached(lambda: not _macsec(channel).get("unprotected", True), OPEN_TIMEOUT_S, 0.1)
    report.figure("must_secure_closed_after", round(time.monotonic() - began, 1), "s")
    report.check("must-secure: closed", closed is not None, f"after {closed or -1:.1f} s")
    _captured(channel)
    lab.start_captures()
    before = _macsec(channel)
    prober.start()
    _slip_in(channel)
    time.sleep(PROBED_S)
    outage = prober.stop()
    report.check(
        "must-secure: nothing passes, although the far end speaks in clear",
        outage.sent > 0 and outage.lost == outage.sent,
        f"{outage.lost} of {outage.sent} lost",
    )
    taken = _macsec(channel)["in_pkts_untagged"] - before["in_pkts_untagged"]
    report.check("must-secure: not one plain frame is taken", taken == 0, f"{taken} taken")
    seen = _captured(channel)
    ours = [frame for frame in seen if _is_clear(frame) and _source(frame) == channel.edge.router_sci_mac]
    theirs = [frame for frame in seen if _source(frame) == STRANGER]
    report.check(
        "on the wire: the router sends nothing in clear",
        not ours and theirs,
        f"{len(ours)} of the router's, {len(theirs)} of the far end's",
    )


def _becomes_should_secure(channel: Channel) -> None:
    """And back: announced as what it is, open after a life time without a key."""
    lab, report = channel.lab, channel.report
    _write_policy(channel, "should-secure")
    planned = _say(channel, "plan", str(lab.network.config))
    report.check("plan announces that frames will pass in clear", "FRAMES PASS IN CLEAR" in planned)
    code, _ = lab.router.request("POST", "/v1/reload", {})
    report.check("the reload back is taken", code == http.client.OK, str(code))
    opened = reached(lambda: _port(channel) == "unprotected" and channel.passes(), OPEN_TIMEOUT_S, 0.2)
    report.check("should-secure again: open again", opened is not None, f"after {opened or -1:.1f} s")


# Pieces


def _write_policy(channel: Channel, policy: str) -> None:
    config = channel.lab.network.config
    text = config.read_text()
    for other in ("must-secure", "should-secure"):
        text = text.replace(f"policy: {other}", f"policy: {policy}")
    write_private(config, text)


def _far_end_in_clear(channel: Channel) -> None:
    """Make the far end a port without MACsec: its device passes frames as they are."""
    channel.edge_node.batch(["link set macsec0 type macsec protect off validate check"])


def _slip_in(channel: Channel) -> None:
    """Send plain frames of the channel's VLAN from the far end's bare port."""
    source = bytes.fromhex(STRANGER.replace(":", ""))
    target = bytes.fromhex(channel.edge.router_sci_mac.replace(":", ""))
    tag = (0x8100).to_bytes(2, "big") + channel.edge.vlan.to_bytes(2, "big")
    frame = target + source + tag + (0x0800).to_bytes(2, "big") + bytes(60)
    with channel.edge_node.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        for _ in range(SLIPPED_IN):
            raw.sendto(frame, (channel.edge.port, 0x8100))


def _port(channel: Channel) -> str:
    return str(channel.state().get("port"))


def _macsec(channel: Channel) -> dict[str, Any]:
    """What status says of the channel's SecY; empty where it does not answer."""
    shown = channel.lab.router.channels().get(channel.edge.channel, {})
    return dict(shown.get("macsec", {}))


def _say(channel: Channel, *arguments: str) -> str:
    """What a command of the router prints."""
    lab = channel.lab
    directory = ("--run-dir", str(lab.router.run_directory))
    return lab.network.router.run(*lab.router.command(*arguments, *directory), check=False)


def _captured(channel: Channel) -> list[Frame]:
    """End this part of the capture and return its frames; its file makes room for the next part's."""
    path: Path = channel.lab.stop_captures()[channel.edge.channel]
    parts = len(list(path.parent.glob(f"{path.stem}-*{path.suffix}")))
    part = path.rename(path.with_stem(f"{path.stem}-{parts + 1}"))
    return list(frames(part))


def _source(frame: Frame) -> str:
    return frame.octets[6:12].hex(":")


def _is_clear(frame: Frame) -> bool:
    return frame.ethertype not in {ETHERTYPE_MACSEC, ETHERTYPE_EAPOL}
