"""The whole way, TAP to wire to TAP, in namespaces of this kernel."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import time
from dataclasses import replace
from pathlib import Path

import pytest
from gateways import PORT_MTU, SALT, key, pair, sak, until, wire

from router.dataplane.frame import Policy, ReferenceSecy
from router.dataplane.wanted import WantedFeature
from router.errors import DataplaneError
from router.model import CipherSuite, MacAddress, Sci

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

PATHS = ["packet", "xdp-tx", "xdp"]


@pytest.mark.parametrize("path", PATHS)
async def test_packets_of_every_kind_pass_and_only_macsec_is_on_the_wire(path):
    """ARP, ICMP, DF 8500, UDP of all sizes and TCP both ways arrive whole; the wire shows 0x88E5 only."""
    async with pair(path, middle=True) as (a, b):
        assert (await a.status())["path"] == path
        seen = await b.see_wire()
        assert a.ping("10.9.0.2")
        assert a.ping("fd09::2")
        assert a.ping("10.9.0.2", size=8500 - 28)
        assert b.ping("fd09::1", size=8500 - 48)
        assert a.ping("10.10.0.2", size=1500 - 28)
        for address in ("10.9.0.2", "fd09::2"):
            echo = await b.helper("udp-echo", address)
            header = 48 if ":" in address else 28
            sizes = [*range(1, 80), 511, 512, 1400, 1472, 1473, 4000, 4100, 8192, 8400, 8500 - header]
            asked = await (await a.helper("udp-ask", address, json.dumps(sizes), ready=False)).line()
            assert asked["good"] == sizes
            await echo.end()
        for sender, receiver, address in ((a, b, "10.9.0.2"), (b, a, "fd09::1"), (a, b, "10.10.0.2")):
            server = await receiver.helper("tcp-receive", address)
            sent = await (await sender.helper("tcp-send", address, "24", ready=False)).line()
            assert (await server.line()) == {"size": 24 << 20, "sha256": sent["sha256"]}
        counts = (await seen.end())["counts"]
        assert set(counts) == {"88e5"}
        for gateway in (a, b):
            counters = await gateway.counters()
            assert counters["out_pkts_encrypted"] == counters["out_frames"] > 1000
            assert counters["in_pkts_ok"] == counters["in_frames"] > 1000
            assert not {n: v for n, v in counters.items() if "drop" in n and v}


@pytest.mark.parametrize("path", PATHS)
async def test_port_of_ordinary_mtu(path):
    """A port that carries 1536 octets carries packets of 1500 octets and nothing longer leaves it."""
    features = (WantedFeature("f.100", 100, 1600), WantedFeature("f.200", 200, 1500))
    async with pair(path, port_mtu=1536, features=features) as (a, b):
        assert a.ping("10.10.0.2", size=1500 - 28)
        assert a.ping("10.9.0.2", size=1500 - 28)
        assert not a.ping("10.9.0.2", size=1501 - 28, count_=1)
        assert (await a.counters())["out_pkts_too_long"] > 0
        server = await a.helper("tcp-receive", "10.10.0.1")
        sent = await (await b.helper("tcp-send", "10.10.0.1", "8", ready=False)).line()
        assert (await server.line())["sha256"] == sent["sha256"]


@pytest.mark.parametrize("path", PATHS)
async def test_the_longest_packet(path):
    """IP packets of 9216 octets pass where the port carries 36 more, TCP too; one octet more does not."""
    mtu, port_mtu = 9216, 9216 + 36
    async with wire(path) as (a, b):
        for gateway in (a, b):
            assert gateway.run("ip", "link", "set", "wire", "mtu", str(port_mtu)).returncode == 0
        for gateway in (a, b):
            await gateway.start()
            await gateway.want(port_mtu=port_mtu, features=(WantedFeature("f.100", 100, mtu),))
            gateway.run(
                "ip", "addr", "add", {"a": "10.9.0.1/24", "b": "10.9.0.2/24"}[gateway.name], "dev", "f.100"
            )
            gateway.run("ip", "link", "set", "f.100", "up")
        await key(a, b)
        await until(a.carrier, "carrier")
        await until(b.carrier, "carrier")
        assert a.ping("10.9.0.2", size=mtu - 28)
        assert not a.ping("10.9.0.2", size=mtu - 27, count_=1)
        server = await b.helper("tcp-receive", "10.9.0.2")
        sent = await (await a.helper("tcp-send", "10.9.0.2", "16", ready=False)).line()
        assert (await server.line())["sha256"] == sent["sha256"]
        assert (await a.counters())["out_pkts_too_long"] == 0


async def test_auto_takes_the_path_that_was_measured_to_be_fastest():
    """`auto` measures the paths on this machine, takes the fastest, and tells both in its status."""
    async with pair("auto") as (a, _b):
        costs = (await a.control.status())["path_costs_ns"]
        assert len(costs) >= 2
        assert all(100 < ns < 1_000_000 for ns in costs.values())
        assert (await a.status())["path"] == min(costs, key=costs.__getitem__)
        assert a.ping("10.9.0.2", size=8500 - 28)


async def test_super_segments_cross_the_tap_and_frames_the_wire():
    """TCP crosses the TAPs in fewer, larger packets than the wire: segmentation happens in the engine."""
    async with pair() as (a, b):
        server = await b.helper("tcp-receive", "10.10.0.2")
        await (await a.helper("tcp-send", "10.10.0.2", "24", ready=False)).line()
        await server.line()
        out = (await a.status())["features"]["f.200"]
        into = (await b.status())["features"]["f.200"]
        frames = (await a.counters())["out_frames"]
        assert frames > (24 << 20) / 1500
        assert out["out_packets"] < frames / 4
        assert into["in_packets"] < frames / 2


async def test_vlans_are_apart():
    """A frame of one VLAN reaches that VLAN's TAP only; one without a feature is dropped by name."""
    async with pair() as (a, b):
        assert a.ping("10.9.0.2")
        assert a.ping("10.10.0.2")
        await b.want(features=(WantedFeature("f.100", 100, 8500),))
        assert a.ping("10.9.0.2")
        assert not a.ping("10.10.0.2", count_=1)
        assert (await b.counters())["in_drop_no_feature"] > 0
        assert json.loads(b.run("ip", "-j", "link").stdout)[-1]["ifname"] != "f.200"


