"""Key chains: which CAKs of a channel are live now, what a chain may look like, and who may change it.

All functions are pure. Times are Unix seconds of the wall clock; the KaY itself never sees them, it
is told the set of keys to run (`live`) and the driver asks again at `next_change`.

A key runs a little longer than it says, on both sides, so that clocks that differ by up to `skew_s`
always have a key in common:

    start - skew     start                        end       end + skew
       | STANDBY       | ACTIVE                     | EXPIRING  |
       participates,   may become principal by      participates
       never by our    our own choice               until replaced
       own choice

Rotation goes by rules: one channel of an interconnect at a time, a bake time before the next, only
the side that manages the keys, and a key in use stays. How many keys a channel may hold, and what
counts as a channel that is being rotated, is the provider's (`provider`: several keys may lie ready
all the time) or the open interconnect specification's (`open-spec`: at most two on a channel, one
more in an interconnect than it has channels, and a second one is a rotation). A key that comes into
use by its start time is a rotation like one by command.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from hashlib import sha256
from itertools import pairwise
from typing import Final, Literal

from router.errors import ConfigError
from router.mka.kay import KeyEntry
from router.model import ChannelId, Secret

SKEW_S: Final = 600.0
"""Clock difference between the two ends that a chain tolerates by default."""
BAKE_S: Final = 2 * 3600.0
"""Between rotations of two channels of one interconnect, by the open specification."""
WARN_S: Final = (30 * 86400.0, 7 * 86400.0, 86400.0, 3600.0)
"""Before the end of the last key, from when on its expiry is warned of, ever more urgently."""


@dataclass(frozen=True, slots=True)
class ChainKey:
    """One CAK of a chain with its lifetime."""

    ckn: bytes
    """1 to 32 octets, unique in the chain."""
    cak: Secret
    """16 or 32 octets."""
    start: float = float("-inf")
    end: float = float("inf")

    @property
    def fingerprint(self) -> str:
        """What may be shown of the CAK: the first 64 bits of a hash over CKN and CAK."""
        return sha256(b"lastmile cak" + bytes((len(self.ckn),)) + self.ckn + self.cak.reveal()).hexdigest()[
            :16
        ]


class Phase(Enum):
    """Where a key is in its life."""

    FUTURE = "future"
    STANDBY = "standby"
    ACTIVE = "active"
    EXPIRING = "expiring"
    EXPIRED = "expired"


def phase(key: ChainKey, wall: float, skew_s: float = SKEW_S) -> Phase:
    """Tell where `key` is in its life at `wall`."""
    if wall < key.start - skew_s:
        return Phase.FUTURE
    if wall < key.start:
        return Phase.STANDBY
    if wall < key.end:
        return Phase.ACTIVE
    return Phase.EXPIRING if wall < key.end + skew_s else Phase.EXPIRED


def live(keys: Iterable[ChainKey], wall: float, skew_s: float = SKEW_S) -> tuple[KeyEntry, ...]:
    """The keys to run at `wall` for `Kay.set_keys`: newest start first, then by CKN."""
    running = [
        (key, where)
        for key in keys
        if (where := phase(key, wall, skew_s)) in {Phase.STANDBY, Phase.ACTIVE, Phase.EXPIRING}
    ]
    running.sort(key=lambda pair: (-pair[0].start, pair[0].ckn))
    return tuple(KeyEntry(key.ckn, key.cak, where is Phase.ACTIVE) for key, where in running)


def next_change(keys: Iterable[ChainKey], wall: float, skew_s: float = SKEW_S) -> float | None:
    """When `live` will next give something else; None for never."""
    edges = [edge for key in keys for edge in (key.start - skew_s, key.start, key.end, key.end + skew_s)]
    return min((edge for edge in edges if wall < edge < float("inf")), default=None)


def expiry_warning(keys: Sequence[ChainKey], wall: float, warn_s: Sequence[float] = WARN_S) -> str:
    """Say that a chain is about to run out, or has a gap; empty where neither is near."""
    ahead = max(warn_s)
    covered = wall
    for key in sorted(keys, key=lambda key: key.start):
        if key.start <= covered < key.end:
            covered = key.end
    if covered == wall:
        return "no key of the chain is active now"
    left = covered - wall
    if left > ahead:
        return ""
    then = any(key.start > covered for key in keys)
    what = "a gap in the key chain begins" if then else "the last key of the chain ends"
    return f"{what} in {_span(left)}"


def _span(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


@dataclass(frozen=True, slots=True)
class ChainLimits:
    """What a provider allows of one channel's chain."""

    keys_max: int
    spacing_s: float = 0.0
    """Least distance of start times."""
    ckn_sizes: frozenset[int] = frozenset(range(1, 33))
    cak_sizes: frozenset[int] = frozenset({16, 32})


