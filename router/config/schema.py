"""The dialect of the configuration file, field by field; also its JSON Schema for editors.

Structure and the form of single values are settled here. What needs two values, the profile or
the machine is in `checks` and `secrets`. Fields that a profile or a default can fill are
optional, and None means "not said".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    WithJsonSchema,
    model_validator,
)

from router.config.effective import PrefixFilter
from router.config.profiles import PROFILES
from router.model import CipherSuite, Prefix, Sci, pack_address, show_address

T = TypeVar("T")

CHANNELS_MAX: Final = 16
"""Channels of one interconnect: twice the eight of a migration."""

BANDWIDTHS_MBPS: Final = {
    "1G": 1000,
    "2G": 2000,
    "5G": 5000,
    "10G": 10_000,
    "25G": 25_000,
    "50G": 50_000,
    "100G": 100_000,
}
"""The tiers that providers sell."""

REKEY_MIN_S: Final = 30
REKEY_MAX_S: Final = 30 * 86_400

TEXT_MAX: Final = 128
"""Characters of a value that we take apart: the longest prefix filter has 60."""

_NAME: Final = r"^[a-z][a-z0-9-]{0,31}$"
_DEVICE: Final = r"^[A-Za-z0-9][A-Za-z0-9_.@-]*$"
_SITE: Final = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,31}$"
_HOST: Final = r"^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$"
_CREDENTIAL: Final = r"^[A-Za-z0-9_.-]{1,255}$"
PATTERN_HINTS: Final = MappingProxyType(
    {
        _NAME: "lower-case letters, digits and -, a letter first, at most 32",
        _DEVICE: "letters, digits and _ . @ -, a letter or digit first",
        _SITE: "letters, digits and _ . -, a letter or digit first, at most 32",
        _HOST: "letters, digits and - between them, at most 63",
        _CREDENTIAL: "letters, digits and _ . -, at most 255",
    }
)
"""What each pattern means, in words."""


class Interface(NamedTuple):
    """An interface address with its prefix length."""

    address: bytes
    length: int

    @property
    def network(self) -> Prefix:
        """The subnet that the address is in."""
        bits = len(self.address) * 8
        mask = ((1 << self.length) - 1) << (bits - self.length)
        return Prefix((int.from_bytes(self.address) & mask).to_bytes(bits // 8), self.length)

    def __str__(self) -> str:
        return f"{show_address(self.address)}/{self.length}"


def parse_interface(text: str) -> Interface:
    """Parse `10.10.0.1/24`. Raises ValueError."""
    address, slash, length = text.partition("/")
    packed = pack_address(address)
    bits = len(packed) * 8
    if not slash:
        raise ValueError(f"{text!r} has no prefix length - write {address}/{bits - 2 if bits == 32 else 64}")
    if not re.fullmatch("[0-9]{1,3}", length) or not 0 < int(length) <= bits:
        raise ValueError(f"{text!r}: the prefix length is 1 to {bits}")
    return Interface(packed, int(length))


def parse_prefix(text: str) -> Prefix:
    """Parse `10.10.0.0/24`. Raises ValueError with the prefix that was probably meant."""
    address, slash, length = text.partition("/")
    packed = pack_address(address)
    if not slash:
        raise ValueError(f"{text!r} has no prefix length - write {text}/{len(packed) * 8} for one address")
    if not re.fullmatch("[0-9]{1,3}", length) or int(length) > len(packed) * 8:
        raise ValueError(f"{text!r}: the prefix length is 0 to {len(packed) * 8}")
    network = Interface(packed, int(length)).network
    if network.address != packed:
        raise ValueError(f"{text!r} has host bits set - write {network}")
    return network


_FILTER = re.compile(r"(?P<prefix>\S+?)( +ge +(?P<ge>[0-9]{1,3}))?( +le +(?P<le>[0-9]{1,3}))?")


def parse_filter(text: str) -> PrefixFilter:
    """Parse `10.20.0.0/16 ge 20 le 24`. Raises ValueError."""
    match = _FILTER.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no prefix filter - write PREFIX, PREFIX le N or PREFIX ge N le N")
    prefix = parse_prefix(match["prefix"])
    bits = len(prefix.address) * 8
    ge = int(match["ge"]) if match["ge"] else prefix.length
    le = int(match["le"]) if match["le"] else bits if match["ge"] else prefix.length
    if not prefix.length <= ge <= le <= bits:
        raise ValueError(f"{text!r}: needs {prefix.length} <= ge <= le <= {bits}")
    return PrefixFilter(prefix, ge, le)


def parse_bandwidth(text: str) -> int:
    """Parse `10G`, `10 Gbps`, `10000M`. Returns Mbit/s. Raises ValueError."""
    match = re.fullmatch(r"([0-9]{1,7}) ?([GM])(bps|bit/s)?", text)
    mbps = int(match[1]) * (1000 if match[2] == "G" else 1) if match else 0
    if mbps not in BANDWIDTHS_MBPS.values():
        raise ValueError(f"{text!r} is no bandwidth tier - one of {', '.join(BANDWIDTHS_MBPS)}")
    return mbps


def parse_salt(text: str) -> bytes:
    """Parse the 24 hex digits of an XPN salt. Raises ValueError."""
    if not re.fullmatch("[0-9a-fA-F]{24}", text):
        raise ValueError(f"{text!r} is no salt - 24 hex digits (12 octets)")
    return bytes.fromhex(text)


def parse_address(text: str) -> bytes:
    """Parse an address without prefix length. Raises ValueError."""
    if "/" in text:
        raise ValueError(f"{text!r} - write it without the prefix length: {text.partition('/')[0]}")
    return pack_address(text)


def parse_router_id(text: str) -> str:
    """Parse a BGP identifier in dotted form. Raises ValueError."""
    if ":" in text:
        raise ValueError(f"{text!r} is not dotted - a router id has the form of an IPv4 address")
    return show_address(pack_address(text))


def parse_policy(text: str) -> str:
    """Parse the MACsec policy. Raises ValueError."""
    if text not in {"must-secure", "should-secure"}:
        known = {"should", "fail-open", "should_encrypt", "no", "no-encrypt", "off"}
        why = "would let cleartext out of the port" if text in known else "is unknown"
        raise ValueError(f"{text!r} {why} - must-secure, or should-secure as an explicit choice")
    return text


def parse_ckn(text: str) -> bytes:
    """Parse a CAK's name. Raises ValueError."""
    if not re.fullmatch("([0-9a-fA-F]{2}){1,32}", text):
        raise ValueError(f"{text!r} is no CKN - 2 to 64 hex digits, an even number (in quotes)")
    return bytes.fromhex(text)


