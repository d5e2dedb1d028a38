"""What `lastmile status` and `lastmile routes` show, put together from what was collected.

Plain functions from facts to the shapes of `router.api.types`; the daemon collects, this describes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from router.api.types import (
    FeatureStatus,
    KeysSummary,
    MacsecStatus,
    MtuStatus,
    NeighbourStatus,
    PathStatus,
    ProcessStatus,
    RouteStatus,
    SessionStatus,
)
from router.bgp.decision import EQUAL_COST_STEPS, Decision
from router.bgp.decision import Path as DecidedPath
from router.bgp.rib import Rib, nexthops_of
from router.bgp.speaker import SessionReport
from router.config.effective import Channel, Feature, Session
from router.model import Prefix, show_address
from router.monitor.probes import MtuResult
from router.monitor.probes import Path as ProbePath
from router.reconcile.kernel import Neighbour
from router.secy import SecyState
from router.secy_choice import SecyChoice
from router.standby import Role


@dataclass(slots=True)
class Facts:
    """What was collected of the kernel at one moment."""

    at: float = 0.0
    carrier: dict[str, bool] = field(default_factory=dict)
    up: dict[str, bool] = field(default_factory=dict)
    secys: dict[str, SecyState | None] = field(default_factory=dict)
    neighbours: dict[str, Sequence[Neighbour]] = field(default_factory=dict)
    keys: dict[str, KeysSummary] = field(default_factory=dict)
    """By channel; one that is missing has static keys, or the key daemon does not answer."""


def route_status(
    sessions: Sequence[Session],
    rib: Rib,
    route: tuple[int, Prefix],
    decision: Decision | None,
    group: int | None,
) -> RouteStatus:
    """Describe one prefix of a table with these sessions: the paths in use, those that lost, those refused."""
    table, prefix = route
    used = decision.multipath if decision else ()
    offered = [path for s in sessions if (path := rib.adj_rib_in(s.name).get(prefix)) is not None]
    paths = [_path_status(path, selected=True, reason="") for path in used]
    paths += [
        _path_status(path, selected=False, reason=_why_not(path, offered))
        for path in offered
        if path not in used
    ]
    for session in sessions:
        refusal = rib.rejected(session.name).get(prefix)
        if refusal is not None:
            text = f"{refusal.value}: {refusal.explanation}"
            paths.append(
                PathStatus(
                    session.name, session.addresses.peer, session.device, "", selected=False, reason=text
                )
            )
    hops = [str(nexthop) for nexthop in nexthops_of(decision)] if decision else []
    return RouteStatus(table, str(prefix), group, hops, paths)


def _path_status(path: DecidedPath, *, selected: bool, reason: str) -> PathStatus:
    nexthop = show_address(path.nexthop.address)
    return PathStatus(
        path.session, nexthop, path.nexthop.device, path.attributes.show_path(), selected, reason
    )


def _why_not(path: DecidedPath, paths: list[DecidedPath]) -> str:
    """Name the rule of the decision process by which `path` is not used."""
    race = paths
    for step in EQUAL_COST_STEPS:
        race = step(race)
        if path not in race:
            return f"rule {(step.__doc__ or '').split(chr(10))[0]}"
    return "another AS path than the best one's (multipath_relax is off), or beyond max_paths"


def process_status(children: Mapping[str, dict[str, Any]], roles: Mapping[int, Role]) -> list[ProcessStatus]:
    """Describe the supervisor's children, as it lists them; `roles` by process id where one has any."""
    return [
        ProcessStatus(
            name, c["pid"], c["restarts"], c["since"], c["last_exit"], _rss(c["pid"]), roles.get(c["pid"], "")
        )
        for name, c in children.items()
    ]


def _rss(pid: int | None) -> int | None:
    if pid is None:
        return None
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def receiving(secy: SecyState | None) -> bool:
    """Tell whether frames of a peer can be let in."""
    return secy is not None and any(sa.active for sc in secy.receive if sc.active for sa in sc.sas)


def macsec_status(
    channel: Channel, choice: SecyChoice | None, secy: SecyState | None, keys: KeysSummary | None
) -> MacsecStatus:
    """Describe one secured port."""
    transmit = next((sa for sa in secy.transmit if sa.an == secy.encoding_an), None) if secy else None
    receive = next((sa for sc in secy.receive for sa in sc.sas if sa.active), None) if secy else None
    counters = secy.counters if secy else None
    return MacsecStatus(
        device=channel.macsec_device,
        secy=channel.secy,
        secy_reason=choice.reason if choice else "",
        mode=channel.macsec.mode.value,
        suite=str(secy.suite if secy else channel.macsec.suite),
        keys="static" if channel.macsec.static else "mka",
        agreement=keys,
        operational=secy is not None and secy.operational,
        receiving=receiving(secy),
        sci=str(secy.sci) if secy else None,
        transmit_an=transmit.an if transmit else None,
        transmit_pn=transmit.next_pn if transmit else None,
        receive_an=receive.an if receive else None,
        receive_pn=receive.next_pn if receive else None,
        key_id=transmit.key_id.hex() if transmit else None,
        out_pkts_encrypted=counters.out_pkts_encrypted if counters else 0,
        in_pkts_ok=counters.in_pkts_ok if counters else 0,
        in_pkts_not_valid=counters.in_pkts_not_valid if counters else 0,
        in_pkts_late=counters.in_pkts_late if counters else 0,
        in_pkts_no_tag=counters.in_pkts_no_tag if counters else 0,
        unprotected=secy is not None and secy.unprotected,
        confidentiality=(secy.confidentiality if secy else channel.macsec.confidentiality).label,
        out_pkts_protected=counters.out_pkts_protected if counters else 0,
        out_pkts_untagged=counters.out_pkts_untagged if counters else 0,
        in_pkts_untagged=counters.in_pkts_untagged if counters else 0,
    )


def feature_status(
    feature: Feature,
    facts: Facts,
    reports: Mapping[str, SessionReport],
    proofs: Mapping[ProbePath, MtuResult],
) -> FeatureStatus:
    """Describe one connection on one channel."""
    table = {entry.address: entry for entry in facts.neighbours.get(feature.device, ())}
    neighbours = []
    for pair in feature.addresses:
        entry = table.get(pair.peer)
        neighbours.append(
            NeighbourStatus(pair.peer, entry.state if entry else "none", entry.mac if entry else None)
        )
    return FeatureStatus(
        connection=feature.connection,
        vlan=feature.vlan,
        device=feature.device,
        up=facts.up.get(feature.device, False),
        neighbours=neighbours,
        sessions=[_session_status(reports[s.name]) for s in feature.sessions if s.name in reports],
        mtu=[
            MtuStatus(str(path.afi), r.configured, r.state, r.passes, r.since)
            for path, r in proofs.items()
            if path.device == feature.device
        ],
    )


def _session_status(report: SessionReport) -> SessionStatus:
    rib = report.rib
    return SessionStatus(
        name=rib.name,
        afi=rib.family,
        peer=rib.peer_address,
        peer_asn=rib.peer_asn,
        state=rib.phase.value,
        since=rib.since,
        reason=report.cause or rib.reason,
        hold_time_s=rib.hold_time_s,
        prefixes_received=rib.received,
        prefixes_accepted=rib.accepted,
        prefixes_advertised=len(report.advertised),
        rejected={reason.value: count for reason, count in rib.rejected.items()},
        flaps=rib.flaps_total,
    )
