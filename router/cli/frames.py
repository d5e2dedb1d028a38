"""`lastmile frames`: MACsec on captures. Decrypt your own capture, or make a protected one.

Keys come from a key file (see `router.dataplane.keyfile`) and never from the command line.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Final, NamedTuple

import typer

from router.cli.output import EXIT_NO, Json, fail, print_json
from router.errors import LastmileError

if TYPE_CHECKING:
    from router.dataplane.frames import Secy
    from router.dataplane.keyfile import Association, KeyFile
    from router.dataplane.pcap import Captured

app = typer.Typer(no_args_is_help=True, help="Protect and validate MACsec frames in captures.")

Capture = Annotated[Path, typer.Argument(metavar="CAPTURE", help="pcap or pcapng, Ethernet.")]
Keys = Annotated[Path, typer.Option("--keys", help="Key file, readable by its owner alone.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="pcap to write, for its owner alone.")]
Backend = Annotated[
    str | None, typer.Option(help="Cipher: openssl, ipsec-mb, vaes512, ...; the fastest by default.")
]

_BATCH: Final = 256
"""Frames that cross into C at once."""
_EAPOL: Final = b"\x88\x8e"
_CAUSES_SHOWN: Final = 20
"""A capture of rubbish has as many senders as frames."""

_ADVICE: Final = MappingProxyType(
    {
        "in_pkts_not_valid": "another sak, ssci, salt or (with XPN, beyond 2^32 frames) pn than the sender's,"
        " or the frame was changed",
        "in_pkts_no_sci": "the key file has no association with this SCI - add one",
        "in_pkts_not_using_sa": "the key file has this SCI under other ANs only - add an association",
        "in_pkts_no_tag": "not MACsec - --keep-clear lets such frames through",
        "in_pkts_bad_tag": "not a SecTAG of IEEE 802.1AE, or the frame is too short for it",
        "in_pkts_late": "a replay, or below the pn of the key file or the --replay-window",
        "out_pkts_pn_exhausted": "no packet numbers are left under this key - use another one",
    }
)
"""What the operator can do about frames that were dropped, by the counter they are counted under."""


class _Cause(NamedTuple):
    """What dropped frames have in common."""

    counter: str
    sender: str
    """`SCI 02:00:00:00:00:0a/1 AN 0` as the SecTAG has it; empty where there is none."""


@dataclass(slots=True)
class _Lost:
    """How many there were."""

    first: int
    """Number of the first one in the capture, as Wireshark counts: from 1."""
    count: int = 0


@dataclass(slots=True)
class _Tally:
    """What passed through, beside the SecY's own counters."""

    frames_in: int = 0
    frames_out: int = 0
    eapol: int = 0
    """Frames of the key agreement: not the controlled port's, copied as they are."""
    truncated: int = 0
    """Frames whose end the capture did not keep: they cannot authenticate."""
    lost: dict[_Cause, _Lost] = field(default_factory=dict)
    """The frames that were dropped."""


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except LastmileError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))


