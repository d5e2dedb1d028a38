"""`lastmile keys`: look at a channel's keys, and rotate them by the rules of the interconnect.

The rules are `router.mka.keychain`'s: one channel of an interconnect at a time, a bake time before the
next, only the side that manages the keys, and a key in use stays. What they need to know comes from
the accepted configuration, the key files, the key daemon, and two files of the state directory: when
we ordered a channel to another key, and when the daemon saw one go over (`router.key_use`). A CAK
is never shown: keys are told apart by CKN and fingerprint.
"""

from __future__ import annotations

import json as json_module
import os
import secrets
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from router.accepted import load_accepted
from router.api.keyd import ask
from router.cli.output import (
    DEFAULT_RUN_DIR,
    DEFAULT_STATE_DIR,
    EXIT_NO,
    LINE_MAX,
    Json,
    RunDir,
    StateDir,
    ago,
    fail,
    print_json,
)
from router.config.effective import Channel, EffectiveConfig
from router.config.keys import Chain, load_chain, write_key
from router.errors import ConfigError, ControlError
from router.key_use import KeyUse
from router.mka.keychain import (
    ChainKey,
    ChainLimits,
    ChannelKeys,
    Rotation,
    Rule,
    chain_limits,
    check,
    make_key,
    refuse_add,
    refuse_remove,
    refuse_replace,
    refuse_rotate,
)
from router.model import ChannelId, Secret

app = typer.Typer(help="Keys of the channels: look, rotate, explain.", no_args_is_help=True)

ROTATIONS = "rotations.json"
ChannelName = Annotated[str, typer.Argument(metavar="CHANNEL", help="The channel's name.")]


@dataclass(frozen=True, slots=True)
class _World:
    """What the verbs work on."""

    config: EffectiveConfig
    run_dir: Path
    state_dir: Path

    def channel(self, name: str) -> Channel:
        try:
            channel = self.config.channel(ChannelId(name))
        except KeyError:
            names = ", ".join(channel.id for channel in self.config.channels)
            fail(f"there is no channel {name!r}; there are {names}")
        if channel.macsec.static is not None:
            fail(f"channel {name} has static keys: nothing is agreed upon there")
        return channel

    def profile(self, channel: Channel) -> str:
        return next(i.profile for i in self.config.interconnects if i.name == channel.interconnect)

    def chain(self, channel: Channel) -> Chain:
        return load_chain(channel.macsec, self.profile(channel), str(channel.id))

    def limits(self, channel: Channel) -> ChainLimits:
        return chain_limits(self.profile(channel), channel.macsec.key_rules)

    def rotation(self, channel: Channel) -> Rotation:
        """Collect what the rules ask about the channel's interconnect."""
        running = _running(self.run_dir)
        ordered, seen_at = _read_rotations(self.state_dir), _key_use(self.state_dir)
        channels = {}
        for other in self.config.channels:
            if other.interconnect != channel.interconnect or other.macsec.static is not None:
                continue
            seen = running.get(other.id, {})
            chain = self.chain(other)
            never = float("-inf")
            channels[other.id] = ChannelKeys(
                ckns=tuple(key.ckn for key in chain.keys),
                in_use=bytes.fromhex(seen["current"]["ckn"]) if seen.get("current") else None,
                live=_live(seen),
                standby=chain.standby,
                starts=tuple(key.start for key in chain.keys),
                rotated_at=max(ordered.get(other.id, never), seen_at.rotated_at(other.id)),
            )
            chain.wipe()
        return Rotation(
            channels=channels,
            manager=channel.macsec.keys_managed_by == "us",
            rules=channel.macsec.key_rules,
            keys_max=self.limits(channel).keys_max,
            bake_s=float(channel.macsec.bake_time_s),
        )

    def directory(self, channel: Channel) -> Path:
        if channel.macsec.key_directory is None:
            fail(
                f"channel {channel.id} has its keys in the configuration: change them there, or give it a"
                " key_chain: {directory: PATH}"
            )
        return Path(channel.macsec.key_directory)


def _world(run_dir: Path, state_dir: Path, config: Path | None) -> _World:
    """Load the accepted configuration, or the file that was named."""
    try:
        if config is not None:
            from router.config.load import load

            return _World(load(config).effective, run_dir, state_dir)
        return _World(load_accepted(run_dir), run_dir, state_dir)
    except ConfigError as error:
        fail(str(error))
    except OSError:
        fail(f"no router runs in {run_dir}; name its --run-dir, or a configuration by --config")