def parse_time(text: str) -> float:
    """Parse `2026-12-01T00:00:00Z` to Unix seconds. Raises ValueError."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no time - write 2026-12-01T00:00:00Z") from None
    if when.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone - write {text}Z for UTC")
    return when.timestamp()


def parse_suites(value: object) -> tuple[CipherSuite, ...]:
    """Parse a cipher suite or a list of them, best first. Raises ValueError."""
    texts = value if isinstance(value, tuple) else (value,)
    if not texts:
        raise ValueError("an empty list - name one suite at least")
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(  # noqa: TRY004 - pydantic collects ValueErrors
                f"expected text{shown(text)} - write a suite, or a list of suites"
            )
    suites = tuple(parse_suite(text) for text in texts)
    if len(set(suites)) < len(suites):
        raise ValueError("a suite stands twice in the list - once is enough, best first")
    return suites


def parse_profile(text: str) -> str:
    """Check a profile's name. Raises ValueError."""
    if text not in PROFILES:
        raise ValueError(f"{text!r} is no profile - one of {', '.join(PROFILES)}")
    return text


def parse_suite(text: str) -> CipherSuite:
    """Parse a cipher suite. Raises ValueError."""
    if text != text.lower():
        raise ValueError(f"{text!r} is no suite - one of {', '.join(map(str, CipherSuite))}")
    return CipherSuite.parse(text)


def _from_text(parse: Callable[[str], T]) -> PlainValidator:
    """Validate with a parser of text that raises ValueError with a whole sentence."""

    def validate(value: object) -> T:
        if isinstance(value, str):
            if len(value) > TEXT_MAX:
                raise ValueError(f"too long{shown(value)} - at most {TEXT_MAX} characters")
            return parse(value)
        if parse is parse_bandwidth and isinstance(value, int) and not isinstance(value, bool):
            raise ValueError(f"no unit ({value}) - write {value}G or {value}M")
        raise ValueError(f"expected text{shown(value)} - write one value here, in quotes if need be")

    return PlainValidator(validate)


def shown(value: object) -> str:
    """Print a value of the file for an error message, in brackets."""
    match value:
        case None:
            return " (nothing)"
        case bool():
            return f" ({str(value).lower()})"
        case dict():
            return " (a mapping)"
        case tuple():
            return " (a list)"
        case str() if len(value) > 40:
            return f" ({value[:40]!r}...)"
        case _:
            return f" ({value!r})"