async def test_untagged_feature():
    """A feature without a VLAN carries frames without a tag."""
    untagged = (WantedFeature("f.100", None, 8500), WantedFeature("f.200", 200, 1500))
    async with pair(features=untagged) as (a, b):
        assert a.ping("10.9.0.2")
        assert b.ping("10.10.0.1")


@pytest.mark.parametrize("suite", list(CipherSuite))
async def test_far_end_is_the_readable_twin(suite):
    """An independent MACsec opens our frames and we open its: ARP and ping through, by every suite."""
    async with wire() as (a, b):
        await a.start()
        await a.want(suite=suite, features=(WantedFeature("f.100", 100, 8500),))
        twin_mac = MacAddress.parse("02:00:00:00:00:0b")
        twin = ReferenceSecy(Policy(suite=suite, sci=Sci(twin_mac, 1), pop_vlan=True))
        keys = [sak(1, name) for name in "ab"]
        keys = [replace(k, sak=type(k.sak)(k.sak.reveal()[: suite.key_size])) for k in keys]
        if not suite.is_xpn:
            keys = [replace(k, ssci=0, salt=b"") for k in keys]
        twin.add_receive_sc(a.sci)
        twin.install_receive(a.sci, 2, keys[0])
        twin.enable_receive(a.sci, 2)
        twin.install_transmit(1, keys[1])
        twin.enable_transmit(1)
        await a.secy.create_receive_sc(Sci(twin_mac, 1))
        await a.secy.create_receive_sa(Sci(twin_mac, 1), 1, keys[1], 1)
        await a.secy.enable_receive_sa(Sci(twin_mac, 1), 1)
        await a.secy.create_transmit_sa(2, keys[0], 1)
        await a.secy.enable_transmit_sa(2)
        far = await b.helper("macsec", "wire")
        for command in (
            ("addr", "add", "10.9.0.1/24", "dev", "f.100"),
            ("link", "set", "f.100", "up"),
            ("neigh", "add", "10.9.0.2", "lladdr", str(twin_mac), "dev", "f.100"),
        ):
            assert a.run("ip", *command).returncode == 0
        await until(a.carrier, "carrier")
        ping = asyncio.create_task(asyncio.to_thread(a.ping, "10.9.0.2"))
        answered = 0
        while not ping.done():
            reader = asyncio.create_task(far.line())
            await asyncio.wait({reader, ping}, return_when=asyncio.FIRST_COMPLETED)
            if not reader.done():
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)
                break
            [result] = twin.validate([bytes.fromhex(reader.result()["frame"])])
            assert result.verdict.value == "in_pkts_ok"
            assert result.vlan == 100
            request = bytes(result.frame)
            if request[12:14] == b"\x08\x00" and request[23] == 1:
                reply = bytearray(request)
                reply[0:12] = request[6:12] + twin_mac.octets
                reply[26:34] = request[30:34] + request[26:30]
                reply[34] = 0  # echo reply: the checksum grows by what the type shrank
                sum_ = int.from_bytes(request[36:38]) + 0x0800
                reply[36:38] = ((sum_ & 0xFFFF) + (sum_ >> 16)).to_bytes(2)
                [protected] = twin.protect([bytes(reply)], vlan=100)
                far.write(bytes(protected.frame).hex() + "\n")
                answered += 1
        assert await ping
        assert answered >= 3


