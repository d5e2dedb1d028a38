"""The SecY frame by frame: one class of tests, run on the Python twin and on the C with each cipher.

Nothing here knows which of them it is talking to.
"""

from __future__ import annotations

import json
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.contrib.macsec import MACsec, MACsecSA
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Dot1Q, Ether

from router.dataplane.frame import (
    Policy,
    ReferenceSecy,
    ReplayWindow,
    Result,
    Validate,
    Verdict,
    parse_sectag,
    recover_pn,
)
from router.dataplane.frames import COUNTER_NAMES, Batch, Secy
from router.errors import DataplaneError
from router.model import CipherSuite, MacAddress, Sci, Secret
from router.secy import SaKey

VECTORS = Path(__file__).parents[2] / "vectors"
SUITES = list(CipherSuite)
A = Sci.parse("02:00:00:00:00:0a")
B = Sci.parse("02:00:00:00:00:0b/7")


def vectors(name: str) -> list[dict[str, Any]]:
    return json.loads((VECTORS / name).read_text())["vectors"]


FRAMES = vectors("macsec_frames.json")
BAD = vectors("macsec_bad_sectag.json")
KERNEL = vectors("kernel_frames.json")


def reference(policy: Policy) -> ReferenceSecy:
    return ReferenceSecy(policy)


def c_openssl(policy: Policy) -> Secy:
    return Secy(policy, "openssl")


def c_fastest(policy: Policy) -> Secy:
    return Secy(policy)


def c_with(backend: str) -> Any:
    """Make a SecY with one of the ciphers that not every machine has."""

    def make(policy: Policy) -> Secy:
        return Secy(policy, backend)

    make.__name__ = f"c_{backend}"
    return make


def runs_here(backend: str) -> bool:
    try:
        Secy(Policy(CipherSuite.GCM_AES_128, A), backend)
    except DataplaneError:
        return False
    return True


IMPLEMENTATIONS = [
    reference,
    c_openssl,
    c_fastest,
    *(c_with(backend) for backend in ("ipsec-mb", "aesni", "vaes256") if runs_here(backend)),
]
AnySecy = ReferenceSecy | Secy


def key_of(suite: CipherSuite, fill: int = 7, ssci: int = 3) -> SaKey:
    """A key that differs with `fill`."""
    sak = Secret(bytes((fill + i) & 0xFF for i in range(suite.key_size)))
    if suite.is_xpn:
        return SaKey(sak, bytes(16), ssci, bytes(range(0xE6, 0xE6 + 12)))
    return SaKey(sak, bytes(16))


def sender(make: Any, policy: Policy, *, an: int = 0, pn: int = 1) -> AnySecy:
    secy = make(policy)
    secy.install_transmit(an, key_of(policy.suite), pn)
    secy.enable_transmit(an)
    return secy


def receiver(make: Any, policy: Policy, *, sci: Sci = A, an: int = 0, pn: int = 1) -> AnySecy:
    secy = make(policy)
    secy.add_receive_sc(sci)
    secy.install_receive(sci, an, key_of(policy.suite), pn)
    secy.enable_receive(sci, an)
    return secy


def pair(make: Any, suite: CipherSuite, pn: int = 1, **policy: Any) -> tuple[AnySecy, AnySecy]:
    p = Policy(suite, A, **policy)
    return sender(make, p, pn=pn), receiver(make, p, pn=pn)


def frame_of(size: int, source: Sci = A) -> bytes:
    """A frame of `size` octets from `source`'s MAC address."""
    head = bytes.fromhex("e20106d7cd0d") + source.mac.octets + b"\x08\x00"
    return (head + bytes((i * 7) & 0xFF for i in range(size)))[:size]


def verdicts(results: list[Result]) -> list[Verdict]:
    return [result.verdict for result in results]


def from_vector(make: Any, v: dict[str, Any], **more: Any) -> tuple[AnySecy, SaKey, Sci]:
    """A SecY with the policy that a vector was made with, without SAs."""
    suite = CipherSuite.parse(v["cipher_suite"])
    sci = Sci.unpack(bytes.fromhex(v["sci"]))
    tci = int(v["tci_an"], 16)
    policy = Policy(
        suite,
        sci,
        encrypt=bool(tci & 0x08),
        include_sci=bool(tci & 0x20),
        end_station=bool(tci & 0x40),
        single_copy_broadcast=bool(tci & 0x10),
        **more,
    )
    ssci = int(v["ssci"], 16) if isinstance(v["ssci"], str) else (v["ssci"] or 0)
    salt = bytes.fromhex(v["salt"] or "")
    return make(policy), SaKey(Secret(bytes.fromhex(v["key"])), bytes(16), ssci, salt), sci


