"""Scenarios: functions that drive a lab and put what they saw into a report.

To add one, write a function `(Lab, Report) -> None` in a module of `router.lab.scenarios` and give
it a line in `all_scenarios()`. It finds the network built, captures running and the edges'
daemons up; the router is its to start. It raises nothing for a failed check; what it does raise
(a deadline, a crash) becomes a failed check with the router's log and status beside it.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from router.errors import LabError
from router.lab import farend
from router.lab.lab import Lab
from router.lab.network import Side
from router.lab.report import Emit, Report, to_line
from router.lab.topology import Topology

ScenarioFunction = Callable[[Lab, Report], None]


BAD_WIRE: Final = (
    ("policy: must-secure", "policy: must-secure\n      replay_window: 64"),
    ("mka: {priority: 16}", "mka: {priority: 1}"),  # so that the router can be told to rekey
)
"""Of the scenarios with a bad wire."""


FAST_RETIREMENT: Final = (("mka: {priority: 16}", "mka: {priority: 16, sak_retire_time_ms: 100}"),)
"""Old SAs go after 0.1 s instead of 3 s, so that rotations can follow each other quickly."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One entry of the list."""

    name: str
    about: str
    topology: str
    function: str
    """`module:function` in `router.lab.scenarios`: loaded when it is run, and only then."""
    timeout_s: float = 180.0
    edges: tuple[str, ...] = farend.KINDS
    """Which far ends it can be run with; the first is the default."""
    start_edges: tuple[str, ...] = ()
    """Edges to start beforehand; empty for all."""
    edits: tuple[tuple[str, str], ...] = ()
    """Text replaced in the router's configuration file, (old, new); each old text must be there."""
    secy: str = "auto"
    """Who does the router's MACsec where nobody says otherwise."""
    bridged: bool = False
    """Needs the router in this kernel and the edges in a guest: something is done to the wire between."""

    @property
    def looks_at_both_ends(self) -> bool:
        """Whether it works inside the edges too, so that they must be in the router's kernel."""
        return self.function.startswith(("mka", "keyd:", "policy:"))

    def edit(self, topology: Topology, secy: str = "auto") -> Topology:
        """Apply the edits, and say who does MACsec. Raises LabError where a text is not there."""
        text = topology.with_secy(secy).config
        for old, new in self.edits:
            if old not in text:
                raise LabError(f"scenario {self.name}: {topology.config_name} has no {old!r} to replace")
            text = text.replace(old, new)
        return dataclasses.replace(topology, config=text)

    def load(self) -> ScenarioFunction:
        """Import the function."""
        from importlib import import_module

        module, _, name = self.function.partition(":")
        function: ScenarioFunction = getattr(import_module(f"router.lab.scenarios.{module}"), name)
        return function


