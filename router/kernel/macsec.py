"""Message classes of the macsec link kind and its generic-netlink family, which pyroute2 lacks.

Numbers from the kernel's <linux/if_link.h> and <linux/if_macsec.h>. An SCI is 8 octets as they
stand in a SecTAG, although the kernel types it u64; a packet number is u32 in host order, or
u64 with an XPN suite, and the kernel insists on the exact length.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from pyroute2.netlink import NLA_F_NESTED, genlmsg, nla
from pyroute2.netlink.generic import AsyncGenericNetlinkSocket

from router.model import CipherSuite

GENL_NAME: Final = "macsec"
GENL_VERSION: Final = 1
VALIDATE_CHECK: Final = 1
VALIDATE_STRICT: Final = 2
ICV_OCTETS: Final = 16

KERNEL_GCM_AES_128: Final = 0x0080020001000001
"""What the kernel reports for GCM-AES-128: the identifier of 802.1AE-2006, two bits off."""


def suite_from_kernel(identifier: int) -> CipherSuite:
    """Name a cipher suite that the kernel reported. Raises ValueError for one that we do not know."""
    return CipherSuite.GCM_AES_128 if identifier == KERNEL_GCM_AES_128 else CipherSuite(identifier)


class Command(IntEnum):
    """Commands of the macsec family (enum macsec_nl_commands)."""

    GET_TXSC = 0
    ADD_RXSC = 1
    DEL_RXSC = 2
    UPD_RXSC = 3
    ADD_TXSA = 4
    DEL_TXSA = 5
    UPD_TXSA = 6
    ADD_RXSA = 7
    DEL_RXSA = 8
    UPD_RXSA = 9


class macsec(nla):  # type: ignore[misc]  # noqa: N801 - pyroute2 finds a kind by its class's name
    """IFLA_INFO_DATA of the kind `macsec`."""

    prefix = "IFLA_"
    nla_map = (
        ("IFLA_MACSEC_UNSPEC", "none"),
        ("IFLA_MACSEC_SCI", "cdata"),
        ("IFLA_MACSEC_PORT", "be16"),
        ("IFLA_MACSEC_ICV_LEN", "uint8"),
        ("IFLA_MACSEC_CIPHER_SUITE", "uint64"),
        ("IFLA_MACSEC_WINDOW", "uint32"),
        ("IFLA_MACSEC_ENCODING_SA", "uint8"),
        ("IFLA_MACSEC_ENCRYPT", "uint8"),
        ("IFLA_MACSEC_PROTECT", "uint8"),
        ("IFLA_MACSEC_INC_SCI", "uint8"),
        ("IFLA_MACSEC_ES", "uint8"),
        ("IFLA_MACSEC_SCB", "uint8"),
        ("IFLA_MACSEC_REPLAY_PROTECT", "uint8"),
        ("IFLA_MACSEC_VALIDATION", "uint8"),
        ("IFLA_MACSEC_PAD", "cdata"),
        ("IFLA_MACSEC_OFFLOAD", "uint8"),
    )


class _Sa(nla):  # type: ignore[misc]
    """enum macsec_sa_attrs."""

    nla_flags = NLA_F_NESTED
    nla_map = (
        ("MACSEC_SA_ATTR_UNSPEC", "none"),
        ("MACSEC_SA_ATTR_AN", "uint8"),
        ("MACSEC_SA_ATTR_ACTIVE", "uint8"),
        ("MACSEC_SA_ATTR_PN", "cdata"),
        ("MACSEC_SA_ATTR_KEY", "cdata"),
        ("MACSEC_SA_ATTR_KEYID", "cdata"),
        ("MACSEC_SA_ATTR_STATS", "sa_stats"),
        ("MACSEC_SA_ATTR_PAD", "cdata"),
        ("MACSEC_SA_ATTR_SSCI", "cdata"),
        ("MACSEC_SA_ATTR_SALT", "cdata"),
    )

    class sa_stats(nla):  # type: ignore[misc]  # noqa: N801 - named as nla_map names it
        """enum macsec_sa_stats_attr; 32 bits each."""

        nla_map = (
            ("UNSPEC", "none"),
            ("IN_PKTS_OK", "uint32"),
            ("IN_PKTS_INVALID", "uint32"),
            ("IN_PKTS_NOT_VALID", "uint32"),
            ("IN_PKTS_NOT_USING_SA", "uint32"),
            ("IN_PKTS_UNUSED_SA", "uint32"),
            ("OUT_PKTS_PROTECTED", "uint32"),
            ("OUT_PKTS_ENCRYPTED", "uint32"),
        )


class _RxSc(nla):  # type: ignore[misc]
    """enum macsec_rxsc_attrs."""

    nla_flags = NLA_F_NESTED
    nla_map = (
        ("MACSEC_RXSC_ATTR_UNSPEC", "none"),
        ("MACSEC_RXSC_ATTR_SCI", "cdata"),
        ("MACSEC_RXSC_ATTR_ACTIVE", "uint8"),
        ("MACSEC_RXSC_ATTR_SA_LIST", "*sa"),
        ("MACSEC_RXSC_ATTR_STATS", "rxsc_stats"),
        ("MACSEC_RXSC_ATTR_PAD", "cdata"),
    )
    sa = _Sa

    class rxsc_stats(nla):  # type: ignore[misc]  # noqa: N801 - named as nla_map names it
        """enum macsec_rxsc_stats_attr; 64 bits each."""

        nla_map = (
            ("UNSPEC", "none"),
            ("IN_OCTETS_VALIDATED", "uint64"),
            ("IN_OCTETS_DECRYPTED", "uint64"),
            ("IN_PKTS_UNCHECKED", "uint64"),
            ("IN_PKTS_DELAYED", "uint64"),
            ("IN_PKTS_OK", "uint64"),
            ("IN_PKTS_INVALID", "uint64"),
            ("IN_PKTS_LATE", "uint64"),
            ("IN_PKTS_NOT_VALID", "uint64"),
            ("IN_PKTS_NOT_USING_SA", "uint64"),
            ("IN_PKTS_UNUSED_SA", "uint64"),
            ("PAD", "cdata"),
        )


class MacsecMessage(genlmsg):  # type: ignore[misc]
    """A message of the macsec family: enum macsec_attrs."""

    prefix = "MACSEC_ATTR_"
    nla_map = (
        ("MACSEC_ATTR_UNSPEC", "none"),
        ("MACSEC_ATTR_IFINDEX", "uint32"),
        ("MACSEC_ATTR_RXSC_CONFIG", "rxsc"),
        ("MACSEC_ATTR_SA_CONFIG", "sa"),
        ("MACSEC_ATTR_SECY", "secy"),
        ("MACSEC_ATTR_TXSA_LIST", "*sa"),
        ("MACSEC_ATTR_RXSC_LIST", "*rxsc"),
        ("MACSEC_ATTR_TXSC_STATS", "txsc_stats"),
        ("MACSEC_ATTR_SECY_STATS", "secy_stats"),
        ("MACSEC_ATTR_OFFLOAD", "hex"),
    )
    sa = _Sa
    rxsc = _RxSc

    class secy(nla):  # type: ignore[misc]  # noqa: N801 - named as nla_map names it
        """enum macsec_secy_attrs."""

        nla_map = (
            ("MACSEC_SECY_ATTR_UNSPEC", "none"),
            ("MACSEC_SECY_ATTR_SCI", "cdata"),
            ("MACSEC_SECY_ATTR_ENCODING_SA", "uint8"),
            ("MACSEC_SECY_ATTR_WINDOW", "uint32"),
            ("MACSEC_SECY_ATTR_CIPHER_SUITE", "uint64"),
            ("MACSEC_SECY_ATTR_ICV_LEN", "uint8"),
            ("MACSEC_SECY_ATTR_PROTECT", "uint8"),
            ("MACSEC_SECY_ATTR_REPLAY", "uint8"),
            ("MACSEC_SECY_ATTR_OPER", "uint8"),
            ("MACSEC_SECY_ATTR_VALIDATE", "uint8"),
            ("MACSEC_SECY_ATTR_ENCRYPT", "uint8"),
            ("MACSEC_SECY_ATTR_INC_SCI", "uint8"),
            ("MACSEC_SECY_ATTR_ES", "uint8"),
            ("MACSEC_SECY_ATTR_SCB", "uint8"),
            ("MACSEC_SECY_ATTR_PAD", "cdata"),
        )

    class txsc_stats(nla):  # type: ignore[misc]  # noqa: N801 - named as nla_map names it
        """enum macsec_txsc_stats_attr; 64 bits each."""

        nla_map = (
            ("UNSPEC", "none"),
            ("OUT_PKTS_PROTECTED", "uint64"),
            ("OUT_PKTS_ENCRYPTED", "uint64"),
            ("OUT_OCTETS_PROTECTED", "uint64"),
            ("OUT_OCTETS_ENCRYPTED", "uint64"),
            ("PAD", "cdata"),
        )

    class secy_stats(nla):  # type: ignore[misc]  # noqa: N801 - named as nla_map names it
        """enum macsec_secy_stats_attr; 64 bits each."""

        nla_map = (
            ("UNSPEC", "none"),
            ("OUT_PKTS_UNTAGGED", "uint64"),
            ("IN_PKTS_UNTAGGED", "uint64"),
            ("OUT_PKTS_TOO_LONG", "uint64"),
            ("IN_PKTS_NO_TAG", "uint64"),
            ("IN_PKTS_BAD_TAG", "uint64"),
            ("IN_PKTS_UNKNOWN_SCI", "uint64"),
            ("IN_PKTS_NO_SCI", "uint64"),
            ("IN_PKTS_OVERRUN", "uint64"),
            ("PAD", "cdata"),
        )


class MacsecSocket(AsyncGenericNetlinkSocket):  # type: ignore[misc]
    """A socket bound to the macsec family; opening it fails where the module is not loaded."""

    async def setup_endpoint(self) -> None:
        """Open and bind on first use (pyroute2 calls this before every request)."""
        if getattr(self.local, "transport", None) is not None:
            return
        await super().setup_endpoint()
        await self.bind(GENL_NAME, MacsecMessage)
