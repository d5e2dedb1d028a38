"""GoBGP as a provider's edge, asked through its `gobgp` command.

It has no forwarding table, so the routes back to the branch are static here; it speaks BGP and
nothing else. Its announced routes are added at run time, which is the only way it has.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Sequence
from typing import Final

from typing_extensions import override

from router.errors import LabError
from router.lab.farend import FarEnd, PeerSession, by_family
from router.lab.network import write_private
from router.lab.node import stop
from router.lab.poll import until
from router.lab.topology import Edge

START_TIMEOUT_S: Final = 30.0
ESTABLISHED: Final = 6
"""SESSION_STATE of GoBGP's API."""


def render(edge: Edge, password: str) -> str:
    """Gobgpd's configuration file."""
    lines = [
        "[global.config]",
        f"  as = {edge.asn}",
        f'  router-id = "{edge.router_id}"',
        "  port = 179",
        f'  local-address-list = ["{edge.ipv4.own}", "{edge.ipv6.own}"]',
    ]
    for afi, pair in (("ipv4", edge.ipv4), ("ipv6", edge.ipv6)):
        lines += [
            "[[neighbors]]",
            "  [neighbors.config]",
            f"    peer-as = {edge.router_asn}",
            f'    neighbor-address = "{pair.router}"',
            *([f'    auth-password = "{password}"'] if password else []),
            "  [neighbors.transport.config]",
            f'    local-address = "{pair.own}"',
            "  [neighbors.timers.config]",
            f"    hold-time = {edge.hold_s}",
            f"    keepalive-interval = {edge.keepalive_s}",
            "    connect-retry = 1",
            *(
                ["  [neighbors.ttl-security.config]", "    enabled = true", "    ttl-min = 255"]
                if edge.gtsm
                else []
            ),
            "  [[neighbors.afi-safis]]",
            "    [neighbors.afi-safis.config]",
            f'      afi-safi-name = "{afi}-unicast"',
        ]
    return "\n".join([*lines, ""])


class Gobgp(FarEnd):
    """The GoBGP daemon."""

    process: subprocess.Popen[bytes]

    @override
    def start(self) -> None:
        write_private(self.directory / "gobgpd.toml", render(self.edge, self.password))
        routes = zip((self.edge.ipv4, self.edge.ipv6), by_family(self.edge.router_prefixes), strict=True)
        self.node.batch([f"route replace {p} via {pair.router}" for pair, several in routes for p in several])
        arguments = ["-f", str(self.directory / "gobgpd.toml"), "--api-hosts=127.0.0.1:50051", "--log-plain"]
        self.process = self.node.start(["gobgpd", *arguments], self.directory / "gobgpd.log")

    @override
    def ready(self) -> None:
        until(
            self._answers, START_TIMEOUT_S, lambda: f"GoBGP on {self.edge.node} did not start: {self._log()}"
        )
        for several in by_family(self.announced):
            if several:
                self._rib("add", several)

    def _answers(self) -> bool:
        if self.process.poll() is not None:
            raise LabError(f"GoBGP on {self.edge.node} ended at once: {self._log()}")
        try:
            self._ask("global")
        except LabError:
            return False
        return True

    def _log(self) -> str:
        return "; ".join(
            (self.directory / "gobgpd.log").read_text(errors="replace").strip().splitlines()[-3:]
        )

    def _ask(self, *arguments: str) -> str:
        return self.node.run("gobgp", *arguments)

    @override
    def sessions(self) -> list[PeerSession]:
        by_address = {p["conf"]["neighbor_address"]: p for p in json.loads(self._ask("neighbor", "-j"))}
        found = []
        for afi, pair in (("ipv4", self.edge.ipv4), ("ipv6", self.edge.ipv6)):
            raw = by_address[pair.router]
            state = raw["state"]
            established = state.get("session_state", 0) == ESTABLISHED
            # Protocol buffers leave zeros out.
            uptime = raw.get("timers", {}).get("state", {}).get("uptime", {}).get("seconds", 0)
            families = [f.get("state", {}) for f in raw.get("afi_safis", [])]
            found.append(
                PeerSession(
                    afi=afi,
                    established=established,
                    established_s=max(0.0, time.time() - uptime) if established else 0.0,
                    drops=max(0, self._times_up(pair.router) - established),
                    prefixes_received=sum(int(f.get("received", 0)) for f in families),
                    state=str(state.get("session_state", 0)),
                )
            )
        return found

    def _times_up(self, address: str) -> int:
        log = (self.directory / "gobgpd.log").read_text(errors="replace")
        return len(re.findall(rf'msg="Peer Up" Key="?{re.escape(address)}"? ', log))

    @override
    def announce(self, prefixes: Sequence[str]) -> None:
        self._rib("add", prefixes)

    @override
    def withdraw(self, prefixes: Sequence[str]) -> None:
        self._rib("del", prefixes)

    def _rib(self, verb: str, prefixes: Sequence[str]) -> None:
        family = "ipv6" if ":" in prefixes[0] else "ipv4"
        for prefix in prefixes:
            self._ask("global", "rib", verb, prefix, "-a", family)

    @override
    def stop(self) -> None:
        stop(self.process)

    @override
    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
