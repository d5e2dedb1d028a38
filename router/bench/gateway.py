"""One TCP stream, or datagrams, from end to end: plain veth, our data plane, the kernel's MACsec, wireguard-go.

    [ns a: iperf3 - TAP - data plane - wire ]----veth----[ wire - data plane - TAP - iperf3: ns b]

Both gateways and the load share this machine's cores; so a figure means something only beside
`veth` of the same run: the same iperf3 over the same kind of wire, unprotected. All candidates are
set up at once and take turns, because the machine may be shared.

A bench has two ends and no router between them: like the lab's far ends they are laid with `ip`.
The namespaces go when the measuring ends, however it ends.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from router.bench.figures import cut
from router.dataplane.client import DataplaneClient
from router.dataplane.control import DataplaneControl
from router.dataplane.secy import FastpathSecY
from router.dataplane.wanted import WantedChannel, WantedFeature
from router.errors import BenchError, LastmileError
from router.model import CipherSuite, MacAddress, Sci, Secret
from router.secy import SaKey

MTUS: Final = (1500, 8500)
PORT_MTU: Final = 9216
WIREGUARD_OVERHEAD: Final = 80
MACSEC_OVERHEAD: Final = 32
REPLAY_WINDOW: Final = 1 << 16
"""Frames, where several cores send."""
WAIT_S: Final = 15.0
LOSS_MAX: Final = 0.01
"""Share of datagrams that may be lost at the rate that counts. On a machine with other work less says
more about that work than about a path."""
TRIAL_S: Final = 0.3
SEARCH_STEPS: Final = 6
"""Halvings: the rate is known to 1/64 of what the sender can."""
SETTLE_S: Final = 0.03
"""What has not arrived by then was lost, or waited in a queue that grows."""
FASTPATHS: Final = ("fastpath", "fastpath-packet", "fastpath-xdp-tx", "fastpath-xdp")
"""`fastpath` chooses the port's path as in service; the others are told which."""
TWO_CORES: Final = "fastpath-2-cores"
"""As `fastpath`, but two cores send for one channel (and its wire has two queues)."""
PATHS: Final = ("veth", "fastpath", "kernel", "wireguard-go")
_SUITE: Final = CipherSuite.GCM_AES_XPN_256
_FAR: Final = "10.9.0.2"


@dataclass(frozen=True, slots=True)
class End:
    """A namespace with a device `wire`; what is measured has 10.9.0.`host` there."""

    ns: str
    host: int
    directory: Path

    def command(self, *argv: str) -> list[str]:
        """The words that run a program in here."""
        return ["ip", "netns", "exec", self.ns, *argv]

    def ip(self, *argv: str) -> str:
        """Run `ip` in here."""
        return _ip("-n", self.ns, *argv)

    def address(self, device: str, net: str = "10.9.0") -> None:
        """Give a device the measured address and set it up."""
        self.ip("addr", "add", f"{net}.{self.host}/24", "dev", device)
        self.ip("link", "set", device, "up")

    def mac(self) -> str:
        """The wire's MAC address."""
        return str(json.loads(self.ip("-j", "link", "show", "wire"))[0]["address"])

    def reaches(self, size: int) -> bool:
        """Whether the far end answers a ping of `size` octets of IP with DF set."""
        argv = ("ping", "-c1", "-W1", "-Mdo", f"-s{size - 28}", _FAR)
        return subprocess.run(self.command(*argv), capture_output=True, check=False).returncode == 0


def _ip(*argv: str, stdin: str = "") -> str:
    done = subprocess.run(["ip", *argv], input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"ip {' '.join(argv)}: {done.stderr.strip() or f'exit {done.returncode}'}")
    return done.stdout


async def _until(holds: Callable[[], bool | Awaitable[bool]], what: str) -> None:
    end = time.monotonic() + WAIT_S
    while True:
        answer = await asyncio.to_thread(holds)
        if answer if isinstance(answer, bool) else await answer:
            return
        if time.monotonic() > end:
            raise BenchError(f"not within {WAIT_S:.0f} s: {what}")
        await asyncio.sleep(0.05)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# ---------------------------------------------------------------- the candidates


