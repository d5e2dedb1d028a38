"""The `lastmile` command. Every verb has --json; heavy imports stand in the verbs that need them."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from router import __version__
from router.cli.output import (
    DEFAULT_RUN_DIR,
    DEFAULT_STATE_DIR,
    EXIT_NO,
    EXIT_USAGE,
    ConfigFile,
    Json,
    RunDir,
    StateDir,
    fail,
    need_root,
    print_json,
)
from router.errors import LastmileError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from router.api.types import CheckResult
    from router.config.findings import Finding
    from router.config.load import Loaded

app = typer.Typer(
    help="A software edge router that terminates private cloud interconnects.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="Look at the effective configuration.", no_args_is_help=True)
app.add_typer(config_app, name="config")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"lastmile {__version__}")
        raise typer.Exit


@app.callback()
def root(
    _version_: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take the options that stand before the verb."""


# ---------------------------------------------------------------- configuration


def _findings(file: Path, findings: Iterable[Finding], *, ok: bool) -> CheckResult:
    from router.api.types import CheckResult, FindingStatus

    rows = [FindingStatus(f.file, f.line, f.column, f.path, f.message, f.severity.value) for f in findings]
    return CheckResult(ok=ok, file=str(file), findings=rows)


def _load(file: Path, *, json: bool, secrets: bool = True) -> Loaded:
    """Load a file, or end with every finding in it."""
    from router.config.findings import ConfigErrors
    from router.config.load import load
    from router.config.secrets import check_secrets

    try:
        loaded = load(file)
    except ConfigErrors as error:
        _refuse(file, error.findings, json=json)
    if secrets and (findings := check_secrets(loaded.effective, loaded.origins)):
        _refuse(file, [*loaded.warnings, *findings], json=json)
    return loaded


def _refuse(file: Path, findings: Sequence[Finding], *, json: bool) -> NoReturn:
    if json:
        print_json(asdict(_findings(file, findings, ok=False)))
    else:
        for finding in findings:
            typer.echo(str(finding), err=True)
        typer.echo(f"{file}: refused", err=True)
    raise typer.Exit(EXIT_NO)


@app.command()
def check(
    file: ConfigFile,
    json: Json = False,
    no_secrets: Annotated[
        bool, typer.Option("--no-secrets", help="Do not look at the files that hold secrets.")
    ] = False,
) -> None:
    """Check a configuration file: every error and warning, with line and fix."""
    loaded = _load(file, json=json, secrets=not no_secrets)
    if json:
        print_json(asdict(_findings(file, loaded.warnings, ok=True)))
        return
    for finding in loaded.warnings:
        typer.echo(str(finding), err=True)
    config = loaded.effective
    typer.echo(
        f"{file}: ok: {len(config.channels)} channels over {len(config.sites)} sites, "
        f"{len(config.connections)} connections, {len(config.sessions)} BGP sessions"
    )


@config_app.command("show")
def config_show(
    file: ConfigFile,
    origin: Annotated[bool, typer.Option("--origin", help="Say where each value comes from.")] = False,
    json: Json = False,
) -> None:
    """Show every effective value, and with --origin whether the file, a profile or we said so."""
    from router.config.show import nested, show

    loaded = _load(file, json=json, secrets=False)
    if json:
        print_json(nested(loaded, origin=origin))
        return
    rows = show(loaded)
    width = max((len(row.path) for row in rows), default=0)
    for row in rows:
        line = f"{row.path:<{width}}  {row.value}"
        typer.echo(f"{line}  # {row.origin}" if origin else line)


@app.command()
def schema(
    what: Annotated[
        str, typer.Argument(help="config, or the output of a verb: status, routes, plan, check.")
    ] = "config",
    json: Json = False,  # noqa: ARG001 - a schema is JSON either way
) -> None:
    """Print a JSON Schema: of the configuration file (for editors) or of a verb's --json."""
    if what == "config":
        from router.config.load import json_schema

        print_json(json_schema())
        return
    from pydantic import TypeAdapter

    from router.api import types

    shapes: dict[str, Any] = {
        "status": types.Status,
        "routes": types.Routes,
        "plan": types.PlanResult,
        "check": types.CheckResult,
    }
    if what not in shapes:
        fail(f"no schema {what!r}; there are config, {', '.join(shapes)}")
    print_json(TypeAdapter(shapes[what]).json_schema())


@app.command()
def plan(file: ConfigFile, json: Json = False, run_dir: RunDir = DEFAULT_RUN_DIR) -> None:
    """Show what `run` or `reload` would change here, in order, and which sessions it would reset."""
    import asyncio

    from router.api.types import ImpactStatus, PlanResult
    from router.cli.plan import make_plan

    loaded = _load(file, json=json)
    need_root("plan")
    actions, impact, secys = asyncio.run(make_plan(loaded.effective, run_dir))
    result = PlanResult(
        str(file), actions, [ImpactStatus(item.object, item.effect, item.reason) for item in impact], secys
    )
    if json:
        print_json(asdict(result))
        return
    for secy in result.secys:
        typer.echo(f"  MACsec of {secy}")
    for number, action in enumerate(result.actions, 1):
        typer.echo(f"{number:4}  {action}")
    if not result.actions:
        typer.echo("the kernel is as this configuration wants it")
    typer.echo("")
    for item in result.impact:
        typer.echo(f"  {item.effect}: {item.object}" + (f": {item.reason}" if item.reason else ""))
    if not any(item.effect == "reset" for item in result.impact):
        typer.echo("  no session is reset")