async def test_bad_frames_are_dropped_by_name():
    """Each way a frame can be bad has its counter, and none reaches the TAP; good ones still do."""
    async with wire() as (a, b):
        await a.start()
        await a.want(replay_window=8)
        far_sci = Sci(MacAddress.parse("02:00:00:00:00:0b"), 1)
        twin = ReferenceSecy(Policy(suite=CipherSuite.GCM_AES_XPN_256, sci=far_sci))
        twin.install_transmit(0, sak(1, "b"))
        twin.enable_transmit(0)
        await a.secy.create_receive_sc(far_sci)
        await a.secy.create_receive_sa(far_sci, 0, sak(1, "b"), 1)
        await a.secy.enable_receive_sa(far_sci, 0)
        plain = a.mac.octets + far_sci.mac.octets + b"\x08\x00" + b"x" * 60
        frames = [bytes(r.frame) for r in twin.protect([plain] * 40, vlan=100)]
        other_vlan = bytes(twin.protect([plain], vlan=999)[0].frame)

        def changed(frame, at, value):
            return frame[:at] + bytes([value]) + frame[at + 1 :]

        good = frames[:3] + frames[20:21]
        cases = {
            "in_pkts_ok": [*good, other_vlan],
            "in_pkts_late": [frames[2], frames[20], frames[5]],
            "in_pkts_not_valid": [changed(frames[30], 40, frames[30][40] ^ 1), changed(frames[31], 0, 0x04)],
            "in_pkts_no_sci": [changed(frames[32], 25, 7)],
            "in_pkts_not_using_sa": [changed(frames[33], 14, frames[33][14] | 1)],
            "in_pkts_bad_tag": [changed(frames[34], 14, 0xAC), frames[35][:30]],
            "in_drop_no_feature": [other_vlan],
        }
        far = await b.helper("macsec", "wire")
        sent = 0
        for frame in [*good, *(f for name, fs in cases.items() if name != "in_pkts_ok" for f in fs)]:
            far.write(frame.hex() + "\n")
            sent += 1

        async def all_there():
            return (await a.counters())["in_frames"] == sent

        await until(all_there, "all frames arrive")
        counters = await a.counters()
        assert {name: counters[name] for name in cases} == {name: len(fs) for name, fs in cases.items()}


