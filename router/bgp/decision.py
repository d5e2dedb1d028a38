"""The decision process (RFC 4271 9.1.2.2): which paths of a prefix are used. Pure.

`STEPS` holds one function per rule, in order. Each takes the paths still in the race and returns
those that survive it. A step removes a path only if another path *in the race* beats it by that
rule, and looks at nothing but the set, so the result never depends on the order of arrival.

The steps before the router id decide what may share the traffic: all their survivors are equal
in every way that matters, and are the multipath set. The last two pick the one best path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from router.bgp.messages import Attributes
from router.model import Nexthop


@dataclass(frozen=True, slots=True)
class Path:
    """A route without its prefix, as one session offers it: shared by all prefixes of an UPDATE."""

    session: str
    attributes: Attributes
    local_preference: int
    """From import policy: eBGP carries none."""
    neighbor_as: int
    router_id: int
    """The peer's BGP identifier."""
    peer: bytes
    """The peer's address, the last tie-breaker."""
    nexthop: Nexthop


Step = Callable[[list[Path]], list[Path]]


def highest_local_preference(paths: list[Path]) -> list[Path]:
    """1. Policy first: the highest LOCAL_PREF."""
    best = max(path.local_preference for path in paths)
    return [path for path in paths if path.local_preference == best]


def shortest_as_path(paths: list[Path]) -> list[Path]:
    """2. The shortest AS_PATH; a set counts one."""
    best = min(path.attributes.length for path in paths)
    return [path for path in paths if path.attributes.length == best]


def lowest_origin(paths: list[Path]) -> list[Path]:
    """3. The lowest ORIGIN: IGP, EGP, incomplete."""
    best = min(path.attributes.origin for path in paths)
    return [path for path in paths if path.attributes.origin == best]


def lowest_med(paths: list[Path]) -> list[Path]:
    """4. The lowest MED among the paths of each neighbouring AS. A missing MED is 0."""
    best: dict[int, int] = {}
    for path in paths:
        med = path.attributes.med or 0
        best[path.neighbor_as] = min(best.get(path.neighbor_as, med), med)
    return [path for path in paths if (path.attributes.med or 0) == best[path.neighbor_as]]


def lowest_router_id(paths: list[Path]) -> list[Path]:
    """7. The lowest BGP identifier of the peer."""
    best = min(path.router_id for path in paths)
    return [path for path in paths if path.router_id == best]


def lowest_peer_address(paths: list[Path]) -> list[Path]:
    """8. The lowest peer address; then the session's name, so that one path always remains."""
    return [min(paths, key=lambda path: (path.peer, path.session))]


EQUAL_COST_STEPS: Final[tuple[Step, ...]] = (
    highest_local_preference,
    shortest_as_path,
    lowest_origin,
    lowest_med,
    # 5. eBGP over iBGP and 6. the IGP metric to the next hop never tell two paths apart here:
    # all sessions are external and all next hops are on a link of ours.
)
TIE_BREAKERS: Final[tuple[Step, ...]] = (lowest_router_id, lowest_peer_address)
STEPS: Final = EQUAL_COST_STEPS + TIE_BREAKERS


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of a prefix's paths."""

    best: Path
    multipath: tuple[Path, ...]
    """The best one and its equals, by session name; at most `max_paths`."""


def decide(paths: Iterable[Path], *, multipath_relax: bool, max_paths: int) -> Decision | None:
    """Run all steps; None without paths.

    Without `multipath_relax`, only paths with the best path's AS_PATH share the traffic.
    """
    race = list(paths)
    if not race:
        return None
    for step in EQUAL_COST_STEPS:
        if len(race) > 1:
            race = step(race)
    ordered: list[Path] = []
    rest = race
    while rest and len(ordered) < max_paths:
        winner = rest
        for step in TIE_BREAKERS:
            winner = step(winner)
        ordered.append(winner[0])
        if len(ordered) == 1 and not multipath_relax:
            rest = [path for path in rest if path.attributes.as_path == winner[0].attributes.as_path]
        rest = [path for path in rest if path is not winner[0]]
    chosen: dict[Nexthop, Path] = {}
    for path in ordered:
        chosen.setdefault(path.nexthop, path)
    return Decision(ordered[0], tuple(sorted(chosen.values(), key=lambda path: path.session)))