def _shape(pattern: str, example: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": pattern, "examples": [example]})


Name = Annotated[str, Field(pattern=_NAME)]
Device = Annotated[str, Field(pattern=_DEVICE, min_length=1)]
Site = Annotated[str, Field(pattern=_SITE)]
Asn = Annotated[int, Field(ge=0, le=2**32 - 1)]
Mtu = Annotated[int, Field(ge=1280, le=9216)]
PrefixText = Annotated[
    Prefix, _from_text(parse_prefix), _shape(r"^[0-9a-fA-F.:]+/[0-9]{1,3}$", "10.10.0.0/24")
]
FilterText = Annotated[
    PrefixFilter,
    _from_text(parse_filter),
    _shape(r"^[0-9a-fA-F.:]+/[0-9]{1,3}( +ge +[0-9]{1,3})?( +le +[0-9]{1,3})?$", "10.20.0.0/16 le 24"),
]
InterfaceText = Annotated[
    Interface, _from_text(parse_interface), _shape(r"^[0-9a-fA-F.:]+/[0-9]{1,3}$", "10.10.0.1/24")
]
AddressText = Annotated[bytes, _from_text(parse_address), _shape(r"^[0-9a-fA-F.:]+$", "169.254.11.2")]
RouterIdText = Annotated[
    str, _from_text(parse_router_id), _shape(r"^[0-9]{1,3}(\.[0-9]{1,3}){3}$", "10.255.0.1")
]
_SUITE_SCHEMA: Final = {"type": "string", "enum": [str(suite) for suite in CipherSuite]}
SuitesText = Annotated[
    tuple[CipherSuite, ...],
    PlainValidator(parse_suites),
    WithJsonSchema(
        {
            "anyOf": [
                _SUITE_SCHEMA,
                {"type": "array", "items": _SUITE_SCHEMA, "minItems": 1, "uniqueItems": True},
            ]
        }
    ),
]
PolicyText = Annotated[
    str, _from_text(parse_policy), WithJsonSchema({"enum": ["must-secure", "should-secure"]})
]
CknText = Annotated[bytes, _from_text(parse_ckn), _shape("^([0-9a-fA-F]{2}){1,32}$", "a1b2c3d4")]
TimeText = Annotated[float, _from_text(parse_time), WithJsonSchema({"type": "string", "format": "date-time"})]
ProfileText = Annotated[
    str, _from_text(parse_profile), WithJsonSchema({"type": "string", "enum": list(PROFILES)})
]
SciText = Annotated[
    Sci,
    _from_text(Sci.parse),
    _shape(r"^[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}(/[0-9]{1,5})?$", "02:00:00:00:01:01/1"),
]
SaltText = Annotated[bytes, _from_text(parse_salt), _shape("^[0-9a-fA-F]{24}$", "9a3f5c7e11d2b4860f1e2d3c")]
BandwidthText = Annotated[
    int,
    _from_text(parse_bandwidth),
    _shape(r"^(1|2|5|10|25|50|100)(000 ?M| ?G)(bps|bit/s)?$", "10G"),
]


class Strict(BaseModel):
    """No unknown fields, no conversions, no changes afterwards."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class SecretSpec(Strict):
    """Where a secret is. Never the secret itself."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [{"required": ["file"]}, {"required": ["credential"]}, {"required": ["command"]}]
        }
    )

    file: str | None = Field(
        None, min_length=1, description="File with the secret, relative to this file; mode 0600."
    )
    credential: str | None = Field(
        None,
        pattern=_CREDENTIAL,
        description="Name of a systemd credential (LoadCredential=, in $CREDENTIALS_DIRECTORY).",
    )

    command: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        max_length=32,
        description="Program (absolute path) and arguments; it prints the secret. No shell.",
    )

    @model_validator(mode="after")
    def _one(self) -> SecretSpec:
        places = [place for place in (self.file, self.credential, self.command) if place is not None]
        if len(places) != 1:
            raise ValueError("name one place - {file: PATH}, {credential: NAME} or {command: [PATH, ...]}")
        if self.command is not None and not self.command[0].startswith("/"):
            raise ValueError(f"{self.command[0]!r} - name the program by its absolute path")
        return self


