"""What a change does to what runs: said in advance, and nothing forgotten."""

from dataclasses import fields
from pathlib import Path

import pytest

from router.config import impact as impact_module
from router.config.effective import BgpPolicy, Channel, Connection, LanPort, Macsec, Router, Session, Vrf
from router.config.impact import impact
from router.config.load import load, load_text

CONFIG = Path(__file__).parents[3] / "config"
FOUR = (CONFIG / "static-keys.yaml").read_text()
MKA = (CONFIG / "four-channels.yaml").read_text()
GENERIC = (CONFIG / "generic-vrf.yaml").read_text()


def said(old, new):
    """Return the impact of a change of text as lines."""
    before = load_text(old, "x.yaml").effective if old is not None else None
    return [f"{i.effect} {i.object}: {i.reason}" for i in impact(before, load_text(new, "x.yaml").effective)]


def change(old, new, text=FOUR, count=1):
    assert old in text
    return said(text, text.replace(old, new, count))


def test_no_change_has_no_impact():
    """Also where the text differs and the meaning does not."""
    assert said(FOUR, FOUR) == []
    assert change("bandwidth: 10G", "bandwidth: 10000 Mbps") == []
    assert change("    channels:\n", "    channels:  # four\n") == []


def test_the_first_configuration_adds_everything():
    """There is nothing to reset."""
    lines = said(None, FOUR)
    assert {line.split()[0] for line in lines} == {"add"}
    assert sum(line.startswith("add session ") for line in lines) == 8
    assert sum(line.startswith("add channel ") for line in lines) == 4
    assert "add lan lan0: new" in lines


def test_bandwidth_and_lists_change_live():
    """No session is touched."""
    assert change("bandwidth: 10G", "bandwidth: 25G") == ["live connection prod: bandwidth 10000 -> 25000"]
    assert change("[10.20.0.0/16 le 24,", "[10.20.0.0/16 le 25,") == [
        "live connection prod: accepted prefixes -10.20.0.0/16 ge 16 le 24 +10.20.0.0/16 ge 16 le 25"
    ]
    assert change("advertise: [10.10.0.0/24, ", "advertise: [") == [
        "live connection prod: advertised prefixes -10.10.0.0/24"
    ]
    assert change("    mtu: 8500", "    mtu: 1500") == ["live connection prod: MTU 8500 -> 1500"]


def test_what_the_open_carries_resets_the_sessions_it_is_about():
    """Hold time: all of the connection; peer AS or password: both families of one channel."""
    lines = change("    features:", "    bgp: {timers: {hold_s: 30}}\n    features:")
    assert len(lines) == 8
    assert lines[0] == "reset session prod/a1/ipv4: hold time 90 -> 30; keepalive interval 30 -> 10"
    lines = change("bgp: {peer_asn: 64512,", "bgp: {peer_asn: 64513,")
    assert lines == [f"reset session prod/a1/{afi}: peer AS 64512 -> 64513" for afi in ("ipv4", "ipv6")]
    lines = change("secrets/b2.md5", "secrets/new.md5")
    assert [line.split(": ")[0] for line in lines] == [
        f"reset session prod/b2/{afi}" for afi in ("ipv4", "ipv6")
    ]


def test_an_address_resets_its_own_family_only():
    """The IPv6 session does not notice."""
    assert change("169.254.11.1/30, peer: 169.254.11.2", "169.254.11.2/30, peer: 169.254.11.1") == [
        "reset session prod/a1/ipv4: addresses 169.254.11.1/30 to 169.254.11.2 -> 169.254.11.2/30 to 169.254.11.1"
    ]


def test_our_own_as_or_router_id_resets_every_session():
    """They are in every OPEN."""
    assert len(change("asn: 4200000010", "asn: 4200000011")) == 8
    assert len(change("router_id: 10.255.0.1", "router_id: 10.255.0.9")) == 8


def test_another_port_or_suite_interrupts_the_channel_and_resets_its_sessions():
    """The MACsec device is made anew."""
    assert change("{name: port3,", "{name: port9,") == [
        "interrupt channel b1: port port3 -> port9",
        "reset session prod/b1/ipv4: channel b1: port port3 -> port9",
        "reset session prod/b1/ipv6: channel b1: port port3 -> port9",
    ]
    lines = change("      policy: must-secure", "      policy: must-secure\n      sci_port: 2")
    assert sum(line.startswith("interrupt channel") for line in lines) == 4
    assert sum(line.startswith("reset session") for line in lines) == 8


def test_another_suite_is_announced_one_channel_at_a_time():
    """Each channel says what stops, why, and that the others carry its traffic; with static keys it is not so."""
    keyed, text = load_text(MKA, "r.yaml"), MKA.replace("suite: gcm-aes-xpn-256", "suite: gcm-aes-256")
    items = impact(keyed.effective, load_text(text, "r.yaml").effective)
    said = {item.object: item for item in items if item.object.startswith("channel")}
    assert list(said) == [f"channel {name}" for name in ("a1", "a2", "b1", "b2")]
    for item in said.values():
        assert item.effect == "interrupt"
        assert "cipher suite gcm-aes-xpn-256 -> gcm-aes-256" in item.reason
        assert "one channel at a time" in item.reason
    moved = text.replace("      policy: must-secure", "      policy: must-secure\n      sci_port: 2")
    items = impact(keyed.effective, load_text(moved, "r.yaml").effective)
    assert not any("one channel at a time" in item.reason for item in items)


def test_new_static_keys_interrupt_and_do_not_tell_the_keys():
    """Until the far end has them too."""
    assert change("secrets/a1-transmit.sak", "secrets/other.sak") == [
        "interrupt channel a1: static keys changed"
    ]


