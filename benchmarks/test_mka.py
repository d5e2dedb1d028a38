"""Key agreement in figures: what one MKPDU costs.

    .venv/bin/pytest benchmarks/test_mka.py --benchmark-only

Time from link up to secured and loss per rotation are measured where the kernel has macsec:
`lastmile lab run mka-faults` and `lastmile lab run sak-rotation`.
"""

import itertools

from router.mka.events import SendMkpdu
from router.mka.kay import Kay, KayConfig, KeyEntry
from router.model import Sci, Secret

CKN, CAK = bytes(32), bytes(range(32))
MKPDUS = 1000


def kay(number):
    """A KaY with one key; its random numbers are all different, which is all a benchmark needs."""
    counter = itertools.count(number << 40)
    config = KayConfig(sci=Sci.parse(f"02:00:00:00:00:0{number}/1"))
    made = Kay(config, now=0.0, entropy=lambda size: next(counter).to_bytes(size))
    made.set_keys((KeyEntry(CKN, Secret(CAK)),), 0.0)
    return made


def hellos():
    """What one station sends that hears nobody."""
    sender, frames, now = kay(1), [], 0.0
    while len(frames) < MKPDUS:
        now += 2.0
        sender.handle_timer(now)
        frames += [output.frame for output in sender.take_outputs() if isinstance(output, SendMkpdu)]
    return frames[:MKPDUS]


def test_mkpdus_per_second(benchmark):
    """Parsed, authenticated with AES-CMAC, checked for replay, and the peer's entry renewed."""
    frames = hellos()

    def take(receiver):
        for frame in frames:
            receiver.receive(frame, 1.0)
            receiver.take_outputs()
        return receiver

    receiver = benchmark.pedantic(take, setup=lambda: ((kay(2),), {}), rounds=5)
    rate = MKPDUS / benchmark.stats["mean"]
    benchmark.extra_info["mkpdus_per_second"] = round(rate)
    assert not receiver.drops
    assert rate > 500, "a port with ten peers hears five a second"