@asynccontextmanager
async def _wire(queues: int = 1) -> AsyncIterator[tuple[End, End]]:
    """Two namespaces and a veth pair of `queues` queues each way; `wire` is its name in both."""
    stem = f"lmb{os.getpid()}{secrets.token_hex(2)}"
    with tempfile.TemporaryDirectory(prefix=stem) as directory:
        ends = [End(f"{stem}{name}", host, Path(directory) / name) for host, name in enumerate("ab", 1)]
        made = []
        try:
            for end in ends:
                end.directory.mkdir()
                _ip("netns", "add", end.ns)
                made.append(end.ns)
                end.ip("link", "set", "lo", "up")
            mtu = ("mtu", str(PORT_MTU), "numtxqueues", str(queues), "numrxqueues", str(queues))
            _ip(
                *("link", "add", "wire", *mtu, "netns", ends[0].ns, "type", "veth"),
                *("peer", "name", "wire", *mtu, "netns", ends[1].ns),
            )
            for end in ends:
                end.ip("link", "set", "wire", "addrgenmode", "none")  # what is on the wire is ours
                end.ip("link", "set", "wire", "up")
            yield ends[0], ends[1]
        finally:
            for ns in made:
                _ip("netns", "del", ns)


@asynccontextmanager
async def _veth(mtu: int) -> AsyncIterator[tuple[End, End]]:
    async with _wire() as ends:
        for end in ends:
            end.ip("link", "set", "wire", "mtu", str(mtu))
            end.address("wire")
        yield ends


@asynccontextmanager
async def _fastpath(mtu: int, path: str, cores: int = 1) -> AsyncIterator[tuple[End, End]]:
    """Our data plane's process on both ends, with keys made for it; `cores` send for the channel."""
    async with _wire(cores) as ends:
        processes: list[subprocess.Popen[bytes]] = []
        clients: list[DataplaneClient] = []
        try:
            for end in ends:
                argv = [sys.executable, "-m", "router.dataplane.process", "--workers", "2"]
                argv += ["--run-dir", str(end.directory), "--state-dir", str(end.directory)]
                with (end.directory / "log").open("ab") as log:
                    processes.append(
                        subprocess.Popen(end.command(*argv), stdout=log, stderr=log)  # noqa: ASYNC220 - it only starts
                    )
                client = DataplaneClient(end.directory)
                clients.append(client)
                control = DataplaneControl(client)
                await _until(lambda c=control: _answers(c), "the data plane answers")  # type: ignore[misc]
                feature = WantedFeature("tap", 100, mtu)
                wanted = WantedChannel(
                    "macsec0",
                    "wire",
                    _SUITE,
                    0 if cores == 1 else REPLAY_WINDOW,
                    True,
                    1,
                    PORT_MTU,
                    (feature,),
                    path=path,
                    cores=cores,
                )
                if errors := await control.want([wanted]):
                    raise BenchError(f"the data plane refused {path}: {'; '.join(errors.values())}")
                end.address("tap")
            await _key(ends, clients)
            yield ends
        finally:
            for client in clients:
                await client.close()
            for process in processes:
                _stop(process)


async def _answers(control: DataplaneControl) -> bool:
    try:
        await control.status()
    except (LastmileError, OSError):
        return False
    return True


async def _key(ends: Sequence[End], clients: Sequence[DataplaneClient]) -> None:
    """A fresh SAK for each direction: receivers first, then the senders."""
    salt = secrets.token_bytes(12)
    secys = [FastpathSecY(client, "macsec0") for client in clients]
    keys = [SaKey(Secret(secrets.token_bytes(32)), bytes([e.host]) * 16, e.host, salt) for e in ends]
    for receiver, sender in ((0, 1), (1, 0)):
        sci = Sci(MacAddress.parse(ends[sender].mac()), 1)
        await secys[receiver].create_receive_sc(sci)
        await secys[receiver].create_receive_sa(sci, 0, keys[sender], 1)
        await secys[receiver].enable_receive_sa(sci, 0)
    for secy, key in zip(secys, keys, strict=True):
        await secy.create_transmit_sa(0, key, 1)
        await secy.enable_transmit_sa(0)