class StaticSaSpec(Strict):
    """One direction of a static secure association."""

    an: int = Field(ge=0, le=3, description="Association number, 0 to 3.")
    ssci: int | None = Field(
        None, ge=1, le=2**32 - 1, description="Short SCI of the sender; XPN suites only."
    )
    sak: SecretSpec = Field(description="The key, 32 or 64 hex digits by the suite.")


class StaticSpec(Strict):
    """Static MACsec keys: no agreement, no rotation. For the lab only."""

    peer_sci: SciText = Field(description="The far end's SCI: MAC address and port.")
    salt: SaltText | None = Field(None, description="24 hex digits, both directions; XPN suites only.")
    transmit: StaticSaSpec = Field(description="What we send under.")
    receive: StaticSaSpec = Field(description="What the far end sends under.")


class MkaSpec(Strict):
    """Key agreement (MKA, IEEE 802.1X clause 9)."""

    priority: int | None = Field(
        None, ge=0, le=255, description="Key Server Priority: the lowest makes the keys; 255 never does."
    )
    rekey_interval_s: int | None = Field(
        None,
        ge=0,
        le=REKEY_MAX_S,
        description=f"Age at which a SAK is replaced, {REKEY_MIN_S} s to 30 d; 0 by packet numbers only.",
    )
    sak_retire_time_ms: int | None = Field(
        None,
        ge=100,
        le=10_000,
        description="How long frames under the old SAK are still taken after a rollover; less than the"
        " standard's 3000 counts once all members have said that they use the new one.",
    )
    delay_protection: bool | None = Field(
        None, description="Hello every 0.5 s, and frames older than the last hello are dropped."
    )
    icv_indicator: bool | None = Field(None, description="Send the ICV Indicator, which some switches want.")
    announce: bool | None = Field(None, description="Tell the peers which suites we take.")
    ssci_order: Literal["standard", "reversed"] | None = Field(
        None, description="XPN: the greatest SCI is number 1 (standard), or the least (some IOS-XE)."
    )
    clock_skew_s: int | None = Field(
        None, ge=0, le=3600, description="Difference of clocks that the key chain tolerates."
    )

    @model_validator(mode="after")
    def _interval(self) -> MkaSpec:
        if self.rekey_interval_s is not None and 0 < self.rekey_interval_s < REKEY_MIN_S:
            raise ValueError(
                f"rekey_interval_s is {self.rekey_interval_s} - 0 (never by time), or {REKEY_MIN_S} to {REKEY_MAX_S}"
            )
        return self


class KeySpec(Strict):
    """One CAK of a channel's key chain."""

    ckn: CknText = Field(description="Its name, 2 to 64 hex digits; equal at both ends.")
    cak: SecretSpec = Field(description="The key, 32 or 64 hex digits.")
    start: TimeText | None = Field(None, description="When it may be used first, with time zone.")
    end: TimeText | None = Field(None, description="When it may no longer be used.")


class KeyChainSpec(Strict):
    """Where `lastmile keys` keeps a channel's keys."""

    directory: str = Field(min_length=1, description="Directory, mode 0700; one file per key, mode 0600.")


class MacsecDefaults(Strict):
    """The MACsec policy of an interconnect's channels."""

    suite: SuitesText | None = Field(
        None, description="Cipher suite, or several, best first; the profile's if left out."
    )
    policy: PolicyText | None = Field(
        None,
        description="must-secure: nothing but protected frames and EAPOL leaves the port. "
        "should-secure: frames pass IN CLEAR while the far end proves no key.",
    )
    confidentiality: Literal["offset-0", "integrity-only", "offset-30", "offset-50"] | None = Field(
        None,
        description="What is encrypted: all of each frame (offset-0, if left out), nothing (integrity-only), "
        "or all but its first 30 or 50 octets (fastpath and suites without XPN only).",
    )
    mka: MkaSpec | None = Field(None, description="Key agreement; the profile's values if left out.")
    keys_managed_by: Literal["us", "provider"] | None = Field(
        None, description="Who adds and rotates keys; us if left out."
    )
    bake_time_s: int | None = Field(
        None, ge=0, le=604_800, description="Between rotations of two channels; 7200 if left out."
    )
    key_rules: Literal["provider", "open-spec"] | None = Field(
        None,
        description="How many keys a channel may hold: what the provider takes, or by the open interconnect "
        "specification two, and one more in the interconnect than it has channels; provider if left out.",
    )
    replay_window: int | None = Field(
        None, ge=0, le=2**32 - 1, description="Frames that may arrive late; 0 is strict order."
    )
    include_sci: bool | None = Field(None, description="Send the SCI in every SecTAG.")
    sci_port: int | None = Field(
        None, ge=1, le=65535, description="Port number in our own SCI; 1 if left out."
    )


