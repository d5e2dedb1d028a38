"""The edges' side of key agreement: wpa_supplicant where it can do the suite, else our own keyd.

wpa_supplicant 2.10 agrees on GCM-AES-128 keys only, and is the witness that is not ours. For the
other suites the edge runs `router.lab.farend.keyd`: the router's key daemon with a configuration
of one channel. Both have a key chain of their own in their own directory.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from typing_extensions import override

from router.errors import LabError
from router.lab.machine import WORK
from router.lab.network import WPA_SUPPLICANT_SUITE, Network, secured_port, write_private
from router.lab.node import Node, stop
from router.lab.poll import until
from router.lab.topology import Edge

START_TIMEOUT_S: Final = 40.0
ANSWER_TIMEOUT_S: Final = 10.0
EXPLAIN_LINES: Final = 60
KAY_WORDS: Final = ("KaY", "CP:", "SAK", "peer", "elected", "macsec")
"""Of wpa_supplicant's many lines, those that tell of key agreement."""


class MkaEnd(ABC):
    """One edge's KaY."""

    kind: str

    def __init__(self, node: Node, edge: Edge, directory: Path) -> None:
        self.node = node
        self.edge = edge
        self.directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def keys(self) -> Path:
        """Its key directory."""
        return self.directory / "keys"

    def keys_on_disk(self) -> list[dict[str, Any]]:
        """Its key files, read."""
        return [json.loads(path.read_text()) for path in sorted(self.keys.glob("*.json"))]

    def explain(self) -> str:
        """What it knows of its keys, for the report of a failure."""
        return "it tells nothing"

    @abstractmethod
    def start(self) -> None:
        """Start it, again if it was ended."""

    @abstractmethod
    def stop(self) -> None:
        """End it by SIGTERM."""

    @abstractmethod
    def kill(self) -> None:
        """End it without a word."""


