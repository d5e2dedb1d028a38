"""From desired and observed to an ordered list of actions. Pure; the list is data to print and test.

Order: what goes is taken down from the top (addresses, VLANs, macsec devices, VRFs, LAGs, then
ports are shut, guards last); then what comes is built in the order of the desired state, in
which a guard stands before its port. Only marked things are ever deleted, and a sysctl never.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from router.reconcile.objects import (
    Address,
    BondLink,
    ControlPlaneRules,
    DesiredState,
    EgressGuard,
    Key,
    LinkFacts,
    MacsecLink,
    Object,
    ObservedState,
    PortLink,
    Sysctl,
    TapLink,
    VlanLink,
    VrfLink,
)

DELETE_ORDER: Final = (
    ControlPlaneRules.KIND,
    Address.KIND,
    VlanLink.KIND,
    TapLink.KIND,
    MacsecLink.KIND,
    VrfLink.KIND,
    PortLink.KIND,
    BondLink.KIND,
    EgressGuard.KIND,
)


class Verb(Enum):
    """What an action does to its object."""

    CREATE = "create"
    CHANGE = "change"
    DELETE = "delete"
    SHUT = "shut"
    """Set a port down that lost its channel or its guard."""


@dataclass(frozen=True, slots=True)
class Action:
    """One step of a plan."""

    verb: Verb
    object: Object
    was: str | None = None
    """What it is now, where it is changed."""
    interrupts: str | None = None
    """Why forwarding over this object stops for a moment, where it does."""

    @property
    def key(self) -> Key:
        """The object's key."""
        return self.object.key

    def describe(self) -> str:
        """Say it in one line."""
        was = f" (was: {self.was})" if self.was else ""
        interrupts = f" - interrupts traffic: {self.interrupts}" if self.interrupts else ""
        return f"{self.verb.value} {self.object}{was}{interrupts}"

    def to_json(self) -> dict[str, str | None]:
        """Return what `plan --json` shows."""
        return {
            "action": self.verb.value,
            "kind": self.key.kind,
            "name": self.key.name,
            "object": str(self.object),
            "was": self.was,
            "interrupts": self.interrupts,
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """Actions in the order in which they are applied. An empty plan means: nothing to do."""

    actions: tuple[Action, ...]

    def __bool__(self) -> bool:
        return bool(self.actions)

    @property
    def interrupted_devices(self) -> tuple[str, ...]:
        """Devices that go away, or go down and come back: sessions on them are reset."""
        hit = (a for a in self.actions if a.verb in {Verb.DELETE, Verb.SHUT} or a.interrupts)
        return tuple(dict.fromkeys(_device(a.object) for a in hit if _device(a.object)))

    def describe(self) -> str:
        """Return one line per action."""
        return "\n".join(action.describe() for action in self.actions)

    def to_json(self) -> list[dict[str, str | None]]:
        """Return the actions as plain data."""
        return [action.to_json() for action in self.actions]


def plan(desired: DesiredState, observed: ObservedState) -> Plan:
    """Return what turns `observed` into `desired`."""
    wanted = {o.key: o for o in desired.objects}
    gone, reasons = _vanishing(wanted, observed)
    actions = [*_deletions(wanted, observed, gone, reasons)]
    present = set(observed.links) - gone
    for target in desired.objects:
        action = _raise(target, observed, gone, present, reasons)
        if action:
            actions.append(action)
        if isinstance(target, BondLink | MacsecLink | VrfLink | VlanLink):
            present.add(target.name)
    return Plan(tuple(actions))


def _vanishing(wanted: dict[Key, Object], observed: ObservedState) -> tuple[set[str], dict[str, str]]:
    """Find our devices that must go, with all that is stacked on them, and why a wanted one must."""
    gone: set[str] = set()
    reasons: dict[str, str] = {}
    for key, was in observed.objects.items():
        if not isinstance(was, BondLink | MacsecLink | VrfLink | VlanLink | TapLink):
            continue
        target = wanted.get(key)
        if target is None:
            gone.add(was.name)
        elif reason := _rebuild_reason(target, was):
            gone.add(was.name)
            reasons[was.name] = reason
    grown = True
    while grown:
        grown = False
        for was in observed.objects.values():
            if isinstance(was, MacsecLink | VlanLink) and was.parent in gone and was.name not in gone:
                gone.add(was.name)
                reasons[was.name] = f"{was.parent} is rebuilt"
                grown = True
    return gone, reasons


def _rebuild_reason(target: Object, was: Object) -> str | None:
    if isinstance(target, MacsecLink) and isinstance(was, MacsecLink):
        return target.rebuild_reason(was)
    if isinstance(target, VlanLink) and isinstance(was, VlanLink):
        return target.rebuild_reason(was)
    if isinstance(target, VrfLink) and isinstance(was, VrfLink):
        return target.rebuild_reason(was)
    return None


def _deletions(
    wanted: dict[Key, Object], observed: ObservedState, gone: set[str], reasons: dict[str, str]
) -> Iterable[Action]:
    doomed: list[Action] = []
    for key, was in observed.objects.items():
        match was:
            case BondLink() | MacsecLink() | VrfLink() | VlanLink() | TapLink():
                if was.name in gone:
                    doomed.append(Action(Verb.DELETE, was, interrupts=reasons.get(was.name)))
            case EgressGuard() if key not in wanted:
                doomed.append(Action(Verb.DELETE, was))
                facts = observed.links.get(was.device)
                # A port that carried a channel is never left up without its guard.
                if facts and facts.up and facts.name not in gone:
                    port = PortLink(facts.name, facts.mtu, up=False, guarded=True)
                    doomed.append(Action(Verb.SHUT, port))
            case Address() if key not in wanted and was.device not in gone and key not in observed.unmarked:
                doomed.append(Action(Verb.DELETE, was))
            case ControlPlaneRules() if key not in wanted:
                doomed.append(Action(Verb.DELETE, was))
            case _:
                pass
    return sorted(doomed, key=lambda action: DELETE_ORDER.index(action.key.kind))


def _raise(
    target: Object, observed: ObservedState, gone: set[str], present: set[str], reasons: dict[str, str]
) -> Action | None:
    """Return what builds or corrects one object, None where it is as it should be."""
    if isinstance(target, Sysctl) and target.device is not None and target.device not in present:
        return None  # the device's own error tells it
    if isinstance(target, PortLink):
        return _raise_port(target, observed.links.get(target.name), gone, present)
    was = observed.objects.get(target.key)
    if was is None or _device(target) in gone:
        return Action(Verb.CREATE, target, interrupts=reasons.get(_device(target)))
    if isinstance(target, VlanLink | TapLink) and target.vrf in gone:
        return Action(Verb.CHANGE, target, was=f"in a VRF {target.vrf} that is rebuilt")
    if was == target or (
        isinstance(target, MacsecLink) and isinstance(was, MacsecLink) and target.settled(was)
    ):
        return None
    if isinstance(target, Address):
        return None  # equal key: device, address and length agree, the rest is not observable
    return Action(Verb.CHANGE, target, was=str(was))


def _raise_port(
    target: PortLink, facts: LinkFacts | None, gone: set[str], present: set[str]
) -> Action | None:
    if facts is None or target.name in gone:
        # Missing: a LAG of ours that this plan makes first, or a mistake that applying reports.
        return Action(Verb.CHANGE, target, was="new" if target.name in present else "missing")
    master = target.bond or target.vrf
    now_in = facts.master if facts.master not in gone else None
    if (target.mtu, target.up, master) == (facts.mtu, facts.up, now_in if master else None):
        return None
    was = f"mtu {facts.mtu} {'up' if facts.up else 'down'}" + (f" in {facts.master}" if facts.master else "")
    return Action(Verb.CHANGE, target, was=was)


def _device(target: Object) -> str:
    match target:
        case Address() | EgressGuard():
            return target.device
        case Sysctl():
            return target.device or ""
        case ControlPlaneRules():
            return ""
        case _:
            return target.name
