"""Captures and `lastmile frames`: what a network engineer does with his own capture and a key file."""

from __future__ import annotations

import io
import json
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from router.cli.frames import app
from router.dataplane.keyfile import load_key_file
from router.dataplane.pcap import Captured, PcapWriter, read_capture
from router.errors import ConfigError, SecretError

SAK = "0706050403020100" * 4
KEYS = f"""\
suite: gcm-aes-xpn-256
associations:
  - sci: 02:00:00:00:00:0a/1
    an: 1
    sak: {SAK}
    ssci: 1
    salt: e630e81a48de86a21c66fa6d
"""
EAPOL = bytes.fromhex("0180c2000003 02000000000a 888e 0305") + bytes(46)


def frame(i: int) -> bytes:
    head = bytes.fromhex("02000000000b 02000000000a 0800")
    return head + bytes((i + k) & 0xFF for k in range(46 + i % 1400))


def pcap(frames: list[bytes], *, order: str = "<", nano: bool = False, snap: int = 1 << 16) -> bytes:
    out = struct.pack(order + "IHHiIII", 0xA1B23C4D if nano else 0xA1B2C3D4, 2, 4, 0, 0, snap, 1)
    for i, data in enumerate(frames):
        kept = data[:snap]
        out += struct.pack(order + "4I", 1000 + i, 5, len(kept), len(data)) + kept
    return out


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    length = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + length + body + length


def section(order: str) -> bytes:
    return block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))


def pcapng(frames: list[bytes], *, order: str = "<") -> bytes:
    nano = struct.pack(order + "HHB3xHH", 9, 1, 9, 0, 0)
    out = section(order)
    out += block(order, 1, struct.pack(order + "HxxI", 1, 0) + nano)
    out += block(order, 5, bytes(12))  # statistics: not ours
    for i, data in enumerate(frames):
        time_ns = (1000 + i) * 1_000_000_000 + 5000
        head = struct.pack(order + "5I", 0, time_ns >> 32, time_ns & 0xFFFFFFFF, len(data), len(data))
        out += block(order, 6, head + data)
    return out


def read(data: bytes) -> list[Captured]:
    return list(read_capture(io.BytesIO(data)))


FRAMES = [frame(i) for i in range(300)]


class TestCaptures:
    """pcap and pcapng in, pcap out."""

    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("make", [pcap, pcapng])
    def test_both_formats_and_byte_orders(self, make, order):
        """Frames and their times come out alike whatever they were written as."""
        expected = [Captured((1000 + i) * 10**9 + 5000, f, truncated=False) for i, f in enumerate(FRAMES)]
        assert read(make(FRAMES, order=order)) == expected

    def test_several_sections_and_simple_packets(self):
        """A second section may have the other byte order; simple packets have no time."""
        simple = block(">", 3, struct.pack(">I", 60) + FRAMES[0][:60])
        interface = block(">", 1, struct.pack(">HxxI", 1, 0))
        data = pcapng(FRAMES[:2]) + section(">") + interface + simple
        assert [c.frame for c in read(data)] == [*FRAMES[:2], FRAMES[0][:60]]
        assert read(data)[2].time_ns == 0

    def test_snap_length_is_told(self):
        """A frame whose end is missing says so."""
        assert [c.truncated for c in read(pcap(FRAMES[:60], snap=100))].count(True) == 60 - 41

    def test_written_is_read(self):
        """What the writer writes the reader reads, to the nanosecond."""
        out = io.BytesIO()
        writer = PcapWriter(out)
        for i, data in enumerate(FRAMES):
            writer.write(1_700_000_000_123_456_789 + i, data)
        got = read(out.getvalue())
        assert [c.frame for c in got] == FRAMES
        assert got[7].time_ns == 1_700_000_000_123_456_796

    @pytest.mark.parametrize("make", [pcap, pcapng])
    def test_cut_off_anywhere(self, make):
        """A file that ends in the middle is refused as such; at a boundary it just ends."""
        whole = make(FRAMES[:2])
        for cut in range(len(whole)):
            try:
                got = read(whole[:cut])
            except ConfigError:
                continue
            assert len(got) < 2

    @given(st.binary(max_size=200))
    def test_rubbish(self, data):
        """No file makes the reader fail otherwise than by saying so."""
        for magic in (b"", b"\xd4\xc3\xb2\xa1", b"\x0a\x0d\x0d\x0a", pcapng([])):
            try:
                read(magic + data)
            except ConfigError as error:
                assert str(error)  # noqa: PT017

    def test_other_links_are_refused(self):
        """Linux cooked captures have no Ethernet header to authenticate."""
        data = bytearray(pcap(FRAMES[:1]))
        data[20] = 113
        with pytest.raises(ConfigError, match="link type is 113"):
            read(bytes(data))


