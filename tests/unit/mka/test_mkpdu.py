"""The codec: real MKPDUs of three implementations, every malformation by name, and its own inverse."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.mka.keys import Cak, salt
from router.mka.mkpdu import (
    Announcement,
    Basic,
    Confidentiality,
    DistributedCak,
    DistributedSak,
    DropReason,
    Frame,
    KeyIdentifier,
    KeyUse,
    Mkpdu,
    MkpduError,
    PeerEntry,
    SakUse,
    SuiteOffer,
    Xpn,
    envelope,
)
from router.model import CipherSuite, MacAddress, Sci, Secret

VECTORS = Path(__file__).parents[2] / "vectors" / "mka"
CAPTURES = sorted(path.stem for path in VECTORS.glob("mkpdu_*.json"))


def capture(name):
    return json.loads((VECTORS / f"{name}.json").read_text())


def frames(name):
    return [(frame, bytes.fromhex(frame["frame"])) for frame in capture(name)["frames"]]


def cak_of(name):
    data = capture(name)
    return Cak(bytes.fromhex(data["ckn"]), Secret(bytes.fromhex(data["cak"])))


def test_there_are_captures_of_three_implementations():
    """The captures are there: an empty glob would make all of the below pass."""
    assert len(CAPTURES) == 5


@pytest.mark.parametrize("name", CAPTURES)
def test_captured_frames_are_read_and_written_back_octet_by_octet(name):
    """What other implementations sent is parsed, its ICV verified, and serialised to the same octets."""
    cak = cak_of(name)
    for frame, octets in frames(name):
        envelope_ = Frame.parse(octets)
        assert envelope_.ckn == cak.ckn
        assert cak.verify(envelope_.protected, envelope_.icv)
        assert envelope_.icv.hex() == frame["decoded"]["icv"]
        mkpdu = Mkpdu.parse(envelope_.mkpdu)
        rebuilt = envelope(envelope_.source, mkpdu.serialize())
        assert rebuilt + cak.icv(rebuilt) == octets


@pytest.mark.parametrize("name", CAPTURES)
def test_captured_fields_mean_what_an_independent_decoder_says(name):
    """Every field of every parameter set equals the decoding stored beside the frame."""
    for frame, octets in frames(name):
        pdu, decoded = Mkpdu.parse(Frame.parse(octets).mkpdu), frame["decoded"]
        basic = decoded["basic"]
        assert pdu.basic == Basic(
            Sci.unpack(bytes.fromhex(basic["sci"])),
            bytes.fromhex(basic["mi"]),
            basic["mn"],
            bytes.fromhex(basic["ckn"]),
            bool(basic["key_server"]),
            basic["priority"],
            bool(basic["macsec_desired"]),
            basic["capability"],
            basic["version"],
        )
        sets = {entry["name"]: entry for entry in decoded["sets"]}
        for kind, entries in (("live", pdu.live), ("potential", pdu.potential)):
            wanted = sets.get(kind, {"peers": []})["peers"]
            assert [(e.mi.hex(), e.mn) for e in entries] == [(p["mi"], p["mn"]) for p in wanted]
        assert pdu.key_server_ssci == sets.get("live", {"key_server_ssci": 0})["key_server_ssci"]
        assert (pdu.sak_use is None) == ("sak_use" not in sets)
        if pdu.sak_use:
            use = sets["sak_use"]
            for slot, letter in ((pdu.sak_use.latest, "l"), (pdu.sak_use.old, "o")):
                assert slot == KeyUse(
                    KeyIdentifier(bytes.fromhex(use[f"{letter}_mi"]), use[f"{letter}_kn"]),
                    use[f"{letter}an"],
                    bool(use[f"{letter}tx"]),
                    bool(use[f"{letter}rx"]),
                    use[f"{letter}_lpn"],
                )
        assert (pdu.xpn is None) == ("xpn" not in sets)
        assert (pdu.announcement is None) == ("announcement" not in sets)
        if pdu.announcement:
            offers = pdu.announcement.offers
            assert [(o.capability, f"{o.suite_id:016x}") for o in offers] == [
                (s["cap"], s["id"]) for tlv in sets["announcement"]["tlvs"] for s in tlv["suites"]
            ]


@pytest.mark.parametrize("name", CAPTURES)
def test_distributed_saks_unwrap_to_the_installed_keys(name):
    """Each captured SAK unwraps to the key, and gives the salt, that both sides' SecYs were handed."""
    cak, installed = cak_of(name), capture(name)["secy_ops"]
    seen = 0
    for frame, octets in frames(name):
        pdu = Mkpdu.parse(Frame.parse(octets).mkpdu)
        if pdu.distributed_sak is None:
            continue
        seen += 1
        sak = cak.unwrap(pdu.distributed_sak.wrapped).reveal()
        stored = next(entry for entry in frame["decoded"]["sets"] if entry["name"] == "dist_sak")
        assert sak.hex() == stored["sak"]
        suite = pdu.distributed_sak.suite
        assert suite is not None
        assert f"{suite.value:016x}" == (stored["cipher_suite"] or f"{CipherSuite.GCM_AES_128.value:016x}")
        keys = [op for op in installed if op["op"] in {"ADD_TXSA", "ADD_RXSA"} and op["key"] == sak.hex()]
        assert len(keys) >= 2
        if suite.is_xpn:
            expected = salt(KeyIdentifier(pdu.basic.mi, pdu.distributed_sak.kn)).hex()
            assert stored["salt"] == expected
            assert {op["salt"] for op in keys if "salt" in op} <= {expected}
    assert seen


