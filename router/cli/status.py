"""Prints /v1/status: a line a channel, or with -v everything that is known of each."""

from __future__ import annotations

import time
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from router.cli.output import LINE_MAX, ago

_COLOURS: Final = {"up": "green", "degraded": "yellow", "down": "red", "disabled": "dim"}


def _bgp(channel: dict[str, Any]) -> str:
    sessions = [s for c in channel["connections"] for s in c["sessions"]]
    up = sum(s["state"] == "established" for s in sessions)
    return f"{up}/{len(sessions)}"


def _prefixes(channel: dict[str, Any]) -> str:
    sessions = [s for c in channel["connections"] for s in c["sessions"]]
    return (
        f"{sum(s['prefixes_accepted'] for s in sessions)}/{sum(s['prefixes_advertised'] for s in sessions)}"
    )


def _neighbour(channel: dict[str, Any]) -> str:
    states = [n["state"] for c in channel["connections"] for n in c["neighbours"]]
    good = sum(state in {"reachable", "stale", "delay", "probe", "permanent"} for state in states)
    return f"{good}/{len(states)}"


def _mtu(channel: dict[str, Any]) -> str:
    proofs = [m for c in channel["connections"] for m in c["mtu"]]
    if not proofs:
        return "-"
    sizes = "/".join(str(size) for size in sorted({m["configured"] for m in proofs}))
    states = {m["state"] for m in proofs}
    if states == {"proven"}:
        return f"{sizes} proven"
    return f"{sizes} {next(s for s in ('too small', 'silent', 'unknown') if s in states)}"


def _macsec(macsec: dict[str, Any]) -> str:
    agreement = macsec.get("agreement")
    if macsec.get("unprotected") or (agreement and agreement["port"] == "unprotected"):
        return "IN CLEAR"
    if not macsec["operational"] or not macsec["receiving"]:
        return "no key"
    readable = "" if macsec["confidentiality"] == "offset-0" else f" {macsec['confidentiality']}"
    return f"{macsec['suite'].removeprefix('gcm-aes-')} {macsec['keys']}{readable}"


def print_status(data: dict[str, Any], *, verbose: bool) -> None:
    """Print to standard output, in colour on a terminal."""
    # Lines as long as they are: an ellipsis in a device's or peer's name helps nobody.
    console = Console(highlight=False, soft_wrap=True, width=LINE_MAX)
    router, now = data["router"], time.time()
    console.print(
        f"{router['name']}  AS {router['asn']}  router id {router['router_id']}  "
        f"up {ago(router['since'], now)}  {router['config']}"
    )
    if router["notice"]:
        console.print(Text(router["notice"], style="bold yellow"))
    if verbose:
        for channel in data["channels"]:
            _print_channel(console, channel, now)
    else:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in (
            "CHANNEL",
            "SITE",
            "CARRIER",
            "MACSEC",
            "VLAN",
            "NEIGHBOUR",
            "BGP",
            "PFX IN/OUT",
            "MTU",
            "VERDICT",
            "SINCE",
            "REASON",
        ):
            table.add_column(name, no_wrap=name != "REASON")
        for channel in data["channels"]:
            table.add_row(
                channel["name"],
                channel["site"],
                "yes" if channel["carrier"] else "no",
                _macsec(channel["macsec"]),
                ",".join(str(c["vlan"]) for c in channel["connections"]) or "-",
                _neighbour(channel),
                _bgp(channel),
                _prefixes(channel),
                _mtu(channel),
                Text(channel["verdict"], style=_COLOURS[channel["verdict"]]),
                ago(channel["since"], now),
                channel["reason"],
            )
        console.print(table)
    for channel in data["channels"]:
        agreement = channel["macsec"].get("agreement") or {}
        for warning in filter(None, [agreement.get("expiry"), *agreement.get("problems", ())]):
            console.print(Text(f"warning: keys of {channel['name']}: {warning}", style="yellow"))
        if channel["macsec"].get("unprotected"):
            loud = f"warning: FRAMES OF {channel['name']} PASS IN CLEAR NOW"
            console.print(Text(f"{loud}: should-secure, and no peer proves a key", style="bold red"))
        elif channel["macsec"]["mode"] == "should-secure":
            loud = f"warning: {channel['name']} is SHOULD-SECURE"
            console.print(Text(f"{loud}: frames pass IN CLEAR when no peer proves a key", style="bold red"))
    for error in data["errors"]:
        console.print(
            Text(f"error: {error['object']}: {error['reason']} (for {ago(error['since'], now)})", style="red")
        )
    if verbose:
        console.print("\n[bold]processes[/bold]")
        for process in data["processes"]:
            rss = f"{process['rss_bytes'] / 1e6:.0f} MB" if process["rss_bytes"] else "-"
            last = f", last {process['last_exit']}" if process["last_exit"] else ""
            role = f" ({process['role']})" if process["role"] else ""
            console.print(
                f"  {process['name'] + role:<16} pid {process['pid'] or '-'}  {rss}  up {ago(process['since'], now)}  "
                f"restarts {process['restarts']}{last}"
            )


