"""Key hierarchy: every known answer of the standards, and the limits of the pieces of our own."""

import json
from pathlib import Path

import pytest

from router.mka.keys import Cak, SsciOrder, cmac, kdf, rebuild_pn, salt, sscis
from router.mka.mkpdu import DropReason, KeyIdentifier, MkpduError
from router.model import Sci, Secret

VECTORS = Path(__file__).parents[2] / "vectors" / "mka"


def vectors(name):
    return json.loads((VECTORS / name).read_text())["vectors"]


@pytest.mark.parametrize(
    "vector", vectors("cmac.json"), ids=lambda v: f"{len(v['key']) * 4}-{len(v['msg']) // 2}"
)
def test_cmac_matches_rfc_4493_and_sp_800_38b(vector):
    """AES-CMAC gives the published tags for both key sizes."""
    assert cmac(bytes.fromhex(vector["key"]), bytes.fromhex(vector["msg"])).hex() == vector["tag"]


@pytest.mark.parametrize("vector", vectors("mka_kdf.json"), ids=lambda v: f"{v['what']}-{v['bits']}")
def test_kdf_matches_annex_g(vector):
    """KDF, KEK, ICK and SAK of 802.1X-2020 Annex G come out, by the KDF and by the hierarchy on top of it."""
    key, context = bytes.fromhex(vector["key"]), bytes.fromhex(vector["context"])
    assert kdf(key, vector["label"].encode(), context, vector["bits"]).hex() == vector["output"]
    if vector["what"] in {"KEK", "ICK"}:
        cak = Cak(bytes.fromhex(vector["ckn"]), Secret(key))
        assert {"KEK": cak._kek, "ICK": cak._ick}[vector["what"]].reveal().hex() == vector["output"]
    if vector["what"] == "SAK":
        sak = Cak(b"x", Secret(key)).derive_sak(
            nonce=bytes.fromhex(vector["ks_nonce"]),
            members=[bytes.fromhex(mi) for mi in vector["mi_list"]],
            kn=vector["kn"],
            size=vector["bits"] // 8,
        )
        assert sak.reveal().hex() == vector["output"]


@pytest.mark.parametrize("vector", vectors("keywrap.json"), ids=lambda v: v["source"])
def test_key_wrap_matches_rfc_3394(vector):
    """Wrapping and unwrapping undo each other and give the published octets."""
    cak = Cak(b"x", Secret(bytes(16)))
    cak._kek = Secret(bytes.fromhex(vector["kek"]))
    assert cak.wrap(Secret(bytes.fromhex(vector["key_data"]))).hex() == vector["wrapped"]
    assert cak.unwrap(bytes.fromhex(vector["wrapped"])).reveal().hex() == vector["key_data"]


def test_a_wrapped_sak_under_another_kek_is_refused_by_name():
    """A SAK that does not unwrap is the named error, not one of the library's."""
    wrapped = Cak(b"x", Secret(bytes(16))).wrap(Secret(bytes(32)))
    with pytest.raises(MkpduError) as caught:
        Cak(b"x", Secret(b"1" * 16)).unwrap(wrapped)
    assert caught.value.reason is DropReason.SAK_UNWRAP


def test_only_the_first_16_octets_of_a_ckn_enter_the_derivation():
    """Two CKNs that agree in their first 16 octets have the same ICK; a short one is padded with zeros."""
    cak = Secret(bytes(range(32)))
    assert Cak(b"a" * 17, cak).icv(b"m") == Cak(b"a" * 32, cak).icv(b"m")
    assert Cak(b"a", cak).icv(b"m") == Cak(b"a" + bytes(15), cak).icv(b"m")
    assert Cak(b"a", cak).icv(b"m") != Cak(b"b", cak).icv(b"m")


def test_keys_do_not_show():
    """Neither repr nor str of what holds keys tells one."""
    cak = Cak(b"\xab", Secret(b"0123456789abcdef"))
    assert repr(cak) == "Cak(ckn=ab)"
    cak.wipe()
    assert not any(cak._kek.reveal())


def test_sscis_follow_descending_sci_and_the_knob_turns_it_round():
    """The numerically greatest SCI is 1 by the standard, the least is 1 with the knob."""
    a, b, c = (
        Sci.parse(text) for text in ("02:00:00:00:00:0a/1", "02:00:00:00:00:0b/1", "02:00:00:00:00:0b/2")
    )
    assert sscis([a, b, c], SsciOrder.DESCENDING_SCI) == {c: 1, b: 2, a: 3}
    assert sscis([c, a, b, a], SsciOrder.ASCENDING_SCI) == {a: 1, b: 2, c: 3}


def test_salt_mixes_the_kn_into_the_mi():
    """Low half of the KN in octets 0-1, high half in 2-3, as MKAdaemon and SONiC handed to their SecYs."""
    assert (
        salt(KeyIdentifier(bytes.fromhex("d8b6939c9eff64652bc7dee4"), 1)).hex() == "d8b7939c9eff64652bc7dee4"
    )
    assert salt(KeyIdentifier(bytes(12), 0xAABBCCDD)).hex() == "ccddaabb" + "00" * 8


@pytest.mark.parametrize(
    ("low", "reference", "expected"),
    [
        (5, 10, 5),
        (0xFFFFFFFE, 0x1_0000_0002, 0xFFFFFFFE),
        (2, 0x1_FFFFFFF0, 0x2_00000002),
        (0, 0x1_00000000, 0x1_00000000),
        (0xFFFFFFFF, 1, 0xFFFFFFFF),
        (7, 0x5_00000007, 0x5_00000007),
    ],
)
def test_rebuilt_pn_is_the_nearest_to_our_secys(low, reference, expected):
    """The high half comes from our SecY's PN, also just across a 2^32 boundary on either side."""
    assert rebuild_pn(low, reference) == expected
