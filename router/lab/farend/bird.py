"""BIRD 2 as a provider's edge, asked over its control socket."""

from __future__ import annotations

import re
import socket
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
from router.lab.topology import Edge, Pair

START_TIMEOUT_S: Final = 20.0
ANSWER_TIMEOUT_S: Final = 20.0
CODE = re.compile(rb"^(\d{4}) .*\n\Z", re.MULTILINE)


def render(edge: Edge, password: str, announced: Sequence[str]) -> str:
    """BIRD's configuration file."""
    four, six = by_family(announced)
    own = [f"vlan{edge.vlan}"]
    return "\n".join(
        [
            f"router id {edge.router_id};",
            "log stderr all;",
            "timeformat protocol iso long ms;",
            "protocol device { scan time 1; }",
            f'protocol direct {{ ipv4; ipv6; interface "{own[0]}"; }}',
            "protocol kernel kernel4 { ipv4 { import none; export where source = RTS_BGP; }; }",
            "protocol kernel kernel6 { ipv6 { import none; export where source = RTS_BGP; }; }",
            *(
                f"protocol static announce{n} {{ ipv{n}; "
                + " ".join(f"route {p} blackhole;" for p in several)
                + " }"
                for n, several in ((4, four), (6, six))
            ),
            _session(edge, edge.ipv4, 4, password),
            _session(edge, edge.ipv6, 6, password),
            "",
        ]
    )


def _session(edge: Edge, pair: Pair, number: int, password: str) -> str:
    return "\n".join(
        [
            f"protocol bgp session{number} {{",
            "  debug { states };",
            f"  local {pair.own} as {edge.asn};",
            f"  neighbor {pair.router} as {edge.router_asn};",
            *([f'  password "{password}";'] if password else []),
            f"  hold time {edge.hold_s}; keepalive time {edge.keepalive_s};",
            "  connect delay time 1; connect retry time 1; error wait time 1, 4;",
            f"  ttl security {'on' if edge.gtsm else 'off'};",
            f"  ipv{number} {{ import all; export where source = RTS_STATIC; next hop self; }};",
            "}",
        ]
    )


class Bird(FarEnd):
    """The BIRD daemon, in the foreground."""

    process: subprocess.Popen[bytes]

    @override
    def start(self) -> None:
        self._configure()
        arguments = ["-f", "-c", str(self.directory / "bird.conf"), "-s", str(self.directory / "bird.ctl")]
        self.process = self.node.start(["bird", *arguments], self.directory / "bird.log")

    @override
    def ready(self) -> None:
        until(
            self._answers, START_TIMEOUT_S, lambda: f"BIRD on {self.edge.node} did not start: {self._log()}"
        )

    def _configure(self) -> None:
        write_private(self.directory / "bird.conf", render(self.edge, self.password, self.announced))

    def _answers(self) -> bool:
        if self.process.poll() is not None:
            raise LabError(f"BIRD on {self.edge.node} ended at once: {self._log()}")
        try:
            self.ask("show status")
        except OSError:
            return False
        return True

    def _log(self) -> str:
        return "; ".join((self.directory / "bird.log").read_text(errors="replace").strip().splitlines()[-3:])

    def ask(self, command: str) -> str:
        """Run a command on the control socket and return its answer. Raises LabError, OSError."""
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(ANSWER_TIMEOUT_S)
            control.connect(str(self.directory / "bird.ctl"))
            self._read(control)  # the greeting
            control.sendall(command.encode() + b"\n")
            return self._read(control)

    def _read(self, control: socket.socket) -> str:
        received = b""
        while not (end := CODE.search(received)):
            chunk = control.recv(65536)
            if not chunk:
                raise LabError(f"BIRD on {self.edge.node} closed its control socket")
            received += chunk
        if end.group(1)[0] in b"89":
            raise LabError(f"BIRD on {self.edge.node}: {end.group().decode().strip()}")
        return received.decode()

    @override
    def sessions(self) -> list[PeerSession]:
        log = (self.directory / "bird.log").read_text(errors="replace")
        return [self._session(afi, f"session{afi[-1]}", log) for afi in ("ipv4", "ipv6")]

    def _session(self, afi: str, name: str, log: str) -> PeerSession:
        try:
            text = self.ask(f"show protocols all {name}")
        except OSError as error:
            raise LabError(f"BIRD on {self.edge.node} does not answer: {error}") from error
        line = re.search(rf"^(?:1002-)?{name} .*$", text, re.MULTILINE)
        state = re.search(r"BGP state:\s+(\S+)", text)
        if line is None or state is None:
            raise LabError(f"BIRD on {self.edge.node} does not know {name}")
        established = state.group(1) == "Established"
        since = re.search(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(\.\d+)?", line.group())
        imported = re.search(r"Routes:\s+(\d+) imported", text)
        elapsed = 0.0
        if established and since:
            moment = time.mktime(time.strptime(since.group(1), "%Y-%m-%d %H:%M:%S")) + float(
                since.group(2) or 0
            )
            elapsed = max(0.0, time.time() - moment)
        return PeerSession(
            afi=afi,
            established=established,
            established_s=elapsed,
            drops=max(0, log.count(f"{name}: State changed to up") - established),
            prefixes_received=int(imported.group(1)) if imported else 0,
            state=state.group(1),
        )

    @override
    def announce(self, prefixes: Sequence[str]) -> None:
        self.announced += prefixes
        self._configure()
        self.ask("configure")

    @override
    def withdraw(self, prefixes: Sequence[str]) -> None:
        gone = set(prefixes)
        self.announced = [p for p in self.announced if p not in gone]
        self._configure()
        self.ask("configure")

    @override
    def stop(self) -> None:
        stop(self.process)

    @override
    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
