"""The effective configuration as plain data, each value with where it came from.

Secrets appear as references: the effective configuration holds nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from router.config.effective import MkaKey, PrefixFilter, SecretRef
from router.config.leaves import dotted, leaves
from router.model import CipherSuite, Confidentiality, Prefix, Sci

if TYPE_CHECKING:
    from router.config.load import Loaded


@dataclass(frozen=True, slots=True)
class Row:
    """One effective value."""

    path: str
    """Dotted, list elements by name: `channels.a1.macsec.suite`."""
    value: Any
    """Plain: text, number, bool, None, or a list of these."""
    origin: str
    """`FILE:LINE`, `profile NAME`, `default` or `derived`."""


def show(loaded: Loaded) -> tuple[Row, ...]:
    """List every effective value in the order of the file."""
    return tuple(
        Row(dotted(path), plain(value), str(loaded.origins[dotted(path)]))
        for path, value in leaves(loaded.effective)
    )


def nested(loaded: Loaded, *, origin: bool = False) -> dict[str, Any]:
    """Return the same as nested mappings; with `origin` each leaf is {"value", "origin"}."""
    tree: dict[str, Any] = {}
    for path, value in leaves(loaded.effective):
        *outer, last = path
        node = tree
        for step in outer:
            node = node.setdefault(step, {})
        node[last] = (
            {"value": plain(value), "origin": str(loaded.origins[dotted(path)])} if origin else plain(value)
        )
    return tree


def plain(value: object) -> Any:
    """Return one effective value as JSON would have it."""
    match value:
        case Confidentiality():
            return value.label
        case Prefix() | PrefixFilter() | SecretRef() | Sci() | CipherSuite():
            return str(value)
        case Enum():
            return value.value
        case bytes():
            return value.hex()
        case MkaKey():
            return value.ckn.hex()
        case tuple():
            return [plain(element) for element in value]
        case _:
            return value
