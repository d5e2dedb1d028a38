"""ExaBGP's configuration: rendered, validated, installed, and the command line that runs it.

One flat file per process, no templates: a template's scalars would override the neighbour's own
values. At least two processes, one a site, so that the crash of one cannot take all sessions.

A broken file is poison to a running ExaBGP (it kills the helper, and the next update drops every
session), so a file reaches its place only after `exabgp validate` has accepted it, by rename.
It holds the MD5 passwords: mode 0600, owned by the user ExaBGP runs as.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import sys
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from router.config.effective import Connection, EffectiveConfig, Session
from router.errors import ConfigError
from router.model import Secret
from router.supervise import ChildSpec

SHIM: Final = Path(__file__).with_name("shim.py")
USER: Final = "nobody"
MD5_PASSWORD_MAX: Final = 80
"""Octets (TCP_MD5SIG_MAXKEYLEN)."""
VALIDATE_TIMEOUT_S: Final = 30.0

ENVIRONMENT: Final = {
    "exabgp_api_ack": "true",
    "exabgp_api_cli": "false",  # its fifo in /run is shared by all network namespaces
    "exabgp_api_compact": "true",
    "exabgp_api_respawn": "true",
    "exabgp_api_terminate": "false",
    "exabgp_daemon_daemonize": "false",
    "exabgp_daemon_drop": "true",
    "exabgp_log_destination": "stderr",
    "exabgp_log_level": "ERROR",
    "exabgp_tcp_bind": "",  # it only connects out
    "PYTHONNOUSERSITE": "1",
}
"""ExaBGP's settings; everything it would read from a file in /etc otherwise."""


def processes(config: EffectiveConfig) -> dict[str, tuple[Session, ...]]:
    """Share the sessions out: a process a site, or two where there is only one site.

    With one site, channels alternate in the order of the file, so that adding one at the end
    moves none.
    """
    groups: dict[str, list[Session]] = {}
    sites = {session.site for session in config.sessions}
    order = [channel.id for channel in config.channels]
    for session in config.sessions:
        name = session.site
        if len(sites) == 1:
            name = f"{session.site}.{order.index(session.channel) % 2 + 1}"
        groups.setdefault(name, []).append(session)
    return {name: tuple(groups[name]) for name in sorted(groups)}


def config_path(process: str, run_dir: Path) -> Path:
    """Where a process's configuration file is."""
    return run_dir / f"bgp-{process}.conf"


def socket_path(process: str, run_dir: Path) -> Path:
    """Where routerd listens for a process's shim."""
    return run_dir / f"bgp-{process}.sock"


def child(process: str, run_dir: Path, user: str | None = USER) -> ChildSpec:
    """Say how the supervisor starts a process."""
    environment = {**ENVIRONMENT, "exabgp_daemon_user": user or _own_user()}
    argv = (sys.executable, "-m", "exabgp", "server", str(config_path(process, run_dir)))
    return ChildSpec(f"exabgp-{process}", argv, environment, user)


def _own_user() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name


def render(
    sessions: tuple[Session, ...],
    connections: Mapping[str, Connection],
    passwords: Mapping[str, Secret],
    socket: Path,
) -> str:
    """Write the file of one process. `passwords` by session name. Raises ConfigError."""
    known: dict[tuple[str, str], str] = {}
    for session in sessions:
        key = (session.addresses.local, session.addresses.peer)
        if key in known:
            raise ConfigError(
                f"sessions {known[key]} and {session.name} have the same addresses {key[0]} and {key[1]}; "
                "one ExaBGP process cannot hold both: put the channels on different sites"
            )
        known[key] = session.name
    argv = [sys.executable, "-I", "-S", "-B", str(SHIM), str(socket)]
    run = " ".join(_quoted(word) for word in argv)
    process = f"process shim {{\n    run {run};\n    encoder json;\n    respawn true;\n}}\n"
    neighbors = [
        _neighbor(session, connections[session.connection], passwords.get(session.name))
        for session in sessions
    ]
    return process + "".join(neighbors)


_RECEIVE: Final = "receive { parsed; update; open; notification; refresh; }"