@asynccontextmanager
async def _kernel(mtu: int) -> AsyncIterator[tuple[End, End]]:
    """The kernel's own MACsec; keys go to `ip` by its standard input."""
    async with _wire() as ends:
        salt = secrets.token_hex(12)
        keys = {end.host: secrets.token_hex(32) for end in ends}
        macs = {end.host: end.mac() for end in ends}
        for end in ends:
            far = 3 - end.host
            end.ip(
                *("link", "add", "link", "wire", "macsec0", "type", "macsec", "port", "1"),
                *("cipher", str(_SUITE), "encrypt", "on", "send_sci", "on", "validate", "strict"),
                *("replay", "on", "window", "0"),
            )
            peer = f"rx port 1 address {macs[far]}"
            script = (
                f"macsec add macsec0 tx sa 0 xpn 1 ssci {end.host} salt {salt} on key 01 {keys[end.host]}\n"
                f"macsec add macsec0 {peer} on\n"
                f"macsec add macsec0 {peer} sa 0 xpn 1 ssci {far} salt {salt} on key 02 {keys[far]}\n"
            )
            _ip("-n", end.ns, "-batch", "-", stdin=script)
            end.ip("link", "set", "macsec0", "mtu", str(mtu))
            end.address("macsec0")
        yield ends


@asynccontextmanager
async def _wireguard(mtu: int) -> AsyncIterator[tuple[End, End]]:
    """wireguard-go on both ends."""
    async with _wire() as ends:
        keys = [_wireguard_key() for _ in ends]
        processes: list[subprocess.Popen[bytes]] = []
        quiet = subprocess.DEVNULL
        try:
            for index, end in enumerate(ends):
                end.ip("link", "set", "wire", "mtu", str(mtu + WIREGUARD_OVERHEAD))
                end.address("wire", "10.8.0")
                device = (
                    f"wg{secrets.token_hex(4)}"  # its socket's name is the machine's, not the namespace's
                )
                processes.append(
                    subprocess.Popen(  # noqa: ASYNC220 - it only starts
                        end.command("wireguard-go", "-f", device),
                        stdout=quiet,
                        stderr=quiet,
                        env={**os.environ, "WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD": "1"},
                    )
                )
                socket = Path(f"/run/wireguard/{device}.sock")
                await _until(socket.exists, "wireguard-go is up")
                config = end.directory / "wg.conf"
                config.touch(mode=0o600)
                config.write_text(
                    f"[Interface]\nPrivateKey={keys[index][0]}\nListenPort=51820\n"
                    f"[Peer]\nPublicKey={keys[1 - index][1]}\nAllowedIPs=10.9.0.0/24\n"
                    f"Endpoint=10.8.0.{3 - end.host}:51820\n"
                )
                done = subprocess.run(  # noqa: ASYNC221 - milliseconds
                    end.command("wg", "setconf", device, str(config)), capture_output=True, check=False
                )
                if done.returncode:
                    raise BenchError(f"wg setconf: {done.stderr.decode(errors='replace').strip()}")
                end.ip("link", "set", device, "mtu", str(mtu))
                end.address(device)
            yield ends
        finally:
            for process in processes:
                _stop(process)


def _wireguard_key() -> tuple[str, str]:
    """A private key and its public one."""
    private = subprocess.run(["wg", "genkey"], capture_output=True, text=True, check=True).stdout
    public = subprocess.run(["wg", "pubkey"], input=private, capture_output=True, text=True, check=True)
    return private.strip(), public.stdout.strip()


@asynccontextmanager
async def candidate(path: str, mtu: int) -> AsyncIterator[tuple[End, End]]:
    """Two ends that reach each other by `path` with `mtu` octets of IP. Raises BenchError, KernelError."""
    if path == "veth":
        way = _veth(mtu)
    elif path == "kernel":
        way = _kernel(mtu)
    elif path == "wireguard-go":
        way = _wireguard(mtu)
    elif path == TWO_CORES:
        way = _fastpath(mtu, "auto", cores=2)
    else:
        way = _fastpath(mtu, path.removeprefix("fastpath").removeprefix("-") or "auto")
    async with way as (a, b):
        await _until(lambda: a.reaches(mtu), f"{path}: the far end answers with MTU {mtu}")
        yield a, b


