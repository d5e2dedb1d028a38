"""Semantic checks: the warnings, and the borders that the corpus of broken files does not walk along."""

from pathlib import Path

import pytest

from router.config import checks
from router.config.findings import ConfigErrors, Severity
from router.config.load import load_text
from router.config.profiles import PROFILES
from router.model import Confidentiality

CONFIG = Path(__file__).parents[3] / "config"
FOUR = (CONFIG / "static-keys.yaml").read_text()
GENERIC = (CONFIG / "generic-vrf.yaml").read_text()


def remarks(text, severity):
    """Return the errors or warnings in a text as `path: message`, the one about static keys left out."""
    try:
        findings = load_text(text, "x.yaml").warnings
    except ConfigErrors as error:
        findings = error.findings
    return [
        f"{f.path}: {f.message}"
        for f in findings
        if f.severity is severity and "STATIC KEYS" not in f.message
    ]


def errors(text):
    return remarks(text, Severity.ERROR)


def warnings(text):
    assert errors(text) == []
    return remarks(text, Severity.WARNING)


def settings(text, setting):
    """Return a text with a line of BGP settings for its first connection."""
    return text.replace("    features:", f"    bgp: {{{setting}}}\n    features:", 1)


def test_every_rule_has_a_docstring_and_is_listed_once():
    """A rule that is not listed would never run."""
    rules = {
        value
        for name, value in vars(checks).items()
        if callable(value)
        and getattr(value, "__module__", "") == checks.__name__
        and value.__annotations__.get("return") == "Findings"
        and not name.startswith("_")
    }
    assert set(checks.RULES) == rules
    assert len(checks.RULES) == len(rules)
    assert set(checks.RULES_ON_PARTS) <= rules
    assert all(rule.__doc__ for rule in rules)


def test_fewer_than_two_sites_is_a_warning():
    """One site is one power cut."""
    assert warnings(FOUR.replace("site: site-b", "site: site-a")) == [
        "interconnects.metro.channels: 1 site - a site's failure takes all down: use at least 2"
    ]


def test_fewer_than_four_enabled_channels_is_a_warning():
    """A disabled channel does not count."""
    text = FOUR.replace("        site: site-b", "        enabled: false\n        site: site-b", 1)
    assert warnings(text) == [
        "interconnects.metro.channels: 3 enabled channels - an interconnect has at least 4 for its service level"
    ]


def test_a_channel_that_a_connection_leaves_out_is_a_warning():
    """Three of four features suffice to provision, and are less redundant."""
    text = FOUR[: FOUR.index("      - channel: b2")]
    assert warnings(text) == ["connections.prod.features: none on b2 - the connection is less redundant"]


def test_a_keepalive_above_a_third_of_the_hold_time_is_a_warning():
    """At a third it is not."""
    assert warnings(settings(FOUR, "timers: {hold_s: 30, keepalive_s: 10}")) == []
    (warning,) = warnings(settings(FOUR, "timers: {hold_s: 30, keepalive_s: 11}"))
    assert "11 is more than a third of hold_s 30" in warning


@pytest.mark.parametrize(("hold_s", "count"), [(0, 1), (1, 1), (2, 1), (3, 0), (4, 0), (65535, 0)])
def test_the_hold_time_is_three_or_more(hold_s, count):
    """RFC 4271 allows zero; we do not."""
    assert len(errors(settings(FOUR, f"timers: {{hold_s: {hold_s}}}"))) == count


@pytest.mark.parametrize(("mtu", "count"), [(8535, 1), (8536, 0), (8537, 0)])
def test_the_port_carries_exactly_36_more(mtu, count):
    """4 for the VLAN and 32 for MACsec."""
    assert len(errors(FOUR.replace("{name: port1, mtu: 9100}", f"{{name: port1, mtu: {mtu}}}"))) == count


def test_the_largest_mtu_on_a_port_counts():
    """Two connections on one port: the office's 9000, not the guest's 1500."""
    text = GENERIC.replace("{name: port3, mtu: 9100}", "{name: port3, mtu: 9035}")
    assert errors(text) == [
        "interconnects.ring.channels.a2.port.mtu: 9035 is below the 9036 that mtu 9000 needs (+4 VLAN, +32 MACsec)"
    ]