@pytest.mark.parametrize("path", PATHS)
async def test_foreign_frames_stay_with_the_kernel(path):
    """EAPOL and plain frames on the port are neither taken nor delivered to a TAP."""
    async with pair(path) as (a, b):
        before = (await a.counters())["in_frames"]
        taps = await a.helper("capture", "f.100")
        port = await a.helper("capture", "wire")
        far = await b.helper("macsec", "wire")
        eapol = bytes.fromhex("0180c2000003") + b.mac.octets + b"\x88\x8e" + bytes(46)
        plain = a.mac.octets + b.mac.octets + b"\x08\x00" + bytes(46)
        far.write(eapol.hex() + "\n" + plain.hex() + "\n")
        await asyncio.sleep(0.1)
        assert a.ping("10.10.0.2")
        assert {"888e": 1, "0800": 1}.items() <= (await port.end())["counts"].items()
        assert "888e" not in (await taps.end())["counts"]
        assert (await a.counters())["in_frames"] - before <= 10


@pytest.mark.parametrize("path", ["packet", "xdp-tx"])
async def test_rekey_under_load_loses_nothing(path):
    """Forty new SAKs while datagrams flow, old SAs retired at once: none lost, none out of order."""
    async with pair(path) as (a, b):
        sink = await b.helper("udp-receive", "10.9.0.2")
        source = await a.helper("udp-send", "10.9.0.2", "8000", "400", "3", ready=False)
        end = time.monotonic() + 2.5
        number = 1
        while number <= 40 and time.monotonic() < end:
            number += 1
            await key(a, b, number, an=(number - 1) % 4)
            old = (number - 2) % 4
            for gateway in (a, b):
                await gateway.secy.delete_transmit_sa(old)
            # What was sent under the old key may still be on the wire; 802.1X waits 3 s (12.4).
            await asyncio.sleep(0.02)
            for gateway, peer in ((a, b), (b, a)):
                await gateway.secy.delete_receive_sa(peer.sci, old)
        assert number > 10
        sent = (await source.line())["sent"]

        async def all_there():
            return (await b.counters())["in_pkts_ok"] >= sent

        await until(all_there, "all frames arrive")
        result = await sink.end()
        assert (result["received"], result["disorder"]) == (sent, 0)


async def test_killed_under_load_nothing_leaves_in_clear():
    """kill -9 under load: the wire shows MACsec only, the TAPs stay and lose carrier; after the
    restart nothing passes until there are new keys."""
    async with pair() as (a, b):
        wire_seen = await b.helper("capture", "wire")
        source = await a.helper("udp-send", "10.9.0.2", "20000", "800", "3", ready=False)
        await asyncio.sleep(0.5)
        address = json.loads(a.run("ip", "-j", "addr", "show", "f.100").stdout)[0]
        a.process.send_signal(signal.SIGKILL)
        a.process.wait()
        assert not await a.carrier()
        await a.start()
        status = await until(a.status, "the wanted set is taken up again by itself")
        assert status["open"]
        assert not status["operational"]
        assert not await a.carrier()
        again = json.loads(a.run("ip", "-j", "addr", "show", "f.100").stdout)[0]
        assert (again["ifindex"], again["addr_info"][0]["local"]) == (address["ifindex"], "10.9.0.1")
        state = await a.secy.observe()
        assert state.transmit == ()
        assert state.receive == ()
        await source.line()
        assert set((await wire_seen.end())["counts"]) == {"88e5"}

        await key(a, b, number=9, an=1)
        await until(a.carrier, "carrier")
        # Neighbour discovery gave up in the meantime and takes a moment.
        await until(lambda: a.ping("10.9.0.2"), "ping passes under the new keys")


