"""nftables: the control-plane rules, and egress guards where the kernel has the netdev egress hook.

Rules are data in nft's JSON schema, rendered by pure functions and applied in one transaction
through `nft -j -f /proc/self/fd/0`. Reading back is `nft -j list table`: what we rendered, with handles and
counters taken out and set elements sorted, must equal what we read, else somebody changed it.
`nft` itself is the interface here: the kernel's netlink encoding of expressions is its private
business and differs between versions.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, Final

from router.errors import KernelError, Unsupported
from router.reconcile.objects import ControlPlaneRules, EgressGuard, PeerRule

TABLE: Final = "lastmile"
PORT_BGP: Final = 179
PORT_BFD: Final = 3784
PORT_BFD_MULTIHOP: Final = 4784
FILTER_PRIORITY: Final = -10
"""Before an administrator's own filter chains (priority 0), which may restrict further."""

NAMED_ETHERTYPES: Final = MappingProxyType({"8021q": 0x8100, "vlan": 0x8100})
"""How nft lists an EtherType that we may ask for by number."""

STDIN: Final = "/proc/self/fd/0"
"""`-f -` would do, but nft opens /dev/stdin for it, which a bare guest does not have."""

Json = dict[str, Any]


async def run_nft(*arguments: str, commands: Sequence[Json] | None = None) -> str:
    """Run `nft -j` with commands on its standard input; return its output. Raises KernelError."""
    try:
        process = await asyncio.create_subprocess_exec(
            "nft",
            "-j",
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except FileNotFoundError as error:
        raise Unsupported(
            "nft is not installed: the router cannot protect itself (apt install nftables)"
        ) from error
    text = json.dumps({"nftables": list(commands)}) if commands is not None else ""
    try:
        out, err = await process.communicate(text.encode())
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    if process.returncode:
        lines = err.decode(errors="replace").strip().splitlines() or [f"exit code {process.returncode}"]
        message = f"nft {' '.join(arguments)}: {lines[0]}"
        if "Operation not supported" in lines[0]:
            raise Unsupported(message, errno.EOPNOTSUPP)
        raise KernelError(message)
    return out.decode()


def _match(left: Json, right: object) -> Json:
    return {"match": {"op": "==", "left": left, "right": right}}


def _field(protocol: str, field: str) -> Json:
    return {"payload": {"protocol": protocol, "field": field}}


_COUNTER: Final[Json] = {"counter": {"packets": 0, "bytes": 0}}
_ACCEPT: Final[Json] = {"accept": None}
_DROP: Final[Json] = {"drop": None}


def render_rules(rules: ControlPlaneRules) -> list[Json]:
    """Return the objects of `table inet lastmile`, in nft's order: table, sets, chains, rules.

    tcp/179 and udp/3784 pass only between us and a configured peer on its device, in and out;
    everything else with those ports is dropped and counted, and so is multihop BFD (udp/4784),
    which nothing here speaks. In a VRF the device is the packet's slave device (`sdifname`).
    """
    place = {"family": "inet", "table": TABLE}
    objects: list[Json] = [{"table": {"family": "inet", "name": TABLE}}]
    for name, kind, is_v6 in (("peers4", "ipv4_addr", False), ("peers6", "ipv6_addr", True)):
        peers = [{"concat": [p.device, p.address]} for p in rules.peers if (":" in p.address) is is_v6]
        elements = {"elem": peers} if peers else {}
        objects.append({"set": {**place, "name": name, "type": ["ifname", kind], **elements}})
    objects += [
        {
            "chain": {
                **place,
                "name": hook,
                "type": "filter",
                "hook": hook,
                "prio": FILTER_PRIORITY,
                "policy": "accept",
            }
        }
        for hook in ("input", "output")
    ]
    for hook, device_keys, side in (
        ("input", ("iifname", "sdifname"), "saddr"),
        ("output", ("oifname",), "daddr"),
    ):
        for protocol, port in (("tcp", PORT_BGP), ("udp", PORT_BFD)):
            # Replies to our own sessions come from port 179; BFD has its port on one side only.
            fields = ("dport", "sport") if protocol == "tcp" else ("dport",)
            for field in fields:
                for family, name in (("ip", "peers4"), ("ip6", "peers6")):
                    for key in device_keys:
                        peer = {"concat": [{"meta": {"key": key}}, _field(family, side)]}
                        ports = _match(_field(protocol, field), port)
                        expression = [ports, _match(peer, f"@{name}"), _ACCEPT]
                        objects.append({"rule": {**place, "chain": hook, "expr": expression}})
                drop = [_match(_field(protocol, field), port), _COUNTER, _DROP]
                objects.append({"rule": {**place, "chain": hook, "expr": drop}})
        multihop = [_match(_field("udp", "dport"), PORT_BFD_MULTIHOP), _COUNTER, _DROP]
        objects.append({"rule": {**place, "chain": hook, "expr": multihop}})
    return objects


def render_guard(guard: EgressGuard) -> list[Json]:
    """Return the chains of one device's guard in `table netdev lastmile`.

    The match reads the EtherType from the frame itself, not from what its sender declared.
    """
    objects: list[Json] = []
    place = {"family": "netdev", "table": TABLE}
    types: object = {"set": sorted(guard.ethertypes)} if len(guard.ethertypes) > 1 else guard.ethertypes[0]
    for hook in ("egress", "ingress"):
        name = f"{hook}-{guard.device}"
        chain = {
            "name": name,
            "type": "filter",
            "hook": hook,
            "dev": guard.device,
            "prio": 0,
            "policy": "drop",
        }
        objects.append({"chain": {**place, **chain}})
        expression = [_match(_field("ether", "type"), types), _ACCEPT]
        objects.append({"rule": {**place, "chain": name, "expr": expression}})
    return objects


def normalise(objects: Sequence[Json]) -> list[Json]:
    """Take out what the kernel adds (handles, counts), and sort what it does not keep in order."""
    return sorted((_clean(o) for o in objects if "metainfo" not in o), key=_order)


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        if "counter" in value:
            return {"counter": None}
        # A chain's device is shown by some versions of nft only; the chain is named after it.
        kept = {k: _clean(v) for k, v in value.items() if k not in {"handle", "dev"}}
        for key in ("elem", "set"):
            if isinstance(kept.get(key), list):
                kept[key] = [NAMED_ETHERTYPES.get(e, e) if isinstance(e, str) else e for e in kept[key]]
                kept[key] = sorted(kept[key], key=lambda e: json.dumps(e, sort_keys=True))
        return kept
    if isinstance(value, list):
        return [_clean(v) for v in value]
    return value


def _order(item: Json) -> tuple[int, str]:
    """Sort by type and chain only: the order of rules within a chain is part of what they say."""
    kind, body = next(iter(item.items()))
    rank = ("table", "set", "chain", "rule").index(kind) if kind in {"table", "set", "chain", "rule"} else 9
    return rank, body.get("chain", "") if kind == "rule" else body.get("name", "")


def parse_rules(listing: Sequence[Json]) -> ControlPlaneRules:
    """Read our control-plane table back; `intact` is False where it is not what we rendered."""
    peers = set()
    for item in listing:
        for element in item.get("set", {}).get("elem", []):
            pair = element.get("concat", []) if isinstance(element, dict) else []
            if len(pair) == 2:
                peers.add(PeerRule(*pair))
    rules = ControlPlaneRules(tuple(sorted(peers)))
    if normalise(render_rules(rules)) == normalise(listing):
        return rules
    return ControlPlaneRules(rules.peers, intact=False)


def parse_guards(listing: Sequence[Json]) -> dict[str, EgressGuard]:
    """Read the guards back. A device whose chains were changed is left out: it is not guarded."""
    chains = {item["chain"]["name"]: item for item in listing if "chain" in item}
    rules: dict[str, list[Json]] = {}
    for item in listing:
        if "rule" in item:
            rules.setdefault(item["rule"]["chain"], []).append(item)
    guards = {}
    for name in chains:
        device = name.removeprefix("egress-")
        if device == name:
            continue
        ours = [chains[n] for n in (name, f"ingress-{device}") if n in chains]
        ours += [r for n in (name, f"ingress-{device}") for r in rules.get(n, [])]
        guard = EgressGuard(device, _ethertypes(rules.get(name, [])))
        if guard.ethertypes and normalise(render_guard(guard)) == normalise(ours):
            guards[device] = guard
    return guards


def _ethertype(value: object) -> int | None:
    """Return an EtherType as nft prints it: a number, or the name of one that it has a name for."""
    if isinstance(value, str):
        return NAMED_ETHERTYPES.get(value)
    return value if isinstance(value, int) else None


def _ethertypes(rules: Sequence[Json]) -> tuple[int, ...]:
    """Return the EtherTypes of a guard's one rule, in our order."""
    for item in rules:
        for expression in item["rule"]["expr"]:
            right = expression.get("match", {}).get("right")
            if isinstance(right, dict):
                types = (_ethertype(value) for value in right.get("set", []))
                return tuple(sorted(t for t in types if t is not None))
            if isinstance(right, int):
                return (right,)
    return ()


async def list_table(family: str) -> list[Json] | None:
    """Return the objects of our table of one family, None where it is not there."""
    listing = json.loads(await run_nft("list", "tables"))["nftables"]
    if not any(t.get("table", {}).get("name") == TABLE and t["table"]["family"] == family for t in listing):
        return None
    objects: list[Json] = json.loads(await run_nft("list", "table", family, TABLE))["nftables"]
    return objects


async def apply_rules(rules: ControlPlaneRules) -> None:
    """Replace the whole control-plane table in one transaction."""
    table = {"table": {"family": "inet", "name": TABLE}}
    # `add` before `delete` makes the deletion succeed where there was no table.
    commands: list[Json] = [{"add": table}, {"delete": table}]
    commands += [{"add": o} for o in render_rules(rules)]
    try:
        await run_nft("-f", STDIN, commands=commands)
    except Unsupported as error:
        raise Unsupported(
            "this kernel's nftables has no inet family (CONFIG_NF_TABLES_INET): BGP and BFD are taken"
            " from anyone who reaches them; filter tcp/179 and udp/3784 in front of the router",
            error.errno,
        ) from error


async def delete_rules() -> None:
    """Remove the control-plane table."""
    table = {"table": {"family": "inet", "name": TABLE}}
    await run_nft("-f", STDIN, commands=[{"add": table}, {"delete": table}])


async def apply_guard(guard: EgressGuard) -> None:
    """Put one guard in place, or replace it, in one transaction."""
    table = {"table": {"family": "netdev", "name": TABLE}}
    commands: list[Json] = [{"add": table}]
    for item in render_guard(guard):
        if "chain" in item:
            chain = {k: item["chain"][k] for k in ("family", "table", "name")}
            commands += [{"add": item}, {"flush": {"chain": chain}}]
        else:
            commands.append({"add": item})
    await run_nft("-f", STDIN, commands=commands)


async def delete_guard(guard: EgressGuard) -> None:
    """Remove one device's guard."""
    listing = await list_table("netdev") or []
    names = {f"egress-{guard.device}", f"ingress-{guard.device}"}
    chains = [o["chain"] for o in listing if "chain" in o and o["chain"]["name"] in names]
    place = {"family": "netdev", "table": TABLE}
    commands: list[Json] = []
    for chain in chains:
        commands.append({"flush": {"chain": {**place, "name": chain["name"]}}})
        commands.append({"delete": {"chain": {**place, "name": chain["name"]}}})
    if commands:
        await run_nft("-f", STDIN, commands=commands)


async def has_egress_hook() -> bool:
    """Ask the kernel, without changing anything, whether it has the netdev egress hook."""
    table = {"table": {"family": "netdev", "name": f"{TABLE}-probe"}}
    chain = {
        "family": "netdev",
        "table": f"{TABLE}-probe",
        "name": "probe",
        "type": "filter",
        "hook": "egress",
        "dev": "lo",
        "prio": 0,
        "policy": "accept",
    }
    try:
        await run_nft("--check", "-f", STDIN, commands=[{"add": table}, {"add": {"chain": chain}}])
    except KernelError as error:
        if error.errno != errno.ENOENT:
            return False
        raise
    return True