class MacsecSpec(MacsecDefaults):
    """A channel's MACsec policy; what it does not say, the interconnect or the profile does."""

    static: StaticSpec | None = Field(None, description="Keys by hand. For the lab only.")
    keys: tuple[KeySpec, ...] | None = Field(
        None, min_length=1, max_length=32, description="The channel's key chain, by reference."
    )
    key_chain: KeyChainSpec | None = Field(
        None, description="The channel's key chain in a directory, which `lastmile keys` writes."
    )


class PortSpec(Strict):
    """A physical port."""

    name: Device = Field(description="The kernel's name of the device.")
    mtu: int | None = Field(
        None, ge=1280, le=65535, description="Octets the bare port carries: the IP MTU and 36 more, at least."
    )


class LagSpec(Strict):
    """A link aggregation group made of ports (IEEE 802.1AX)."""

    name: Device = Field(description="Name of the aggregated device.")
    members: tuple[Device, ...] = Field(min_length=1, max_length=16, description="The ports.")
    lacp: Literal["fast", "slow"] | None = Field(
        None, description="LACPDUs every 1 s or every 30 s; fast if left out."
    )
    min_links: int | None = Field(
        None, ge=1, le=16, description="Members that must be up for the group to be up; 1 if left out."
    )
    mtu: int | None = Field(None, ge=1280, le=65535, description="As a port's.")


def _port_form(value: object) -> str:
    return "<name>" if isinstance(value, str) else "<port>"


PortForm = Annotated[
    Annotated[Device, Tag("<name>")] | Annotated[PortSpec, Tag("<port>")], Discriminator(_port_form)
]


class ChannelSpec(Strict):
    """One port or LAG to one remote router."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["port"]}, {"required": ["lag"]}]})

    name: Name = Field(description="Unique in the file.")
    site: Site = Field(description="Facility of the remote router; an interconnect has at least two.")
    port: PortForm | None = Field(None, description="The port, by name or with its MTU.")
    lag: LagSpec | None = Field(None, description="Instead of a port: several.")
    enabled: bool = Field(True, description="False keeps the channel down (adminState DISABLED).")
    macsec: MacsecSpec | None = Field(None, description="What differs from the interconnect's macsec.")

    @model_validator(mode="after")
    def _one_device(self) -> ChannelSpec:
        if (self.port is None) == (self.lag is None):
            raise ValueError("a channel sits on one device - give it a port or a lag")
        return self


class InterconnectSpec(Strict):
    """A redundancy group of channels to one provider."""

    name: Name = Field(description="Unique in the file.")
    profile: ProfileText = Field(description="Whose rules and defaults apply.")
    macsec: MacsecDefaults | None = Field(None, description="For all channels of this interconnect.")
    secy: Literal["auto", "kernel", "fastpath"] | None = Field(
        None,
        description="Who does MACsec and VLANs: the kernel, or the router's own data plane. "
        "auto, if left out: the kernel where it has both, else the data plane.",
    )
    cores: int | None = Field(
        None,
        ge=1,
        le=16,
        description="Cores that send for one channel at once, where the data plane does MACsec; 1 if left out, "
        "which keeps frames in the order of their packet numbers. With more, the far end's replay window must be "
        "some thousands.",
    )
    channels: tuple[ChannelSpec, ...] = Field(
        min_length=1,
        max_length=CHANNELS_MAX,
        description="Four over two sites, where the service level counts.",
    )


class FeatureAddresses(Strict):
    """Our address and the neighbour's on one VLAN."""

    local: InterfaceText = Field(description="Ours, with prefix length.")
    peer: AddressText = Field(description="The neighbour's, in the same subnet.")


class TimersSpec(Strict):
    """BGP timers offered to the peer."""

    hold_s: int | None = Field(None, ge=0, le=65535, description="Hold time in seconds, 3 or more.")
    keepalive_s: int | None = Field(
        None,
        ge=1,
        le=21845,
        description="Keepalive interval in seconds; a third of the hold time if left out.",
    )


class FeatureBgpSpec(Strict):
    """What one channel's sessions say differently from their connection's."""

    peer_asn: Asn | None = Field(None, description="The neighbour's AS number.")
    password: SecretSpec | None = Field(None, description="TCP MD5 secret (RFC 2385), 1 to 80 characters.")


