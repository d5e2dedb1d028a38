"""Inside the guest: our KaY against stock wpa_supplicant over a veth pair, case by case.

    namespace `peer`: wire-b, wpa_supplicant -Dmacsec_linux, macsec0 10.9.0.2
    this namespace:   wire-a, our KaY over the kernel's SecY, ours0 10.9.0.1

With three stations a bridge joins wire-a, wire-b and, in the namespace `third`, wire-c with a second
wpa_supplicant, macsec0 10.9.0.3.

Prints one line of JSON per case.
"""

import asyncio
import contextlib
import json
import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from mka_station import Station, ip

from router.errors import KernelError
from router.mka.events import PortState
from router.mka.kay import KayConfig, KeyEntry
from router.mka.mkpdu import Confidentiality
from router.model import CipherSuite, Sci, Secret

MAC_A, MAC_B, MAC_C = "02:00:00:00:00:0a", "02:00:00:00:00:0b", "02:00:00:00:00:0c"
SECURE_S = 20.0


@dataclass(frozen=True)
class Case:
    """One constellation; the far end is wpa_supplicant."""

    name: str
    cak: bytes = bytes(range(16))
    ckn: bytes = bytes(range(32))
    priority: int = 16
    peer_priority: int = 100
    port: int = 1
    peer_port: int = 1
    integrity_only: bool = False
    peer_cak: bytes | None = None
    peer_ckn: bytes | None = None
    icv_indicator: bool = False
    third_priority: int | None = None
    """Of the second wpa_supplicant; None is one more than the first's."""
    act: str = ""


CASES = [
    Case("we serve", act="rekey"),
    Case("defaults of theirs", priority=255),
    Case("port 65534 at both", port=65534, peer_port=65534),
    Case("ports 2 and 3", port=2, peer_port=3),
    Case("two on a bridge", priority=10, peer_priority=20, act="bridge"),
    Case("two on a bridge, equal priorities", priority=255, peer_priority=255, act="bridge"),
    Case("they serve", priority=200, act="pn"),
    Case("cak 256, ckn of 3, port 7", cak=bytes(range(32)), ckn=b"\1\2\3", port=7),
    Case(
        "they serve, cak 256, ckn of 4, port 9",
        cak=bytes(range(32)),
        ckn=b"\1\2\3\4",
        priority=200,
        peer_port=9,
    ),
    Case("equal priorities", priority=32, peer_priority=32),
    Case("both 255", priority=255, peer_priority=255),
    Case("icv indicator", icv_indicator=True),
    Case("integrity only, they serve", integrity_only=True, priority=200),
    Case("peer restarts, we serve", act="restart"),
    Case("peer restarts, they serve", priority=200, act="restart"),
    Case("we restart, they serve", priority=200, act="ourselves"),
    Case("three stations, we serve", act="three"),
    Case("three stations, they serve", priority=200, act="three"),
    Case(
        "three stations, equal priorities", priority=255, peer_priority=255, third_priority=255, act="three"
    ),
    Case("wrong cak", peer_cak=bytes(16), act="never"),
    Case("wrong ckn", peer_ckn=b"\x77" * 32, act="never"),
]


def wpa(case: Case, namespace: str = "peer", wire: str = "wire-b") -> subprocess.Popen[bytes]:
    config = Path(f"/tmp/{namespace}.conf")
    priority = case.peer_priority
    if namespace == "third":
        priority = case.peer_priority + 1 if case.third_priority is None else case.third_priority
    config.write_text(
        "eapol_version=3\nap_scan=0\nnetwork={\nkey_mgmt=NONE\neapol_flags=0\nmacsec_policy=1\n"
        f"macsec_integ_only={int(case.integrity_only)}\nmacsec_port={case.peer_port}\n"
        "macsec_replay_protect=1\nmacsec_replay_window=0\n"
        f"mka_priority={priority}\n"
        f"mka_cak={(case.peer_cak or case.cak).hex()}\nmka_ckn={(case.peer_ckn or case.ckn).hex()}\n}}\n"
    )
    log = Path("/tmp/wpa.log").open("ab")  # noqa: SIM115 - it is the child's
    return subprocess.Popen(
        [
            *("ip", "netns", "exec", namespace),
            *("wpa_supplicant", "-Dmacsec_linux", f"-i{wire}", f"-c{config}", "-dd", "-K"),
        ],
        stdout=log,
        stderr=log,
    )