# ---------------------------------------------------------------- measuring


def need() -> None:
    """Raise BenchError where nothing can be measured: no root, no iperf3, no namespaces."""
    if os.geteuid():
        raise BenchError("the gateway bench needs root: it makes network namespaces of its own")
    packages = {"ip": "iproute2", "ping": "iputils-ping", "iperf3": "iperf3"}
    for program, package in packages.items():
        if not shutil.which(program):
            raise BenchError(f"{program} is not installed; apt-get install {package}")


def available(paths: Sequence[str] = PATHS) -> tuple[list[str], list[str]]:
    """Which of the paths can be measured here, and a sentence for each that cannot."""
    have, lacking = [], []
    for path in paths:
        if path == "wireguard-go" and not (shutil.which("wireguard-go") and shutil.which("wg")):
            lacking.append("wireguard-go is not installed (Debian packages wireguard-go, wireguard-tools)")
        elif path == "kernel" and not kernel_has_macsec():
            release = ".".join(os.uname().release.split(".")[:2])
            lacking.append(f"kernel SecY: this kernel ({release}) has no macsec")
        else:
            have.append(path)
    return have, lacking


def kernel_has_macsec() -> bool:
    """Try it, in a namespace that goes with the trial. False where we are not root."""
    script = f"ip link add t0 type veth peer name t1 && ip link add link t0 m0 type macsec cipher {_SUITE}"
    return (
        subprocess.run(["unshare", "--net", "sh", "-c", script], capture_output=True, check=False).returncode
        == 0
    )