@pytest.mark.parametrize("name", CAPTURES)
def test_a_frame_cut_anywhere_is_refused_and_padding_is_ignored(name):
    """No prefix of a real frame is accepted; Ethernet padding behind it changes nothing."""
    _, octets = max(frames(name), key=lambda pair: len(pair[1]))
    for size in range(len(octets)):
        with pytest.raises(MkpduError):
            Frame.parse(octets[:size])
    assert Frame.parse(octets + bytes(46)) == Frame.parse(octets)
    mkpdu = Frame.parse(octets).mkpdu
    whole = Mkpdu.parse(mkpdu)
    for size in range(len(mkpdu)):
        try:
            part = Mkpdu.parse(mkpdu[:size])
        except MkpduError:
            continue
        assert part != whole  # a cut between two sets is a shorter MKPDU, which the ICV rules out


def test_any_flipped_bit_fails_the_icv():
    """Destination, source, header and body are all under the ICV."""
    cak = cak_of("mkpdu_wpa_psk128")
    frame = Frame.parse(frames("mkpdu_wpa_psk128")[0][1])
    for at in range(len(frame.protected)):
        forged = bytearray(frame.protected)
        forged[at] ^= 1
        assert not cak.verify(bytes(forged), frame.icv)


BASIC = Basic(Sci.parse("02:00:00:00:00:0a"), b"m" * 12, 1, b"\xaa\xbb\xcc", key_server=True, priority=16)


def raw_set(kind, body, second=0, length=None):
    return (
        bytes((kind, second))
        + (len(body) if length is None else length).to_bytes(2)
        + body
        + bytes(-len(body) % 4)
    )


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (raw_set(1, bytes(15)), DropReason.PEER_LIST_LENGTH),
        (raw_set(2, bytes(17)), DropReason.PEER_LIST_LENGTH),
        (raw_set(3, bytes(39)), DropReason.SAK_USE_LENGTH),
        (raw_set(3, bytes(41)), DropReason.SAK_USE_LENGTH),
        (raw_set(4, bytes(27)), DropReason.DISTRIBUTED_SAK_LENGTH),
        (raw_set(4, bytes(29)), DropReason.DISTRIBUTED_SAK_LENGTH),
        (raw_set(4, bytes(53)), DropReason.DISTRIBUTED_SAK_LENGTH),
        (raw_set(5, bytes(24)), DropReason.DISTRIBUTED_CAK_LENGTH),
        (raw_set(5, bytes(57)), DropReason.DISTRIBUTED_CAK_LENGTH),
        (raw_set(6, bytes(254)), DropReason.KMD_LENGTH),
        (raw_set(7, b"\xe0"), DropReason.ANNOUNCEMENT_TLV),
        (raw_set(7, b"\xe0\x0b" + bytes(11)), DropReason.ANNOUNCEMENT_TLV),
        (raw_set(7, b"\xe0\x14" + bytes(10)), DropReason.ANNOUNCEMENT_TLV),
        (raw_set(8, bytes(7)), DropReason.XPN_LENGTH),
        (raw_set(8, bytes(9)), DropReason.XPN_LENGTH),
        (raw_set(255, b"", length=15), DropReason.ICV_INDICATOR),
        (raw_set(255, b"", length=16) + bytes(4), DropReason.ICV_INDICATOR),
        (raw_set(3, bytes(4), length=8), DropReason.SET_TRUNCATED),
        (raw_set(99, b"", length=1), DropReason.SET_TRUNCATED),
        (b"\x01\x00\x00", DropReason.SET_TRUNCATED),
    ],
)
def test_malformed_sets_are_refused_by_name(octets, reason):
    """Each length rule has its counter; one octet more or less is noticed."""
    with pytest.raises(MkpduError) as caught:
        Mkpdu.parse(BASIC.serialize() + octets)
    assert caught.value.reason is reason