@pytest.mark.parametrize(
    ("count", "limit", "refused"),
    [(100, None, 0), (101, None, 1), (101, 101, 0), (1000, 1000, 0), (1001, 1000, 1)],
)
def test_the_provider_never_gets_one_prefix_too_many(count, limit, refused):
    """100 per family by default, as many as agreed up to 1000."""
    prefixes = ", ".join(f"10.{100 + n // 256}.{n % 256}.0/24" for n in range(count))
    text = FOUR.replace("advertise: [10.10.0.0/24, 2001:db8:10::/64]", f"advertise: [{prefixes}]")
    if limit is not None:
        text = settings(text, f"advertise_max: {limit}")
    found = errors(text)
    assert len(found) == refused
    assert all("ipv4 prefixes are more than the" in error for error in found)


def test_families_are_counted_apart():
    """100 of each are within the limit."""
    prefixes = [f"10.100.{n}.0/24" for n in range(100)] + [f"2001:db8:10:{n:x}::/64" for n in range(100)]
    text = FOUR.replace("advertise: [10.10.0.0/24, 2001:db8:10::/64]", f"advertise: [{', '.join(prefixes)}]")
    assert errors(text) == []


@pytest.mark.parametrize(("window", "count"), [(0, 0), (2**30 - 1, 0), (2**30, 1)])
def test_the_replay_window_of_xpn_ends_at_two_to_the_thirtieth(window, count):
    """One finding, where it stands, not one for each channel that inherits it."""
    text = FOUR.replace("      policy: must-secure", f"      replay_window: {window}")
    assert len(errors(text)) == count


@pytest.mark.parametrize(("cores", "window", "count"), [(1, 0, 0), (2, 127, 1), (2, 128, 0), (16, 1023, 1)])
def test_several_cores_need_a_replay_window(cores, window, count):
    """A warning where the window is below what the cores have in hand at once; one core needs none."""
    text = FOUR.replace("      policy: must-secure", f"      replay_window: {window}")
    text = text.replace("    profile: aws-dx", f"    profile: aws-dx\n    cores: {cores}")
    found = [remark for remark in warnings(text) if "out of order" in remark]
    assert len(found) == count


def test_other_suites_have_the_whole_window():
    """32 bit without XPN."""
    azure = (
        (CONFIG / "azure-er.yaml").read_text().replace("replay_window: 128", f"replay_window: {2**32 - 1}")
    )
    assert errors(azure) == []


@pytest.mark.parametrize(
    ("profile", "low", "high"), [(p.name, p.vlan_min, p.vlan_max) for p in PROFILES.values()]
)
def test_vlans_of_a_profile(profile, low, high):
    """Its lowest and highest VLAN are taken, the next ones are not."""
    mtu = (PROFILES[profile].mtus or (1500,))[0]
    text = FOUR.replace("profile: aws-dx", f"profile: {profile}").replace("mtu: 8500", f"mtu: {mtu}")
    text = settings(text.replace("2001:db8:20::/48 le 64", "fd00:20::/48"), "bogons: []")
    for vlan, count in ((low, 0), (high, 0), (low - 1, low > 1), (high + 1, high < 4094)):
        if 1 <= vlan <= 4094:
            assert len(errors(text.replace("vlan: 1101", f"vlan: {vlan}"))) == count, vlan


def test_the_same_vlan_on_another_port_is_fine():
    """VLANs are unique on a port, not in the file."""
    assert errors(FOUR.replace("vlan: 1102", "vlan: 1101")) == []


def test_the_same_vlan_of_two_connections_on_one_port_is_refused():
    """Whatever their VRFs."""
    assert any(
        "VLAN 101 on a1 is taken" in error for error in errors(GENERIC.replace("vlan: 201", "vlan: 101"))
    )


def test_31_and_127_bit_links_have_two_hosts():
    """No network or broadcast address there (RFC 3021, RFC 6164); generic-vrf.yaml uses both."""
    assert errors(GENERIC) == []


