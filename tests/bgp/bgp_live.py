"""A router namespace and a peer namespace with veth links; FRR, BIRD or GoBGP in the peer.

    [ router ns: ExaBGP ] chN ======== pN [ peer ns: one BGP daemon with N*2 sessions ]

Everything is ended by its own pid and removed at the end, whatever happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bgp_builders import LOCAL_ASN, PEER_ASN

from router.bgp import md5
from router.bgp.rib import SessionChange
from router.bgp.speaker import Routes, Speaker, Synced
from router.config.effective import EffectiveConfig, SecretRef
from router.fib import Fib
from router.model import Prefix, Secret
from router.supervise import ChildSpec, _before_exec

PASSWORD = "s3cret-Primary"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


async def until(condition: Callable[[], object], what: str, timeout: float = 20.0) -> None:
    """Poll with a deadline."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:.0f} s: {what}")
        await asyncio.sleep(0.02)


class Bench:
    """Namespaces, links and processes of one test."""

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.router = f"bgpr{os.getpid()}"
        self.peer = f"bgpp{os.getpid()}"
        self.run_dir = Path(tempfile.mkdtemp(prefix="bgp-test-"))
        self.run_dir.chmod(0o755)
        self._processes: list[subprocess.Popen[bytes]] = []

    def up(self) -> None:
        for name in (self.router, self.peer):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        for n in range(1, self.channels + 1):
            ip(
                "link",
                "add",
                f"ch{n}",
                "netns",
                self.router,
                "type",
                "veth",
                "peer",
                f"p{n}",
                "netns",
                self.peer,
            )
            for ns, device, host in ((self.router, f"ch{n}", 1), (self.peer, f"p{n}", 2)):
                ip("-n", ns, "addr", "add", f"169.254.{n}.{host}/30", "dev", device)
                ip("-n", ns, "addr", "add", f"fd00:{n:x}::{host}/126", "dev", device, "nodad")
                ip("-n", ns, "link", "set", device, "up")

        self.anchor = self.spawn(self.router, "sleep", "1000")

    def open_ears(self):
        """Open the ears in the router's namespace: a thread of its own enters it."""
        with ThreadPoolExecutor(1) as thread, Path(f"/run/netns/{self.router}").open() as namespace:
            libc = ctypes.CDLL(None, use_errno=True)
            assert thread.submit(libc.setns, namespace.fileno(), 0x40000000).result() == 0
            return thread.submit(md5.open_ears).result()

    def down(self) -> None:
        for process in reversed(self._processes):
            self.stop(process)
        for name in (self.router, self.peer):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        shutil.rmtree(self.run_dir, ignore_errors=True)

    def spawn(self, namespace: str, *argv: str, user: str | None = None, env: dict[str, str] | None = None):
        """Start a program in a namespace; its output goes to a file of the run directory."""
        log = (self.run_dir / f"{Path(argv[0]).name}-{len(self._processes)}.log").open("wb")
        fd = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
        as_the_supervisor_does = _before_exec(ChildSpec("test", argv, user=user))
        libc = ctypes.CDLL(None, use_errno=True)

        def enter() -> None:
            assert libc.setns(fd, 0x40000000) == 0
            as_the_supervisor_does()

        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            preexec_fn=enter,  # noqa: PLW1509 - one thread at that moment
        )
        os.close(fd)
        log.close()
        self._processes.append(process)
        return process

    def stop(self, process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> None:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(number)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process in self._processes:
            self._processes.remove(process)

    def logs(self) -> str:
        return "\n".join(
            f"--- {p.name}\n{p.read_text(errors='replace')[-3000:]}" for p in self.run_dir.glob("*.log")
        )

    def filter_bgp(self) -> None:
        """The peer's host drops what comes to its BGP port."""
        rules = (
            "add table inet t; add chain inet t c { type filter hook input priority 0 ; };"
            "add rule inet t c tcp dport 179 drop"
        )
        subprocess.run(["ip", "netns", "exec", self.peer, "nft", rules], check=True)

    # Peers

    def frr(self, v4: list[str], v6: list[str], password: str | None = PASSWORD, **options: object):
        asn = options.get("asn", PEER_ASN)
        lines = [
            f"router bgp {asn}",
            " bgp router-id 10.255.0.2",
            " no bgp network import-check",
            " no bgp default ipv4-unicast",
            " no bgp ebgp-requires-policy",
        ]
        for n in range(1, self.channels + 1):
            for address in (f"169.254.{n}.1", f"fd00:{n:x}::1"):
                lines.append(f" neighbor {address} remote-as {LOCAL_ASN}")
                lines.append(f" neighbor {address} timers 10 30")
                lines.append(f" neighbor {address} timers connect 1")
                if password:
                    lines.append(f" neighbor {address} password {password}")
        for family, prefixes in (("ipv4", v4), ("ipv6", v6)):
            lines.append(f" address-family {family} unicast")
            lines += [f"  network {prefix}" for prefix in prefixes]
            for n in range(1, self.channels + 1):
                address = f"169.254.{n}.1" if family == "ipv4" else f"fd00:{n:x}::1"
                lines.append(f"  neighbor {address} activate")
            lines.append(" exit-address-family")
        path = self.run_dir / "bgpd.conf"
        path.write_text("\n".join([*lines, "!", "line vty", ""]))
        vty = self.run_dir / "vty"
        vty.mkdir(exist_ok=True)
        for made in (path, vty, self.run_dir):
            shutil.chown(made, "frr", "frr") if made != self.run_dir else None
        self.run_dir.chmod(0o777)
        bgpd = shutil.which("bgpd", path="/usr/lib/frr:/usr/sbin") or "/usr/lib/frr/bgpd"
        return self.spawn(
            self.peer,
            bgpd,
            "-n",
            "-Z",
            "-f",
            str(path),
            "--vty_socket",
            str(vty),
            "-i",
            str(vty / "bgpd.pid"),
            "-u",
            "frr",
            "-g",
            "frr",
            "--log",
            "stdout",
        )

    def bird(self, v4: list[str], v6: list[str], password: str | None = PASSWORD, **options: object):
        asn = options.get("asn", PEER_ASN)
        secret = f'  password "{password}";\n' if password else ""
        text = [
            "router id 10.255.0.2;",
            "protocol device {}",
            "protocol static s4 { ipv4; " + " ".join(f"route {p} blackhole;" for p in v4) + " }",
            "protocol static s6 { ipv6; " + " ".join(f"route {p} blackhole;" for p in v6) + " }",
        ]
        for n in range(1, self.channels + 1):
            for family, us, them in (
                ("4", f"169.254.{n}.2", f"169.254.{n}.1"),
                ("6", f"fd00:{n:x}::2", f"fd00:{n:x}::1"),
            ):
                text.append(
                    f"protocol bgp e{n}x{family} {{ local {us} as {asn}; neighbor {them} as {LOCAL_ASN};\n"
                    f"  hold time 30; keepalive time 10; connect retry time 1; connect delay time 1;\n{secret}"
                    f"  error wait time 1,2; ipv{family} {{ import all; export where source = RTS_STATIC; }}; }}"
                )
        path = self.run_dir / "bird.conf"
        path.write_text("\n".join(text) + "\n")
        return self.spawn(
            self.peer, "/usr/sbin/bird", "-f", "-c", str(path), "-s", str(self.run_dir / "bird.ctl")
        )

    def gobgp(self, v4: list[str], v6: list[str], password: str | None = PASSWORD, **options: object):
        asn = options.get("asn", PEER_ASN)
        text = ["[global.config]", f"  as = {asn}", '  router-id = "10.255.0.2"', "  port = 179"]
        for n in range(1, self.channels + 1):
            for family, them in (("ipv4", f"169.254.{n}.1"), ("ipv6", f"fd00:{n:x}::1")):
                text += [
                    "[[neighbors]]",
                    "  [neighbors.config]",
                    f"    peer-as = {LOCAL_ASN}",
                    f'    neighbor-address = "{them}"',
                ]
                text += [f'    auth-password = "{password}"'] if password else []
                text += [
                    "  [neighbors.timers.config]",
                    "    hold-time = 30",
                    "    keepalive-interval = 10",
                    "    connect-retry = 1",
                    "  [[neighbors.afi-safis]]",
                    "    [neighbors.afi-safis.config]",
                    f'      afi-safi-name = "{family}-unicast"',
                ]
        path = self.run_dir / "gobgpd.toml"
        path.write_text("\n".join(text) + "\n")
        process = self.spawn(
            self.peer, "gobgpd", "-f", str(path), "--api-hosts", "127.0.0.1:50051", "-l", "warn"
        )
        for prefix in v4 + v6:
            family = "ipv6" if ":" in prefix else "ipv4"
            for _attempt in range(100):
                done = subprocess.run(
                    ["ip", "netns", "exec", self.peer, "gobgp", "global", "rib", "add", prefix, "-a", family],
                    capture_output=True,
                    check=False,
                )
                if done.returncode == 0:
                    break
                time.sleep(0.05)
            else:
                raise AssertionError(done.stdout + done.stderr)
        return process

    def birdc(self, *words: str) -> str:
        done = subprocess.run(
            ["birdc", "-s", str(self.run_dir / "bird.ctl"), *words], capture_output=True, check=True
        )
        return done.stdout.decode()

    def vtysh(self, command: str) -> str:
        done = subprocess.run(
            ["vtysh", "--vty_socket", str(self.run_dir / "vty"), "-c", command],
            capture_output=True,
            check=False,
        )
        return done.stdout.decode()


@contextlib.contextmanager
def bench(channels: int = 1) -> Iterator[Bench]:
    made = Bench(channels)
    try:
        made.up()
        yield made
    finally:
        made.down()


class Routerd:
    """What routerd does with BGP, and nothing else: Speaker -> Fib -> a list of operations."""

    def __init__(self, bench: Bench, config: EffectiveConfig, password: str = PASSWORD) -> None:
        self.bench = bench
        self.config = config
        self.exabgp: dict[str, subprocess.Popen[bytes]] = {}
        self.fib = Fib()
        self.ops: list[object] = []
        self.routes: dict[Prefix, tuple] = {}
        self.changes: list[SessionChange] = []
        self.synced = False
        self._password = password
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, *, children: bool = True) -> None:
        self.speaker = Speaker(
            self.config,
            self.bench.run_dir,
            resolve=lambda ref: Secret(self._password.encode()),
            signal_child=self._signal,
            proc_net=Path(f"/proc/{self.bench.anchor.pid}/net"),
            open_ears=self.bench.open_ears,
        )
        await self.speaker.prepare()
        if children:
            self.start_children()
        self._tasks = [asyncio.create_task(self.speaker.run()), asyncio.create_task(self._drain())]

    def start_children(self) -> None:
        for spec in self.speaker.children():
            if spec.name not in self.exabgp or self.exabgp[spec.name].poll() is not None:
                self.exabgp[spec.name] = self.bench.spawn(
                    self.bench.router, *spec.argv, user=spec.user, env=spec.env
                )

    def use_password(self, password: str) -> None:
        """Change what the secret's file holds."""
        self._password = password

    async def stop(self) -> None:
        """End routerd; ExaBGP goes on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _signal(self, name: str, number: signal.Signals) -> None:
        self.exabgp[name].send_signal(number)

    async def _drain(self) -> None:
        while True:
            match await self.speaker.events.get():
                case Routes(changes):
                    for change in changes:
                        if change.nexthops:
                            self.routes[change.prefix] = change.nexthops
                        else:
                            self.routes.pop(change.prefix, None)
                        self.fib.set_route(change.table, change.prefix, change.nexthops)
                    self.ops += self.fib.take_outputs()
                case SessionChange() as change:
                    self.changes.append(change)
                case Synced():
                    self.synced = True
                    self.fib.sweep()
                    self.ops += self.fib.take_outputs()

    def phases(self) -> dict[str, str]:
        return {s.rib.name: s.rib.phase.value for s in self.speaker.status().sessions}

    def all_established(self) -> bool:
        return set(self.phases().values()) == {"established"}


REF = SecretRef("file", "/nowhere")