LIMITS: Final[Mapping[str, ChainLimits]] = {
    "aws-dx": ChainLimits(3, ckn_sizes=frozenset({32}), cak_sizes=frozenset({32})),
    "gcp": ChainLimits(5, spacing_s=6 * 3600.0, cak_sizes=frozenset({32})),
    "azure-er": ChainLimits(1),
    "generic": ChainLimits(32),
}
"""By profile."""
OPEN_SPEC_KEYS_MAX: Final = 2
"""MacSecKeys of one channel, by the open specification."""

KeyRules = Literal["provider", "open-spec"]


def chain_limits(profile: str, rules: KeyRules) -> ChainLimits:
    """Return what a channel's chain may be; the open specification counts keys, sizes stay the provider's."""
    limits = LIMITS[profile]
    if rules == "provider":
        return limits
    return replace(limits, keys_max=min(limits.keys_max, OPEN_SPEC_KEYS_MAX))


def check(keys: Sequence[ChainKey], limits: ChainLimits, where: str) -> None:
    """Refuse a chain that breaks a rule. Raises ConfigError that says which, and what to do."""
    if len(keys) > limits.keys_max:
        raise ConfigError(f"{where}: {len(keys)} keys, at most {limits.keys_max} allowed: remove the oldest")
    seen: set[bytes] = set()
    for key in keys:
        name = f"{where}: key {key.ckn.hex()}"
        if len(key.ckn) not in limits.ckn_sizes:
            sizes = _sizes(limits.ckn_sizes)
            raise ConfigError(f"{name}: the CKN has {len(key.ckn)} octets, {sizes} allowed")
        if len(key.cak) not in limits.cak_sizes:
            sizes = _sizes(limits.cak_sizes)
            raise ConfigError(f"{name}: the CAK has {len(key.cak)} octets, {sizes} allowed")
        if key.ckn in seen:
            raise ConfigError(f"{name} appears twice: each key needs a CKN of its own")
        seen.add(key.ckn)
        if key.end <= key.start:
            raise ConfigError(f"{name} ends before it starts")
    starts = sorted(key.start for key in keys)
    for earlier, later in pairwise(starts):
        if later - earlier < limits.spacing_s:
            raise ConfigError(
                f"{where}: start times {later - earlier:.0f} s apart, at least {limits.spacing_s:.0f} s required"
            )


def _sizes(sizes: frozenset[int]) -> str:
    if len(sizes) > 2:
        return f"{min(sizes)} to {max(sizes)}"
    return " or ".join(map(str, sorted(sizes)))


def make_key(ckn: bytes, cak: bytes, start: float, end: float = float("inf")) -> ChainKey:
    """Make a key of octets from the system's CSPRNG: a CKN of 32 and a CAK of 32."""
    assert len(ckn) == 32, "a generated CKN has 32 octets"
    assert len(cak) == 32, "a generated CAK has 32 octets"
    return ChainKey(ckn, Secret(cak), start, end)


class Rule(Enum):
    """A rule of rotation. The value is the sentence an operator sees."""

    NOT_MANAGER = "only the provider that manages the channel's keys may change them"
    CHAIN_FULL = "the channel holds as many keys as it may: remove an old one first"
    CHAIN_LIMIT = "the provider does not take such a chain"
    SINGLE_KEY = (
        "the provider takes one key a channel: exchange it by --replace, which interrupts the channel"
    )
    NOT_SINGLE = "the channel may hold several keys: add one and rotate, and no frame is lost"
    INTERCONNECT_FULL = (
        "the interconnect holds one key more than it has channels: finish the rotation under way first"
    )
    CKN_TAKEN = "another channel or key has this CKN"
    OTHER_CHANNEL = "another channel of the interconnect is being rotated: one at a time"
    BAKE = "another channel of the interconnect goes over to a key within the bake time"
    KEY_ACTIVE = "the key is in use: rotate first"
    IN_USE_UNKNOWN = "it is not known yet which key is in use: try again in a few seconds"
    LAST_KEY = "it is the channel's last key: the channel would fail closed"
    KEY_UNKNOWN = "the channel has no such key"
    NEW_NOT_LIVE = "no peer is live under the new key yet: the other side must add it first"


