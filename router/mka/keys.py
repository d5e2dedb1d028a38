"""The MKA key hierarchy (IEEE 802.1X-2020 6.2, 9.3): CAK and CKN give KEK and ICK, and those a SAK.

    CAK --+-- KEK   wraps SAKs in Distributed SAK (RFC 3394)
          +-- ICK   authenticates MKPDUs (AES-CMAC)
          `-- SAK   derived from nonces by the key server alone

Only the first 16 octets of a CKN enter the derivation (6.2.1). Secrets travel as `Secret`; what the
crypto library copies of them internally is out of our reach.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from hmac import compare_digest
from itertools import count

from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from router.mka.mkpdu import CKN_SIZE_MAX, DropReason, KeyIdentifier, MkpduError
from router.model import CipherSuite, Confidentiality, Sci, Secret
from router.secy import SaKey


def cmac(key: bytes, message: bytes) -> bytes:
    """AES-CMAC (RFC 4493, SP 800-38B): 16 octets, whatever the key's size."""
    mac = CMAC(AES(key))
    mac.update(message)
    return mac.finalize()


def kdf(key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    """KDF of 6.2.1: block i is CMAC(key, i(1) | label | 00 | context | bits(2)); the first `bits` count."""
    out = b""
    for i in count(1):
        if len(out) * 8 >= bits:
            break
        out += cmac(key, bytes((i,)) + label + b"\0" + context + bits.to_bytes(2))
    return out[: bits // 8]


class Cak:
    """A secure connectivity association key under its name, with the two keys derived from it (9.3.3)."""

    __slots__ = ("_cak", "_ick", "_kek", "ckn")

    def __init__(self, ckn: bytes, cak: Secret) -> None:
        assert 1 <= len(ckn) <= CKN_SIZE_MAX, "a CKN has 1 to 32 octets"
        assert len(cak) in {16, 32}, "a CAK has 16 or 32 octets"
        self.ckn = ckn
        self._cak = cak
        key_id, bits = ckn[:16].ljust(16, b"\0"), len(cak) * 8
        self._kek = Secret(kdf(cak.reveal(), b"IEEE8021 KEK", key_id, bits))
        self._ick = Secret(kdf(cak.reveal(), b"IEEE8021 ICK", key_id, bits))

    def is_of(self, cak: Secret) -> bool:
        """Tell, in constant time, whether this was made from that CAK."""
        return compare_digest(self._cak.reveal(), cak.reveal())

    def icv(self, protected: bytes) -> bytes:
        """Integrity check value of an MKPDU (9.4.1): 16 octets."""
        return cmac(self._ick.reveal(), protected)

    def verify(self, protected: bytes, icv: bytes) -> bool:
        """Tell, in constant time, whether the ICV is right."""
        return compare_digest(self.icv(protected), icv)

    def wrap(self, sak: Secret) -> bytes:
        """Wrap a SAK for distribution (9.8.2)."""
        return aes_key_wrap(self._kek.reveal(), sak.reveal())

    def unwrap(self, wrapped: bytes) -> Secret:
        """Undo `wrap`. Raises MkpduError."""
        try:
            return Secret(aes_key_unwrap(self._kek.reveal(), wrapped))
        except (InvalidUnwrap, ValueError):
            raise MkpduError(DropReason.SAK_UNWRAP, "the SAK does not unwrap with our KEK") from None

    def derive_sak(self, *, nonce: bytes, members: Iterable[bytes], kn: int, size: int) -> Secret:
        """Derive a SAK of `size` octets (9.8.1) from a nonce of that size, all live MIs and ours."""
        context = nonce + b"".join(members) + kn.to_bytes(4)
        return Secret(kdf(self._cak.reveal(), b"IEEE8021 SAK", context, size * 8))

    def wipe(self) -> None:
        """Overwrite our copies of the derived keys. The CAK belongs to the caller."""
        self._kek.wipe()
        self._ick.wipe()

    def __repr__(self) -> str:
        return f"Cak(ckn={self.ckn.hex()})"


class SsciOrder(Enum):
    """How members of an XPN CA are numbered."""

    DESCENDING_SCI = "descending-sci"
    """The numerically greatest SCI is 1 (802.1AEbw-2013 10.7.1): the standard."""
    ASCENDING_SCI = "ascending-sci"
    """The numerically least SCI is 1: known deviating peers. Wrong order: secured, but no traffic."""


def sscis(members: Iterable[Sci], order: SsciOrder) -> dict[Sci, int]:
    """Number all members of a CA, ourselves included, from 1."""
    ranked = sorted(set(members), key=Sci.pack, reverse=order is SsciOrder.DESCENDING_SCI)
    return {sci: rank for rank, sci in enumerate(ranked, 1)}


def salt(ki: KeyIdentifier) -> bytes:
    """XPN salt (802.1X-2020 9.8.1): the server's MI with its first four octets xored with the KN.

    The two octets on the left take the low half of the KN, the next two the high half.
    """
    low_then_high = (ki.kn & 0xFFFF).to_bytes(2) + (ki.kn >> 16).to_bytes(2)
    return bytes(a ^ b for a, b in zip(ki.mi, low_then_high, strict=False)) + ki.mi[4:]


def rebuild_pn(low: int, reference: int) -> int:
    """Return the 64-bit PN nearest to `reference` whose low 32 bits are `low`.

    A peer of MKA version 1 reports only the low half; `reference` is our SecY's PN for it.
    """
    pn = reference & ~0xFFFFFFFF | low
    if pn > reference + (1 << 31) and pn >= 1 << 32:
        return pn - (1 << 32)
    if pn + (1 << 31) < reference:
        return pn + (1 << 32)
    return pn


@dataclass(frozen=True, slots=True)
class Sak:
    """A secure association key as distributed, with all that its SAs need."""

    ki: KeyIdentifier
    an: int
    suite: CipherSuite
    confidentiality: Confidentiality
    sak: Secret
    members: Mapping[Sci, int]
    """All members of the CA that hold it, ourselves included, with their SSCIs (0 where not XPN)."""
    member_mis: frozenset[bytes]
    """The same as member identifiers."""
    ckn: bytes
    """Of the CA that it was distributed in."""
    created_at: float

    def key_of(self, sci: Sci) -> SaKey:
        """Keying of the SA that `sci` transmits under."""
        if not self.suite.is_xpn:
            return SaKey(self.sak, self.ki.pack())
        return SaKey(self.sak, self.ki.pack(), self.members[sci], salt(self.ki))