@pytest.mark.parametrize("make", IMPLEMENTATIONS, ids=lambda make: make.__name__)
class TestSecy:
    """What any SecY must do."""

    @pytest.mark.parametrize("v", FRAMES, ids=lambda v: v["name"])
    def test_frames_of_the_standard(self, make: Any, v: dict[str, Any]) -> None:
        """Annex C: what we send is the standard's frame, and what it sends we read."""
        clear = len(v["clear_vlan_tags"]) // 8
        secy, key, sci = from_vector(make, v, clear_tags=clear)
        plain, wire, pn = bytes.fromhex(v["plain"]), bytes.fromhex(v["protected"]), v["pn"]
        if isinstance(v["pn_hex"], str):
            pn = int(v["pn_hex"], 16)
        secy.install_transmit(v["an"], key, pn)
        secy.enable_transmit(v["an"])
        (sent,) = secy.protect([plain])
        assert sent.frame.hex() == wire.hex()
        assert sent.verdict is (Verdict.OUT_ENCRYPTED if v["confidentiality"] else Verdict.OUT_PROTECTED)

        secy.add_receive_sc(sci)
        secy.install_receive(sci, v["an"], key, pn)
        secy.enable_receive(sci, v["an"])
        assert secy.validate([wire, wire]) == [Result(Verdict.IN_OK, plain), Result(Verdict.IN_LATE)]

    @pytest.mark.parametrize("v", FRAMES, ids=lambda v: v["name"])
    def test_frames_of_the_standard_in_a_run(self, make: Any, v: dict[str, Any]) -> None:
        """The same frame among others like it, which may be done together: still the standard's."""
        clear = len(v["clear_vlan_tags"]) // 8
        secy, key, sci = from_vector(make, v, clear_tags=clear, replay_window=64)
        plain, wire = bytes.fromhex(v["plain"]), bytes.fromhex(v["protected"])
        pn = int(v["pn_hex"], 16) if isinstance(v["pn_hex"], str) else v["pn"]
        before = min(5, pn - 1)
        secy.install_transmit(v["an"], key, pn - before)
        secy.enable_transmit(v["an"])
        sent = secy.protect([plain] * 12)
        assert sent[before].frame.hex() == wire.hex()

        secy.add_receive_sc(sci)
        secy.install_receive(sci, v["an"], key, pn - before)
        secy.enable_receive(sci, v["an"])
        arriving = [one.frame for one in sent]
        assert secy.validate(arriving) == [Result(Verdict.IN_OK, plain)] * 12
        assert verdicts(secy.validate(arriving)) == [Verdict.IN_LATE] * 12

    @pytest.mark.parametrize("v", BAD, ids=lambda v: v["name"])
    def test_bad_sectags_are_dropped(self, make: Any, v: dict[str, Any]) -> None:
        """A receiver discards the frame by its SecTAG alone, whatever its policy."""
        for validate in Validate:
            secy = make(Policy(CipherSuite.GCM_AES_128, A, validate=validate))
            sci = Sci.unpack(bytes.fromhex(v["sci"]))
            secy.add_receive_sc(sci)
            secy.install_receive(sci, v["an"], SaKey(Secret(bytes.fromhex(v["key"])), bytes(16)))
            secy.enable_receive(sci, v["an"])
            assert secy.validate([bytes.fromhex(v["protected"])]) == [Result(Verdict.IN_BAD_TAG)]

    @pytest.mark.parametrize("number", range(len(KERNEL)))
    def test_frames_of_linux(self, make: Any, number: int) -> None:
        """Frames of the Linux driver: made the same, and read."""
        v = KERNEL[number]
        secy, key, sci = from_vector(make, v)
        plain, wire = bytes.fromhex(v["plain"]), bytes.fromhex(v["protected"])
        secy.install_transmit(v["an"], key, v["pn"])
        secy.enable_transmit(v["an"])
        (sent,) = secy.protect([plain])
        assert sent.frame.hex() == wire.hex()
        secy.add_receive_sc(sci)
        secy.install_receive(sci, v["an"], key, v["pn"])
        secy.enable_receive(sci, v["an"])
        padded = wire.ljust(60, b"\0")
        assert secy.validate([padded]) == [Result(Verdict.IN_OK, plain)]

    @pytest.mark.parametrize("suite", SUITES, ids=str)
    @pytest.mark.parametrize("encrypt", [True, False])
    @pytest.mark.parametrize("offset", [0, 30, 50])
    @pytest.mark.parametrize("sci", ["explicit", "end-station", "implied", "broadcast"])
    def test_every_variant_comes_back(
        self, make: Any, suite: CipherSuite, encrypt: bool, offset: int, sci: str
    ) -> None:
        """Each suite, protection, offset and way to name the SC undoes itself at sizes around all limits."""
        sizes = [14, 15, 16, 43, 44, 45, 59, 60, 61, 62, 63, 64, 100, 1514, 9000]
        out, into = pair(
            make,
            suite,
            encrypt=encrypt,
            confidentiality_offset=offset,
            include_sci=sci == "explicit",
            end_station=sci == "end-station",
            single_copy_broadcast=sci == "broadcast",
        )
        frames = [frame_of(size) for size in sizes]
        sent = [result.frame for result in out.protect(frames)]
        grows = 32 if sci == "explicit" else 24
        assert [len(wire) for wire in sent] == [size + grows for size in sizes]
        assert into.validate(sent) == [Result(Verdict.IN_OK, frame) for frame in frames]
        tag = 28 if sci == "explicit" else 20
        readable = offset if encrypt else 10000
        for frame, wire in zip(frames, sent, strict=True):
            assert wire[tag:-16][:readable] == frame[12:][:readable]
            if encrypt and len(frame) > 12 + offset + 8:
                assert wire[tag:-16][readable:] != frame[12:][readable:]

    @pytest.mark.parametrize("suite", SUITES, ids=str)
    def test_vlan_is_pushed_inside_and_popped(self, make: Any, suite: CipherSuite) -> None:
        """The tag is under the protection: only DA, SA and SecTAG are readable on the wire."""
        out, into = pair(make, suite, pop_vlan=True)
        frames = [frame_of(size) for size in (14, 60, 1514)]
        sent = [result.frame for result in out.protect(frames, vlan=0x6064)]
        assert all(b"\x81\x00\x60\x64" not in wire for wire in sent)
        assert into.validate(sent) == [Result(Verdict.IN_OK, frame, 0x6064) for frame in frames]

    def test_pop_leaves_frames_without_a_tag(self, make: Any) -> None:
        """A frame without tag, or with a service tag outermost, passes as it is."""
        out, into = pair(make, CipherSuite.GCM_AES_256, pop_vlan=True)
        qinq = frame_of(60)[:12] + bytes.fromhex("88a80004810000020800") + bytes(50)
        frames = [frame_of(60), qinq, frame_of(12) + b"\x81\x00", frame_of(12) + b"\x81\x00\x00\x05\x08"]
        sent = [result.frame for result in out.protect(frames)]
        assert into.validate(sent) == [Result(Verdict.IN_OK, frame) for frame in frames]

    def test_clear_tags_stay_in_front_and_out_of_the_icv(self, make: Any) -> None:
        """With clear tags a bridge may rewrite them; the frame still authenticates."""
        out, into = pair(make, CipherSuite.GCM_AES_XPN_256, clear_tags=2)
        inner = bytes.fromhex("0800") + bytes(60)
        tags = bytes.fromhex("88a80004 81000002")
        frame = frame_of(12) + tags + inner
        (sent,) = out.protect([frame])
        assert sent.frame[12:22] == tags + b"\x88\xe5"
        assert into.validate([sent.frame]) == [Result(Verdict.IN_OK, frame)]
        (sent,) = out.protect([frame])
        rewritten = bytes.fromhex("88a80009 81002003")
        changed = sent.frame[:12] + rewritten + sent.frame[20:]
        assert into.validate([changed]) == [Result(Verdict.IN_OK, frame_of(12) + rewritten + inner)]

    def test_nothing_leaves_without_an_sa(self, make: Any) -> None:
        """Fail closed: before a key, before it is enabled, after it is gone."""
        secy = make(Policy(CipherSuite.GCM_AES_XPN_256, A))
        gone = [Result(Verdict.OUT_NO_SA)]
        assert secy.protect([frame_of(60)]) == gone
        secy.install_transmit(2, key_of(CipherSuite.GCM_AES_XPN_256))
        assert secy.protect([frame_of(60)]) == gone
        secy.enable_transmit(2)
        assert secy.protect([frame_of(60)])[0].verdict is Verdict.OUT_ENCRYPTED
        secy.delete_transmit(2)
        assert secy.protect([frame_of(60)]) == gone
        assert secy.next_pn(2) == 0

    def test_unprotected_only_where_asked(self, make: Any) -> None:
        """protectFrames off: frames leave as they are, with the VLAN tag."""
        secy = make(Policy(CipherSuite.GCM_AES_256, A, protect=False))
        frame = frame_of(60)
        tagged = frame[:12] + b"\x81\x00\x00\x05" + frame[12:]
        assert secy.protect([frame], vlan=5) == [Result(Verdict.OUT_UNTAGGED, tagged)]
        assert secy.protect([frame]) == [Result(Verdict.OUT_UNTAGGED, frame)]

    def test_length_limits(self, make: Any) -> None:
        """One octet decides, at both ends, with and without a VLAN tag."""
        out, _ = pair(make, CipherSuite.GCM_AES_256, frame_max=1554)
        sizes = [0, 13, 14, 1522, 1523]
        assert verdicts(out.protect([frame_of(size) for size in sizes])) == [
            Verdict.OUT_TOO_SHORT,
            Verdict.OUT_TOO_SHORT,
            Verdict.OUT_ENCRYPTED,
            Verdict.OUT_ENCRYPTED,
            Verdict.OUT_TOO_LONG,
        ]
        assert verdicts(out.protect([frame_of(1518), frame_of(1519)], vlan=1)) == [
            Verdict.OUT_ENCRYPTED,
            Verdict.OUT_TOO_LONG,
        ]
        assert out.next_pn(0) == 4, "dropped frames take no packet number"

    @pytest.mark.parametrize("suite", SUITES, ids=str)
    def test_packet_numbers_end(self, make: Any, suite: CipherSuite) -> None:
        """The last PN is used, then nothing leaves: a PN is never used twice."""
        out, into = pair(make, suite, pn=suite.pn_max - 1)
        sent = out.protect([frame_of(60)] * 4)
        assert verdicts(sent) == [Verdict.OUT_ENCRYPTED] * 2 + [Verdict.OUT_PN_EXHAUSTED] * 2
        assert verdicts(out.protect([frame_of(60)])) == [Verdict.OUT_PN_EXHAUSTED]
        assert out.next_pn(0) == 0
        assert verdicts(into.validate([r.frame for r in sent[:2]])) == [Verdict.IN_OK] * 2
        assert verdicts(into.validate([sent[1].frame])) == [Verdict.IN_LATE]

    @pytest.mark.parametrize("window", [0, 1, 2, 63, 64, 65, 1000])
    def test_replay_edge(self, make: Any, window: int) -> None:
        """With highest PN h the lowest accepted is h + 1 - window; inside, each PN once."""
        out, into = pair(make, CipherSuite.GCM_AES_256, replay_window=window)
        wire = dict(enumerate((r.frame for r in out.protect([frame_of(60)] * 2002)), start=1))
        highest = 2000
        lowest = highest + 1 - window
        assert verdicts(into.validate([wire[highest]])) == [Verdict.IN_OK]
        assert into.lowest_pn(A, 0) == lowest
        for pn in sorted({lowest - 1, lowest, lowest + 1, highest - 1, highest} - {highest + 1, highest + 2}):
            first = Verdict.IN_OK if lowest <= pn < highest else Verdict.IN_LATE
            assert verdicts(into.validate([wire[pn], wire[pn]])) == [first, Verdict.IN_LATE]
        ahead = [wire[highest + 1], wire[highest + 1], wire[highest + 2]]
        assert verdicts(into.validate(ahead)) == [Verdict.IN_OK, Verdict.IN_LATE, Verdict.IN_OK]

    def test_forged_frames_move_no_window(self, make: Any) -> None:
        """Check, authenticate, then commit: a PN far ahead with a bad ICV changes nothing."""
        out, into = pair(make, CipherSuite.GCM_AES_XPN_256, replay_window=16)
        wire = [r.frame for r in out.protect([frame_of(60)] * 50)]
        forged = bytearray(wire[0])
        forged[16:20] = (1 << 30).to_bytes(4)
        assert verdicts(into.validate([bytes(forged), *wire[:2]])) == [
            Verdict.IN_NOT_VALID,
            Verdict.IN_OK,
            Verdict.IN_OK,
        ]
        assert into.lowest_pn(A, 0) == 1

    def test_lowest_pn_is_raised(self, make: Any) -> None:
        """Delay protection: what is below the peer's LPN is late."""
        out, into = pair(make, CipherSuite.GCM_AES_256, replay_window=100)
        wire = [r.frame for r in out.protect([frame_of(60)] * 20)]
        into.raise_receive_pn(A, 0, 10)
        into.raise_receive_pn(A, 0, 5)
        assert into.lowest_pn(A, 0) == 10
        assert verdicts(into.validate([wire[8], wire[9], wire[19]])) == [
            Verdict.IN_LATE,
            Verdict.IN_OK,
            Verdict.IN_OK,
        ]

    @pytest.mark.parametrize("suite", [CipherSuite.GCM_AES_XPN_128, CipherSuite.GCM_AES_XPN_256], ids=str)
    def test_xpn_across_the_wrap(self, make: Any, suite: CipherSuite) -> None:
        """Over 2^32 in one batch, shuffled within the window, and again at the next 2^32."""
        for turn in (1, 2, 0xB0DF459C):
            start = (turn << 32) - 20
            out, into = pair(make, suite, pn=start, replay_window=64)
            frames = [frame_of(60 + i) for i in range(40)]
            wire = [r.frame for r in out.protect(frames)]
            order = [i ^ 5 for i in range(40)]
            got = into.validate([wire[i] for i in order])
            assert got == [Result(Verdict.IN_OK, frames[i]) for i in order]
            assert verdicts(into.validate(wire)) == [Verdict.IN_LATE] * 40
            late_out, late_in = pair(make, suite, pn=start, replay_window=64)
            late = [r.frame for r in late_out.protect(frames)]
            assert verdicts(late_in.validate([late[30], late[0]])) == [Verdict.IN_OK] * 2, (
                "late over the wrap"
            )

    def test_xpn_gap_of_nearly_half_the_space(self, make: Any) -> None:
        """A receiver that missed 2^31 - 1 frames still recovers the PN."""
        policy = Policy(CipherSuite.GCM_AES_XPN_256, A)
        into = receiver(make, policy, pn=100)
        ahead = sender(make, policy, pn=100 + (1 << 31) - 1)
        assert verdicts(into.validate([r.frame for r in ahead.protect([frame_of(60)])])) == [Verdict.IN_OK]

    @pytest.mark.parametrize("suite", SUITES, ids=str)
    def test_every_octet_counts(self, make: Any, suite: CipherSuite) -> None:
        """Flip any one bit anywhere: never delivered. (Behind the ICV there is only padding.)"""
        out, into = pair(make, suite, replay_window=1 << 20)
        (sent,) = out.protect([frame_of(40)])
        garbled = []
        for at in range(len(sent.frame)):
            for bit in range(8):
                frame = bytearray(sent.frame)
                frame[at] ^= 1 << bit
                garbled.append(bytes(frame))
        assert not any(result.verdict.delivers for result in into.validate(garbled))
        assert verdicts(into.validate([sent.frame])) == [Verdict.IN_OK]

    @pytest.mark.parametrize("size", [14, 40, 60, 61, 200])
    def test_truncated_anywhere(self, make: Any, size: int) -> None:
        """Cut at every length: dropped under a name, and the whole frame still passes after it."""
        out, into = pair(make, CipherSuite.GCM_AES_256)
        (sent,) = out.protect([frame_of(size)])
        results = into.validate([sent.frame[:cut] for cut in range(len(sent.frame))])
        allowed = {Verdict.IN_TOO_SHORT, Verdict.IN_BAD_TAG, Verdict.IN_NOT_VALID}
        assert {result.verdict for result in results} <= allowed
        assert verdicts(into.validate([sent.frame])) == [Verdict.IN_OK]

    def test_unknown_channels_and_associations(self, make: Any) -> None:
        """Strict: unknown SCI, unused and inactive AN are dropped, each under its own name."""
        suite = CipherSuite.GCM_AES_256
        out, into = pair(make, suite)
        (sent,) = out.protect([frame_of(60)])
        stranger = sender(make, Policy(suite, B))
        (strange,) = stranger.protect([frame_of(60)])
        other_an = sent.frame[:14] + bytes([sent.frame[14] | 1]) + sent.frame[15:]
        assert verdicts(into.validate([strange.frame, other_an])) == [
            Verdict.IN_NO_SCI,
            Verdict.IN_NOT_USING_SA,
        ]
        into.enable_receive(A, 0, active=False)
        assert verdicts(into.validate([sent.frame])) == [Verdict.IN_NOT_USING_SA]
        into.enable_receive(A, 0)
        assert verdicts(into.validate([sent.frame])) == [Verdict.IN_OK]
        into.remove_receive_sc(A)
        assert verdicts(into.validate([sent.frame])) == [Verdict.IN_NO_SCI]

    def test_implied_sci_needs_a_single_peer(self, make: Any) -> None:
        """Without SCI and ES bit the peer is implied; with two of them there is no telling."""
        out, into = pair(make, CipherSuite.GCM_AES_256, include_sci=False)
        first, second = (r.frame for r in out.protect([frame_of(60)] * 2))
        assert verdicts(into.validate([first])) == [Verdict.IN_OK]
        into.add_receive_sc(B)
        assert verdicts(into.validate([second])) == [Verdict.IN_NO_SCI]

    def test_untagged_frames(self, make: Any) -> None:
        """Strict drops them; check and disabled let them in and count them."""
        for validate in Validate:
            secy = make(Policy(CipherSuite.GCM_AES_256, A, validate=validate))
            expected = (
                Result(Verdict.IN_NO_TAG)
                if validate is Validate.STRICT
                else Result(Verdict.IN_UNTAGGED, frame_of(60))
            )
            assert secy.validate([frame_of(60)]) == [expected]
            assert verdicts(secy.validate([b"", frame_of(13)])) == [Verdict.IN_TOO_SHORT] * 2

    @pytest.mark.parametrize("validate", [Validate.CHECK, Validate.DISABLED])
    def test_lenient_receivers(self, make: Any, validate: Validate) -> None:
        """Not strict: clear frames pass, counted; encrypted ones never pass unproven."""
        suite = CipherSuite.GCM_AES_XPN_128
        clear, into = pair(make, suite, encrypt=False, validate=validate, replay_window=64)
        secret = sender(make, Policy(suite, A), pn=10)
        frame = frame_of(70)
        bad_clear = bytearray(clear.protect([frame])[0].frame)
        bad_clear[-1] ^= 1
        bad_secret = bytearray(secret.protect([frame])[0].frame)
        bad_secret[-1] ^= 1
        lenient = Verdict.IN_INVALID if validate is Validate.CHECK else Verdict.IN_UNCHECKED
        assert into.validate([bytes(bad_clear), bytes(bad_secret)]) == [
            Result(lenient, frame),
            Result(Verdict.IN_NOT_VALID),
        ]
        stranger = sender(make, Policy(suite, B, encrypt=False)).protect([frame])[0].frame
        hidden = sender(make, Policy(suite, B)).protect([frame])[0].frame
        assert into.validate([stranger, hidden]) == [
            Result(Verdict.IN_UNKNOWN_SCI, frame),
            Result(Verdict.IN_NO_SCI),
        ]
        into.delete_receive(A, 0)
        assert into.validate([clear.protect([frame])[0].frame, secret.protect([frame])[0].frame]) == [
            Result(Verdict.IN_UNUSED_SA, frame),
            Result(Verdict.IN_NOT_USING_SA),
        ]

    def test_without_replay_protection(self, make: Any) -> None:
        """Late frames are delivered and counted as delayed; they still have to be authentic."""
        out, into = pair(make, CipherSuite.GCM_AES_256, replay_protect=False, replay_window=4)
        wire = [r.frame for r in out.protect([frame_of(60)] * 20)]
        bad = bytearray(wire[1])
        bad[30] ^= 1
        assert verdicts(into.validate([wire[19], wire[0], wire[18], wire[18], bytes(bad)])) == [
            Verdict.IN_OK,
            Verdict.IN_DELAYED,
            Verdict.IN_OK,
            Verdict.IN_OK,
            Verdict.IN_NOT_VALID,
        ]

    def test_rollover_loses_nothing(self, make: Any) -> None:
        """Receive under the new AN first, then send: frames of both ANs mixed all arrive."""
        suite = CipherSuite.GCM_AES_XPN_256
        policy = Policy(suite, A, replay_window=64)
        out, into = sender(make, policy, an=3), receiver(make, policy, an=3)
        frames = [frame_of(60 + i) for i in range(12)]
        old = [r.frame for r in out.protect(frames)]
        new_key = key_of(suite, fill=99)
        into.install_receive(A, 0, new_key)
        into.enable_receive(A, 0)
        out.install_transmit(0, new_key)
        out.enable_transmit(0)
        new = [r.frame for r in out.protect(frames)]
        mixed = [wire for both in zip(old, new, strict=True) for wire in both]
        expected = [frame for frame in frames for _ in range(2)]
        assert into.validate(mixed) == [Result(Verdict.IN_OK, frame) for frame in expected]
        out.delete_transmit(3)
        into.delete_receive(A, 3)
        assert verdicts(into.validate(old[:1])) == [Verdict.IN_NOT_USING_SA]
        assert verdicts(into.validate([r.frame for r in out.protect(frames)])) == [Verdict.IN_OK] * 12

    def test_counters(self, make: Any) -> None:
        """Packets by verdict, octets of secure data by protection."""
        out, into = pair(make, CipherSuite.GCM_AES_256)
        wire = [r.frame for r in out.protect([frame_of(60), frame_of(100), b"x"], vlan=3)]
        into.validate([wire[0], wire[0], wire[1], frame_of(60)])
        assert {k: v for k, v in out.counters.items() if v} == {
            "out_pkts_encrypted": 2,
            "out_octets_encrypted": 52 + 92,
            "out_pkts_too_short": 1,
        }
        assert {k: v for k, v in into.counters.items() if v} == {
            "in_pkts_ok": 2,
            "in_octets_decrypted": 52 + 92,
            "in_pkts_late": 1,
            "in_pkts_no_tag": 1,
        }

    def test_what_is_refused(self, make: Any) -> None:
        """Each mistake raises our error, says what is wrong, and changes nothing."""
        suite = CipherSuite.GCM_AES_XPN_256
        key = key_of(suite)
        secy = make(Policy(suite, A))
        short = SaKey(Secret(bytes(16)), bytes(16), 1, bytes(12))
        no_ssci = SaKey(Secret(bytes(32)), bytes(16), 0, bytes(12))
        no_salt = SaKey(Secret(bytes(32)), bytes(16), 1, b"")
        secy.install_transmit(1, key)
        secy.add_receive_sc(A)
        secy.add_receive_sc(A)
        secy.install_receive(A, 1, key)
        for text, call in [
            ("association number", lambda: secy.install_transmit(4, key)),
            ("holds an SA", lambda: secy.install_transmit(1, key)),
            ("holds an SA", lambda: secy.install_receive(A, 1, key)),
            ("key's size", lambda: secy.install_transmit(0, short)),
            ("SSCI", lambda: secy.install_transmit(0, no_ssci)),
            ("salt", lambda: secy.install_transmit(0, no_salt)),
            ("packet number", lambda: secy.install_transmit(0, key, 0)),
            ("packet number", lambda: secy.install_transmit(0, key, 1 << 64)),
            ("no SA", lambda: secy.enable_transmit(0)),
            ("no SA", lambda: secy.delete_transmit(0)),
            ("no SA", lambda: secy.enable_receive(A, 0)),
            ("no SA", lambda: secy.delete_receive(A, 0)),
            ("no such receive SC", lambda: secy.install_receive(B, 0, key)),
            ("no such receive SC", lambda: secy.remove_receive_sc(B)),
        ]:
            with pytest.raises(DataplaneError, match=text):
                call()
        plain = make(Policy(CipherSuite.GCM_AES_128, A))
        with pytest.raises(DataplaneError, match="packet number"):
            plain.install_transmit(0, key_of(CipherSuite.GCM_AES_128), 1 << 32)
        with pytest.raises(DataplaneError, match="SSCI"):
            plain.install_transmit(0, SaKey(Secret(bytes(16)), bytes(16), 5, bytes(12)))
        for port in range(2, 9):
            secy.add_receive_sc(Sci(A.mac, port))
        with pytest.raises(DataplaneError, match="full"):
            secy.add_receive_sc(B)

    @pytest.mark.parametrize("suite", SUITES, ids=str)
    @pytest.mark.parametrize("encrypt", [True, False])
    @pytest.mark.parametrize("explicit", [True, False])
    def test_scapy_agrees(self, make: Any, suite: CipherSuite, encrypt: bool, explicit: bool) -> None:
        """scapy's MACsec reads what we send, and we read what it sends, VLAN inside."""
        pn = (5 << 32) + 9 if suite.is_xpn else 9
        out, into = pair(make, suite, pn=pn, encrypt=encrypt, include_sci=explicit, end_station=not explicit)
        key = key_of(suite)
        sa = MACsecSA(
            sci=A.pack(),
            an=0,
            pn=pn,
            key=key.sak.reveal(),
            icvlen=16,
            encrypt=encrypt,
            send_sci=explicit,
            xpn_en=suite.is_xpn,
            ssci=key.ssci,
            salt=key.salt,
        )
        packet = (
            Ether(src=str(A.mac), dst="02:00:00:00:00:99") / Dot1Q(vlan=100) / IP() / UDP() / (b"x" * 100)
        )
        (sent,) = out.protect([bytes(packet)])
        theirs = sa.decap(sa.decrypt(Ether(sent.frame)))
        assert bytes(theirs) == bytes(packet)

        tagged = sa.encap(packet)
        tagged[MACsec].ES = not explicit
        made = bytes(sa.encrypt(tagged))
        assert into.validate([made]) == [Result(Verdict.IN_OK, bytes(packet))]
        assert made == sent.frame


