"""Two data planes back to back over a veth, each in a namespace of its own:

[ ns a   TAP f.100 -- data plane -- wire ]----veth----[ wire -- data plane -- TAP f.100   ns b ]
         10.9.0.1/24 fd09::1/64                                 10.9.0.2/24 fd09::2/64
         (f.200: 10.10.0.x, fd10::x)
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

from router.dataplane.client import DataplaneClient
from router.dataplane.control import DataplaneControl
from router.dataplane.secy import FastpathSecY
from router.dataplane.wanted import WantedChannel, WantedFeature
from router.model import CipherSuite, MacAddress, Sci, Secret
from router.secy import SaKey

INSIDE = Path(__file__).with_name("inside.py")
PORT_MTU = 9216
SALT = bytes(range(12))
DEADLINE_S = 15.0
_numbers = count()


def ip(*args: str, check: bool = True) -> str:
    """Run `ip`; only for what the router itself does not do."""
    done = subprocess.run(["ip", *args], check=False, capture_output=True, text=True)
    assert done.returncode == 0 or not check, f"ip {' '.join(args)}: {done.stderr}"
    return done.stdout


async def until(true, what: str, deadline_s: float = DEADLINE_S):
    """Poll until `true()` (or its awaited result) holds; fail with `what` at the deadline."""
    end = time.monotonic() + deadline_s
    while True:
        value = true()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < end, f"never came true: {what}"
        await asyncio.sleep(0.02)


def sak(number: int, sender: str) -> SaKey:
    """Key `number` for frames that gateway `sender` sends; XPN."""
    ssci = {"a": 1, "b": 2}[sender]
    return SaKey(
        Secret(bytes([number]) * 31 + sender.encode()), bytes([number]) * 15 + sender.encode(), ssci, SALT
    )


class Inside:
    """A command of inside.py in a namespace."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, ns: str, *command: str, ready: bool = True) -> Inside:
        process = await asyncio.create_subprocess_exec(
            "ip", "netns", "exec", ns, sys.executable, str(INSIDE), *command,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=1 << 20,
        )  # fmt: skip
        inside = cls(process)
        if ready:
            assert (await inside.line())["ready"]
        return inside

    async def line(self) -> dict:
        line = await asyncio.wait_for(self._process.stdout.readline(), 60)
        assert line, "the helper ended early"
        return json.loads(line)

    def write(self, text: str) -> None:
        self._process.stdin.write(text.encode())

    async def end(self) -> dict | None:
        """Close its input and return what it has to say."""
        self._process.stdin.close()
        line = await self._process.stdout.readline()
        await self._process.wait()
        return json.loads(line) if line else None

    async def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.communicate()