# ---------------------------------------------------------------- the daemon


@app.command()
def run(
    file: ConfigFile,
    run_dir: RunDir = DEFAULT_RUN_DIR,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    release: Annotated[
        bool, typer.Option("--release", help="When stopped, remove all that we made in the kernel.")
    ] = False,
    json: Json = False,
) -> None:
    """Run the router in the foreground: this process supervises, its children do the work."""
    from router.accepted import accept

    loaded = _load(file, json=json)
    need_root("run")
    for finding in loaded.warnings:
        typer.echo(str(finding), err=True)
    try:
        for directory, mode in ((run_dir, 0o755), (state_dir, 0o700)):
            directory.mkdir(mode=mode, parents=True, exist_ok=True)
        accept(run_dir, file.absolute(), file.read_text(), loaded.effective)
    except OSError as error:
        fail(f"cannot write {error.filename}: {error.strerror}")
    os.environ["LASTMILE_LOG"] = "json" if json or not sys.stderr.isatty() else "pretty"
    words = [sys.executable, "-m", "router.supervise", f"--config={file.absolute()}"]
    words += [f"--run-dir={run_dir.absolute()}", f"--state-dir={state_dir.absolute()}"]
    words += ["--release"] if release else []
    os.execv(sys.executable, words)  # noqa: S606 - the supervisor is smaller than this process


@app.command()
def reload(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Change over to this file instead.")
    ] = None,
    json: Json = False,
    run_dir: RunDir = DEFAULT_RUN_DIR,
) -> None:
    """Let the running router load its file again; a file with an error changes nothing."""
    from router.api.client import request

    body = {"path": str(file.absolute())} if file else {}
    status, answer = request(run_dir, "POST", "/v1/reload", body)
    if "findings" not in answer:
        fail(answer.get("error", f"reload: status {status}"))
    if json:
        print_json(answer)
    else:
        for f in answer["findings"]:
            where = f"{f['file']}:{f['line']}" if f["line"] else f["file"]
            typer.echo(
                f"{where}: {f['path']}: {f['message']}" if f["path"] else f"{where}: {f['message']}", err=True
            )
        typer.echo(f"{answer['file']}: {'accepted' if answer['ok'] else 'refused, the running one stays'}")
    if not answer["ok"]:
        raise typer.Exit(EXIT_NO)


@app.command()
def stop(
    release: Annotated[
        bool, typer.Option("--release", help="Remove all that we made in the kernel.")
    ] = False,
    json: Json = False,
    run_dir: RunDir = DEFAULT_RUN_DIR,
) -> None:
    """Stop the running router: routes are withdrawn first; the kernel goes on unless --release."""
    import asyncio

    from router.supervise import ask

    try:
        asyncio.run(ask(run_dir, {"stop": True, "release": release}))
    except OSError:
        fail(f"no router runs in {run_dir}")
    if json:
        print_json({"ok": True})


@app.command()
def status(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Everything, not a line a channel.")
    ] = False,
    json: Json = False,
    run_dir: RunDir = DEFAULT_RUN_DIR,
) -> None:
    """Say how each channel is, and why. Exit code 0 where all that are enabled are up."""
    from router.api.client import get

    data = get(run_dir, "/v1/status")
    if json:
        print_json(data)
    else:
        from router.cli.status import print_status

        print_status(data, verbose=verbose)
    if any(channel["verdict"] not in {"up", "disabled"} for channel in data["channels"]):
        raise typer.Exit(EXIT_NO)


@app.command()
def routes(
    prefix: Annotated[str, typer.Argument(help="Only this prefix, with all its paths.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 1000,
    json: Json = False,
    run_dir: RunDir = DEFAULT_RUN_DIR,
) -> None:
    """Show the routes from BGP: next hops, paths, and why a path is not used."""
    from urllib.parse import urlencode

    from router.api.client import get

    query = {"limit": limit, **({"prefix": prefix} if prefix else {})}
    data = get(run_dir, f"/v1/routes?{urlencode(query)}")
    if json:
        print_json(data)
        return
    for route in data["routes"]:
        typer.echo(f"{route['prefix']}  table {route['table']}  nexthop group {route['group']}")
        for path in route["paths"]:
            mark = "*" if path["selected"] else " "
            why = f"  ({path['reason']})" if path["reason"] else ""
            typer.echo(
                f"  {mark} via {path['nexthop']} dev {path['device']}  {path['session']}  [{path['as_path']}]{why}"
            )
    shown = len(data["routes"])
    more = f", {shown} shown" if shown < data["total"] else ""
    typer.echo(f"{data['total']} prefixes{more}")


def main() -> None:
    """Entry point: our errors are sentences; a pipe that closes or Ctrl-C is no traceback."""
    from router.cli import bench, frames, keys, lab

    app.add_typer(keys.app, name="keys")
    app.add_typer(lab.app, name="lab")
    app.add_typer(frames.app, name="frames")
    app.add_typer(bench.app, name="bench")
    try:
        app()
    except LastmileError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(EXIT_USAGE)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)


if __name__ == "__main__":
    main()