@contextlib.contextmanager
def _opened(capture: Path, out: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Open both; the output appears under its name only when it is whole."""
    with capture.open("rb") as source:
        if out.exists() and not out.is_file():
            fail(f"{out}: is not a file")
        partial = out.with_name(f".{out.name}.{os.getpid()}")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as target:
                yield source, target
            partial.replace(out)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _convert(
    capture: Path,
    out: Path,
    run: Callable[[Any], None],
    vlan: int | None = None,
) -> _Tally:
    """Pass a capture through a SecY, in order and in batches."""
    from router.dataplane.frames import Batch
    from router.dataplane.pcap import FRAME_SIZE_MAX, PcapWriter, read_capture
    from router.errors import ConfigError

    tally = _Tally()
    batch = Batch(_BATCH, FRAME_SIZE_MAX)
    waiting: list[tuple[Captured, bool]] = []

    with _opened(capture, out) as (source, target):
        writer = PcapWriter(target)

        def flush() -> None:
            run(batch)
            index = 0
            for number, (captured, through) in enumerate(waiting, tally.frames_in - len(waiting) + 1):
                if not through:
                    writer.write(captured.time_ns, captured.frame)
                    tally.frames_out += 1
                    continue
                verdict = batch.verdict(index)
                if verdict.delivers:
                    writer.write(captured.time_ns, batch.frame(index))
                    tally.frames_out += 1
                else:
                    cause = _Cause(verdict.value, _sender(captured.frame))
                    tally.lost.setdefault(cause, _Lost(number)).count += 1
                index += 1
            batch.clear()
            waiting.clear()

        try:
            for captured in read_capture(source):
                tally.frames_in += 1
                tally.truncated += captured.truncated
                through = captured.frame[12:14] != _EAPOL
                tally.eapol += not through
                if through:
                    batch.append(captured.frame, vlan)
                waiting.append((captured, through))
                if len(batch) == _BATCH or len(waiting) == 4 * _BATCH:
                    flush()
            flush()
        except ConfigError as error:
            raise ConfigError(f"{capture}: {error}") from None
    return tally


def _sender(frame: bytes) -> str:
    """Whose frame it is by its SecTAG; an SCI that is left out is the source's, of an end station."""
    from router.dataplane.frame import ETHERTYPE_MACSEC, parse_sectag
    from router.model import MacAddress

    tag = parse_sectag(frame) if frame[12:14] == ETHERTYPE_MACSEC else None
    if tag is None:
        return ""
    # Not by `Sci`, which knows no port 0: anything may be in a capture.
    mac, port = (tag.sci[:6], int.from_bytes(tag.sci[6:])) if tag.sci else (frame[6:12], 1)
    return f"SCI {MacAddress(mac)}/{port} AN {tag.an}"


def _report(secy: Secy, tally: _Tally, capture: Path, out: Path, *, as_json: bool, **more: Any) -> None:
    """Print what became of the frames, by 802.1AE counter, and end with 1 if any was dropped."""
    from router.dataplane.frame import Verdict

    counters = {name: count for name, count in secy.counters.items() if count}
    dropped = {v.value: counters[v.value] for v in Verdict if not v.delivers and v.value in counters}
    if as_json:
        print_json(
            {
                "ok": not dropped,
                "input": str(capture),
                "output": str(out),
                "backend": secy.backend,
                "frames_in": tally.frames_in,
                "frames_out": tally.frames_out,
                "eapol": tally.eapol,
                "truncated": tally.truncated,
                "dropped": dropped,
                "causes": [
                    {
                        "counter": cause.counter,
                        "sender": cause.sender,
                        "count": lost.count,
                        "first": lost.first,
                    }
                    for cause, lost in list(tally.lost.items())[:_CAUSES_SHOWN]
                ],
                "counters": counters,
                **more,
            }
        )
    else:
        typer.echo(f"{capture}: {tally.frames_in} frames; {out}: {tally.frames_out} frames ({secy.backend})")
        if tally.eapol:
            typer.echo(f"  {tally.eapol:>12}  EAPOL frames copied as they are")
        if tally.truncated:
            typer.echo(
                f"  {tally.truncated:>12}  frames were cut off by the capture (tcpdump -s 0 keeps all)"
            )
        for name, count in counters.items():
            typer.echo(f"  {count:>12}  {name}{'  DROPPED' if name in dropped else ''}")
        for name, value in more.items():
            typer.echo(f"  {value:>12}  {name}")
        for cause, lost in list(tally.lost.items())[:_CAUSES_SHOWN]:
            advice = _ADVICE.get(cause.counter, "")
            typer.echo(
                f"{cause.counter}: {lost.count}, the first is frame {lost.first}"
                + (f", {cause.sender}" if cause.sender else "")
                + (f": {advice}" if advice else "")
            )
    if secy.note:
        typer.echo(f"note: {secy.note}", err=True)
    if dropped:
        raise typer.Exit(EXIT_NO)


@app.command()
def validate(  # noqa: PLR0917 - typer's way to say arguments and options
    capture: Capture,
    keys: Keys,
    out: Out,
    replay_window: Annotated[
        int | None,
        typer.Option(min=0, max=(1 << 30) - 1, help="Refuse replays in this window; off by default."),
    ] = None,
    keep_clear: Annotated[
        bool, typer.Option("--keep-clear", help="Let frames without MACsec through instead of dropping them.")
    ] = False,
    clear_tags: Annotated[
        int, typer.Option(min=0, max=2, help="VLAN tags that may stand in clear before the SecTAG.")
    ] = 0,
    backend: Backend = None,
    as_json: Json = False,
) -> None:
    """Decrypt a capture: check every ICV, take SecTAG and ICV off, write what is authentic.

    EAPOL frames are copied. Exit status 0: all frames passed; 1: some were dropped, counted by
    their 802.1AE names; 2: it could not be done.
    """
    from router.dataplane.frame import Policy, Validate
    from router.dataplane.frames import Secy
    from router.dataplane.keyfile import load_key_file

    with _refusing():
        file = load_key_file(keys)
        policy = Policy(
            suite=file.suite,
            sci=file.associations[0].sci,
            replay_protect=replay_window is not None,
            # Without protection the window only tells the PN's high half from: let it stay behind.
            replay_window=replay_window if replay_window is not None else 1 << 16,
            validate=Validate.CHECK if keep_clear else Validate.STRICT,
            confidentiality_offset=file.confidentiality_offset,
            clear_tags=clear_tags,
        )
        with Secy(policy, backend) as secy:
            for sa in file.associations:
                secy.add_receive_sc(sa.sci)
                secy.install_receive(sa.sci, sa.an, sa.key, sa.pn)
                secy.enable_receive(sa.sci, sa.an)
            tally = _convert(capture, out, secy.validate_batch)
            _report(secy, tally, capture, out, as_json=as_json)


def _choose(file: KeyFile, sci: str | None, an: int | None) -> Association:
    from router.model import Sci

    try:
        wanted = Sci.parse(sci) if sci else None
    except ValueError as error:
        fail(f"--sci: {error}")
    fitting = [
        sa for sa in file.associations if (wanted is None or sa.sci == wanted) and (an is None or sa.an == an)
    ]
    if len(fitting) != 1:
        fail(f"{len(fitting)} associations of the key file fit; choose one by --sci and --an")
    return fitting[0]


@app.command()
def protect(  # noqa: PLR0917 - see validate
    capture: Capture,
    keys: Keys,
    out: Out,
    sci: Annotated[
        str | None, typer.Option(help="Send as this SC (MAC/PORT), if the file has several.")
    ] = None,
    an: Annotated[int | None, typer.Option(min=0, max=3, help="Send under this AN.")] = None,
    vlan: Annotated[
        int | None, typer.Option(min=1, max=4094, help="Push this VLAN's tag, inside the protection.")
    ] = None,
    integrity_only: Annotated[
        bool, typer.Option("--integrity-only", help="Authenticate, but do not encrypt.")
    ] = False,
    no_sci: Annotated[bool, typer.Option("--no-sci", help="Leave the SCI out of the SecTAG.")] = False,
    clear_tags: Annotated[
        int, typer.Option(min=0, max=2, help="Leave so many outer VLAN tags in clear before the SecTAG.")
    ] = 0,
    backend: Backend = None,
    as_json: Json = False,
) -> None:
    """Protect a capture: every frame gets SecTAG and ICV, packet numbers from the key file's on.

    Never send two captures under one key with the same packet numbers: put the printed next_pn
    into the key file first. EAPOL frames are copied. Exit status as for validate.
    """
    from router.dataplane.frame import Policy
    from router.dataplane.frames import Secy
    from router.dataplane.keyfile import load_key_file

    with _refusing():
        file = load_key_file(keys)
        sa = _choose(file, sci, an)
        policy = Policy(
            suite=file.suite,
            sci=sa.sci,
            frame_max=0xFFFF,
            encrypt=not integrity_only,
            confidentiality_offset=file.confidentiality_offset,
            include_sci=not no_sci,
            end_station=no_sci and sa.sci.port == 1,
            clear_tags=clear_tags,
        )
        with Secy(policy, backend) as secy:
            secy.install_transmit(sa.an, sa.key, sa.pn)
            secy.enable_transmit(sa.an)
            tally = _convert(capture, out, secy.protect_batch, vlan)
            _report(secy, tally, capture, out, as_json=as_json, next_pn=secy.next_pn(sa.an))