def test_a_replay_window_or_port_mtu_changes_live():
    """The kernel changes both on a running device."""
    assert change("      policy: must-secure", "      replay_window: 128") == [
        f"live channel {name}: replay window 64 -> 128" for name in ("a1", "a2", "b1", "b2")
    ]
    assert change("{name: port1, mtu: 9100}", "{name: port1, mtu: 9000}") == [
        "live channel a1: port MTU 9100 -> 9000"
    ]


def test_more_cores_interrupt():
    """The data plane opens the channel anew, and it waits for keys."""
    assert change("    profile: aws-dx", "    profile: aws-dx\n    cores: 2") == [
        f"interrupt channel {name}: cores that send 1 -> 2" for name in ("a1", "a2", "b1", "b2")
    ]


def test_a_migration_only_adds_and_then_only_removes():
    """Make before break: the old four are not touched while the new four come, and the other way round."""
    four, eight = (load(CONFIG / f"{n}.yaml").effective for n in ("static-keys", "eight-channels"))
    there = impact(four, eight)
    assert {i.effect for i in there} == {"add"}
    assert {i.object for i in there if i.object.startswith("channel")} == {
        f"channel {c}" for c in ("c1", "c2", "d1", "d2")
    }
    back = impact(eight, four)
    assert {i.effect for i in back} == {"remove"}
    assert len([i for i in back if i.object.startswith("session")]) == 8


def test_disabling_a_channel_resets_its_sessions():
    """adminState DISABLED takes the port down."""
    lines = change("        site: site-b\n", "        site: site-b\n        enabled: false\n")
    assert lines[0] == "interrupt channel b1: admin state true -> false"
    assert [line.split(":")[0] for line in lines[1:]] == [
        f"reset session prod/b1/{afi}" for afi in ("ipv4", "ipv6")
    ]


def test_another_site_moves_the_sessions_to_another_process():
    """BGP runs one process for each site."""
    lines = change("site: site-a", "site: site-b")
    assert lines[0] == "live channel a1: site site-a -> site-b"
    assert lines[1].startswith("reset session prod/a1/ipv4: site site-a -> site-b")


def test_a_vrfs_table_resets_the_sessions_in_it_and_in_no_other():
    """The device is made anew and its members move."""
    lines = change("table: 1002", "table: 1003", GENERIC)
    assert "interrupt vrf guest: routing table 1002 -> 1003" in lines
    resets = [line for line in lines if line.startswith("reset")]
    assert len(resets) == 4
    assert all("session guest/" in line for line in resets)


def test_a_lag_keeps_its_sessions_when_members_change():
    """The device stays; the channel may lose frames."""
    assert change("members: [port1, port2]", "members: [port1, port9]", GENERIC) == [
        "interrupt channel a1: LAG changed"
    ]


def test_the_lan_changes_live_or_is_moved():
    """It has no session."""
    assert change("      mtu: 9000", "      mtu: 1500") == ["live lan lan0: MTU 9000 -> 1500"]
    assert change("    - port: lan0", "    - port: lan9") == [
        "remove lan lan0: no longer configured",
        "add lan lan9: new",
    ]
    assert change("  name: branch-1", "  name: branch-9") == ["live router: name branch-1 -> branch-9"]


def tables(*names):
    """Return the first steps of the field names in some of the tables."""
    return [field for name in names for field in getattr(impact_module, name)]


@pytest.mark.parametrize(
    ("cls", "covered"),
    [
        (Session, tables("SESSION_RESETS", "SESSION_IDENTITY")),
        (BgpPolicy, tables("POLICY_RESETS", "POLICY_LIVE")),
        (Connection, [*tables("CONNECTION_RESETS", "CONNECTION_LIVE"), "name", "bgp", "features"]),
        (Channel, [*tables("CHANNEL_RESETS", "CHANNEL_INTERRUPTS", "CHANNEL_LIVE"), "id"]),
        (Router, [*tables("ROUTER_LIVE"), "asn", "router_id", "lan"]),
        (LanPort, [*tables("LAN_LIVE", "LAN_INTERRUPTS"), "port"]),
        (Vrf, [*tables("VRF_INTERRUPTS"), "name"]),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_no_field_is_forgotten(cls, covered):
    """Every field of the effective configuration is in exactly one table."""
    first = {field.partition(".")[0] for field in covered}
    assert first == {field.name for field in fields(cls)}
    assert len(covered) == len(set(covered))


def test_no_field_of_macsec_is_forgotten():
    """One level deeper."""
    covered = [
        f.removeprefix("macsec.")
        for f in tables("CHANNEL_RESETS", "CHANNEL_INTERRUPTS", "CHANNEL_LIVE")
        if f.startswith("macsec.")
    ]
    assert sorted(covered) == sorted(field.name for field in fields(Macsec))


MKA = (CONFIG / "four-channels.yaml").read_text()


def test_a_change_of_policy_says_what_it_means():
    """Both ways: what stops passing, and what begins to."""
    closed = said(MKA.replace("policy: must-secure", "policy: should-secure", 1), MKA)
    assert len(closed) == 4
    assert all("should-secure -> must-secure (nothing passes in clear from now on" in line for line in closed)
    opened = said(MKA, MKA.replace("policy: must-secure", "policy: should-secure", 1))
    assert all("FRAMES PASS IN CLEAR while the far end proves no key" in line for line in opened)


def test_a_change_of_confidentiality_is_announced():
    """By the names of the configuration."""
    changed = MKA.replace("policy: must-secure", "confidentiality: integrity-only", 1)
    assert "interrupt channel a1: confidentiality offset-0 -> integrity-only" in said(MKA, changed)
