"""Fuzz target for the MKPDU parser and the receive path.

    python tests/fuzz/mka/fuzz_mkpdu.py tests/fuzz/mka/corpus -max_total_time=60

The first octet of an input chooses what is done with the rest:

* even: it is a frame from the wire, for `Frame.parse` and for `Kay.receive` as it stands;
* odd: it is what a holder of the CAK says. The target puts the ICV behind it and hands it to a KaY, so
  that everything behind the ICV check is reached; keys are those of the captures that the corpus comes
  from, so that their SAKs unwrap. Time passes, the SecY answers, and the timer must stay in the future.

Found: nothing but `MkpduError` may leave the parsers, and nothing at all the KaY.
"""

import sys
from contextlib import suppress

import atheris

with atheris.instrument_imports(include=["router.mka"]):
    from router.mka.events import Fact, SendMkpdu
    from router.mka.kay import Kay, KayConfig, KeyEntry
    from router.mka.keys import Cak
    from router.mka.mkpdu import Frame, Mkpdu, MkpduError, envelope
    from router.model import CipherSuite, MacAddress, Sci, Secret

KEYS = {
    bytes(range(32)): Secret(bytes(range(16))),
    bytes.fromhex("aabbccdd"): Secret(bytes(range(32, 64))),
    bytes.fromhex("1122334455667788"): Secret(bytes(range(32, 64))),
}
HOLDERS = {ckn: Cak(ckn, cak) for ckn, cak in KEYS.items()}
ENTRIES = [KeyEntry(ckn, cak) for ckn, cak in KEYS.items()]
SOURCE = MacAddress.parse("02:00:00:00:00:0b")
CONFIG = KayConfig(
    Sci.parse("02:00:00:00:00:0c/1"), priority=254, suites=tuple(CipherSuite), delay_protection=True
)


def pump(kay: Kay, now: float) -> None:
    """Answer the SecY's operations as a willing SecY does."""
    for _ in range(100):
        outputs = kay.take_outputs()
        if not outputs:
            return
        for output in outputs:
            if isinstance(output, SendMkpdu):
                Mkpdu.parse(Frame.parse(output.frame).mkpdu)
            elif not isinstance(output, Fact):
                kay.succeeded(output.id, now)
    raise AssertionError("the KaY never comes to rest")


def from_the_wire(octets: bytes) -> None:
    with suppress(MkpduError):
        frame = Frame.parse(octets)
        Mkpdu.parse(frame.mkpdu)
    kay = Kay(CONFIG, now=0.0, entropy=lambda size: b"\x55" * size)
    kay.set_keys(ENTRIES, 0.0)
    kay.receive(octets, 1.0)
    pump(kay, 1.0)


def from_a_holder(octets: bytes) -> None:
    """Octets are MKPDUs, each behind two octets of length; sent 100 ms apart."""
    kay = Kay(CONFIG, now=0.0, entropy=lambda size: b"\x55" * size)
    kay.set_keys(ENTRIES, 0.0)
    pump(kay, 0.0)
    now = 0.0
    while len(octets) >= 2 and now < 2.0:
        size = int.from_bytes(octets[:2])
        mkpdu, octets = octets[2 : 2 + size], octets[2 + size :]
        with suppress(MkpduError):
            pdu = Mkpdu.parse(mkpdu)
            assert Mkpdu.parse(pdu.serialize()) == pdu
        protected = envelope(SOURCE, mkpdu)
        now += 0.1
        holder = next(
            (HOLDERS[ckn] for ckn in HOLDERS if mkpdu[32 : 32 + len(ckn)] == ckn), HOLDERS[bytes(range(32))]
        )
        kay.receive(protected + holder.icv(protected), now)
        pump(kay, now)
        timer = kay.next_timer()
        assert timer is not None, "a KaY with a key always has a hello to send"
        assert timer > now, "the timer spins"
    for _ in range(6):
        now = kay.next_timer() or now + 1
        kay.handle_timer(now)
        pump(kay, now)


def test_one_input(octets: bytes) -> None:
    """Entry point of the fuzzer."""
    if octets:
        (from_a_holder if octets[0] & 1 else from_the_wire)(octets[1:])


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