def _print_channel(console: Console, channel: dict[str, Any], now: float) -> None:
    console.print()
    title = Text(f"{channel['name']}  ", style="bold")
    title.append(channel["verdict"], style=_COLOURS[channel["verdict"]])
    title.append(f" for {ago(channel['since'], now)}", style="not bold")
    title.append(f"  {channel['reason']}", style="not bold")
    console.print(title)
    macsec = channel["macsec"]
    console.print(
        f"  interconnect {channel['interconnect']}  site {channel['site']}  port {channel['port']}  "
        f"carrier {'yes' if channel['carrier'] else 'no'}  guarded {'yes' if channel['guarded'] else 'NO'}"
    )
    console.print(
        f"  macsec {macsec['device']}  {macsec['secy']}  {macsec['suite']}  {macsec['mode']}  "
        f"{macsec['confidentiality']}  keys {macsec['keys']}  "
        f"sci {macsec['sci'] or '-'}"
    )
    if macsec["secy"] == "fastpath" and macsec["secy_reason"]:
        console.print(f"    data plane: {macsec['secy_reason']}")
    console.print(
        f"    tx an {macsec['transmit_an']} pn {macsec['transmit_pn']}  rx an {macsec['receive_an']} "
        f"pn {macsec['receive_pn']}  key {macsec['key_id'] or '-'}"
    )
    if agreement := macsec.get("agreement"):
        age = "-" if agreement["age_s"] is None else f"{agreement['age_s']:.0f} s"
        console.print(
            f"    mka {agreement['port']}  key server {agreement['key_server'] or '-'}  live peers "
            f"{agreement['peers_live']}  ckn {agreement['ckn'] or '-'}  sak age {age}"
        )
        if agreement["reason"]:
            console.print(f"      {agreement['reason']}")
    console.print(
        f"    out encrypted {macsec['out_pkts_encrypted']}  in ok {macsec['in_pkts_ok']}  "
        f"not valid {macsec['in_pkts_not_valid']}  late {macsec['in_pkts_late']}  no tag {macsec['in_pkts_no_tag']}"
    )
    if macsec["out_pkts_protected"]:
        console.print(f"    out readable (integrity only) {macsec['out_pkts_protected']}")
    if macsec["out_pkts_untagged"] or macsec["in_pkts_untagged"]:
        console.print(
            f"    IN CLEAR: out {macsec['out_pkts_untagged']}  in {macsec['in_pkts_untagged']}",
            style="bold red",
        )
    for feature in channel["connections"]:
        console.print(
            f"  connection {feature['connection']}  vlan {feature['vlan']}  {feature['device']}  "
            f"{'up' if feature['up'] else 'down'}"
        )
        for neighbour in feature["neighbours"]:
            console.print(
                f"    neighbour {neighbour['address']}  {neighbour['state']}  {neighbour['mac'] or '-'}"
            )
        for s in feature["sessions"]:
            rejected = "".join(f"  {count} {reason}" for reason, count in s["rejected"].items())
            console.print(
                f"    bgp {s['afi']}  {s['peer']}  AS {s['peer_asn']}  {s['state']} {ago(s['since'], now)}  "
                f"received {s['prefixes_received']}  accepted {s['prefixes_accepted']}  "
                f"advertised {s['prefixes_advertised']}  flaps {s['flaps']}{rejected}"
            )
            if s["reason"]:
                console.print(f"      {s['reason']}")
        for m in feature["mtu"]:
            console.print(
                f"    mtu {m['afi']}  {m['configured']}  {m['state']}  passes {m['passes'] or '-'}  "
                f"for {ago(m['since'], now)}"
            )