@contextmanager
def undisturbed() -> Iterator[None]:
    """Give all that is started from here on, peers and load too, precedence over the machine's other work."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


async def iperf(a: End, b: End, seconds: int, *options: str) -> dict[str, Any]:
    """Run one iperf3 from a to b and return the `end` of its report. `seconds` are whole ones, at least 1."""
    assert seconds >= 1, "iperf3 takes 0 for ever"
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(  # noqa: ASYNC220 - it only starts
        b.command("iperf3", "-s", "-1", "-B", _FAR), stdout=quiet, stderr=quiet
    )
    client = a.command("iperf3", "-c", _FAR, "-t", str(seconds), "-J", *options)
    deadline = time.monotonic() + WAIT_S + seconds
    try:
        while True:
            done = await asyncio.to_thread(
                subprocess.run, client, capture_output=True, text=True, check=False, timeout=WAIT_S + seconds
            )
            report = json.loads(done.stdout or "{}")
            if "error" not in report and report.get("end"):
                return dict(report["end"])
            if time.monotonic() > deadline:  # until then: the server is not listening yet
                raise BenchError(f"iperf3: {report.get('error') or done.stderr.strip()}")
            await asyncio.sleep(0.1)
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"iperf3 did not end in {WAIT_S + seconds:.0f} s") from error
    finally:
        server.kill()
        server.wait()


async def _samples(
    paths: Sequence[str], mtu: int, seconds: int, rounds: int, streams: int
) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = {path: [] for path in paths}
    async with AsyncExitStack() as stack:
        ends = {path: await stack.enter_async_context(candidate(path, mtu)) for path in paths}
        for _ in range(rounds):
            for path, (a, b) in ends.items():
                end = await iperf(a, b, seconds, "-P", str(streams))
                samples[path].append(end["sum_received"]["bits_per_second"] / 1e9)
    return samples


def tcp(
    paths: Sequence[str], mtu: int, seconds: int = 1, rounds: int = 3, streams: int = 1
) -> list[dict[str, Any]]:
    """TCP by each path in turn: medians, and the median of the rounds' ratios to veth.

    Raises BenchError.
    """
    samples = asyncio.run(_samples(paths, mtu, seconds, rounds, streams))
    rows = []
    for path, values in samples.items():
        row: dict[str, Any] = {"path": path, "mtu": mtu}
        if streams > 1:
            row["streams"] = streams
        row |= {"gbps": cut(statistics.median(values), 2)}
        if veth := samples.get("veth"):
            ratios = [ours / plain for ours, plain in zip(values, veth, strict=True)]
            row["of_veth"] = cut(statistics.median(ratios), 2)
        rows.append(row)
    return rows


@dataclass(frozen=True, slots=True)
class Trial:
    """Datagrams offered at one rate for a while, and what became of them."""

    offered_pps: float
    """As sent: a sender that was asked for more sends what it can."""
    received_pps: float

    @property
    def loss(self) -> float:
        """Share that did not arrive."""
        return max(0.0, 1 - self.received_pps / self.offered_pps)


async def highest_rate(trial: Callable[[float], Awaitable[Trial]]) -> tuple[Trial, Trial]:
    """Search the highest rate with a loss of LOSS_MAX at most, by halves (RFC 2544 clause 26.1).

    `trial` is given packets a second, 0 for as many as the sender can. Returns the best trial, and
    the one of the sender at its full rate. A trial that loses is done again once: the machine may
    have been away.
    """
    flood = best = await trial(0)
    if flood.loss <= LOSS_MAX:
        return flood, flood
    low, high = 0.0, flood.offered_pps
    best = Trial(1, 0)
    for _ in range(SEARCH_STEPS):
        rate = (low + high) / 2
        tried = await trial(rate)
        if tried.loss > LOSS_MAX:
            tried = await trial(rate)
        if tried.loss > LOSS_MAX:
            high = rate
        else:
            low, best = rate, tried
    return best, flood


@asynccontextmanager
async def _half(end: End, *argv: str) -> AsyncIterator[Callable[[str], Awaitable[dict[str, float]]]]:
    """One half of a stream of datagrams; gives a function that writes to it and reads its answer."""
    process = await asyncio.create_subprocess_exec(
        *end.command(sys.executable, "-m", "router.bench.datagrams", *argv),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    async def ask(text: str) -> dict[str, float]:
        stdin.write(text.encode())
        line = await asyncio.wait_for(stdout.readline(), WAIT_S)
        if not line:
            raise BenchError(f"datagrams {argv[0]} in {end.ns} ended early")
        return dict(json.loads(line))

    try:
        await ask("")
        yield ask
    finally:
        process.kill()
        await process.wait()


async def _datagrams(path: str, size: int, mtu: int) -> dict[str, Any]:
    async with (
        candidate(path, mtu) as (a, b),
        _half(b, "receive", _FAR) as receiver,
        _half(a, "send", _FAR, str(size)) as sender,
    ):

        async def trial(rate: float) -> Trial:
            before = (await receiver("?"))["received"]
            sent = await sender(f"{rate} {TRIAL_S}\n")
            await asyncio.sleep(SETTLE_S)
            came = (await receiver("?"))["received"] - before
            await asyncio.sleep(SETTLE_S)  # what is still under way is not the next trial's
            return Trial(sent["sent"] / sent["seconds"], came / sent["seconds"])

        best, flood = await highest_rate(trial)
    return {
        "path": path,
        "mtu": mtu,
        "udp_size": size,
        "mpps": cut(best.received_pps / 1e6, 4),
        "gbps": cut(best.received_pps * size * 8 / 1e9, 3),
        "loss": math.ceil(best.loss * 1e4) / 1e4,
        "flood": {
            "offered_mpps": cut(flood.offered_pps / 1e6, 4),
            "received_mpps": cut(flood.received_pps / 1e6, 4),
        },
    }


def udp(paths: Sequence[str], size: int, mtu: int = 8500, rounds: int = 3) -> list[dict[str, Any]]:
    """Find the most datagrams of `size` octets a second that arrive, all but LOSS_MAX, by each path in turn.

    The row of a path is that of its middle round; `of_veth` is the median of the rounds' ratios of
    packets a second. Raises BenchError.
    """
    found: dict[str, list[dict[str, Any]]] = {path: [] for path in paths}
    for _ in range(rounds):
        for path, rows in found.items():
            rows.append(asyncio.run(_datagrams(path, size, mtu)))
    result = []
    for rows in found.values():
        row = sorted(rows, key=lambda row: float(row["mpps"]))[len(rows) // 2]
        if veth := found.get("veth"):
            ratios = [ours["mpps"] / plain["mpps"] for ours, plain in zip(rows, veth, strict=True)]
            row["of_veth"] = cut(statistics.median(ratios), 2)
        result.append(row)
    return result
