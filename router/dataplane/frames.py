"""MACsec for batches of frames, in C: one crossing per batch, in place, without the GIL.

    secy = Secy(Policy(suite=CipherSuite.GCM_AES_XPN_256, sci=ours))
    secy.install_transmit(0, key)
    secy.enable_transmit(0)

    batch = Batch(count_max=64)             # once
    for frame in frames:
        batch.append(frame)
    secy.protect_batch(batch)               # one call, no copy
    wire = [batch.frame(i) for i in range(len(batch)) if batch.verdict(i).delivers]

`protect` and `validate` are the same for lists of bytes. Every frame ends with a `Verdict`, the
802.1AE counter that it is counted under. Errors are `DataplaneError`. The twin to read is
`router.dataplane.frame`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from threading import Lock
from types import TracebackType
from typing import Any, Final, Self

from router.dataplane._native import ffi, lib
from router.dataplane.frame import Policy, Result, Verdict
from router.errors import DataplaneError
from router.model import Sci
from router.secy import SaKey

FRAME_SIZE_MAX: Final = 9216
"""Octets of a user frame that a batch takes unless told otherwise."""

_NO_VLAN: Final[int] = lib.FRAME_NO_VLAN


def _text(pointer: Any) -> str:
    return str(ffi.string(pointer).decode())


def _counter_names() -> tuple[str, ...]:
    names: list[str] = []
    while (name := lib.counter_name(len(names))) != ffi.NULL:
        names.append(_text(name))
    return tuple(names)


COUNTER_NAMES: Final = _counter_names()
"""All counters: packets by verdict, then octets of secure data."""

_VERDICTS: Final[tuple[Verdict, ...]] = tuple(Verdict(name) for name in COUNTER_NAMES[: len(Verdict)])


def _check(code: int) -> None:
    if code < 0:
        raise DataplaneError(_text(lib.err_strerror(code)))


class Batch:
    """Frames in one buffer, each with the room that it may grow by.

    Filled with `append`, given to `Secy.protect_batch` or `Secy.validate_batch`, read with `frame`
    and `verdict`, emptied with `clear`. It may be validated after it was protected.
    """

    def __init__(self, count_max: int, frame_size_max: int = FRAME_SIZE_MAX) -> None:
        self._stride = -(-(lib.SECY_HEADROOM + frame_size_max + lib.SECY_TAILROOM) // 64) * 64
        if count_max < 1 or frame_size_max < 1 or count_max * self._stride >= 1 << 32:
            raise DataplaneError("a batch holds at least one frame and less than 4 GiB")
        self._count_max = count_max
        self._frame_size_max = frame_size_max
        self._buffer = bytearray(count_max * self._stride)
        self._view = memoryview(self._buffer)
        self._arena = ffi.from_buffer("uint8_t[]", self._buffer, require_writable=True)
        self._frames = ffi.new("struct frame[]", count_max)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, frame: bytes | bytearray | memoryview, vlan: int | None = None) -> None:
        """Add a frame without FCS; protecting it pushes a tag with TCI `vlan`. Raises DataplaneError."""
        if self._count == self._count_max:
            raise DataplaneError(f"the batch is full with {self._count_max} frames")
        if len(frame) > self._frame_size_max:
            raise DataplaneError(f"a frame of {len(frame)} octets is beyond {self._frame_size_max}")
        if vlan is not None and not 0 <= vlan < _NO_VLAN:
            raise DataplaneError(f"a VLAN tag's TCI is 0 to {_NO_VLAN - 1:#x}, not {vlan:#x}")
        at = self._count * self._stride + lib.SECY_HEADROOM
        self._view[at : at + len(frame)] = frame
        entry = self._frames[self._count]
        entry.at, entry.len = at, len(frame)
        entry.vlan = _NO_VLAN if vlan is None else vlan
        self._count += 1

    def clear(self) -> None:
        """Forget all frames; the buffer stays."""
        self._count = 0

    def frame(self, index: int) -> memoryview:
        """Return a frame as it stands in the buffer. Undefined octets if it was dropped."""
        entry = self._frames[self._index(index)]
        return self._view[entry.at : entry.at + entry.len]

    def verdict(self, index: int) -> Verdict:
        """Tell what became of a frame in the last call."""
        return _VERDICTS[int(self._frames[self._index(index)].verdict)]

    def vlan(self, index: int) -> int | None:
        """Return the TCI of the tag that validating popped, or that protecting is to push."""
        tci = int(self._frames[self._index(index)].vlan)
        return None if tci == _NO_VLAN else tci

    def results(self, *, with_vlan: bool) -> list[Result]:
        """Copy everything out."""
        return [
            Result(verdict, bytes(self.frame(i)), self.vlan(i) if with_vlan else None)
            if (verdict := self.verdict(i)).delivers
            else Result(verdict)
            for i in range(self._count)
        ]

    def _index(self, index: int) -> int:
        if not 0 <= index < self._count:
            raise IndexError(index)
        return index


class Secy:
    """A SecY in C. Threads may share it: a batch is worked on by one at a time."""

    def __init__(self, policy: Policy, backend: str | None = None) -> None:
        """Raise DataplaneError if `backend` (a cipher's name; the fastest by default) is unusable."""
        config = ffi.new("struct secy_config *")
        config.suite = policy.suite.value
        config.sci = policy.sci.pack()
        config.frame_max = policy.frame_max
        config.replay_window = policy.replay_window
        config.replay_protect = policy.replay_protect
        config.validate = policy.validate.value
        config.protect = policy.protect
        config.encrypt = policy.encrypt
        config.conf_offset = policy.confidentiality_offset
        config.include_sci = policy.include_sci
        config.end_station = policy.end_station
        config.scb = policy.single_copy_broadcast
        config.pop_vlan = policy.pop_vlan
        config.clear_tags = policy.clear_tags
        out = ffi.new("struct secy **")
        name = ffi.NULL if backend is None else ffi.new("char[]", backend.encode())
        _check(lib.secy_new(config, name, out))
        self.policy = policy
        self.backend = _text(lib.secy_backend(out[0]))
        """Name of the cipher backend in use."""
        self.note = _text(lib.secy_note(out[0]))
        """To be logged if not empty: a faster backend was passed over, and why."""
        self._lock = Lock()
        self._secy = ffi.gc(out[0], lib.secy_free)

    def close(self) -> None:
        """Wipe all keys and free the memory. Using the SecY after that is an error of ours."""
        with self._lock:
            if self._secy is not None:
                ffi.release(self._secy)
            self._secy = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- installing and removing SAs

    def install_transmit(self, an: int, key: SaKey, next_pn: int = 1) -> None:
        """Install a transmit SA, not yet used."""
        self._install(key, lambda keying: lib.secy_tx_install(self._secy, an, keying, next_pn), an, next_pn)

    def enable_transmit(self, an: int) -> None:
        """Send under this AN from the next frame on."""
        with self._lock:
            _check(lib.secy_tx_enable(self._secy, _an(an)))

    def delete_transmit(self, an: int) -> None:
        """Remove a transmit SA; if frames were sent under it, none leaves any more."""
        with self._lock:
            _check(lib.secy_tx_delete(self._secy, _an(an)))

    def add_receive_sc(self, sci: Sci) -> None:
        """Create a receive SC; one that is there stays as it is."""
        with self._lock:
            _check(lib.secy_rx_add(self._secy, sci.pack()))

    def remove_receive_sc(self, sci: Sci) -> None:
        """Remove a receive SC with all its SAs."""
        with self._lock:
            _check(lib.secy_rx_remove(self._secy, sci.pack()))

    def install_receive(self, sci: Sci, an: int, key: SaKey, lowest_pn: int = 1) -> None:
        """Install a receive SA, not yet active."""
        packed = sci.pack()
        self._install(
            key, lambda keying: lib.secy_rx_install(self._secy, packed, an, keying, lowest_pn), an, lowest_pn
        )

    def enable_receive(self, sci: Sci, an: int, *, active: bool = True) -> None:
        """Let frames of this SA in, or stop doing so."""
        with self._lock:
            _check(lib.secy_rx_enable(self._secy, sci.pack(), _an(an), active))

    def raise_receive_pn(self, sci: Sci, an: int, lowest_pn: int) -> None:
        """Raise the lowest acceptable PN."""
        with self._lock:
            _check(lib.secy_rx_raise(self._secy, sci.pack(), _an(an), _pn(lowest_pn)))

    def delete_receive(self, sci: Sci, an: int) -> None:
        """Remove a receive SA."""
        with self._lock:
            _check(lib.secy_rx_delete(self._secy, sci.pack(), _an(an)))

    def next_pn(self, an: int) -> int:
        """PN of the next frame sent under this AN; 0 if it is exhausted or there is no SA."""
        return int(lib.secy_tx_next_pn(self._secy, _an(an)))

    def lowest_pn(self, sci: Sci, an: int) -> int:
        """Lowest acceptable PN; 0 if there is no such SA."""
        with self._lock:
            return int(lib.secy_rx_lowest_pn(self._secy, sci.pack(), _an(an)))

    @property
    def counters(self) -> Counter[str]:
        """All counters by their 802.1AE names; see COUNTER_NAMES."""
        return Counter({name: int(lib.secy_counter(self._secy, i)) for i, name in enumerate(COUNTER_NAMES)})

    # --- frames

    def protect_batch(self, batch: Batch) -> None:
        """Protect all frames of a batch in place, in order."""
        self._run(lib.secy_protect, batch, lib.SECY_HEADROOM, lib.SECY_TAILROOM)

    def validate_batch(self, batch: Batch) -> None:
        """Validate all frames of a batch in place, in order, and take SecTAG and ICV off."""
        self._run(lib.secy_validate, batch, 0, 0)

    def protect(self, frames: Iterable[bytes], vlan: int | None = None) -> list[Result]:
        """Protect frames in order; push an 802.1Q tag with TCI `vlan` first, inside the protection."""
        batch = _batch_of(list(frames), vlan)
        self.protect_batch(batch)
        return batch.results(with_vlan=False)

    def validate(self, frames: Iterable[bytes]) -> list[Result]:
        """Validate frames in order and take SecTAG and ICV off."""
        batch = _batch_of(list(frames), None)
        self.validate_batch(batch)
        return batch.results(with_vlan=True)

    def _run(self, call: Any, batch: Batch, headroom: int, tailroom: int) -> None:
        with self._lock:
            assert self._secy is not None
            _check(
                lib.frames_check(batch._frames, len(batch), len(batch._buffer), headroom, tailroom)  # noqa: SLF001 - one unit
            )
            call(self._secy, batch._arena, batch._frames, len(batch))  # noqa: SLF001

    def _install(self, key: SaKey, call: Any, an: int, pn: int) -> None:
        _an(an)
        _pn(pn)
        if self.policy.suite.is_xpn and len(key.salt) != 12:
            raise DataplaneError("a salt has 12 octets")
        sak = key.sak.reveal()
        pointer = ffi.from_buffer(sak)
        try:
            keying = ffi.new("struct secy_key *")
            keying.sak = pointer
            keying.sak_len = len(sak)
            keying.ssci = key.ssci
            keying.salt = key.salt.ljust(12, b"\0")
            with self._lock:
                _check(call(keying))
        finally:
            # The bytes that reveal() made are ours alone; nobody else can see them change.
            lib.wipe(pointer, len(sak))


def _an(an: int) -> int:
    if not 0 <= an <= 3:
        raise DataplaneError("an association number is 0 to 3")
    return an


def _pn(pn: int) -> int:
    if not 0 <= pn < 1 << 64:
        raise DataplaneError("the packet number is 0 or beyond the suite's last one")
    return pn


def _batch_of(frames: Sequence[bytes], vlan: int | None) -> Batch:
    batch = Batch(max(1, len(frames)), max(64, max(map(len, frames), default=0)))
    for frame in frames:
        batch.append(frame, vlan)
    return batch