@dataclass(frozen=True, slots=True)
class ChannelKeys:
    """One channel's keys as the rules see them."""

    ckns: tuple[bytes, ...]
    in_use: bytes | None
    """CKN that the key in the SecY comes from; empty where that is not known, None where there is none."""
    live: frozenset[bytes] = frozenset()
    """CKNs under which all peers are live."""
    standby: frozenset[bytes] = frozenset()
    """CKNs that wait for `rotate`."""
    starts: tuple[float, ...] = ()
    """Start times of its keys, wall clock."""
    rotated_at: float = float("-inf")
    """When it last went over from one key to another, wall clock."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """The state of key management of one interconnect."""

    channels: Mapping[ChannelId, ChannelKeys]
    manager: bool
    """We manage the keys (`macsecManagerProvider`)."""
    rules: KeyRules = "open-spec"
    keys_max: int = OPEN_SPEC_KEYS_MAX
    """Per channel."""
    bake_s: float = BAKE_S


def _rotating(state: Rotation, channel: ChannelId) -> bool:
    """Whether a rotation is under way on a channel."""
    keys = state.channels[channel]
    return len(keys.ckns) > 1 if state.rules == "open-spec" else bool(keys.standby)


def _others(state: Rotation, channel: ChannelId, when: float, wall: float) -> Rule | None:
    """Say whether the other channels leave room for this one to go over to another key at `when`."""
    others = [name for name in state.channels if name != channel]
    if any(_rotating(state, other) for other in others):
        return Rule.OTHER_CHANNEL
    for keys in map(state.channels.__getitem__, others):
        planned = [start for start in keys.starts if start > wall]
        if any(abs(when - moment) < state.bake_s for moment in (keys.rotated_at, *planned)):
            return Rule.BAKE
    return None


def refuse_add(
    state: Rotation, channel: ChannelId, ckn: bytes, wall: float, start: float | None = None
) -> Rule | None:
    """Say which rule forbids adding a key to a channel, None if none does; `start` is when it will be used."""
    if not state.manager:
        return Rule.NOT_MANAGER
    if any(ckn in keys.ckns for keys in state.channels.values()):
        return Rule.CKN_TAKEN
    if (rule := _others(state, channel, max(wall, start or wall), wall)) is not None:
        return rule
    if len(state.channels[channel].ckns) >= state.keys_max:
        return Rule.SINGLE_KEY if state.keys_max == 1 else Rule.CHAIN_FULL
    in_all = sum(len(keys.ckns) for keys in state.channels.values())
    if state.rules == "open-spec" and in_all > len(state.channels):
        return Rule.INTERCONNECT_FULL
    return None


def refuse_replace(state: Rotation, channel: ChannelId, ckn: bytes, wall: float) -> Rule | None:
    """Say which rule forbids exchanging a channel's one key, None if none does."""
    if not state.manager:
        return Rule.NOT_MANAGER
    if state.keys_max != 1:
        return Rule.NOT_SINGLE
    if any(ckn in keys.ckns for keys in state.channels.values()):
        return Rule.CKN_TAKEN
    return _others(state, channel, wall, wall)


def refuse_rotate(state: Rotation, channel: ChannelId, ckn: bytes, wall: float) -> Rule | None:
    """Say which rule forbids switching a channel to a key, None if none does."""
    if not state.manager:
        return Rule.NOT_MANAGER
    if ckn not in state.channels[channel].ckns:
        return Rule.KEY_UNKNOWN
    if (rule := _others(state, channel, wall, wall)) is not None:
        return rule
    if ckn not in state.channels[channel].live:
        return Rule.NEW_NOT_LIVE
    return None


def refuse_remove(state: Rotation, channel: ChannelId, ckn: bytes) -> Rule | None:
    """Say which rule forbids removing a key, None if none does."""
    keys = state.channels[channel]
    if not state.manager:
        return Rule.NOT_MANAGER
    if ckn not in keys.ckns:
        return Rule.KEY_UNKNOWN
    if keys.in_use == b"":
        return Rule.IN_USE_UNKNOWN
    if ckn == keys.in_use:
        return Rule.KEY_ACTIVE
    if len(keys.ckns) == 1:
        return Rule.LAST_KEY
    return None