class WpaSupplicant(MkaEnd):
    """Debian's wpa_supplicant with its macsec_linux driver."""

    kind = "wpa_supplicant"
    process: subprocess.Popen[bytes]

    def render(self, **settings: object) -> str:
        """Its configuration; `settings` are added or replace ours."""
        key = self.keys_on_disk()[0]
        network: dict[str, object] = {
            "key_mgmt": "NONE",
            "eapol_flags": 0,
            "macsec_policy": 1,
            "macsec_replay_protect": 1,
            "macsec_replay_window": 0,
            "mka_priority": self.edge.priority,
            "mka_cak": key["cak"],
            "mka_ckn": key["ckn"],
            **settings,
        }
        lines = [f"  {name}={value}" for name, value in network.items()]
        return "\n".join(["eapol_version=3", "ap_scan=0", "network={", *lines, "}"])

    @override
    def start(self, **settings: object) -> None:
        configuration = self.directory / "wpa_supplicant.conf"
        write_private(configuration, self.render(**settings))
        argv = [
            "wpa_supplicant",
            "-i",
            self.edge.port,
            "-Dmacsec_linux",
            "-c",
            str(configuration),
            "-dd",
            "-t",
        ]
        self.process = self.node.start(argv, self.log)

    @property
    def log(self) -> Path:
        """What it says."""
        return self.directory / "wpa_supplicant.log"

    @override
    def explain(self) -> str:
        told = [line for line in _lines(self.log) if any(word in line for word in KAY_WORDS)]
        return "\n".join([line for line in told if "hexdump" not in line][-4 * EXPLAIN_LINES :])

    def ready(self) -> None:
        """Wait for the device that it makes, and put the VLAN on it. Raises LabError."""
        until(
            lambda: "macsec0" in self.node.packets(),
            START_TIMEOUT_S,
            lambda: f"wpa_supplicant on {self.edge.node} made no macsec0",
        )
        self.node.batch(secured_port(self.edge))

    @override
    def stop(self) -> None:
        stop(self.process)

    @override
    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class KeydEnd(MkaEnd):
    """The router's own key daemon at the far end."""

    kind = "keyd"
    launcher: subprocess.Popen[bytes] | None = None

    def specification(self, **settings: object) -> dict[str, object]:
        """What `router.lab.farend.keyd` is told; `settings` replace ours."""
        return {
            "netns": f"/run/netns/{self.node.name}",
            "run_dir": str(self.directory),
            "port": self.edge.port,
            "device": "macsec0",
            "suites": [self.edge.suite],
            "key_directory": str(self.keys),
            "mka": {"priority": self.edge.priority},
            **settings,
        }

    def write(self, **settings: object) -> Path:
        """Write the specification and return its path; a running one reads it again."""
        path = self.directory / "keyd.json"
        write_private(path, json.dumps(self.specification(**settings)))
        return path

    @override
    def start(self, **settings: object) -> None:
        self.launcher = _launch([self.write(**settings)], self.directory / "launcher.log")

    def order(self, fault: str) -> None:
        """Have its SecY fail as `router.lab.farend.keyd.DyingSecy` says; an empty order ends that."""
        write_private(self.directory / "die", fault)

    def alive(self) -> bool:
        """Whether its process runs. Raises LabError where it never did."""
        return not _is_zombie(self.pid)

    @property
    def pid(self) -> int:
        """Its process id. Raises LabError."""
        try:
            return int((self.directory / "pid").read_text())
        except (OSError, ValueError) as error:
            raise LabError(f"keyd of {self.edge.node} has not started: {error}") from error

    @property
    def log(self) -> Path:
        """What it says."""
        return self.directory / "keyd.log"

    @override
    def explain(self) -> str:
        try:
            state = json.dumps(self.state())
        except (LabError, OSError, ValueError) as error:
            state = f"no answer: {error}"
        return "\n".join([state, *_lines(self.log)[-EXPLAIN_LINES:]])

    def ask(self, **request: object) -> dict[str, Any]:
        """One request on its control socket. Raises LabError, OSError."""
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(ANSWER_TIMEOUT_S)
            control.connect(str(self.directory / "keyd.sock"))
            control.sendall(json.dumps(request).encode() + b"\n")
            with control.makefile("rb") as answers:
                answer: dict[str, Any] = json.loads(answers.readline())
        if not answer.pop("ok"):
            raise LabError(f"keyd of {self.edge.node}: {answer['error']}")
        return answer

    def state(self) -> dict[str, Any]:
        """What it says of its one channel. Raises LabError, OSError."""
        channel: dict[str, Any] = self.ask(verb="status")["channels"]["edge"]
        return channel

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.kill(self.pid, number)
        except (LabError, ProcessLookupError):
            return
        until(
            lambda: not Path(f"/proc/{self.pid}").exists() or _is_zombie(self.pid),
            ANSWER_TIMEOUT_S,
            lambda: f"keyd of {self.edge.node} does not end",
        )

    @override
    def stop(self) -> None:
        self._signal(signal.SIGTERM)

    @override
    def kill(self) -> None:
        self._signal(signal.SIGKILL)


def _lines(log: Path) -> list[str]:
    try:
        return log.read_text(errors="replace").splitlines()
    except OSError as error:
        return [str(error)]


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _launch(specifications: Sequence[Path], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "router.lab.farend.keyd", *map(str, specifications)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )


def start_mka(network: Network, edges: Sequence[Edge]) -> dict[str, MkaEnd]:
    """Start key agreement on these edges, each with a copy of its channel's key chain. Raises LabError."""
    ends: dict[str, MkaEnd] = {}
    for edge in edges:
        kind: type[MkaEnd] = WpaSupplicant if edge.suite == WPA_SUPPLICANT_SUITE else KeydEnd
        end = ends[edge.node] = kind(network.nodes[edge.node], edge, WORK / "mka" / edge.node)
        shutil.copytree(network.config_directory / edge.key_directory, end.keys)
        if isinstance(end, WpaSupplicant):
            end.start()
    start_keyds([end for end in ends.values() if isinstance(end, KeydEnd)])
    for end in ends.values():
        if isinstance(end, WpaSupplicant):
            end.ready()
    return ends


def start_keyds(ends: Sequence[KeydEnd]) -> None:
    """Start these key daemons in one interpreter, which loads everything once."""
    if ends:
        launcher = _launch([end.write() for end in ends], ends[0].directory / "launcher.log")
        for end in ends:
            end.launcher = launcher