def test_addresses_may_repeat_in_another_vrf_but_sessions_may_not():
    """Local and peer together name a session in BGP."""
    text = GENERIC.replace(
        "{local: 169.254.51.1/30, peer: 169.254.51.2}", "{local: 169.254.41.0/31, peer: 169.254.41.1}"
    )
    assert errors(text) == [
        (
            "connections.guest.features.a1.ipv4: 169.254.41.0 to 169.254.41.1 is a session already (line"
            f" {1 + text.split(chr(10)).index('        ipv4: {local: 169.254.41.0/31, peer: 169.254.41.1}')})"
            " - use other addresses, also in another VRF"
        )
    ]


def test_a_peer_with_the_address_of_our_lan_is_refused():
    """Our own addresses are no neighbours."""
    text = FOUR.replace("addresses: [10.10.0.1/24,", "addresses: [10.10.0.1/24, 169.254.99.1/24,").replace(
        "{local: 169.254.11.1/30, peer: 169.254.11.2}", "{local: 169.254.99.2/30, peer: 169.254.99.1}"
    )
    assert any("169.254.99.1 is one of our own addresses" in error for error in errors(text))


def test_a_filter_around_our_own_prefix_is_a_warning_only():
    """A default with all more specifics is usual; the RIB refuses the own ones one by one."""
    (warning,) = warnings(FOUR.replace("10.20.0.0/16 le 24", "0.0.0.0/0 le 32"))
    assert "0.0.0.0/0 ge 0 le 32 takes in 10.10.0.0/24" in warning
    assert warnings(FOUR.replace("10.20.0.0/16 le 24", "0.0.0.0/0")) == []


def test_two_connections_of_one_vrf_with_the_same_routes_is_a_warning_with_equal_mtus():
    """With different ones it is an error: see the corpus."""
    text = FOUR + FOUR[FOUR.index("  - name: prod") :].replace("name: prod", "name: test").replace(
        "vlan: 11", "vlan: 12"
    ).replace("169.254.1", "169.254.10").replace("fd00:1", "fd00:a1").replace(
        "[10.10.0.0/24, 2001:db8:10::/64]", "[]"
    )
    assert [w for w in warnings(text) if "both will carry it" in w] != []


def test_nothing_to_exchange_is_a_warning():
    """Deny is the default: an empty list is legal and useless."""
    text = FOUR.replace("    advertise: [10.10.0.0/24, 2001:db8:10::/64]\n", "")
    assert warnings(text) == ["connections.prod.advertise: nothing - the peer will have no way back"]
    text = FOUR.replace("    accept: [10.20.0.0/16 le 24, 2001:db8:20::/48 le 64]\n", "")
    assert warnings(text) == ["connections.prod.accept: nothing - no route of the peer will be taken"]


def test_a_prefix_of_a_family_without_sessions_is_a_warning():
    """It would go nowhere."""
    text = "\n".join(line for line in FOUR.split("\n") if "        ipv6:" not in line)
    assert warnings(text) == [
        "connections.prod.advertise.1: 2001:db8:10::/64 goes nowhere: no feature has ipv6 - add ipv6 addresses"
    ]


def test_max_paths_below_the_number_of_channels_is_a_warning():
    """The others would carry nothing."""
    assert warnings(settings(FOUR, "max_paths: 4")) == []
    (warning,) = warnings(settings(FOUR, "max_paths: 3"))
    assert "3 of 4 channels" in warning


def test_static_keys_are_warned_about_loudly():
    """Once for each interconnect, naming the channels."""
    (warning,) = [w for w in load_text(FOUR, "x.yaml").warnings if "STATIC" in w.message]
    assert "STATIC KEYS on a1, a2, b1, b2" in warning.message
    assert str(warning).startswith("x.yaml:23: warning: ")


def test_a_disabled_channel_needs_no_keys():
    """It carries nothing anyway."""
    start = FOUR.index("        macsec:\n          static:", FOUR.index("name: b2"))
    text = FOUR[:start] + "        enabled: false\n" + FOUR[FOUR.index("\nconnections:") :]
    assert errors(text) == []


