"""`lastmile bench`: what this machine carries, per size, core and backend, beside the peers installed.

Figures are medians of short rounds in which all candidates take turns, in Gbit/s of secure data.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from router.cli.output import Json, fail, print_json
from router.errors import LastmileError

if TYPE_CHECKING:
    from rich.console import Console

    from router.bench.figures import Measured, Row

app = typer.Typer(
    help="Measure what this machine carries: cipher, whole frames, gateways.", invoke_without_command=True
)

Seconds = Annotated[
    float, typer.Option(min=0.1, max=3600, help="How long to measure; more rounds, steadier medians.")
]
Sizes = Annotated[
    str, typer.Option(metavar="N,N,...", help="Octets: some of 64,128,256,512,1024,1500,4096,9000.")
]
TABLE_SUITE: Final = "gcm-aes-xpn-256"
ROUNDS_MIN: Final = 3


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """Say what is missing in a sentence and end with 2."""
    try:
        yield
    except LastmileError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


def _sizes(text: str) -> tuple[int, ...]:
    from router.bench.figures import SIZES

    try:
        asked = {int(word) for word in text.replace(",", " ").split()} if text else set(SIZES)
    except ValueError:
        asked = {0}
    if not asked or not asked <= set(SIZES):
        fail(f"--sizes is some of {','.join(map(str, SIZES))}, not {text!r}")
    return tuple(size for size in SIZES if size in asked)


def _head(measured: Measured, console: Console) -> None:
    machine, limit = measured.machine, measured.port_limit()
    console.print(
        f"{machine['cpu']}, family {machine['family'] or '-'}, {machine['cores']} cores ({' '.join(machine['features'])}), "
        f"kernel {machine['kernel']}, load {machine['load_1min']} at the start, {measured.rounds} rounds"
    )
    if limit:
        console.print(
            "port limit of a core (a register-only loop): "
            f"AES-128 {limit['aes128_gbps']}, AES-256 {limit['aes256_gbps']} Gbit/s"
        )
    for sentence in measured.left_out():
        console.print(f"left out: {sentence}")


def _table(title: str, rows: Sequence[Row], console: Console) -> None:
    """One line a backend and direction, one column a size, for the suite that providers ask for."""
    from rich.table import Table

    sizes = sorted({row["size"] for row in rows})
    console.print(f"\n{title}: {TABLE_SUITE}, Gbit/s on one core")
    table = Table()
    table.add_column("backend")
    table.add_column("direction")
    for size in sizes:
        table.add_column(str(size), justify="right")
    lines: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        if row["suite"] == TABLE_SUITE:
            lines.setdefault((row["backend"], row["direction"]), {})[row["size"]] = row["gbps"]
    for (backend, direction), line in lines.items():
        table.add_row(backend, direction, *(f"{line[size]:g}" for size in sizes))
    console.print(table)


def _gateway(
    mtus: Sequence[int], seconds: float, *, realtime: bool
) -> tuple[list[dict[str, Any]], list[str]]:
    """Measure all paths that this machine has for about `seconds`, at least three rounds of one second."""
    from router.bench import gateway

    gateway.need()
    paths, left_out = gateway.available()
    rounds = max(ROUNDS_MIN, int(seconds / len(paths) / len(mtus)))
    with gateway.undisturbed() if realtime else contextlib.nullcontext():
        return [row for mtu in mtus for row in gateway.tcp(paths, mtu, 1, rounds)], left_out


def _datagrams(sizes: Sequence[int], *, realtime: bool) -> list[dict[str, Any]]:
    """Search the highest rate of UDP datagrams of each size, one round by all paths that there are."""
    from router.bench import gateway

    paths, _ = gateway.available()
    with gateway.undisturbed() if realtime else contextlib.nullcontext():
        return [row for size in sizes for row in gateway.udp(paths, size, rounds=1)]


def _gateway_table(rows: Sequence[dict[str, Any]], left_out: Sequence[str], console: Console) -> None:
    from rich.table import Table

    console.print("\ngateways: one stream end to end; both ends and the load on these cores")
    table = Table()
    for name in ("path", "MTU", "stream", "Gbit/s", "kpps", "of veth"):
        table.add_column(name, justify="left" if name == "path" else "right")
    for row in rows:
        table.add_row(
            row["path"],
            str(row["mtu"]),
            f"UDP {row['udp_size']}" if "udp_size" in row else "TCP",
            f"{row['gbps']:g}",
            f"{row['mpps'] * 1000:g}" if "mpps" in row else "",
            f"{row.get('of_veth', '-')}",
        )
    if rows:
        console.print(table)
    for sentence in left_out:
        console.print(f"left out: {sentence}")


@app.callback()
def everything(
    context: typer.Context,
    seconds: Seconds = 20.0,
    json: Json = False,
    gateway: Annotated[
        bool, typer.Option("--gateway/--no-gateway", help="Gateways too, where we are root.")
    ] = True,
) -> None:
    """Say what this box carries, and which tier with how many cores."""
    if context.invoked_subcommand:
        return
    from router.bench import figures
    from router.errors import BenchError

    with _refusing():
        measured = figures.measure(seconds=seconds)
        cipher, frames = measured.cipher.rows(), measured.frames.rows()
        tiers = figures.tiers(frames, measured.machine["cores"], measured.imix_duplex_gbps())
        ways: list[dict[str, Any]] = []
        left_out = ["gateways, as asked"]
        if gateway:
            try:
                ways, left_out = _gateway((1500, 8500), seconds, realtime=False)
            except BenchError as error:
                left_out = [f"gateways: {error}"]
    if json:
        document = {"machine": measured.machine, "port_limit": measured.port_limit(), "cipher": cipher}
        document |= {"frames": frames, "tiers": tiers, "gateway": ways}
        print_json(document | {"left_out": [*measured.left_out(), *left_out]})
        return
    console = _console()
    _head(measured, console)
    _table("cipher alone", cipher, console)
    _table("whole frames (802.1Q, SecTAG, PN, cipher, ICV, replay, counters)", frames, console)
    _tier_table(tiers, measured.machine["cores"], console)
    _gateway_table(ways, left_out, console)


def _tier_table(tiers: Sequence[dict[str, Any]], cores: int, console: Console) -> None:
    from rich.table import Table

    console.print("\ncores for the SecY of a tier, both directions full")
    table = Table()
    table.add_column("tier")
    mixes = list(dict.fromkeys(row["mix"] for row in tiers))
    for mix in mixes:
        per_core = next(row["per_core_gbps"] for row in tiers if row["mix"] == mix)
        table.add_column(f"{mix}, {per_core:g} Gbit/s a core", justify="right")
    for tier in dict.fromkeys(row["tier"] for row in tiers):
        row = {one["mix"]: one for one in tiers if one["tier"] == tier}
        cells = (f"{row[m]['cores']}" + ("" if row[m]["supported"] else f" (have {cores})") for m in mixes)
        table.add_row(tier, *cells)
    console.print(table)
    console.print(
        "imix is 64, 576 and 1500 octets 7:4:1, in no order; jumbo 9000. Memory to memory: the port's and the TAP's"
        " cost a frame comes on top, and the gateway figures show it."
    )


@app.command()
def cipher(seconds: Seconds = 8.0, sizes: Sizes = "", json: Json = False) -> None:
    """AES-GCM alone: ours, ipsec-mb, OpenSSL and Python's cryptography beside the port limit."""
    from router.bench import figures

    chosen = _sizes(sizes)
    with _refusing():
        measured = figures.measure(chosen, seconds, frames=False)
    rows = measured.cipher.rows()
    if json:
        document = {"machine": measured.machine, "port_limit": measured.port_limit(), "rows": rows}
        print_json(document | {"cold": measured.cold.rows(), "left_out": measured.left_out()})
        return
    console = _console()
    _head(measured, console)
    _table("cipher alone", rows, console)