def all_scenarios() -> tuple[Scenario, ...]:
    """The list of scenarios, in the order they are shown and run."""
    return (
        Scenario(
            "four-channels",
            "four channels up, ECMP, MTU, TCP, nothing in clear",
            topology="four-channels",
            function="channels:four_channels",
        ),
        Scenario(
            "static-keys",
            "the same with static keys instead of key agreement",
            topology="static-keys",
            function="channels:four_channels",
        ),
        Scenario(
            "eight-channels",
            "a migration: four more are added, then the old four removed, without loss",
            topology="eight-channels",
            function="channels:eight_channels",
            timeout_s=400.0,
        ),
        Scenario(
            "drift",
            "what a hand deletes on the router is back within a second",
            topology="four-channels",
            function="faults:drift",
            timeout_s=240.0,
        ),
        Scenario(
            "restart",
            "routerd is killed ten times under 1 ms probes: nothing is lost, no peer notices",
            topology="four-channels",
            function="faults:restart",
            timeout_s=500.0,
        ),
        Scenario(
            "bad-config",
            "every broken file is refused with file, line and reason; the running router is unchanged",
            topology="four-channels",
            function="faults:bad_config",
            timeout_s=400.0,
        ),
        Scenario(
            "exabgp-crash",
            "one site's ExaBGP dies: the other site carries on, the first comes back",
            topology="four-channels",
            function="faults:exabgp_crash",
            timeout_s=240.0,
        ),
        Scenario(
            "wrong-md5",
            "a wrong session password is named as the cause, and put right by a reload",
            topology="four-channels",
            function="faults:wrong_md5",
            timeout_s=300.0,
        ),
        Scenario(
            "mka-wpa-supplicant",
            "stock wpa_supplicant at the far end: all key sizes, both roles, rekeys, a restart, integrity only",
            topology="one-channel-gcm-128",
            function="mka:wpa_supplicant",
            timeout_s=480.0,
            start_edges=("none",),
        ),
        Scenario(
            "mka-wrong-keys",
            "a wrong CAK and a wrong CKN: never secured, the cause named, nothing in clear",
            topology="one-channel-gcm-128",
            function="mka:wrong_keys",
            timeout_s=300.0,
            start_edges=("none",),
        ),
        Scenario(
            "mka-should-secure",
            "fail open by choice: in clear until the far end proves a key, loudly; must-secure by a reload",
            topology="one-channel",
            function="policy:should_secure",
            timeout_s=300.0,
            start_edges=("none",),
            edits=(("policy: must-secure", "policy: should-secure"),),
        ),
        Scenario(
            "mka-three-stations",
            "the router and two wpa_supplicants on one segment",
            topology="three-stations",
            function="mka:three_stations",
            timeout_s=300.0,
            start_edges=("none",),
        ),
        Scenario(
            "mka-three-stations-xpn",
            "the router and two of its own key daemons on one segment, with XPN",
            topology="three-stations-xpn",
            function="mka:three_stations",
            timeout_s=300.0,
            start_edges=("none",),
        ),
        Scenario(
            "sak-rotation",
            "SAK after SAK under load: nothing is lost, association numbers wrap, no SA stays behind",
            topology="one-channel",
            function="mka:sak_rotation",
            start_edges=("none",),
            edits=FAST_RETIREMENT,
        ),
        Scenario(
            "sak-rotation-1000",
            "the same a thousand times",
            topology="one-channel",
            function="mka:sak_rotation_1000",
            timeout_s=900.0,
            start_edges=("none",),
            edits=FAST_RETIREMENT,
        ),
        Scenario(
            "xpn-wrap",
            "packet numbers cross 2^32 under load",
            topology="one-channel",
            function="mka:xpn_wrap",
            start_edges=("none",),
        ),
        Scenario(
            "keychain",
            "five CAKs roll without loss; after the last everything is blocked",
            topology="one-channel",
            function="mka:keychain",
            start_edges=("none",),
            edits=(
                ("profile: aws-dx", "profile: generic"),
                ("mka: {priority: 16}", "mka: {priority: 16, clock_skew_s: 1}"),
                (
                    "    mtu: 8500\n    advertise:",
                    "    mtu: 8500\n    bgp: {gtsm: false, bogons: []}\n    advertise:",
                ),
            ),
        ),
        Scenario(
            "mka-faults",
            "either side dies at each step of a rotation, MKPDUs are lost or late, the SecY refuses",
            topology="one-channel",
            function="mka_faults:faults",
            timeout_s=600.0,
            start_edges=("none",),
            edits=FAST_RETIREMENT,
        ),
        Scenario(
            "mka-link-up",
            "the time from link up to secured: two of our key daemons beside two wpa_supplicants",
            topology="three-stations",
            function="mka_link:link_up",
            timeout_s=300.0,
            start_edges=("none",),
        ),
        Scenario(
            "keyd-restart",
            "the key daemon is killed, ended and frozen: nothing is lost, no key comes twice",
            topology="one-channel",
            function="keyd:restart",
            start_edges=("none",),
        ),
        Scenario(
            "keys-rotate",
            "an operator adds a CAK at both ends, goes over to it and removes the old one: nothing is lost",
            topology="four-channels",
            function="keyd:rotate_keys",
            timeout_s=240.0,
            start_edges=("none",),
            edits=(("mka: {priority: 16", "mka: {priority: 1"),),  # the key server decides when to go over
        ),
        Scenario(
            "suite-change",
            "another cipher suite: announced, one channel at a time, the loss stated",
            topology="four-channels",
            function="keyd:change_suite",
            timeout_s=700.0,
        ),
        Scenario(
            "fastpath-interop",
            "the data plane and the Linux MACsec driver: all suites, SCI or not, across 2^32, replays",
            topology="static-keys",
            function="interop:interop",
            secy="fastpath",
            start_edges=("none",),
        ),
        Scenario(
            "fastpath-crash",
            "the data plane is killed under load and rekeying: nothing in clear, other keys, loss stated",
            topology="four-channels",
            function="fastpath:crash",
            timeout_s=240.0,
            secy="fastpath",
            edits=(("mka: {priority: 16", "mka: {priority: 1"),),  # so that the router can be told to rekey
        ),
        Scenario(
            "fastpath-crash-static",
            "the same with static keys: no packet number comes twice under one key",
            topology="static-keys",
            function="fastpath:crash",
            timeout_s=240.0,
            secy="fastpath",
        ),
        Scenario(
            "secy-switch",
            "a reload moves the channels from the kernel's MACsec to the data plane, and back",
            topology="one-channel",
            function="fastpath:switch",
            edits=(("    profile: aws-dx", "    profile: aws-dx\n    secy: kernel"),),
        ),
        Scenario(
            "fastpath-soak",
            "a wire that corrupts, repeats and reorders: every bad frame under its name, no good one lost",
            topology="one-channel",
            function="fastpath:soak",
            secy="fastpath",
            bridged=True,
            edits=BAD_WIRE,
        ),
        Scenario(
            "fastpath-soak-long",
            "the same for ten minutes",
            topology="one-channel",
            function="fastpath:soak_long",
            timeout_s=800.0,
            secy="fastpath",
            bridged=True,
            edits=BAD_WIRE,
        ),
        Scenario(
            "10k-prefixes",
            "ten thousand prefixes from each edge, in the kernel and out again",
            topology="four-channels",
            function="faults:many_prefixes",
            timeout_s=500.0,
            edges=("bird", "frr"),
            edits=(
                ("accept: [10.20.0.0/16 le 24,", "accept: [10.64.0.0/10 le 24, 10.20.0.0/16 le 24,"),
                (
                    "    mtu: 8500\n    advertise:",
                    "    mtu: 8500\n    bgp: {prefix_max: 20000}\n    advertise:",
                ),
            ),
        ),
    )