@dataclass
class Gateway:
    """One data plane and how to speak to it."""

    name: str
    ns: str
    directory: Path
    path: str
    workers: int
    middle: str | None = None
    process: subprocess.Popen | None = None
    mac: MacAddress | None = None
    helpers: list[Inside] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.client = DataplaneClient(self.directory)
        self.control = DataplaneControl(self.client)
        self.secy = FastpathSecY(self.client, "macsec0")

    @property
    def sci(self) -> Sci:
        return Sci(self.mac, 1)

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    async def start(self) -> None:
        self.mac = MacAddress.parse(json.loads(ip("-n", self.ns, "-j", "link", "show", "wire"))[0]["address"])
        with (self.directory / "log").open("a") as log:
            self.process = subprocess.Popen(  # noqa: ASYNC220 - it only starts
                ["ip", "netns", "exec", self.ns, sys.executable, "-m", "router.dataplane.process",
                 "--run-dir", str(self.directory), "--state-dir", str(self.directory),
                 "--workers", str(self.workers)],
                stderr=log, env={**os.environ, "LASTMILE_LOG": "json"},
            )  # fmt: skip
        await until(self.answers, f"the data plane of {self.name} answers")

    async def answers(self) -> bool:
        assert self.process.poll() is None, self.log
        try:
            await self.control.status()
        except Exception:  # noqa: BLE001 - not there yet
            return False
        return True

    def wanted(self, **changes) -> WantedChannel:
        wanted = WantedChannel(
            name="macsec0",
            device="wire",
            suite=CipherSuite.GCM_AES_XPN_256,
            replay_window=0,
            include_sci=True,
            sci_port=1,
            port_mtu=PORT_MTU,
            features=(WantedFeature("f.100", 100, 8500), WantedFeature("f.200", 200, 1500)),
            path=self.path,
        )
        return replace(wanted, **changes)

    async def want(self, **changes) -> None:
        errors = await self.control.want([self.wanted(**changes)])
        assert errors == {}, errors

    def address(self) -> None:
        """Do what routerd would: addresses, up."""
        host = {"a": 1, "b": 2}[self.name]
        for device, net in (("f.100", "9"), ("f.200", "10")):
            ip("-n", self.ns, "addr", "replace", f"10.{net}.0.{host}/24", "dev", device)
            ip("-n", self.ns, "addr", "replace", f"fd{net.zfill(2)}::{host}/64", "dev", device, "nodad")
            ip("-n", self.ns, "link", "set", device, "up")

    async def status(self) -> dict:
        return (await self.control.status())["channels"]["macsec0"]

    async def counters(self) -> dict[str, int]:
        status = await self.status()
        return status["counters"] | status["secy_counters"]

    async def carrier(self, device: str = "f.100") -> bool:
        link = json.loads(ip("-n", self.ns, "-j", "link", "show", device))[0]
        return "LOWER_UP" in link["flags"]

    async def helper(self, *command: str, ready: bool = True) -> Inside:
        helper = await Inside.start(self.ns, *command, ready=ready)
        self.helpers.append(helper)
        return helper

    async def see_wire(self, what: str = "capture") -> Inside:
        """Capture in the middle of the wire, on our side of it."""
        helper = await Inside.start(self.middle, what, self.name)
        self.helpers.append(helper)
        return helper

    def run(self, *command: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["ip", "netns", "exec", self.ns, *command],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def ping(self, address: str, size: int = 56, count_: int = 3) -> bool:
        """Ping with DF; tell whether all came back."""
        done = self.run(
            "ping", "-c", str(count_), "-i", "0.05", "-W", "2", "-M", "do", "-s", str(size), address
        )
        return done.returncode == 0 and " 0% packet loss" in done.stdout

    async def stop(self) -> None:
        for helper in self.helpers:
            await helper.kill()
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


async def key(a: Gateway, b: Gateway, number: int = 1, an: int = 0) -> None:
    """Key both directions: receivers first, everywhere, then the senders."""
    for receiver, sender in ((a, b), (b, a)):
        await receiver.secy.create_receive_sc(sender.sci)
        await receiver.secy.create_receive_sa(sender.sci, an, sak(number, sender.name), 1)
        await receiver.secy.enable_receive_sa(sender.sci, an)
    for sender in (a, b):
        await sender.secy.create_transmit_sa(an, sak(number, sender.name), 1)
        await sender.secy.enable_transmit_sa(an)


def _cable(names: dict[str, str], middle: str | None, queues: int) -> None:
    """Lay the wire between namespaces `a` and `b`; the ports have `queues` queues each way."""
    many = ("numtxqueues", str(queues), "numrxqueues", str(queues))
    mtu = ("mtu", str(PORT_MTU), *many)
    if middle is None:
        ip("link", "add", "wire", *mtu, "netns", names["a"], "type", "veth",
           "peer", "name", "wire", *mtu, "netns", names["b"])  # fmt: skip
        return
    ip("-n", middle, "link", "add", "br0", "mtu", str(PORT_MTU), "type", "bridge", "mcast_snooping", "0")
    ip("-n", middle, "link", "set", "br0", "up")
    for name, ns in names.items():
        ip("link", "add", "wire", *mtu, "netns", ns, "type", "veth",
           "peer", "name", name, *mtu, "netns", middle)  # fmt: skip
        ip("-n", middle, "link", "set", "dev", name, "master", "br0", "up")


def _lag(names: dict[str, str]) -> None:
    """Lay two wires, m0 and m1, and bond them into `wire` at both ends, with LACP."""
    mtu = ("mtu", str(PORT_MTU))
    for ns in names.values():
        ip("-n", ns, "link", "add", "wire", *mtu, "type", "bond", "mode", "802.3ad",
           "lacp_rate", "fast", "miimon", "50")  # fmt: skip
    for member in ("m0", "m1"):
        ip("link", "add", member, *mtu, "netns", names["a"], "type", "veth",
           "peer", "name", member, *mtu, "netns", names["b"])  # fmt: skip
        for ns in names.values():
            ip("-n", ns, "link", "set", member, "master", "wire")
            ip("-n", ns, "link", "set", member, "up")


@asynccontextmanager
async def wire(
    path: str = "packet", workers: int = 2, *, middle: bool = False, queues: int = 1, lag: bool = False
):
    """Two namespaces with a device `wire` in each; the data planes are not started yet."""
    prefix = f"dp{os.getpid()}x{next(_numbers)}"
    names = {"a": f"{prefix}a", "b": f"{prefix}b"}
    between = f"{prefix}m" if middle else None
    everything = [*names.values(), *([between] if between else [])]
    with tempfile.TemporaryDirectory(prefix=prefix) as directory:
        gateways = []
        try:
            for ns in everything:
                ip("netns", "add", ns)
                ip("-n", ns, "link", "set", "lo", "up")
                # No IPv6 chatter of the kernels: what is on the wire is ours.
                ip("netns", "exec", ns, "sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
            if lag:
                _lag(names)
            else:
                _cable(names, between, queues)
            for name, ns in names.items():
                ip("netns", "exec", ns, "sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=0")
                ip("-n", ns, "link", "set", "wire", "up")
                own = Path(directory) / name
                own.mkdir()
                gateways.append(Gateway(name, ns, own, path, workers, between))
            yield tuple(gateways)
        finally:
            for gateway in gateways:
                await gateway.stop()
            for ns in everything:
                ip("netns", "del", ns, check=False)


@asynccontextmanager
async def pair(path: str = "packet", workers: int = 2, *, middle: bool = False, queues: int = 1, **changes):
    """Both data planes run, are keyed, and their TAPs have addresses and carrier."""
    async with wire(path, workers, middle=middle, queues=queues) as (a, b):
        for gateway in (a, b):
            await gateway.start()
            await gateway.want(**changes)
            gateway.address()
        await key(a, b)
        for gateway in (a, b):
            await until(gateway.carrier, f"{gateway.name} has carrier")
        yield a, b
        for gateway in (a, b):
            await gateway.client.close()