def mutate(octets, at, value):
    return octets[:at] + value + octets[at + len(value) :]


FRAME = envelope(MacAddress.parse("02:00:00:00:00:0a"), BASIC.serialize()) + bytes(16)


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (b"", DropReason.FRAME_SHORT),
        (FRAME[:17], DropReason.FRAME_SHORT),
        (mutate(FRAME, 12, b"\x08\x00"), DropReason.NOT_EAPOL),
        (mutate(FRAME, 0, b"\x02"), DropReason.INDIVIDUAL_DA),
        (mutate(FRAME, 14, b"\x02"), DropReason.EAPOL_VERSION),
        (mutate(FRAME, 15, b"\x00"), DropReason.EAPOL_TYPE),
        (mutate(FRAME, 16, b"\x00\x1c"), DropReason.EAPOL_LENGTH),
        (mutate(FRAME, 16, b"\x00\x36"), DropReason.EAPOL_LENGTH),
        (mutate(FRAME, 16, b"\x00\x38"), DropReason.EAPOL_LENGTH),
        (mutate(FRAME, 20, b"\xe0\x1c"), DropReason.BASIC_LENGTH),
        (mutate(FRAME, 20, b"\xe0\x3d"), DropReason.BASIC_LENGTH),
        (mutate(FRAME, 20, b"\xe0\x21"), DropReason.BASIC_LENGTH),
        (mutate(FRAME, 46, b"\x01"), DropReason.ALGORITHM_AGILITY),
    ],
)
def test_a_bad_envelope_is_refused_by_name(octets, reason):
    """Checks 1 to 4 of 11.11.2, each with its own counter."""
    with pytest.raises(MkpduError) as caught:
        Frame.parse(octets)
    assert caught.value.reason is reason


def test_port_zero_is_refused():
    """An SCI without port number is named."""
    with pytest.raises(MkpduError) as caught:
        Mkpdu.parse(mutate(BASIC.serialize(), 10, b"\0\0"))
    assert caught.value.reason is DropReason.SCI_INVALID


def test_unknown_sets_are_skipped_and_the_first_of_a_repeated_set_counts():
    """A set of a later standard does not hide the ones we know; a second SAK Use changes nothing."""
    first, second = SakUse(plain_tx=True), SakUse(plain_rx=True)
    octets = BASIC.serialize() + raw_set(200, b"12345") + first.serialize() + second.serialize()
    assert Mkpdu.parse(octets) == Mkpdu(BASIC, sak_use=first)


def test_sets_are_accepted_in_any_order():
    """The lists may come last, as the standard orders them, or first, as deployed code does."""
    use, sak = SakUse(delay_protect=True), DistributedSak(2, 7, bytes(24))
    peers = raw_set(1, b"p" * 12 + (9).to_bytes(4))
    reference = Mkpdu(BASIC, live=(PeerEntry(b"p" * 12, 9),), sak_use=use, distributed_sak=sak)
    assert Mkpdu.parse(BASIC.serialize() + peers + use.serialize() + sak.serialize()) == reference
    assert Mkpdu.parse(BASIC.serialize() + sak.serialize() + use.serialize() + peers) == reference


