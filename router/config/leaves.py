"""The effective configuration as a list of values, each under the path by which origins know it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Final

from router.config.effective import (
    AddressPair,
    Channel,
    Connection,
    EffectiveConfig,
    Feature,
    Interconnect,
    LanPort,
    MkaKey,
    SecretRef,
    Session,
    Vrf,
)
from router.model import Sci


def leaves(effective: EffectiveConfig) -> Iterator[tuple[tuple[str, ...], object]]:
    """List every value under its path, list elements by what they are called."""
    for name in ("router", "interconnects", "channels", "vrfs", "connections"):
        yield from _leaves((name,), getattr(effective, name))


def dotted(path: Sequence[str]) -> str:
    """Return the path as origins are keyed by it."""
    return ".".join(path)


_SCALARS: Final = (SecretRef, Sci)
"""Dataclasses that are one value to a reader."""


def _leaves(path: tuple[str, ...], value: Any) -> Iterator[tuple[tuple[str, ...], object]]:
    if isinstance(value, tuple) and value and _called(value[0]) is not None:
        for element in value:
            yield from _leaves((*path, str(_called(element))), element)
    elif is_dataclass(value) and not isinstance(value, _SCALARS):
        for field in fields(value):
            yield from _leaves((*path, field.name), getattr(value, field.name))
    else:
        yield path, value


def _called(value: object) -> str | None:
    """Return what an element of a list is called in a dotted path; None for plain values."""
    match value:
        case Channel():
            return value.id
        case Feature():
            return value.channel
        case AddressPair() | Session():
            return str(value.afi)
        case LanPort():
            return value.port
        case MkaKey():
            return value.ckn.hex()
        case Interconnect() | Connection() | Vrf():
            return value.name
        case _:
            return None