def test_sixteen_channels_over_two_sites_are_fine():
    """Nothing counts to four."""
    channels, features = [], []
    for n in range(16):
        channels.append(
            f"      - name: c{n}\n        site: s{n % 2}\n        port: p{n}\n        macsec:\n          static:\n"
            f"            peer_sci: 02:00:00:00:00:{n:02x}/1\n            salt: {n:024x}\n"
            f"            transmit: {{an: 0, ssci: 1, sak: {{file: t{n}}}}}\n"
            f"            receive: {{an: 0, ssci: 2, sak: {{file: r{n}}}}}\n"
        )
        features.append(
            f"      - channel: c{n}\n        vlan: {2000 + n}\n"
            f"        ipv4: {{local: 169.254.{n}.1/30, peer: 169.254.{n}.2}}\n"
            "        bgp: {peer_asn: 64512, password: {file: k}}\n"
        )
    head, tail = FOUR.split("    channels:\n")
    connection = tail[tail.index("\nconnections:") : tail.index("      - channel: a1")]
    text = head + "    channels:\n" + "".join(channels) + connection + "".join(features)
    loaded = load_text(text.replace(", 2001:db8:10::/64]\n    accept", "]\n    accept"), "x.yaml")
    assert len(loaded.effective.sessions) == 16
    assert [w for w in loaded.warnings if "STATIC" not in w.message] == []


def test_another_as_than_the_profiles_is_a_warning():
    """A lab's far end may be in any AS; Azure is in 12076."""
    azure = (CONFIG / "azure-er.yaml").read_text()
    assert warnings(settings(azure, "peer_asn: 12076")) == []
    (warning,) = warnings(settings(azure, "peer_asn: 64512"))
    assert warning == (
        "connections.prod.bgp.peer_asn: 64512 is not the 12076 of azure-er - leave it out, unless this is a lab"
    )


MKA = (CONFIG / "four-channels.yaml").read_text()


def macsec(setting, text=MKA):
    """The shipped file with another MACsec setting for all its channels."""
    changed = text.replace("      policy: must-secure\n", f"      {setting}\n", 1)
    assert changed != text
    return changed


def test_fail_open_is_warned_about_for_each_channel_that_has_it():
    """Loudly, and never where it was not chosen."""
    said = [line for line in warnings(macsec("policy: should-secure")) if "SHOULD-SECURE" in line]
    assert len(said) == 4
    assert all("PASS IN CLEAR" in line and "policy" in line for line in said)
    assert not [line for line in warnings(MKA) if "SECURE" in line]


def test_fail_open_is_refused_with_static_keys():
    """With them no peer ever proves a key, so there is nothing to decide by."""
    (line, *_) = errors(FOUR.replace("policy: must-secure", "policy: should-secure", 1))
    assert "with static keys none ever does" in line


def test_integrity_only_is_warned_about():
    """Whoever is on the wire can read."""
    said = [line for line in warnings(macsec("confidentiality: integrity-only")) if "READ THEM" in line]
    assert len(said) == 4


@pytest.mark.parametrize("offset", ["offset-30", "offset-50"])
def test_offsets_need_a_suite_and_a_secy_that_have_them(offset):
    """Not with XPN, not with the kernel's MACsec, not where `auto` may choose it; else they are fine."""
    both = errors(macsec(f"confidentiality: {offset}"))
    assert any("is not defined for gcm-aes-xpn-256" in line for line in both)
    assert any("Linux' MACsec has no offsets" in line for line in both)
    text = macsec(f"confidentiality: {offset}").replace("suite: gcm-aes-xpn-256", "suite: gcm-aes-256")
    assert all("Linux' MACsec has no offsets" in line for line in errors(text))
    assert errors(text)
    assert not errors(text.replace("profile: aws-dx", "profile: aws-dx\n    secy: fastpath"))


def test_the_whole_frame_is_encrypted_unless_said_otherwise():
    """The default, by name."""
    loaded = load_text(MKA, "x.yaml").effective
    assert {c.macsec.confidentiality for c in loaded.channels} == {Confidentiality.OFFSET_0}
    said = load_text(macsec("confidentiality: integrity-only"), "x.yaml").effective
    assert {c.macsec.confidentiality for c in said.channels} == {Confidentiality.INTEGRITY_ONLY}
