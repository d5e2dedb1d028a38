"""A small driver for the KaY over a real port and the kernel's SecY, for tests only.

It does what keyd does with less care: frames through AF_PACKET, operations through `KernelSecy`, the
macsec device made and remade with iproute2. Runs in the namespace it is started in.
"""

import asyncio
import contextlib
import os
import socket
import subprocess
import time

from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from router.errors import KernelError
from router.kernel.macsec import macsec
from router.kernel.secy import KernelSecy
from router.mka.events import (
    ConfigureSecy,
    CreateReceiveSa,
    CreateReceiveSc,
    CreateTransmitSa,
    DeleteReceiveSa,
    DeleteReceiveSc,
    DeleteTransmitSa,
    EnableReceive,
    EnableTransmit,
    Fact,
    PortState,
    SendMkpdu,
    SetControlledPort,
    UpdateReceivePn,
)
from router.mka.kay import Kay, KayConfig, KeyEntry

ETH_P_PAE = 0x888E
PACKET_ADD_MEMBERSHIP, PACKET_MR_MULTICAST, SOL_PACKET = 1, 0, 263


def ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise KernelError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


class Station:
    """One port with key agreement."""

    def __init__(self, port: str, device: str, address: str, config: KayConfig, keys: list[KeyEntry]) -> None:
        self.port, self.device, self.address, self.config = port, device, address, config
        self.keys = keys
        self.facts: list[tuple[float, Fact]] = []
        self.secy = KernelSecy(device)
        self.has_device = False
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_PAE))
        self.socket.bind((port, ETH_P_PAE))
        index = socket.if_nametoindex(port)
        group = config.destination.octets.ljust(8, b"\0")
        request = index.to_bytes(4, "little") + PACKET_MR_MULTICAST.to_bytes(2, "little")
        self.socket.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, request + (6).to_bytes(2, "little") + group)
        self.socket.setblocking(False)
        self.wake = asyncio.Event()
        # KernelSecy names the encoding SA in a message of this kind, which pyroute2 knows only then.
        ifinfmsg.ifinfo.register_link_kind(module={"macsec": macsec})
        self.kay = Kay(config, now=time.monotonic(), entropy=os.urandom)

    async def run(self) -> None:
        """Drive the KaY until cancelled."""
        self.kay.set_keys(self.keys, time.monotonic())
        asyncio.get_running_loop().add_reader(self.socket, self._read)
        observe_at = time.monotonic() + 1.0
        while True:
            await self._drain()
            timer = self.kay.next_timer()
            until = min(timer if timer is not None else observe_at, observe_at)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.wake.wait(), max(0.0, until - time.monotonic()))
            self.wake.clear()
            now = time.monotonic()
            if now >= observe_at:
                observe_at = now + 1.0
                if self.has_device:
                    self.kay.observe(await self.secy.observe(), now)
            self.kay.handle_timer(now)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.socket)
        self.socket.close()
        if self.has_device:
            ip("link", "del", self.device)

    def _read(self) -> None:
        frame = self.socket.recv(2048)
        self.kay.receive(frame, time.monotonic())
        self.wake.set()

    async def _drain(self) -> None:
        while outputs := self.kay.take_outputs():
            for output in outputs:
                if isinstance(output, SendMkpdu):
                    self.socket.send(output.frame)
                elif isinstance(output, Fact):
                    self.facts.append((time.monotonic(), output))
                else:
                    try:
                        await self._apply(output)
                    except KernelError as error:
                        self.kay.failed(output.id, str(error), time.monotonic())
                    else:
                        self.kay.succeeded(output.id, time.monotonic())

    async def _apply(self, operation) -> None:
        secy = self.secy
        match operation:
            case ConfigureSecy(suite=suite, confidentiality=confidentiality):
                if self.has_device:
                    ip("link", "del", self.device)
                encrypt = "on" if confidentiality else "off"
                sci = self.config.sci.pack().hex()
                ip(
                    *("link", "add", "link", self.port, "name", self.device, "type", "macsec", "sci", sci),
                    *("cipher", str(suite), "encrypt", encrypt, "protect", "on", "validate", "strict"),
                    *("replay", "on", "window", "0", "send_sci", "on"),
                )
                ip("address", "add", self.address, "dev", self.device)
                self.has_device = True
            case CreateReceiveSc(sci=sci):
                await secy.create_receive_sc(sci)
            case DeleteReceiveSc(sci=sci):
                await secy.delete_receive_sc(sci)
            case CreateReceiveSa(sci=sci, an=an, key=key, lowest_pn=pn):
                await secy.create_receive_sa(sci, an, key, pn)
            case EnableReceive(sci=sci, an=an):
                await secy.enable_receive_sa(sci, an)
            case UpdateReceivePn(sci=sci, an=an, lowest_pn=pn):
                await secy.update_receive_pn(sci, an, pn)
            case DeleteReceiveSa(sci=sci, an=an):
                await secy.delete_receive_sa(sci, an)
            case CreateTransmitSa(an=an, key=key, next_pn=pn):
                await secy.create_transmit_sa(an, key, pn)
            case EnableTransmit(an=an):
                await secy.enable_transmit_sa(an)
            case DeleteTransmitSa(an=an):
                await secy.delete_transmit_sa(an)
            case SetControlledPort(state=state):
                if self.has_device:
                    ip("link", "set", self.device, "up" if state is PortState.SECURED else "down")
