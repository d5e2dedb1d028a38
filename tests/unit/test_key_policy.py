"""From a channel's MACsec policy to what its KaY does: who opens, and what a key server may order."""

from dataclasses import replace
from pathlib import Path

import pytest

from router.config.effective import MacsecMode
from router.config.load import load
from router.keyd import accepted_confidentiality, kay_config
from router.model import CipherSuite, Confidentiality

CHANNEL = load(Path(__file__).parents[2] / "config" / "one-channel-gcm-128.yaml").effective.channels[0]
XPN = (CipherSuite.GCM_AES_XPN_256,)
ONLY, WHOLE, THIRTY, FIFTY = (
    Confidentiality.parse(text) for text in ("integrity-only", "offset-0", "offset-30", "offset-50")
)


def channel(*, secy="kernel", **policy):
    return replace(CHANNEL, secy=secy, macsec=replace(CHANNEL.macsec, **policy))


@pytest.mark.parametrize(
    ("secy", "policy", "accepted"),
    [
        ("kernel", WHOLE, {WHOLE}),
        ("kernel", ONLY, {ONLY, WHOLE}),
        ("fastpath", WHOLE, {WHOLE}),
        ("fastpath", THIRTY, {WHOLE, THIRTY}),
        ("fastpath", FIFTY, {WHOLE, THIRTY, FIFTY}),
        ("fastpath", ONLY, {ONLY, WHOLE, THIRTY, FIFTY}),
    ],
)
def test_a_key_server_may_order_more_never_less(secy, policy, accepted):
    """All that hides at least as much, as far as the SecY can do it."""
    assert accepted_confidentiality(channel(secy=secy, confidentiality=policy)) == accepted


def test_xpn_has_no_offsets():
    """Not even where our data plane could."""
    with_xpn = channel(secy="fastpath", confidentiality=ONLY, suites=XPN, suite=XPN[0])
    assert accepted_confidentiality(with_xpn) == {ONLY, WHOLE}


def test_the_policy_reaches_the_key_agreement():
    """What we distribute, what we accept, and whether the port may open."""
    config = kay_config(channel(confidentiality=ONLY, mode=MacsecMode.SHOULD_SECURE))
    assert config.confidentiality is ONLY
    assert config.accept == {ONLY, WHOLE}
    assert config.must_secure is False
    config = kay_config(CHANNEL)
    assert (config.confidentiality, config.accept, config.must_secure) == (WHOLE, {WHOLE}, True)