@app.command()
def frames(seconds: Seconds = 16.0, sizes: Sizes = "", json: Json = False) -> None:
    """Whole MACsec frames, memory to memory, by cipher backend; beside the ciphers alone."""
    from router.bench import figures

    chosen = _sizes(sizes)
    with _refusing():
        measured = figures.measure(chosen, seconds)
    rows, bare = measured.frames.rows(), measured.cipher.rows()
    if json:
        document = {"machine": measured.machine, "port_limit": measured.port_limit(), "rows": rows}
        print_json(document | {"cipher": bare, "left_out": measured.left_out()})
        return
    console = _console()
    _head(measured, console)
    _table("whole frames", rows, console)
    _table("beside: cipher alone", bare, console)


@app.command()
def gateway(
    seconds: Seconds = 20.0,
    mtu: Annotated[
        list[int] | None, typer.Option(min=1280, max=9000, help="Octets of IP; 1500 and 8500.")
    ] = None,
    realtime: Annotated[
        bool,
        typer.Option(
            help="Real-time priority for all of it: else other work decides. Hard on what runs here."
        ),
    ] = True,
    udp: Annotated[
        list[int] | None,
        typer.Option(min=16, max=8400, help="Octets of UDP payload: the rate that arrives, too."),
    ] = None,
    json: Json = False,
) -> None:
    """One TCP stream through two gateways: plain veth, our fast path, the kernel, wireguard-go. Root."""
    from router.bench import machine

    found = machine.describe()
    with _refusing():
        rows, left_out = _gateway(mtu or (1500, 8500), seconds, realtime=realtime)
        rows += _datagrams(udp or (), realtime=realtime)
    if json:
        print_json({"machine": found, "rows": rows, "left_out": left_out})
        return
    _gateway_table(rows, left_out, _console())