class Probes:
    """ICMP from us to the peer every 20 ms, for as long as it lives."""

    def __init__(self, to: str = "10.9.0.2", namespace: str = "") -> None:
        self.to, self.before = to, ("ip", "netns", "exec", namespace) if namespace else ()

    async def ping(self, count: int) -> int:
        """How many of `count` were answered."""
        done = await asyncio.create_subprocess_exec(
            *(*self.before, "ping", "-q", "-i", "0.02", "-W", "1", "-c", str(count), self.to),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        text = (await done.communicate())[0].decode()
        found = re.search(r"(\d+) received", text)
        return int(found[1]) if found else 0


async def until(check, seconds: float) -> float | None:
    start = time.monotonic()
    while time.monotonic() < start + seconds:
        if await check():
            return round(time.monotonic() - start, 3)
        await asyncio.sleep(0.02)
    return None


def give_peer_its_address(namespace: str = "peer", address: str = "10.9.0.2") -> None:
    with contextlib.suppress(KernelError):
        if address not in ip("-n", namespace, "-br", "address", "show", "dev", "macsec0"):
            ip("-n", namespace, "address", "add", f"{address}/24", "dev", "macsec0")


async def answered() -> bool:
    give_peer_its_address()
    return await Probes().ping(1) == 1


async def all_answered() -> bool:
    """Each of three stations reaches each other one."""
    give_peer_its_address()
    give_peer_its_address("third", "10.9.0.3")
    for probes in (Probes(), Probes("10.9.0.3"), Probes("10.9.0.3", "peer")):
        if await probes.ping(1) != 1:
            return False
    return True


def build_wire(case: Case) -> None:
    """A veth pair, or a bridge of three that lets the PAE group address through."""
    for name in ("wire-a", "wire-b-br", "wire-c-br", "bridge0"):
        with contextlib.suppress(KernelError):
            ip("link", "del", name)
    if case.act not in {"three", "bridge"}:
        ip(
            "link",
            "add",
            "wire-a",
            "address",
            MAC_A,
            "type",
            "veth",
            "peer",
            "name",
            "wire-b",
            "address",
            MAC_B,
        )
    else:
        ip("link", "add", "bridge0", "type", "bridge", "group_fwd_mask", "8", "mcast_snooping", "0")
        for wire, mac in (("wire-a", MAC_A), ("wire-b", MAC_B), ("wire-c", MAC_C)):
            ip("link", "add", wire, "address", mac, "type", "veth", "peer", "name", f"{wire}-br")
            ip("link", "set", f"{wire}-br", "master", "bridge0", "up")
        ip("link", "set", "bridge0", "up")
        ip("link", "set", "wire-c", "netns", "third")
        ip("-n", "third", "link", "set", "wire-c", "up")
    ip("link", "set", "wire-b", "netns", "peer")
    ip("link", "set", "wire-a", "up")
    ip("-n", "peer", "link", "set", "wire-b", "up")


async def play(case: Case) -> dict[str, object]:
    build_wire(case)
    confidentiality = Confidentiality.INTEGRITY_ONLY if case.integrity_only else Confidentiality.OFFSET_0
    config = KayConfig(
        Sci.parse(f"{MAC_A}/{case.port}"),
        priority=case.priority,
        suites=(CipherSuite.GCM_AES_128,),
        confidentiality=confidentiality,
        accept=frozenset({confidentiality}),
        icv_indicator=case.icv_indicator,
    )

    def new_station() -> Station:
        return Station("wire-a", "ours0", "10.9.0.1/24", config, [KeyEntry(case.ckn, Secret(case.cak))])

    supplicant = wpa(case)
    third = wpa(case, "third", "wire-c") if case.act == "three" else None
    station = new_station()
    task = asyncio.create_task(station.run())
    result: dict[str, object] = {"case": case.name}
    try:
        if case.act == "never":
            result["secured_s"] = await until(answered, 10)
            result["ok"] = result["secured_s"] is None and station.kay.port is PortState.CLOSED
        else:
            result["secured_s"] = await until(
                all_answered if third else answered, SECURE_S * (2 if third else 1)
            )
            result["ok"] = result["secured_s"] is not None
        if result["ok"] and case.act == "rekey":
            pinging = asyncio.create_task(Probes().ping(600))
            for _ in range(3):
                before = station.kay.snapshot(time.monotonic()).current.ki
                station.kay.rekey(time.monotonic())
                station.wake.set()
                await asyncio.sleep(4.0)
                after = station.kay.snapshot(time.monotonic()).current.ki
                result["ok"] = result["ok"] and after != before
            result["answered_of_600"] = await pinging
            result["ok"] = result["ok"] and await answered() and result["answered_of_600"] == 600
        if result["ok"] and third is not None:
            await asyncio.sleep(3.5)
            pinging = asyncio.gather(Probes().ping(400), Probes("10.9.0.3").ping(400))
            if case.priority < case.peer_priority:
                station.kay.rekey(time.monotonic())
                station.wake.set()
            result["answered_of_400"] = await pinging
            result["ok"] = result["answered_of_400"] == [400, 400] and await all_answered()
            third.kill()
            third.wait()
            await asyncio.sleep(8)
            result["left"] = len(station.kay.snapshot(time.monotonic()).participants[0].peers)
            result["ok"] = result["ok"] and result["left"] == 1 and await until(answered, 10) is not None
        if result["ok"] and case.act == "pn":
            before = station.kay.snapshot(time.monotonic()).current.ki
            an = station.kay.snapshot(time.monotonic()).current.an
            await asyncio.sleep(6.5)
            ip("-n", "peer", "macsec", "set", "macsec0", "tx", "sa", str(an), "pn", str(0xC0000001))
            pinging = asyncio.create_task(Probes().ping(400))

            async def changed() -> bool:
                return station.kay.snapshot(time.monotonic()).current.ki != before

            result["rekeyed_s"] = await until(changed, 15)
            result["answered_of_400"] = await pinging
            result["ok"] = result["rekeyed_s"] is not None and result["answered_of_400"] == 400
        if result["ok"] and case.act == "restart":
            supplicant.kill()
            supplicant.wait()
            with contextlib.suppress(KernelError):
                ip("-n", "peer", "link", "del", "macsec0")
            supplicant = wpa(case)
            await asyncio.sleep(0.2)
            result["again_s"] = await until(answered, SECURE_S)
            result["ok"] = result["again_s"] is not None
        if result["ok"] and case.act == "ourselves":
            adopted, handover = await station.secy.observe(), station.kay.handover()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            asyncio.get_running_loop().remove_reader(station.socket)
            station.socket.close()
            station = new_station()
            station.has_device = True
            station.kay.adopt(adopted, time.monotonic(), handover)
            task = asyncio.create_task(station.run())
            result["answered_of_400"] = await Probes().ping(400)
            await asyncio.sleep(7)
            result["ok"] = result["answered_of_400"] == 400 and await answered()
        snapshot = station.kay.snapshot(time.monotonic())
        result["suspicion"] = snapshot.suspicion
        result["server"] = str(snapshot.participants[0].server)
        result["drops"] = dict(snapshot.drops)
        if not result["ok"]:
            result["facts"] = [
                f"{at - station.facts[0][0]:.3f} {f.name} {dict(f.fields)}" for at, f in station.facts
            ][-40:]
    finally:
        task.cancel()
        results = await asyncio.gather(task, return_exceptions=True)
        if isinstance(results[0], Exception):
            result["ok"], result["error"] = False, repr(results[0])
        for process in filter(None, (supplicant, third)):
            process.kill()
            process.wait()
        with contextlib.suppress(OSError, ValueError):
            station.close()
        with contextlib.suppress(KernelError):
            ip("link", "del", "wire-a")
        for namespace in ("peer", "third"):
            with contextlib.suppress(KernelError):
                ip("-n", namespace, "link", "del", "macsec0")
    return result


async def main() -> None:
    wanted = os.environ.get("MKA_CASES", "")
    for namespace in ("peer", "third"):
        ip("netns", "add", namespace)
        ip("-n", namespace, "link", "set", "lo", "up")
    for case in CASES:
        if wanted and wanted not in case.name:
            continue
        print(json.dumps(await play(case)), flush=True)  # noqa: T201


asyncio.run(main())