class TestTwins:
    """The Python twin and the C do the same with anything."""

    def test_same_names(self) -> None:
        """Verdicts and counters have the same names in the same order, and the same fate."""
        assert list(COUNTER_NAMES[: len(Verdict)]) == [verdict.value for verdict in Verdict]
        assert len(COUNTER_NAMES) == len(Verdict) + 4

    @settings(max_examples=150, deadline=None)
    @given(data=st.data())
    def test_conversations(self, data: st.DataObject) -> None:
        """Random policies, frames, corruption, order, duplicates: equal results and counters."""
        suite = data.draw(st.sampled_from(SUITES))
        encrypt = data.draw(st.booleans())
        naming = data.draw(st.sampled_from(["explicit", "es", "implied", "scb"]))
        policy = Policy(
            suite,
            A,
            encrypt=encrypt,
            frame_max=data.draw(st.sampled_from([100, 300, 9216])),
            confidentiality_offset=data.draw(st.sampled_from([0, 30, 50])),
            include_sci=naming == "explicit",
            end_station=naming == "es",
            single_copy_broadcast=naming == "scb",
            validate=data.draw(st.sampled_from(Validate)),
            replay_protect=data.draw(st.booleans()),
            replay_window=data.draw(st.sampled_from([0, 1, 5, 64, 100])),
            pop_vlan=data.draw(st.booleans()),
            clear_tags=data.draw(st.integers(0, 2)),
        )
        pn = data.draw(
            st.sampled_from(
                [1, 100, (1 << 32) - 5, *([(1 << 32) - 1, 7 << 32, (1 << 64) - 9] if suite.is_xpn else [])]
            )
        )
        vlan = data.draw(st.one_of(st.none(), st.integers(0, 0xFFFE)))
        tag = st.sampled_from([b"\x81\x00\x00\x01", b"\x88\xa8\x20\x05", b"\x88\xe5", b""])
        frame = st.builds(
            lambda head, tags, rest: head + A.mac.octets + b"".join(tags) + rest,
            st.binary(min_size=6, max_size=6),
            st.lists(tag, max_size=3),
            st.binary(max_size=90),
        )
        frames = data.draw(st.lists(frame, min_size=1, max_size=80))
        twin, c = sender(reference, policy, pn=pn), sender(c_fastest, policy, pn=pn)
        sent = twin.protect(frames, vlan)
        assert sent == c.protect(frames, vlan)
        assert +twin.counters == +c.counters

        arriving = []
        for result in sent:
            wire = bytearray(result.frame)
            match data.draw(st.integers(0, 9)):
                case 0 if wire:
                    wire[data.draw(st.integers(0, len(wire) - 1))] ^= 1 << data.draw(st.integers(0, 7))
                case 1:
                    del wire[data.draw(st.integers(0, len(wire))) :]
                case 2:
                    wire += bytes(data.draw(st.integers(0, 20)))
                case 3:
                    arriving.append(bytes(wire))
            arriving.append(bytes(wire))
        arriving = data.draw(st.permutations(arriving)) if data.draw(st.booleans()) else arriving
        arriving += data.draw(st.lists(frame, max_size=3))
        twin, c = receiver(reference, policy, pn=pn), receiver(c_fastest, policy, pn=pn)
        # A batch recovers all its PNs from the lowest acceptable one at its start. Where a batch
        # crosses 2^32 that tells a duplicate as late where, frame by frame, it is not valid.
        crosses = suite.is_xpn and 0xFFFFFFFF - pn < len(frames)
        whole = [[wire] for wire in arriving] if crosses and pn < 1 << 32 else [arriving]
        assert twin.validate(arriving) == [result for part in whole for result in c.validate(part)]
        assert +twin.counters == +c.counters
        assert twin.lowest_pn(A, 0) == c.lowest_pn(A, 0)

    @settings(max_examples=100, deadline=None)
    @given(data=st.data())
    def test_runs(self, data: st.DataObject) -> None:
        """Runs of frames of one length, of which a wire loses, repeats and forges some."""
        suite = data.draw(st.sampled_from(SUITES))
        policy = Policy(
            suite,
            A,
            replay_protect=data.draw(st.booleans()),
            replay_window=data.draw(st.sampled_from([0, 3, 64, 1000])),
            pop_vlan=data.draw(st.booleans()),
        )
        size = data.draw(st.one_of(st.integers(14, 330), st.sampled_from([1500, 1514, 4000, 9000])))
        vlan = data.draw(st.one_of(st.none(), st.integers(0, 0xFFFE)))
        count = data.draw(st.integers(8, 80))
        frames = [frame_of(size - 1) + bytes([i]) for i in range(count)]
        twin, c = sender(reference, policy), sender(c_fastest, policy)
        sent = twin.protect(frames, vlan)
        assert sent == c.protect(frames, vlan)
        assert +twin.counters == +c.counters

        arriving = [result.frame for result in sent]
        for _ in range(data.draw(st.integers(0, 4))):
            at = data.draw(st.integers(0, len(arriving) - 1))
            match data.draw(st.integers(0, 3)):
                case 0:
                    octet = data.draw(st.integers(0, len(arriving[at]) - 1))
                    forged = bytearray(arriving[at])
                    forged[octet] ^= 1 << data.draw(st.integers(0, 7))
                    arriving[at] = bytes(forged)
                case 1:
                    arriving.insert(at, arriving[data.draw(st.integers(0, len(arriving) - 1))])
                case 2 if len(arriving) > 1:
                    del arriving[at]
                case _:
                    arriving.append(arriving.pop(at))
        twin, c = receiver(reference, policy), receiver(c_fastest, policy)
        assert twin.validate(arriving) == c.validate(arriving)
        assert +twin.counters == +c.counters
        assert twin.lowest_pn(A, 0) == c.lowest_pn(A, 0)

    @given(st.binary(max_size=80))
    def test_any_octets_behind_the_ethertype(self, rest: bytes) -> None:
        """Nothing makes the C and the twin disagree on a SecTAG."""
        policy = Policy(CipherSuite.GCM_AES_128, A, validate=Validate.CHECK)
        wire = bytes(12) + b"\x88\xe5" + rest
        assert receiver(reference, policy).validate([wire]) == receiver(c_openssl, policy).validate([wire])