class ConnectionBgpSpec(FeatureBgpSpec):
    """What all sessions of a connection have in common; the profile fills what is left out."""

    timers: TimersSpec | None = Field(None, description="Hold and keepalive time.")
    gtsm: bool | None = Field(None, description="TTL 255 sent and required (RFC 5082), else TTL 1.")
    graceful_restart_s: int | None = Field(
        None, ge=0, le=4095, description="Restart time offered (RFC 4724); 0 is off."
    )
    md5_required: bool | None = Field(None, description="Refuse sessions without a password.")
    bogons: tuple[PrefixText, ...] | None = Field(
        None,
        description="Prefixes refused from the peer with all their more specifics; replaces the profile's.",
    )
    multipath_relax: bool | None = Field(
        None, description="Paths of equal length through different ASes share the load."
    )
    max_paths: int | None = Field(None, ge=1, le=64, description="Next hops of one route at most.")
    prefix_warn: int | None = Field(
        None, ge=1, le=2_000_000, description="Received prefixes per session and family to warn at."
    )
    prefix_max: int | None = Field(
        None, ge=1, le=2_000_000, description="Received prefixes per session and family to stop at."
    )
    advertise_max: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Advertised prefixes per session and family; as the provider agreed.",
    )
    local_preference: int | None = Field(
        None, ge=0, le=2**32 - 1, description="Of routes of this connection."
    )


class FeatureSpec(Strict):
    """A connection on one channel: the L3 feature."""

    channel: Name = Field(description="Channel of the connection's interconnect.")
    vlan: int = Field(ge=1, le=4094, description="VLAN ID inside MACsec.")
    mtu: Mtu | None = Field(None, description="Must equal the connection's; may be left out.")
    ipv4: FeatureAddresses | None = Field(None, description="IPv4 link addresses.")
    ipv6: FeatureAddresses | None = Field(None, description="IPv6 link addresses.")
    bgp: FeatureBgpSpec | None = Field(None, description="What differs from the connection's bgp.")


class ConnectionSpec(Strict):
    """What is ordered: bandwidth and MTU between a VRF and a cloud, over all channels."""

    name: Name = Field(description="Unique in the file.")
    interconnect: Name = Field(description="The interconnect that carries it.")
    bandwidth: BandwidthText = Field(description=f"Tier: {', '.join(BANDWIDTHS_MBPS)}.")
    mtu: Mtu = Field(description="IP MTU in octets.")
    vrf: Device | None = Field(None, description="VRF of the routes; the main table if left out.")
    advertise: tuple[PrefixText, ...] = Field(
        (), max_length=10_000, description="Exactly the prefixes announced to the peer."
    )
    accept: tuple[FilterText, ...] = Field(
        (), max_length=1000, description="Prefixes taken from the peer; nothing else is."
    )
    bgp: ConnectionBgpSpec | None = Field(None, description="For all sessions of the connection.")
    features: tuple[FeatureSpec, ...] = Field(description="One per channel.")


class VrfSpec(Strict):
    """A routing table of its own ("segment")."""

    name: Device = Field(description="Name of the VRF device.")
    table: int = Field(ge=1, le=2**32 - 1, description="Kernel routing table.")


class LanSpec(Strict):
    """A port towards the branch."""

    port: Device = Field(description="The kernel's name of the device.")
    mtu: int | None = Field(None, ge=1280, le=65535, description="IP MTU in octets; 1500 if left out.")
    addresses: tuple[InterfaceText, ...] = Field(min_length=1, description="Ours, with prefix length.")
    vrf: Device | None = Field(None, description="VRF of the port; the main table if left out.")


class RouterSpec(Strict):
    """The box itself."""

    name: Annotated[str, Field(pattern=_HOST)] = Field(description="Host name.")
    asn: Asn = Field(description="Our AS number.")
    router_id: RouterIdText = Field(description="BGP identifier, in the form of an IPv4 address.")
    lan: tuple[LanSpec, ...] = Field((), description="Ports towards the branch.")


class Document(Strict):
    """A lastmile configuration file."""

    model_config = ConfigDict(title="lastmile configuration")

    router: RouterSpec = Field(description="The box itself.")
    vrfs: tuple[VrfSpec, ...] = Field((), description="Routing tables besides the main one.")
    interconnects: tuple[InterconnectSpec, ...] = Field(min_length=1, description="Groups of channels.")
    connections: tuple[ConnectionSpec, ...] = Field((), description="What the channels carry.")


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of the file, for editors."""
    schema = Document.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