class TestKeyFile:
    """Mode-checked, strict, and silent about the keys."""

    def write(self, path: Path, text: str, mode: int = 0o600) -> Path:
        path.write_text(text)
        path.chmod(mode)
        return path

    def test_yaml_and_json(self, tmp_path):
        """Both say the same; hex digits stay digits; an SCI may be MAC/PORT or 16 digits."""
        one = load_key_file(self.write(tmp_path / "a", KEYS))
        document = {
            "suite": "gcm-aes-xpn-256",
            "associations": [
                {
                    "sci": "02000000000a0001",
                    "an": 1,
                    "sak": SAK,
                    "ssci": 1,
                    "salt": "e630e81a48de86a21c66fa6d",
                }
            ],
        }
        two = load_key_file(self.write(tmp_path / "b", json.dumps(document)))
        assert one == two
        assert one.associations[0].key.sak.reveal().hex() == SAK
        assert SAK not in repr(one)

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666, 0o644])
    def test_others_must_not_read_it(self, tmp_path, mode):
        """Keys that others can read are no keys."""
        with pytest.raises(SecretError, match="chmod 600"):
            load_key_file(self.write(tmp_path / "a", KEYS, mode))

    @pytest.mark.parametrize(
        ("old", "new", "text"),
        [
            ("gcm-aes-xpn-256", "gcm-aes-512", "suite"),
            ("gcm-aes-xpn-256", "gcm-aes-256", "belong to XPN"),
            (SAK, SAK[:-1], "64 hex digits"),
            (SAK, SAK[:-1] + "g", "64 hex digits"),
            ("an: 1", "an: 4", "0 to 3"),
            ("an: 1", "pn: 1", "an: is missing"),
            ("ssci: 1", "ssci: 0", "ssci: must be 1"),
            ("    ssci: 1\n", "", "ssci: is missing"),
            ("e630", "e6", "24 hex digits"),
            ("/1", "/0", "sci"),
            ("    an: 1", "    an: 1\n    pn: 0", "pn: must be 1"),
            ("    an: 1", "    an: 1\n    key: 0", "unknown key"),
            ("suite", "siute", "unknown key"),
            ("associations:", "associations: []\nx:", "unknown"),
            ("suite: gcm-aes-xpn-256", "suite: [", "not YAML"),
            ("suite:", "confidentiality_offset: 31\nsuite:", "0, 30 or 50"),
        ],
    )
    def test_mistakes_are_named_and_keys_are_not(self, tmp_path, old, new, text):
        """Each mistake says where it is, and never what the key was."""
        path = self.write(tmp_path / "a", KEYS.replace(old, new))
        with pytest.raises(ConfigError, match=text) as caught:
            load_key_file(path)
        assert str(path) in str(caught.value)
        assert SAK[:16] not in str(caught.value)

    def test_missing_or_strange(self, tmp_path):
        """No file, a directory, binary rubbish: sentences."""
        with pytest.raises(SecretError, match="cannot be read"):
            load_key_file(tmp_path / "none")
        with pytest.raises(SecretError, match="regular file"):
            load_key_file(tmp_path)
        rubbish = tmp_path / "r"
        rubbish.write_bytes(b"\xff\xfe\x00")
        rubbish.chmod(0o600)
        with pytest.raises(ConfigError, match="not text"):
            load_key_file(rubbish)