@pytest.mark.parametrize(
    ("size", "suite_id", "expected"),
    [
        (24, None, CipherSuite.GCM_AES_128),
        (24, 0x0080C20001000001, CipherSuite.GCM_AES_128),
        (24, 0x0080020001000001, CipherSuite.GCM_AES_128),
        (24, 0x0080C20001000003, CipherSuite.GCM_AES_XPN_128),
        (40, 0x0080C20001000002, CipherSuite.GCM_AES_256),
        (40, 0x0080C20001000004, CipherSuite.GCM_AES_XPN_256),
        (40, 0x0080C20001000003, None),
        (24, 0x0080C20001000004, None),
        (24, 0x1234, None),
    ],
)
def test_distributed_sak_names_its_suite(size, suite_id, expected):
    """Every form of Distributed SAK gives its suite; an unknown one, or a wrong key size, gives none."""
    sak = DistributedSak(1, 2, bytes(size), Confidentiality.OFFSET_0, suite_id)
    assert sak.suite is expected
    assert Mkpdu.parse(Mkpdu(BASIC, distributed_sak=sak).serialize()).distributed_sak == sak


def test_plain_text_distribution_has_no_key():
    """A Distributed SAK of length 0 orders plain text."""
    pdu = Mkpdu.parse(Mkpdu(BASIC, distributed_sak=DistributedSak()).serialize())
    assert pdu.distributed_sak == DistributedSak()
    assert pdu.distributed_sak.wrapped == b""


MIS = st.binary(min_size=12, max_size=12)
U32 = st.integers(0, 2**32 - 1)
PEERS = st.lists(st.builds(PeerEntry, MIS, U32), max_size=5).map(tuple)
SCIS = st.builds(Sci, st.builds(MacAddress, st.binary(min_size=6, max_size=6)), st.integers(1, 65535))
USES = st.builds(
    KeyUse, st.builds(KeyIdentifier, MIS, U32), st.integers(0, 3), st.booleans(), st.booleans(), U32
)
OFFSETS = st.sampled_from(Confidentiality)
MKPDUS = st.builds(
    Mkpdu,
    basic=st.builds(
        Basic,
        SCIS,
        MIS,
        U32,
        st.binary(min_size=1, max_size=32),
        st.booleans(),
        st.integers(0, 255),
        st.booleans(),
        st.integers(0, 3),
        st.integers(1, 255),
    ),
    live=PEERS,
    potential=PEERS,
    sak_use=st.none() | st.builds(SakUse, USES, USES, st.booleans(), st.booleans(), st.booleans()),
    distributed_sak=st.none()
    | st.builds(DistributedSak, st.integers(0, 3), U32, st.binary(min_size=24, max_size=24), OFFSETS)
    | st.builds(
        DistributedSak,
        st.integers(0, 3),
        U32,
        st.binary(min_size=40, max_size=40),
        OFFSETS,
        st.integers(0, 2**64 - 1),
    ),
    distributed_cak=st.none()
    | st.builds(DistributedCak, st.binary(min_size=24, max_size=24), st.binary(min_size=1, max_size=32)),
    kmd=st.none() | st.binary(max_size=253),
    announcement=st.none()
    | st.builds(
        Announcement.of_suites,
        st.lists(st.builds(SuiteOffer, st.integers(0, 2**64 - 1), st.integers(0, 3)), max_size=4).map(tuple),
    ),
    xpn=st.none() | st.builds(Xpn, U32, U32, st.integers(0, 255)),
    icv_indicator=st.booleans(),
)


@given(MKPDUS)
def test_parse_undoes_serialize(pdu):
    """Any MKPDU that can be written is read back the same."""
    assert Mkpdu.parse(pdu.serialize()) == pdu


@given(st.binary(max_size=300))
def test_rubbish_is_refused_with_our_error_only(octets):
    """No octets whatever raise anything but MkpduError."""
    for parse in (Frame.parse, Mkpdu.parse, lambda o: Mkpdu.parse(BASIC.serialize() + o)):
        with suppress(MkpduError):
            parse(octets)