def _neighbor(session: Session, connection: Connection, password: Secret | None) -> str:
    bgp = connection.bgp
    restart = bgp.graceful_restart_s
    if bgp.md5_required and password is None:
        raise ConfigError(f"session {session.name}: the profile requires an MD5 password and there is none")
    lines = [
        f"description {_quoted(session.name)};",
        f"local-address {session.addresses.local};",
        f"source-interface {_quoted(session.device)};",
        f"local-as {session.local_asn};",
        f"peer-as {session.peer_asn};",
        f"router-id {session.router_id};",
        f"hold-time {bgp.timers.hold_s};",
        "adj-rib-in false;",  # the shim remembers, and both next hops of IPv6
        "adj-rib-out true;",
        "group-updates true;",
        # With graceful restart an early End-of-RIB makes the peer flush what we have not yet
        # announced again; the speaker sends it when it has.
        f"manual-eor {'true' if restart else 'false'};",
        f"outgoing-ttl {bgp.ttl};",
    ]
    if bgp.gtsm:
        lines.append("incoming-ttl 255;")
    if password is not None:
        lines += _md5_lines(session, password)
    lines += [
        "capability { asn4 enable; route-refresh enable; graceful-restart %s; }" % (restart or "disable"),
        f"family {{ {session.afi} unicast; }}",
        f"api {{ processes [ shim ]; neighbor-changes; negotiated; fsm; {_RECEIVE} }}",
    ]
    body = "".join(f"    {line}\n" for line in lines)
    return f"neighbor {session.addresses.peer} {{\n{body}}}\n"


def _quoted(text: str) -> str:
    """Quote a word for ExaBGP's tokeniser, which undoes backslashes before it looks for quotes."""
    if any(character in "\"'" or not character.isprintable() for character in text):
        raise ConfigError(f"{text!r} cannot stand in ExaBGP's configuration: it contains a quote")
    return '"' + text.replace("\\", "\\\\") + '"'


def _md5_lines(session: Session, password: Secret) -> list[str]:
    octets = password.reveal()
    if not 0 < len(octets) <= MD5_PASSWORD_MAX:
        raise ConfigError(
            f"session {session.name}: the MD5 password has {len(octets)} octets; it must have 1 to {MD5_PASSWORD_MAX}"
        )
    if not all(0x20 < octet < 0x7F for octet in octets):
        raise ConfigError(
            f"session {session.name}: the MD5 password contains a space, a control character or a "
            "character beyond ASCII; check the file for a trailing space"
        )
    text = octets.decode("ascii")
    if '"' in text or "'" in text:
        # Quotes cannot be written, and without this setting all else is taken literally.
        return [f"md5-password {_quoted(b64encode(octets).decode())};", "md5-base64 true;"]
    return [f"md5-password {_quoted(text)};", "md5-base64 false;"]


async def install(texts: Mapping[Path, str], *, user: str | None, secrets: Mapping[str, Secret]) -> set[Path]:
    """Validate the texts and put all of them in place, or none; return the files that changed.

    Raises ConfigError with ExaBGP's reason, passwords taken out; the old files stay then.
    """
    fresh: dict[Path, Path] = {}
    try:
        for path, text in texts.items():
            if not _holds(path, text):
                fresh[path] = path.with_name(path.name + ".new")
                _write(fresh[path], text, user)
        if fresh:
            await validate(list(fresh.values()), secrets)
    except BaseException:
        for path in fresh.values():
            path.unlink(missing_ok=True)
        raise
    for path, checked in fresh.items():
        checked.rename(path)
    return set(fresh)


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() == text.encode()
    except FileNotFoundError:
        return False


def _write(path: Path, text: str, user: str | None) -> None:
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        if user is not None and os.geteuid() == 0:
            account = pwd.getpwnam(user)
            os.fchown(fd, account.pw_uid, account.pw_gid)
        file.write(text.encode())


async def validate(paths: Sequence[Path], secrets: Mapping[str, Secret]) -> None:
    """Have one ExaBGP parse the files, each for itself. Raises ConfigError."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "exabgp", "validate", "--neighbor", "--route", *map(str, paths)),
        env={**os.environ, **ENVIRONMENT},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), VALIDATE_TIMEOUT_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise ConfigError(f"exabgp validate did not end within {VALIDATE_TIMEOUT_S:.0f} s") from None
    if process.returncode != 0:
        said = output.decode("utf-8", "replace")
        for secret in secrets.values():
            octets = secret.reveal()
            for shown in (octets, octets.replace(b"\\", b"\\\\"), b64encode(octets)):
                said = said.replace(shown.decode("ascii", "replace"), "<redacted>")
        raise ConfigError(f"ExaBGP refuses the configuration we generated: {said.strip()[-500:]}")
