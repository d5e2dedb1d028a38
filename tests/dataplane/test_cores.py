"""One channel on several cores: lanes with queues of their own, one SC, one replay window.

The ports have two queues each way, the TAPs too; two engine threads at each end.
"""

from __future__ import annotations

import asyncio
import json
import os

import pytest
from gateways import key, pair, until

from router.dataplane.wanted import WantedFeature

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

PATHS = ["packet", "xdp-tx", "xdp"]
WINDOW = 1 << 16
"""Frames: two lanes' batches, and what a thread that lost its core was about to send."""
STREAMS = 6


async def streams(sender, receiver, address: str, megabytes: int) -> None:
    """Send several TCP streams at once, each with a hash of its own; all arrive whole."""
    ports = [str(9100 + n) for n in range(STREAMS)]
    servers = [await receiver.helper("tcp-receive", address, port) for port in ports]
    clients = [await sender.helper("tcp-send", address, str(megabytes), port, ready=False) for port in ports]
    for client, server in zip(clients, servers, strict=True):
        sent = await client.line()
        assert await server.line() == {"size": megabytes << 20, "sha256": sent["sha256"]}


@pytest.mark.parametrize("path", PATHS)
async def test_two_cores_send_under_one_sc(path):
    """Both cores send, no packet number is on the wire twice, every frame is taken, none is late."""
    async with pair(path, middle=True, queues=2, cores=2, replay_window=WINDOW) as (a, b):
        seen = await a.see_wire("packet-numbers")
        await streams(a, b, "10.10.0.2", 4)
        sent, received = await a.counters(), await b.counters()
        assert [lane["out_frames"] > 0 for lane in (await a.status())["lanes"]] == [True, True]
        assert sent["out_frames"] == sent["out_pkts_encrypted"] > 1000
        assert received["in_pkts_ok"] == received["in_frames"] >= sent["out_frames"] - 100
        assert not {n: v for n, v in received.items() if "drop" in n and v}
        assert received["in_pkts_late"] == received["in_pkts_not_valid"] == 0
        numbers = await seen.end()
        assert numbers["frames"] == numbers["different"] > 1000
        next_pn = (await a.secy.observe()).transmit[0].next_pn
        assert next_pn == (await a.counters())["out_pkts_encrypted"] + 1


@pytest.mark.parametrize("path", PATHS)
async def test_one_core_keeps_the_order_of_packet_numbers(path):
    """With one core the numbers on the wire only ever rise, whatever the number of queues and flows."""
    async with pair(path, middle=True, queues=2, cores=1, replay_window=0) as (a, b):
        seen = await a.see_wire("packet-numbers")
        await streams(a, b, "10.10.0.2", 2)
        numbers = await seen.end()
        assert numbers["frames"] > 500
        assert numbers["steps_back"] == 0
        assert (await b.counters())["in_pkts_late"] == 0


async def test_frames_of_every_queue_are_taken_by_af_xdp():
    """One core serves all receive queues of its port: none of two is left to the packet socket."""
    async with pair("xdp", queues=2) as (a, b):
        await a.want(cores=2)
        await b.want(replay_window=WINDOW)
        await key(a, b, number=2)
        for gateway in (a, b):
            gateway.address()
            await until(gateway.carrier, "carrier")
        passed = await b.helper("capture", "wire")  # what the program redirects is not seen here
        await streams(a, b, "10.10.0.2", 4)
        assert [lane["out_frames"] > 0 for lane in (await a.status())["lanes"]] == [True, True]
        assert (await b.counters())["in_pkts_ok"] > 1000
        assert "88e5" not in (await passed.end())["counts"]


@pytest.mark.parametrize("path", ["packet", "xdp"])
async def test_rekey_on_two_cores_loses_nothing(path):
    """New SAKs while both cores send, the old SA gone at once: every frame that left is valid there."""
    async with pair(path, queues=2, cores=2, replay_window=WINDOW) as (a, b):
        work = asyncio.create_task(streams(a, b, "10.10.0.2", 16))
        number = 1
        while not work.done() and number < 60:
            number += 1
            await key(a, b, number, an=(number - 1) % 4)
            old = (number - 2) % 4
            for gateway in (a, b):
                await gateway.secy.delete_transmit_sa(old)
            await asyncio.sleep(0.02)  # what was sent under the old key may still be on the wire
            for gateway, peer in ((a, b), (b, a)):
                await gateway.secy.delete_receive_sa(peer.sci, old)
        await work
        assert number > 5
        for gateway in (a, b):
            counters = await gateway.counters()
            assert counters["in_pkts_not_using_sa"] == counters["in_pkts_not_valid"] == 0
            assert counters["in_pkts_late"] == counters["out_pkts_no_sa"] == 0


async def test_one_rate_holds_for_all_cores_together():
    """A feature's rate is the channel's, not a core's."""
    rate_bps = 40_000_000
    features = (WantedFeature("f.100", 100, 8500, rate_bps), WantedFeature("f.200", 200, 1500))
    async with pair(queues=2, cores=2, replay_window=WINDOW, features=features) as (a, b):
        sink = await b.helper("udp-receive", "10.9.0.2")
        sources = [
            await a.helper("udp-send", "10.9.0.2", "6000", "1000", "1.5", ready=False) for _ in range(3)
        ]
        for source in sources:
            await source.line()
        before = (await b.status())["features"]["f.100"]["in_octets"]
        await sink.end()
        assert 1.2 * rate_bps < before * 8 < 2.6 * rate_bps


async def test_the_number_of_cores_can_change_and_the_taps_follow():
    """One core to two and back: the TAP is made anew where it must be, and keeps working."""
    async with pair(queues=2) as (a, b):
        for cores in (2, 1, 3):
            await a.want(cores=cores, replay_window=WINDOW)
            await b.want(cores=cores, replay_window=WINDOW)
            for gateway in (a, b):
                gateway.address()
            await key(a, b, number=10 + cores)
            await until(a.carrier, "carrier")
            await until(b.carrier, "carrier")
            # The kernel takes a new device's queue into use a moment after its carrier.
            await until(lambda: a.ping("10.9.0.2"), "packets pass")
            status = await a.status()
            assert len(status["lanes"]) == min(cores, 2)  # there are two engine threads
            link = json.loads(a.run("ip", "-j", "-d", "link", "show", "f.100").stdout)[0]
            assert link["linkinfo"]["info_data"]["multi_queue"] is (cores > 1)
