"""What Python's `cryptography` does, one call per frame: the cipher alone, and our readable twin."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from router.dataplane.frame import Policy, ReferenceSecy, Verdict
from router.model import CipherSuite, MacAddress, Sci, Secret
from router.secy import SaKey

NAME: Final = "cryptography"
_RUN_S: Final = 1.5e-3
_RUNS: Final = 3
_AAD: Final = bytes(28)


def _per_call_s(call: Callable[[], object]) -> float:
    """CPU seconds of one call: the median of a few short runs."""
    samples = []
    call()
    for _ in range(_RUNS):
        calls, begin = 0, time.thread_time()
        while (took := time.thread_time() - begin) < _RUN_S:
            call()
            calls += 1
        samples.append(took / calls)
    return statistics.median(samples)


def _row(suite: CipherSuite, direction: str, size: int, seconds: float) -> dict[str, Any]:
    return {
        "backend": NAME,
        "suite": str(suite),
        "direction": direction,
        "size": size,
        "gbps": size * 8e-9 / seconds,
        "mpps": 1e-6 / seconds,
    }


def cipher(size: int, suites: Sequence[CipherSuite] = tuple(CipherSuite)) -> list[dict[str, Any]]:
    """AES-GCM with a new IV a frame and 28 octets of AAD."""
    rows = []
    for suite in suites:
        gcm, data, base = AESGCM(os.urandom(suite.key_size)), bytes(size), int.from_bytes(os.urandom(12))
        numbers = iter(range(1, 1 << 32))

        def protect(
            gcm: AESGCM = gcm, data: bytes = data, base: int = base, numbers: Any = numbers
        ) -> object:
            return gcm.encrypt((base ^ next(numbers)).to_bytes(12), data, _AAD)

        nonce = base.to_bytes(12)
        sealed = gcm.encrypt(nonce, data, _AAD)

        def validate(gcm: AESGCM = gcm, nonce: bytes = nonce, sealed: bytes = sealed) -> object:
            return gcm.decrypt(nonce, sealed, _AAD)

        rows.append(_row(suite, "protect", size, _per_call_s(protect)))
        rows.append(_row(suite, "validate", size, _per_call_s(validate)))
    return rows


def frames(size: int, suites: Sequence[CipherSuite] = tuple(CipherSuite)) -> list[dict[str, Any]]:
    """Whole frames through `router.dataplane.frame`; `size` is secure data, VLAN tag included."""
    rows = []
    sci = Sci(MacAddress.parse("02:00:00:00:00:0a"), 1)
    frame = bytes(12) + b"\x08\x00" + bytes(size - 6)
    for suite in suites:
        key = SaKey(
            Secret(os.urandom(suite.key_size)),
            bytes(16),
            1 if suite.is_xpn else 0,
            bytes(12) if suite.is_xpn else b"",
        )
        secy = ReferenceSecy(Policy(suite, sci, replay_window=64, pop_vlan=True))
        secy.install_transmit(0, key)
        secy.enable_transmit(0)
        secy.add_receive_sc(sci)
        secy.install_receive(sci, 0, key)
        secy.enable_receive(sci, 0)
        samples: dict[str, list[float]] = {"protect": [], "validate": []}
        for _ in range(_RUNS):
            begin = time.thread_time()
            sealed = [secy.protect([frame], 100)[0].frame for _ in range(64)]
            between = time.thread_time()
            results = [secy.validate([one])[0] for one in sealed]
            samples["validate"].append((time.thread_time() - between) / 64)
            samples["protect"].append((between - begin) / 64)
            assert all(result.verdict is Verdict.IN_OK for result in results)
        rows += [_row(suite, name, size, statistics.median(took)) for name, took in samples.items()]
    return rows