async def test_a_packet_number_never_goes_back():
    """A transmit SA that was deleted may come back under its key only above what it has sent."""
    async with pair() as (a, _b):
        assert a.ping("10.9.0.2")
        sent = (await a.secy.observe()).transmit[0].next_pn
        assert sent > 3
        await a.secy.delete_transmit_sa(0)
        assert not await a.carrier()
        with pytest.raises(DataplaneError, match="never goes back"):
            await a.secy.create_transmit_sa(0, sak(1, "a"), 1)
        await a.secy.create_transmit_sa(0, sak(1, "a"), sent + 100)
        with pytest.raises(DataplaneError, match="another AN"):
            await a.secy.create_transmit_sa(1, sak(1, "a"), sent + 1000)
        await a.secy.enable_transmit_sa(0)
        assert a.ping("10.9.0.2")


async def test_carrier_follows_the_port_and_the_secy():
    """A TAP has carrier while its port has one and the SecY can send."""
    async with pair() as (a, b):
        assert b.run("ip", "link", "set", "wire", "down").returncode == 0

        async def down():
            return not await a.carrier()

        await until(down, "carrier lost with the port's", 2)
        assert b.run("ip", "link", "set", "wire", "up").returncode == 0
        await until(a.carrier, "carrier back with the port's", 2)
        await a.secy.delete_transmit_sa(0)
        await until(down, "carrier lost with the SA", 1)


@pytest.mark.parametrize("path", PATHS)
async def test_port_that_was_down_goes_on(path):
    """A port that is set down and up again carries packets as before, under the same keys."""
    async with pair(path) as (a, b):
        assert a.ping("10.9.0.2")
        for gateway in (a, b):
            assert gateway.run("ip", "link", "set", "wire", "down").returncode == 0

            async def down():
                return not await a.carrier() and not await b.carrier()

            await until(down, "carrier lost", 2)
            a.run("ping", "-c", "1", "-W", "0.2", "10.9.0.2")
            assert gateway.run("ip", "link", "set", "wire", "up").returncode == 0
            await until(a.carrier, "carrier back", 2)
            await until(lambda: a.ping("10.9.0.2"), "packets pass again")
        assert (await a.secy.observe()).transmit[0].next_pn > 6


async def test_wanting_the_same_does_nothing():
    """The same want again touches nothing; a changed one only what changed."""
    async with pair() as (a, _b):
        assert a.ping("10.9.0.2")
        before = await a.counters()
        for _ in range(3):
            await a.want()
        features = (WantedFeature("f.100", 100, 9000, 10**9), WantedFeature("f.200", 200, 1500))
        await a.want(features=features)
        assert a.ping("10.9.0.2")
        after = await a.counters()
        assert after["out_pkts_encrypted"] > before["out_pkts_encrypted"] > 0
        assert (await a.secy.observe()).operational
        assert json.loads(a.run("ip", "-j", "link", "show", "f.100").stdout)[0]["mtu"] == 9000
        await a.want(replay_window=100)  # another SecY: without keys
        assert not (await a.secy.observe()).operational


async def test_what_is_deleted_by_hand_comes_back():
    """A deleted TAP is made again; a port that is made anew is taken up, without keys."""
    async with pair() as (a, _b):
        a.run("ip", "link", "del", "f.200")

        async def there():
            return a.run("ip", "link", "show", "f.200").returncode == 0 and await a.carrier()

        await until(there, "the TAP is back", 2)
        a.address()
        assert a.ping("10.10.0.2")
        a.run("ip", "link", "del", "wire")

        async def in_error():
            return not (await a.status())["open"] or (await a.status())["error"]

        await until(in_error, "the channel says that its port is missing", 2)
        with pytest.raises(DataplaneError):
            await a.secy.observe()
        a.run("ip", "link", "add", "wire", "mtu", str(PORT_MTU), "type", "veth", "peer", "name", "far")
        a.run("ip", "link", "set", "wire", "up")

        async def is_open():
            return (await a.status())["open"]

        await until(is_open, "the new port is taken up", 2)
        assert (await a.secy.observe()).transmit == ()


