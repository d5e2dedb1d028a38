"""No frame in clear leaves a channel's port, whatever happens: judged at the other end of the wire."""

import asyncio
import contextlib
import socket
import threading

import pytest
from conftest import ip, run
from test_stack import Router, until

from router.kernel.guard import NftGuard
from router.kernel.netlink import NetlinkKernel
from router.reconcile.desired import ETHERTYPE_EAPOL, ETHERTYPE_MACSEC

ETH_P_ALL = 0x0003
PACKET_OUTGOING = 4


class Tap:
    """Counts what arrives at the far end of a wire, by EtherType."""

    def __init__(self, far, device):
        import ctypes
        import os

        self.seen = {}
        self._stop = False
        # A socket stays in the namespace in which it was made.
        libc = ctypes.CDLL(None, use_errno=True)
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{far}", os.O_RDONLY)
        assert libc.setns(there, 0x40000000) == 0
        try:
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            self._socket.bind((device, ETH_P_ALL))
        finally:
            assert libc.setns(here, 0x40000000) == 0
            os.close(here)
            os.close(there)
        self._socket.settimeout(0.1)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self):
        while not self._stop:
            try:
                frame, address = self._socket.recvfrom(65535)
            except (TimeoutError, OSError):
                continue
            if address[2] != PACKET_OUTGOING:
                ethertype = int.from_bytes(frame[12:14])
                self.seen[ethertype] = self.seen.get(ethertype, 0) + 1

    def close(self):
        self._stop = True
        self._thread.join()
        self._socket.close()
        return self.seen


def send_cleartext(kernel, device):
    """Write an IPv4 frame to the port itself, as any program with a packet socket could."""
    frame = bytes.fromhex("ffffffffffff020000000099") + b"\x08\x00" + bytes(60)
    # nftables also stops one that lies about its EtherType to the kernel; tc believes it.
    forged = (ETHERTYPE_MACSEC,) if isinstance(kernel._guards, NftGuard) else ()
    for protocol in (0x0800, *forged):
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        with sock, contextlib.suppress(OSError):  # the port is down, or the guard says so
            sock.sendto(frame, (device, protocol))


def send_eapol(device):
    frame = bytes.fromhex("0180c2000003020000000099") + b"\x88\x8e" + bytes(60)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.sendto(frame, (device, 0x888E))


@pytest.fixture
async def router(four_channels, tmp_path):
    kernel = await NetlinkKernel.open()
    async with Router(kernel, four_channels, tmp_path / "state") as running:
        yield running
    await kernel.close()


async def test_nothing_in_clear_leaves_the_port(router, namespace):
    """Device deleted, transmit SA removed, port flapped, programs writing to the port: only MACsec and EAPOL."""
    channel = router.config.channels[0]
    feature = router.config.connections[0].features[0]
    peer = feature.addresses[0].peer
    tap = Tap(namespace, "peer1")
    try:
        await router.up()
        pings = asyncio.create_task(
            asyncio.to_thread(run, "ping", "-c", "60", "-i", "0.05", "-W", "1", peer, check=False)
        )
        send_cleartext(router.kernel, channel.port)
        send_eapol(channel.port)
        ip(f"link del {channel.macsec_device}")
        send_cleartext(router.kernel, channel.port)
        await until(lambda: router.keyed(channel.macsec_device), "keyed again")
        await router.kernel.secy(channel.macsec_device).delete_transmit_sa(0)
        await until(lambda: router.keyed(channel.macsec_device), "keyed again")
        ip(f"link set {channel.port} down")
        send_cleartext(router.kernel, channel.port)

        async def port_up():
            return (await router.kernel.link_facts())[channel.port].up

        await until(port_up, "port up")
        send_cleartext(router.kernel, channel.port)
        await pings
    finally:
        seen = tap.close()
    assert seen.get(ETHERTYPE_MACSEC, 0) > 0
    assert seen.get(ETHERTYPE_EAPOL, 0) == 1
    in_clear = set(seen) - {ETHERTYPE_MACSEC, ETHERTYPE_EAPOL}
    assert not in_clear, {f"{ethertype:#06x}": seen[ethertype] for ethertype in in_clear}


async def test_a_port_without_guard_is_not_brought_up(router):
    """Where the guard is refused, the port goes down and stays down, and the error says why."""
    await router.up()
    channel = router.config.channels[0]

    async def refuse(guard, index):
        from router.errors import Unsupported

        raise Unsupported("no mechanism here", 95)

    router.kernel._guards.install = refuse
    ip(f"link set {channel.port} down")
    run("tc", "qdisc", "del", "dev", channel.port, "clsact", check=False)
    run("nft", "delete", "table", "netdev", "lastmile", check=False)

    async def refused():
        return any(k.kind == "guard" for k in router.reconciler.errors)

    await until(refused, "the guard's error")
    await asyncio.sleep(0.3)
    assert not (await router.kernel.link_facts())[channel.port].up
    assert any(k.kind == "port" and "guard" in e.reason for k, e in router.reconciler.errors.items())
