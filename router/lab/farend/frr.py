"""FRR as a provider's edge: zebra and bgpd, asked over bgpd's own terminal socket.

`vtysh` would be one more program to start per question; its protocol on the socket is a command
ended by a zero octet, answered with text, three zero octets and a status.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from typing_extensions import override

from router.errors import LabError
from router.lab.farend import FarEnd, PeerSession, by_family
from router.lab.network import write_private
from router.lab.node import stop
from router.lab.poll import until
from router.lab.topology import Edge

DAEMONS: Final = Path("/usr/lib/frr")
START_TIMEOUT_S: Final = 20.0
ANSWER_TIMEOUT_S: Final = 20.0


def render(edge: Edge, password: str, announced: Sequence[str]) -> str:
    """Bgpd's configuration."""
    lines = [
        f"router bgp {edge.asn}",
        f" bgp router-id {edge.router_id}",
        " bgp log-neighbor-changes",
        " no bgp ebgp-requires-policy",
        " no bgp network import-check",
        " no bgp default ipv4-unicast",
    ]
    for pair in (edge.ipv4, edge.ipv6):
        peer = f" neighbor {pair.router}"
        lines += [f"{peer} remote-as {edge.router_asn}", f"{peer} timers {edge.keepalive_s} {edge.hold_s}"]
        lines += [f"{peer} timers connect 1", f"{peer} advertisement-interval 0"]
        if password:
            lines.append(f"{peer} password {password}")
        if edge.gtsm:
            lines.append(f"{peer} ttl-security hops 1")
    for name, pair, prefixes in zip(
        ("ipv4", "ipv6"), (edge.ipv4, edge.ipv6), by_family(announced), strict=True
    ):
        lines += [f" address-family {name} unicast", f"  neighbor {pair.router} activate"]
        lines += [f"  network {prefix}" for prefix in prefixes]
        lines.append(" exit-address-family")
    return "\n".join([*lines, "exit", ""])


class Frr(FarEnd):
    """zebra and bgpd of FRR, in the foreground."""

    processes: tuple[subprocess.Popen[bytes], ...] = ()

    @override
    def start(self) -> None:
        directory = self.directory
        write_private(directory / "bgpd.conf", render(self.edge, self.password, self.announced))
        write_private(directory / "zebra.conf", "")
        # FRR insists on a user of its own vty group.
        for path in (directory, directory / "bgpd.conf", directory / "zebra.conf"):
            shutil.chown(path, "frr", "frr")
        zebra = ["-z", str(directory / "zserv.api")]
        self.processes = tuple(
            self.node.start(
                [str(DAEMONS / name), *self._common(name), *zebra, *extra], directory / f"{name}.log"
            )
            for name, extra in (("zebra", []), ("bgpd", ["-p", "179"]))
        )

    @override
    def ready(self) -> None:
        until(self._answers, START_TIMEOUT_S, lambda: f"FRR on {self.edge.node} did not start: {self._log()}")

    def _common(self, name: str) -> list[str]:
        directory = self.directory
        options = [
            "-u",
            "frr",
            "-g",
            "frr",
            "-P",
            "0",
            "--log",
            "stdout",
            "-f",
            str(directory / f"{name}.conf"),
        ]
        return [*options, "-i", str(directory / f"{name}.pid"), "--vty_socket", str(directory)]

    def _answers(self) -> bool:
        if any(process.poll() is not None for process in self.processes):
            raise LabError(f"FRR on {self.edge.node} ended at once: {self._log()}")
        try:
            self.ask("show version")
        except OSError:
            return False
        return True

    def _log(self) -> str:
        text = "".join((self.directory / f"{n}.log").read_text(errors="replace") for n in ("zebra", "bgpd"))
        return "; ".join(text.strip().splitlines()[-3:])

    def ask(self, *commands: str) -> str:
        """Run commands on bgpd's terminal and return the last one's answer. Raises LabError, OSError."""
        answer = ""
        with socket.socket(socket.AF_UNIX) as terminal:
            terminal.settimeout(ANSWER_TIMEOUT_S)
            terminal.connect(str(self.directory / "bgpd.vty"))
            for command in ("enable", *commands):
                terminal.sendall(command.encode() + b"\0")
                received = b""
                while received[-4:-1] != b"\0\0\0":
                    chunk = terminal.recv(65536)
                    if not chunk:
                        raise LabError(f"bgpd on {self.edge.node} closed its terminal at {command!r}")
                    received += chunk
                answer = received[:-4].decode()
                if received[-1] not in {0, 1}:
                    raise LabError(f"bgpd on {self.edge.node} refused {command!r}: {answer.strip()}")
        return answer

    @override
    def sessions(self) -> list[PeerSession]:
        try:
            neighbours = json.loads(self.ask("show bgp neighbors json"))
        except OSError as error:
            raise LabError(f"bgpd on {self.edge.node} does not answer: {error}") from error
        found = []
        for afi, pair in (("ipv4", self.edge.ipv4), ("ipv6", self.edge.ipv6)):
            raw = neighbours[pair.router]
            established = raw["bgpState"] == "Established"
            family = raw.get("addressFamilyInfo", {}).get(f"{afi}Unicast", {})
            found.append(
                PeerSession(
                    afi=afi,
                    established=established,
                    established_s=raw.get("bgpTimerUpMsec", 0) / 1000 if established else 0.0,
                    drops=int(raw["connectionsDropped"]),
                    prefixes_received=int(family.get("acceptedPrefixCounter", 0)),
                    state=raw["bgpState"],
                )
            )
        return found

    @override
    def announce(self, prefixes: Sequence[str]) -> None:
        self._network("network", prefixes)

    @override
    def withdraw(self, prefixes: Sequence[str]) -> None:
        self._network("no network", prefixes)

    def _network(self, command: str, prefixes: Sequence[str]) -> None:
        family = "ipv6" if ":" in prefixes[0] else "ipv4"
        where = ["configure terminal", f"router bgp {self.edge.asn}", f"address-family {family} unicast"]
        self.ask(*where, *(f"{command} {prefix}" for prefix in prefixes))

    @override
    def stop(self) -> None:
        for process in reversed(self.processes):
            stop(process)

    @override
    def kill(self) -> None:
        for process in reversed(self.processes):
            process.kill()
            process.wait()