async def test_a_name_that_is_taken_is_said_with_its_cure():
    """A TAP cannot be made where another device has its name: that is said; without it, it is made."""
    async with wire() as (a, _b):
        await a.start()
        a.run("ip", "link", "add", "f.200", "type", "veth", "peer", "name", "other")
        errors = await a.control.want([a.wanted()])
        assert set(errors) == {"f.200"}
        assert "rename or delete the device that has the name f.200" in errors["f.200"]
        assert a.run("ip", "link", "del", "f.200").returncode == 0
        await a.want()


async def test_shaping_holds_the_rate_and_changes_live():
    """A feature sends no faster than its rate, whatever is offered; the rate can be changed live."""
    async with pair() as (a, b):
        for rate_bps in (20_000_000, 60_000_000):
            await a.want(
                features=(WantedFeature("f.100", 100, 8500, rate_bps), WantedFeature("f.200", 200, 1500))
            )
            sink = await b.helper("udp-receive", "10.9.0.2")
            source = await a.helper("udp-send", "10.9.0.2", "20000", "1000", "1.5", ready=False)
            await source.line()
            await asyncio.sleep(0.5)
            got = (await sink.end())["octets"] * 8
            # What waits in the TAP's queue and the bucket's depth come on top of 1.5 s.
            assert 1.2 * rate_bps < got < 2.6 * rate_bps


async def test_secrets_stay_where_they_are():
    """The socket is the owner's alone; no key is in the log, the state file or an answer."""
    async with pair() as (a, _b):
        socket_file = a.directory / "dataplane.sock"
        assert stat.S_IMODE(socket_file.stat().st_mode) == 0o600
        texts = [a.log, (a.directory / "dataplane.json").read_text(), json.dumps(await a.control.status())]
        texts.append(json.dumps(await a.client.request({"secy": "macsec0", "do": "observe"})))
        secret = sak(1, "a").sak.reveal()
        for text in texts:
            assert secret.hex() not in text
            assert secret.decode("latin1") not in text
        assert SALT.hex() not in a.log


@pytest.mark.parametrize("path", PATHS)
async def test_every_thread_has_few_capabilities(path):
    """The process can do what a data plane must, on any path, and nothing else that root can."""
    async with pair(path) as (a, _b):
        assert a.ping("10.9.0.2")
        threads = list(Path(f"/proc/{a.process.pid}/task").iterdir())
        assert len(threads) >= 3
        for thread in threads:
            lines = (thread / "status").read_text().splitlines()
            fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
            few = 1 << 12 | 1 << 13 | 1 << 14 | 1 << 39  # NET_ADMIN, NET_RAW, IPC_LOCK, BPF
            assert int(fields["CapPrm"], 16) == int(fields["CapEff"], 16) == few
            assert fields["NoNewPrivs"] == "1"


async def test_nonsense_is_refused_and_changes_nothing():
    """Whatever a client sends, it gets an error and the data plane goes on."""
    async with pair() as (a, _b):
        sa = {"an": 1, "key": {"sak": "00" * 32, "key_id": "00" * 16, "ssci": 1, "salt": "00" * 12}}
        for request in (
            {},
            {"secy": "nope", "do": "observe"},
            {"secy": "macsec0", "do": "close"},
            {"secy": "macsec0", "do": "enable_transmit_sa", "an": 4},
            {"secy": "macsec0", "do": "enable_transmit_sa", "an": 3},
            {"secy": "macsec0", "do": "create_transmit_sa", "next_pn": 0, **sa},
            {"secy": "macsec0", "do": "create_transmit_sa", "next_pn": 1 << 64, **sa},
            {"secy": "macsec0", "do": "create_transmit_sa", "next_pn": 1, "an": 1, "key": {"sak": "zz"}},
            {"secy": "macsec0", "do": "create_receive_sa", "sci": "02:00:00:00:00:77", "lowest_pn": 1, **sa},
            {"want": [{"name": "x"}]},
            {"want": [a.wanted().to_json(), a.wanted().to_json()]},
        ):
            with pytest.raises(DataplaneError):
                await a.client.request(request)
        assert a.ping("10.9.0.2")