def _running(run_dir: Path) -> dict[str, Any]:
    """What the key daemon says; nothing where none runs."""
    try:
        channels: dict[str, Any] = ask(run_dir, verb="status")["channels"]
    except ControlError:
        return {}
    return channels


def _live(seen: dict[str, Any]) -> frozenset[bytes]:
    """CKNs under which as many peers are live as under the key in use, one at least."""
    chain = seen.get("chain", ())
    needed = max((1, *(key["peers_live"] for key in chain if key["in_use"])))
    return frozenset(bytes.fromhex(key["ckn"]) for key in chain if key["peers_live"] >= needed)


def _read_rotations(state_dir: Path) -> dict[str, float]:
    """When `rotate` or `add --replace` was last ordered, by channel."""
    path = state_dir / ROTATIONS
    try:
        return {str(name): float(at) for name, at in json_module.loads(path.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        fail(f"{path}: {error} - remove it if no rotation is under way")


def _key_use(state_dir: Path) -> KeyUse:
    use = KeyUse(state_dir / KeyUse.FILE)
    try:
        use.load()
    except (OSError, ValueError) as error:
        fail(f"{state_dir / KeyUse.FILE}: {error} - remove it if no rotation is under way")
    return use


def _note_rotation(state_dir: Path, channel: str, at: float) -> None:
    data = {**_read_rotations(state_dir), channel: at}
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = state_dir / (ROTATIONS + ".new")
    fresh.write_text(json_module.dumps(data))
    fresh.rename(state_dir / ROTATIONS)


def _refuse(rule: Rule, *, json: bool, detail: str = "") -> None:
    """End with the rule that forbids it."""
    reason = f"{rule.value}: {detail}" if detail else rule.value
    if json:
        print_json({"ok": False, "rule": rule.name.lower(), "reason": reason})
        raise typer.Exit(EXIT_NO)
    fail(f"refused ({rule.name.lower()}): {reason}", EXIT_NO)


def _check_chain(keys: Iterable[ChainKey], limits: ChainLimits, channel: str, *, json: bool) -> None:
    """End with the limit of the provider that the chain would break."""
    try:
        check(list(keys), limits, f"channel {channel}")
    except ConfigError as error:
        _refuse(Rule.CHAIN_LIMIT, json=json, detail=str(error))


def _done(facts: dict[str, Any], sentence: str, *, json: bool) -> None:
    if json:
        print_json({"ok": True, **facts})
    else:
        typer.echo(sentence)


def _poke(run_dir: Path) -> bool:
    """Have a running key daemon read its files again."""
    try:
        ask(run_dir, verb="reload")
    except ControlError:
        return False
    return True


def _when(text: str | None, otherwise: float) -> float:
    if text is None:
        return otherwise
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        fail(f"{text!r} is no time - write 2026-12-01T00:00:00Z")
    if when.tzinfo is None:
        fail(f"{text!r} has no time zone - write {text}Z for UTC")
    return when.timestamp()


Config = Annotated[
    Path | None,
    typer.Option("--config", help="A configuration file, where no router runs yet."),
]
Force = Annotated[
    bool,
    typer.Option("--first", help="The channel has no key yet: no rule of rotation applies."),
]
Replace = Annotated[
    bool,
    typer.Option(
        "--replace",
        help="Exchange the channel's key, where the provider takes one only: the channel is down until "
        "the other side has it too.",
    ),
]


@app.command("list")
def list_(
    channel: Annotated[str | None, typer.Argument(metavar="CHANNEL", help="Only this one.")] = None,
    json: Json = False,
    run_dir: RunDir = DEFAULT_RUN_DIR,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    config: Config = None,
) -> None:
    """List the keys of one channel or of all: CKN, fingerprint, lifetime, phase and who is live."""
    world = _world(run_dir, state_dir, config)
    names = [channel] if channel else [c.id for c in world.config.channels if c.macsec.static is None]
    running = _running(run_dir)
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    for name in names:
        found = world.channel(name)
        seen = running.get(name)
        if seen and seen["kind"] == "mka":
            rows += [{"channel": name, **key} for key in seen["chain"]]
            problems += [
                f"{name}: {problem}" for problem in filter(None, [seen["expiry"], *seen["problems"]])
            ]
            continue
        chain = world.chain(found)
        rows += [_offline(name, key, chain) for key in chain.keys]
        problems += [f"{name}: {problem}" for problem in chain.problems]
        chain.wipe()
    if json:
        print_json({"keys": rows, "problems": problems})
        return
    _table(rows)
    for problem in problems:
        typer.echo(f"warning: {problem}", err=True)


def _offline(name: str, key: ChainKey, chain: Chain) -> dict[str, Any]:
    return {
        "channel": name,
        "ckn": key.ckn.hex(),
        "fingerprint": key.fingerprint,
        "bits": 8 * len(key.cak),
        "start": None if key.start == float("-inf") else key.start,
        "end": None if key.end == float("inf") else key.end,
        "phase": "standby" if key.ckn in chain.standby else "not running",
        "in_use": False,
        "peers_live": 0,
        "managed": key.ckn in chain.files,
    }


def _table(rows: Iterable[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("CHANNEL", "FINGERPRINT", "BITS", "START", "END", "PHASE", "PEERS", "IN USE", "CKN"):
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(
            row["channel"],
            row["fingerprint"],
            str(row["bits"]),
            _clock(row["start"]),
            _clock(row["end"]),
            row["phase"],
            str(row["peers_live"]),
            "yes" if row["in_use"] else "",
            row["ckn"],
        )
    Console(highlight=False, soft_wrap=True, width=LINE_MAX).print(table)


def _ways(key: dict[str, Any]) -> str:
    return (
        " and ".join(way for way, used in (("receives", key["rx"]), ("transmits", key["tx"])) if used)
        or "not used yet"
    )


def _clock(when: float | None) -> str:
    return "-" if when is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when))


@app.command()
def add(  # noqa: PLR0917 - typer's way to say arguments and options
    channel: ChannelName,
    ckn: Annotated[str | None, typer.Option(help="Its name in hex; generated if left out.")] = None,
    cak_file: Annotated[
        Path | None,
        typer.Option(help="File with the CAK in hex, - for standard input; generated if left out."),
    ] = None,
    start: Annotated[
        str | None, typer.Option(help="When it becomes active; left out: at `keys rotate`.")
    ] = None,
    end: Annotated[str | None, typer.Option(help="When it may no longer be used.")] = None,
    first: Force = False,
    replace_: Replace = False,
    json: Json = False,
    run_dir: RunDir = DEFAULT_RUN_DIR,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    config: Config = None,
) -> None:
    """Add a key to a channel's chain; it runs beside the others until `keys rotate` or its start time.

    Give the other side the same CKN and CAK (the file that is named) before rotating.
    """
    world = _world(run_dir, state_dir, config)
    found = world.channel(channel)
    directory = world.directory(found)
    key = _new_key(ckn, cak_file, _when(start, float("-inf")), _when(end, float("inf")))
    rotation = world.rotation(found)
    chain = world.chain(found)
    fresh, now = not chain.keys, time.time()
    if first and not fresh:
        fail(f"channel {channel} has {len(chain.keys)} keys: leave --first out", EXIT_NO)
    if replace_:
        rule = refuse_replace(rotation, found.id, key.ckn, now)
    else:
        rule = (
            None
            if first
            else refuse_add(rotation, found.id, key.ckn, now, None if start is None else key.start)
        )
    if rule is not None:
        _refuse(rule, json=json)
    former = [chain.files[old.ckn] for old in chain.keys if old.ckn in chain.files] if replace_ else []
    _check_chain([key] if replace_ else [*chain.keys, key], world.limits(found), channel, json=json)
    standby = start is None and not fresh and not replace_
    try:
        path = write_key(directory, key, standby=standby)
    except OSError as error:
        fail(f"{directory}: {error.strerror}")
    if replace_:
        for old in former:
            _destroy(old)
        _note_rotation(state_dir, channel, now)
    _poke(run_dir)
    facts = {
        "channel": channel,
        "ckn": key.ckn.hex(),
        "fingerprint": key.fingerprint,
        "file": str(path),
        "standby": standby,
    }
    then = "; `keys rotate` makes it active" if standby else ""
    sentence = f"{channel}: added {key.ckn.hex()} (fingerprint {key.fingerprint}) in {path}{then}"
    key.cak.wipe()
    chain.wipe()
    _done(facts, sentence, json=json)


def _new_key(ckn: str | None, cak_file: Path | None, start: float, end: float) -> ChainKey:
    """Make or read a key."""
    if cak_file is None:
        key = make_key(secrets.token_bytes(32), secrets.token_bytes(32), start, end)
    else:
        try:
            text = sys.stdin.read() if str(cak_file) == "-" else cak_file.read_text()
            key = ChainKey(b"\0", Secret(bytes.fromhex(text.strip())), start, end)
        except OSError as error:
            fail(f"{cak_file}: {error.strerror}")
        except ValueError:
            fail(f"{cak_file}: is not hex digits")
        if len(key.cak) not in {16, 32}:
            fail(f"{cak_file}: {len(key.cak)} octets - a CAK has 16 or 32")
        if ckn is None:
            fail("a CAK from elsewhere has a name there: give it by --ckn")
    if ckn is not None:
        try:
            name = bytes.fromhex(ckn)
        except ValueError:
            fail(f"{ckn!r} is not hex digits")
        if not 1 <= len(name) <= 32:
            fail(f"a CKN of {len(name)} octets - 1 to 32")
        key = replace(key, ckn=name)
    return key


def _ckn(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        fail(f"{text!r} is no CKN: hex digits, as `keys list` shows it")


@app.command()
def remove(
    channel: ChannelName,
    ckn: Annotated[str, typer.Argument(help="The key's name, as `keys list` shows it.")],
    json: Json = False,
    run_dir: RunDir = DEFAULT_RUN_DIR,
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> None:
    """Remove a key that is not in use."""
    world = _world(run_dir, state_dir, None)
    found = world.channel(channel)
    world.directory(found)
    name = _ckn(ckn)
    if not _running(run_dir):
        fail("the key daemon does not run: nobody knows which key is in use", EXIT_NO)
    if (rule := refuse_remove(world.rotation(found), found.id, name)) is not None:
        _refuse(rule, json=json)
    path = world.chain(found).files.get(name)
    if path is None:
        fail(f"key {ckn} is in the configuration file: remove it there", EXIT_NO)
    _destroy(path)
    _poke(run_dir)
    _done({"channel": channel, "ckn": ckn}, f"{channel}: removed {ckn}", json=json)


def _destroy(path: Path) -> None:
    """Overwrite and remove a key file; what the disk keeps elsewhere is out of reach."""
    try:
        with path.open("r+b") as file:
            file.write(bytes(path.stat().st_size))
            file.flush()
            os.fsync(file.fileno())
        path.unlink()
    except OSError as error:
        fail(f"{path}: {error.strerror}")


@app.command()
def rotate(
    channel: ChannelName,
    ckn: Annotated[str | None, typer.Argument(help="The key to go over to; the one on standby.")] = None,
    json: Json = False,
    run_dir: RunDir = DEFAULT_RUN_DIR,
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> None:
    """Go over to another key of the chain, without a lost frame; its peers must be live under it."""
    world = _world(run_dir, state_dir, None)
    found = world.channel(channel)
    directory = world.directory(found)
    chain = world.chain(found)
    if ckn is None:
        waiting = sorted(chain.standby)
        if len(waiting) != 1:
            fail(f"channel {channel} has {len(waiting)} keys on standby: name one, or add one", EXIT_NO)
        name = waiting[0]
    else:
        name = _ckn(ckn)
    now = time.time()
    if (rule := refuse_rotate(world.rotation(found), found.id, name, now)) is not None:
        _refuse(rule, json=json)
    key = next(key for key in chain.keys if key.ckn == name)
    if name not in chain.files:
        fail(f"key {name.hex()} is in the configuration file: change its start there", EXIT_NO)
    rotated = replace(key, start=now)
    others = [other for other in chain.keys if other is not key]
    _check_chain([*others, rotated], world.limits(found), channel, json=json)
    # Before the key can come into use: the bake time counts from here even if we die now.
    _note_rotation(world.state_dir, channel, now)
    write_key(directory, rotated, standby=False)
    if not _poke(run_dir):
        fail("the key daemon does not answer; it takes the key when it comes back", EXIT_NO)
    chain.wipe()
    seen = _running(run_dir).get(channel, {})
    server = next((p["key_server"] for p in seen.get("participants", ()) if p["principal"]), None)
    # Whoever makes the SAKs chooses the CAK that they are made under.
    when = "" if server in {None, seen.get("sci")} else f" when the key server, {server}, does"
    _done(
        {"channel": channel, "ckn": name.hex(), "key_server": server},
        f"{channel}: going over to {name.hex()}{when}; `keys explain {channel}` shows it",
        json=json,
    )


@app.command()
def rekey(channel: ChannelName, json: Json = False, run_dir: RunDir = DEFAULT_RUN_DIR) -> None:
    """Replace the channel's SAK now, under the same CAK."""
    try:
        ask(run_dir, verb="rekey", channel=channel)
    except ControlError as error:
        if json:
            print_json({"ok": False, "reason": str(error)})
            raise typer.Exit(EXIT_NO) from None
        fail(str(error), EXIT_NO)
    _done({"channel": channel}, f"{channel}: a new SAK is being distributed", json=json)


@app.command()
def explain(channel: ChannelName, json: Json = False, run_dir: RunDir = DEFAULT_RUN_DIR) -> None:
    """Say everything that is known of a channel's key agreement, the most likely trouble first.

    Exit status 1 where the channel is not secured.
    """
    try:
        channels = ask(run_dir, verb="status")["channels"]
    except ControlError as error:
        fail(str(error))
    if channel not in channels:
        fail(f"there is no channel {channel!r}; there are {', '.join(channels)}")
    shown = channels[channel]
    if json:
        print_json(shown)
    elif shown["kind"] == "static":
        typer.echo(f"{channel}: static keys: {shown['state']}")
    else:
        for line in explanation(channel, shown, time.time()):
            typer.echo(line)
    if shown["kind"] == "mka" and shown["port"] != "secured":
        raise typer.Exit(EXIT_NO)


def explanation(name: str, shown: dict[str, Any], now: float) -> Iterable[str]:
    """Put a channel's key agreement into lines."""
    yield f"{name}: {shown['port']}" + (f": {shown['reason']}" if shown["reason"] else "")
    if shown["fail_open"]:
        now_open = "THEY DO NOW" if shown["port"] == "unprotected" else "none does now"
        yield f"  SHOULD-SECURE: while no peer proves a key, FRAMES PASS IN CLEAR; {now_open}"
    yield f"  our SCI {shown['sci'] or '-'}, suite {shown['suite'] or '-'} of {', '.join(shown['suites'])}"
    if shown["wanted_suite"]:
        yield f"  agreed upon {shown['wanted_suite']}: the device is made anew for it"
    for what, key in (("current key", shown["current"]), ("next key", shown["next"])):
        if key:
            left = (
                "" if key["exhaustion_s"] is None else f", exhausted in {key['exhaustion_s']} s at this rate"
            )
            yield (
                f"  {what}: KI {key['ki']} AN {key['an']} {key['suite']}, age {key['age_s']:.0f} s, "
                f"PN {key['next_pn']}{left}, SSCI {key['ssci'] or '-'}, "
                f"{_ways(key)}"
            )
            if key["confidentiality"] != "offset-0":
                yield f"    {key['confidentiality']}: not all of each frame is encrypted"
            yield f"    under CKN {key['ckn'] or '(adopted)'}; made because: {key['reason']}"
    for participant in shown["participants"]:
        role = "principal" if participant["principal"] else "standing by"
        heard = f"{ago(participant['heard_at'], now)} ago" if participant["heard_at"] else "never"
        yield f"  CKN {participant['ckn']}: {role}, peer with this key heard {heard}"
        if participant["icv_failures"]:
            yield (
                f"    {participant['icv_failures']} MKPDUs with this CKN and a wrong ICV, last "
                f"{ago(participant['icv_failed_at'], now)} ago: the CAKs differ"
            )
        if participant["key_server"]:
            yield f"    key server {participant['key_server']}: {participant['key_server_reason']}"
        for peer in participant["peers"]:
            offers = ", ".join(peer["offers"]) if peer["offers"] else "no announcement"
            yield (
                f"    peer {peer['sci']} {'live' if peer['live'] else 'potential'}, priority {peer['priority']}, "
                f"MI {peer['mi']} MN {peer['mn']}, MKA version {peer['version']}, "
                f"last seen {now - peer['last_seen']:.1f} s ago, offers {offers}"
            )
    for unknown in shown["unknown_ckns"]:
        yield (
            f"  unknown CKN {unknown['ckn']} from {unknown['source']}: {unknown['count']} times, last "
            f"{ago(unknown['last_seen'], now)} ago"
        )
    for problem in filter(None, [shown["expiry"], *shown["problems"]]):
        yield f"  warning: {problem}"
    if shown["drops"]:
        yield "  dropped MKPDUs: " + ", ".join(f"{reason} {n}" for reason, n in shown["drops"].items())
    for transition in shown["transitions"][-8:]:
        at, _, what = transition.partition(" ")
        yield f"  {_clock(float(at))} {what}"
