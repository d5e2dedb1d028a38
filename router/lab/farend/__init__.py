"""The provider's edges: FRR, BIRD or GoBGP, by choice, all with the same session parameters.

A far end is independent of the router in code and in author; what it says about a session is the
lab's witness. Each runs in its edge's namespace with its own directory for sockets and logs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from router.errors import LabError
from router.lab.node import Node
from router.lab.topology import Edge

KINDS: Final = ("frr", "bird", "gobgp")


@dataclass(frozen=True, slots=True)
class PeerSession:
    """One session as the far end sees it."""

    afi: str
    """`ipv4` or `ipv6`."""
    established: bool
    established_s: float
    """Seconds since it came up; 0 where it is down."""
    drops: int
    """How often it went down after having been up."""
    prefixes_received: int
    state: str


class FarEnd(ABC):
    """A BGP speaker at one edge.

    `announce` and `withdraw` change what it sends from then on; they return when the program has
    taken the change, not when the router has.
    """

    def __init__(
        self, node: Node, edge: Edge, directory: Path, *, password: str, announced: Sequence[str]
    ) -> None:
        self.node = node
        self.edge = edge
        self.directory = directory
        self.password = password
        self.announced = list(announced)

    @abstractmethod
    def start(self) -> None:
        """Start it; several start side by side."""

    @abstractmethod
    def ready(self) -> None:
        """Wait until it can be asked and announces. Raises LabError."""

    @abstractmethod
    def stop(self) -> None:
        """End it (SIGTERM: it may tell its peers)."""

    @abstractmethod
    def kill(self) -> None:
        """End it without a word (SIGKILL)."""

    @abstractmethod
    def sessions(self) -> list[PeerSession]:
        """Both sessions, IPv4 first. Raises LabError where it does not answer."""

    @abstractmethod
    def announce(self, prefixes: Sequence[str]) -> None:
        """Announce these prefixes of one family as well."""

    @abstractmethod
    def withdraw(self, prefixes: Sequence[str]) -> None:
        """Stop announcing these prefixes of one family."""


def make(
    kind: str, node: Node, edge: Edge, directory: Path, *, password: str, announced: Sequence[str]
) -> FarEnd:
    """Make a far end of that kind. Raises LabError."""
    from router.lab.farend.bird import Bird
    from router.lab.farend.frr import Frr
    from router.lab.farend.gobgp import Gobgp

    kinds: dict[str, type[FarEnd]] = {"frr": Frr, "bird": Bird, "gobgp": Gobgp}
    if kind not in kinds:
        raise LabError(f"there are no edges {kind!r}; there are {', '.join(KINDS)}")
    directory.mkdir(mode=0o700, parents=True)
    return kinds[kind](node, edge, directory, password=password, announced=announced)


def by_family(prefixes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split prefixes into IPv4 and IPv6."""
    return [p for p in prefixes if ":" not in p], [p for p in prefixes if ":" in p]