def find(name: str) -> Scenario:
    """Look a scenario up. Raises LabError."""
    for scenario in all_scenarios():
        if scenario.name == name:
            return scenario
    raise LabError(f"there is no scenario {name!r}; there are {', '.join(s.name for s in all_scenarios())}")


def run_inside(
    scenario: Scenario,
    topology: Topology,
    edges: str,
    *,
    secy: str = "auto",
    side: Side = "whole",
    keep_captures: bool,
    emit: Emit,
) -> int:
    """Run a scenario in this machine, reporting to `emit`; 0 ok, 1 not, 2 the lab could not be built."""
    report = Report(scenario.name, emit)
    lab = Lab(topology, edges, secy=secy, side=side, keep_captures=keep_captures)
    try:
        report.progress(f"building {topology.name}: {len(topology.nodes)} nodes, {len(topology.wires)} wires")
        lab.build()
        lab.start_captures()
        report.progress(f"starting the edges: {edges} on {', '.join(e.node for e in topology.edges)}")
        lab.start_edges(scenario.start_edges)
    except LabError as error:
        emit({"event": "error", "text": str(error)})
        return 2
    try:
        scenario.load()(lab, report)
        report.finish()
    except LabError as error:
        report.check("the scenario ran to its end", False, str(error))
    except Exception as error:  # noqa: BLE001 - what was seen so far must still be reported
        report.check("the scenario ran to its end", False, f"{type(error).__name__}: {error}")
        report.note(traceback.format_exc())
    if not report.ok:
        _explain(lab, report)
    lab.stop_captures()
    return 0 if report.ok else 1


def _explain(lab: Lab, report: Report) -> None:
    """Put beside a failure what an engineer would ask for first."""
    try:
        report.note("router's status: " + json.dumps(lab.router.status()))
    except LabError as error:
        report.note(f"router's status: {error}")
    report.note("router's log:\n" + lab.router.log_tail())
    if lab.secy == "fastpath":
        _explain_loss(lab, report)
    for name, far_end in lab.far_ends.items():
        try:
            seen = ", ".join(
                f"{s.afi} {s.state} (received {s.prefixes_received})" for s in far_end.sessions()
            )
        except (LabError, KeyError, ValueError) as error:
            seen = str(error)
        report.note(f"{name}'s sessions: {seen}")


def _explain_loss(lab: Lab, report: Report) -> None:
    """Where frames can have gone: in the data plane, in the queues on both sides, at the edges."""
    from router.lab.scenarios.fastpath import dataplane_status

    try:
        report.note("data plane: " + json.dumps(dataplane_status(lab)))
        links = lab.network.router.ip("-s", "link", "show")
        dropped = {
            f"{link['ifname']} {way}": count
            for link in links
            for way in ("rx", "tx")
            if (count := link["stats64"][way]["dropped"])
        }
        report.note(f"dropped at the router's devices: {dropped}")
        for edge in lab.topology.edges:
            report.note(f"{edge.node}:\n" + lab.at_edge(edge.node, "ip", "-s", "macsec", "show"))
    except (LabError, KeyError) as error:
        report.note(f"data plane: {error}")


def main() -> None:
    """Entry inside the machine: `SCENARIO EDGES KEEP SECY KIND`, the topology as JSON on standard input."""
    name, edges, keep, secy, kind = sys.argv[1:6]

    def emit(event: dict[str, object]) -> None:
        sys.stdout.write(to_line(event) + "\n")
        sys.stdout.flush()

    topology = Topology.from_json(sys.stdin.read())
    side: Side = "host" if kind == "bridged" else "whole"
    kept = keep == "keep"
    sys.exit(run_inside(find(name), topology, edges, secy=secy, side=side, keep_captures=kept, emit=emit))


if __name__ == "__main__":
    main()