class TestCommand:
    """Protect a capture, then decrypt it again."""

    @pytest.fixture
    def keys(self, tmp_path):
        path = tmp_path / "keys.yaml"
        path.write_text(KEYS)
        path.chmod(0o600)
        return str(path)

    def run(self, *args: object) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, [str(a) for a in args])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.stdout, result.stderr

    @pytest.mark.parametrize("make", [pcap, pcapng])
    @pytest.mark.parametrize("more", [[], ["--integrity-only"], ["--no-sci"], ["--backend", "openssl"]])
    def test_there_and_back(self, tmp_path, keys, make, more):
        """What was protected validates to what it was, times included; exit status 0."""
        plain, wire, back = tmp_path / "plain", tmp_path / "wire.pcap", tmp_path / "back.pcap"
        plain.write_bytes(make([*FRAMES, EAPOL]))
        code, out, _ = self.run("protect", plain, "--keys", keys, "--out", wire, "--json", *more)
        data = json.loads(out)
        assert (code, data["ok"], data["frames_out"], data["eapol"]) == (0, True, 301, 1)
        assert data["next_pn"] == 301
        assert wire.stat().st_mode & 0o777 == 0o600
        assert all(c.frame[12:14] == b"\x88\xe5" for c in read(wire.read_bytes())[:-1])

        code, out, _ = self.run("validate", wire, "--keys", keys, "--out", back, "--json")
        data = json.loads(out)
        assert (code, data["ok"], data["frames_out"], data["dropped"]) == (0, True, 301, {})
        assert data["counters"]["in_pkts_ok"] == 300
        assert read(back.read_bytes()) == read(plain.read_bytes())

    def test_drops_are_counted_by_name(self, tmp_path, keys):
        """A forged, a clear and a replayed frame: three names, exit status 1, the good ones written."""
        plain, wire, back = tmp_path / "plain", tmp_path / "wire", tmp_path / "back"
        plain.write_bytes(pcap(FRAMES[:5]))
        assert self.run("protect", plain, "--keys", keys, "--out", wire, "--vlan", 100)[0] == 0
        frames = [c.frame for c in read(wire.read_bytes())]
        forged = bytearray(frames[2])
        forged[-1] ^= 1
        wire.write_bytes(pcap([frames[0], frames[0], bytes(forged), FRAMES[0], frames[4]]))
        code, out, _ = self.run(
            "validate", wire, "--keys", keys, "--out", back, "--replay-window", 64, "--json"
        )
        assert code == 1
        assert json.loads(out)["dropped"] == {
            "in_pkts_no_tag": 1,
            "in_pkts_late": 1,
            "in_pkts_not_valid": 1,
        }
        tag = b"\x81\x00\x00\x64"
        expected = [f[:12] + tag + f[12:] for f in (FRAMES[0], FRAMES[4])]
        assert [c.frame for c in read(back.read_bytes())] == expected
        code, out, _ = self.run("validate", wire, "--keys", keys, "--out", back, "--keep-clear")
        assert code == 1
        assert "in_pkts_not_valid  DROPPED" in out
        assert [c.frame for c in read(back.read_bytes())][2] == FRAMES[0]

    @pytest.mark.parametrize(
        ("old", "new", "counter", "advice"),
        [
            (SAK, SAK[::-1], "in_pkts_not_valid", "another sak, ssci, salt"),
            ("ssci: 1", "ssci: 2", "in_pkts_not_valid", "another sak, ssci, salt"),
            ("salt: e6", "salt: e7", "in_pkts_not_valid", "another sak, ssci, salt"),
            ("00:0a/1", "00:0b/1", "in_pkts_no_sci", "add one"),
            ("an: 1", "an: 2", "in_pkts_not_using_sa", "other ANs only"),
        ],
    )
    def test_a_wrong_key_file_is_told_from_the_frames(self, tmp_path, keys, old, new, counter, advice):
        """Which frames of whom did not pass, and what is wrong with the key file; never a key."""
        plain, wire, back = tmp_path / "plain", tmp_path / "wire", tmp_path / "back"
        plain.write_bytes(pcap([EAPOL, *FRAMES]))
        assert self.run("protect", plain, "--keys", keys, "--out", wire)[0] == 0
        other = tmp_path / "other.yaml"
        other.write_text(KEYS.replace(old, new))
        other.chmod(0o600)
        code, out, _ = self.run("validate", wire, "--keys", other, "--out", back)
        assert code == 1
        assert f"{counter}: 300, the first is frame 2, SCI 02:00:00:00:00:0a/1 AN 1: " in out
        assert advice in out
        assert SAK[:16] not in out
        code, out, _ = self.run("validate", wire, "--keys", other, "--out", back, "--json")
        cause = {"counter": counter, "sender": "SCI 02:00:00:00:00:0a/1 AN 1", "count": 300, "first": 2}
        assert (code, json.loads(out)["causes"]) == (1, [cause])

    def test_any_sci_can_be_told(self, tmp_path, keys):
        """A capture may hold what no SecY sends: an SCI of port 0, a SecTAG cut short."""
        strange = frame(0)[:12] + bytes.fromhex("88e5 2d 00 00000001 020000000099 0000") + bytes(64)
        wire = tmp_path / "wire"
        wire.write_bytes(pcap([strange, strange[:17]]))
        code, out, _ = self.run("validate", wire, "--keys", keys, "--out", tmp_path / "back")
        assert code == 1
        assert "in_pkts_no_sci: 1, the first is frame 1, SCI 02:00:00:00:00:99/0 AN 1: " in out
        assert "in_pkts_bad_tag: 1, the first is frame 2: " in out

    def test_mistakes_are_sentences(self, tmp_path, keys):
        """No such file, no capture, wrong keys, unknown cipher: exit status 2, no output left."""
        plain, out = tmp_path / "plain", tmp_path / "out"
        plain.write_bytes(b"this is no capture")
        good = tmp_path / "good"
        good.write_bytes(pcap(FRAMES[:2])[:-3])
        for args, text in [
            ((tmp_path / "none", "--keys", keys), "No such file"),
            ((plain, "--keys", keys), "not a capture"),
            ((good, "--keys", keys), "ends in the middle"),
            ((plain, "--keys", tmp_path / "none"), "cannot be read"),
            ((good, "--keys", keys, "--backend", "rot13"), "backend"),
        ]:
            for verb in "protect", "validate":
                code, _, err = self.run(verb, *args, "--out", out)
                assert code == 2, err
                assert text in err
                assert "Traceback" not in err
                assert not out.exists()
        assert not list(tmp_path.glob(".out*")), "no partial file is left"
        code, _, err = self.run("protect", good, "--keys", keys, "--out", out, "--an", 3)
        assert (code, "choose one" in err) == (2, True)

    @pytest.mark.skipif(shutil.which("capinfos") is None, reason="needs Wireshark's capinfos")
    def test_wireshark_opens_it(self, tmp_path, keys):
        """Wireshark's own tools take the output: Ethernet, nanoseconds, all frames."""
        plain, wire = tmp_path / "plain", tmp_path / "wire.pcap"
        plain.write_bytes(pcapng(FRAMES))
        assert self.run("protect", plain, "--keys", keys, "--out", wire)[0] == 0
        seen = subprocess.run(
            ["capinfos", "-t", "-E", "-c", wire], check=True, capture_output=True, text=True
        )
        assert "nanosecond" in seen.stdout
        assert "Ethernet" in seen.stdout
        assert "300" in seen.stdout