class TestBatch:
    """The buffer that crosses into C."""

    def test_protect_then_validate_in_place(self) -> None:
        """A batch that was protected is validated where it lies and holds the first frames again."""
        out, into = pair(c_fastest, CipherSuite.GCM_AES_XPN_256, pop_vlan=True)
        batch = Batch(count_max=200, frame_size_max=1514)
        for i in range(200):
            batch.append(frame_of(60 + i), vlan=i)
        out.protect_batch(batch)
        into.validate_batch(batch)
        for i in range(200):
            assert bytes(batch.frame(i)) == frame_of(60 + i)
            assert batch.vlan(i) == i
            assert batch.verdict(i) is Verdict.IN_OK
        batch.clear()
        assert len(batch) == 0

    def test_limits(self) -> None:
        """A full batch, a frame too long, a TCI out of range and an index beyond are refused."""
        batch = Batch(count_max=1, frame_size_max=100)
        with pytest.raises(DataplaneError, match="beyond 100"):
            batch.append(bytes(101))
        with pytest.raises(DataplaneError, match="TCI"):
            batch.append(bytes(100), vlan=0xFFFF)
        batch.append(bytes(100))
        with pytest.raises(DataplaneError, match="full"):
            batch.append(bytes(100))
        with pytest.raises(IndexError):
            batch.frame(1)
        with pytest.raises(DataplaneError):
            Batch(count_max=0)
        with pytest.raises(DataplaneError):
            Batch(count_max=1 << 20)

    def test_protected_twice_runs_out_of_room(self) -> None:
        """C does not trust the batch: a frame without headroom is refused before it is touched."""
        out, _ = pair(c_fastest, CipherSuite.GCM_AES_256)
        batch = Batch(count_max=2, frame_size_max=100)
        batch.append(frame_of(60))
        out.protect_batch(batch)
        with pytest.raises(DataplaneError, match="outside its buffer"):
            out.protect_batch(batch)

    def test_threads_share_a_secy(self) -> None:
        """No packet number is used twice, whoever asks; with batches of several threads at once."""
        out, into = pair(c_fastest, CipherSuite.GCM_AES_XPN_256, replay_window=1 << 16)
        batches = [Batch(count_max=64, frame_size_max=100) for _ in range(64)]

        def work(share: list[Batch]) -> None:
            for batch in share:
                for _ in range(64):
                    batch.append(frame_of(60))
                out.protect_batch(batch)

        threads = [Thread(target=work, args=(batches[i::4],)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wire = [bytes(batch.frame(i)) for batch in batches for i in range(64)]
        assert {int.from_bytes(frame[16:20]) for frame in wire} == set(range(1, 4097))
        assert set(verdicts(into.validate(wire))) == {Verdict.IN_OK}

    def test_unknown_backend(self) -> None:
        """A cipher that does not exist is named as such."""
        with pytest.raises(DataplaneError, match="backend"):
            Secy(Policy(CipherSuite.GCM_AES_256, A), "rot13")

    def test_keys_are_not_kept(self) -> None:
        """Installing a key leaves the caller's Secret as it is and prints it nowhere."""
        key = key_of(CipherSuite.GCM_AES_256)
        before = key.sak.reveal()
        with Secy(Policy(CipherSuite.GCM_AES_256, A)) as secy:
            secy.install_transmit(0, key)
            assert key.sak.reveal() == before
            assert before.hex() not in repr(vars(secy))


class TestParts:
    """The twin's pure functions at their limits."""

    @given(st.integers(1, (1 << 64) - (1 << 31)), st.integers(0, (1 << 31) - 1))
    def test_recovery_finds_every_number_ahead(self, lowest: int, ahead: int) -> None:
        """Whatever is less than 2^31 above the lowest acceptable PN is recovered."""
        assert recover_pn((lowest + ahead) & 0xFFFFFFFF, lowest) == lowest + ahead

    def test_sectag_of_every_length(self) -> None:
        """No length makes the parser read beyond its input."""
        whole = sender(reference, Policy(CipherSuite.GCM_AES_256, A)).protect([frame_of(80)])[0].frame
        for cut in range(14, len(whole)):
            parse_sectag(whole[:cut])

    def test_window_remembers_what_it_must(self) -> None:
        """A duplicate anywhere in the window is refused, however many numbers went by."""
        window = ReplayWindow(100, 1)
        for pn in range(1, 2000):
            assert window.commit(pn)
            assert not window.commit(max(1, pn - 99))
        assert window.lowest == 1900

    def test_sci_of_an_end_station(self) -> None:
        """ES means SA and port 1."""
        assert Sci(MacAddress(frame_of(60)[6:12])) == A
