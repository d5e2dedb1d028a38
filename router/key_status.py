"""What the key daemon says of a channel's keys: plain JSON values, never a secret.

The shape is `ChannelKeys` of `router.api.types` for `lastmile keys` and `status`; times are seconds
since the epoch, ages in seconds.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from router.api.types import (
    ChannelKeys,
    KeyInUse,
    KeyOnChain,
    MkaParticipant,
    MkaPeer,
    UnknownCkn,
)
from router.config.effective import Channel, MacsecMode
from router.config.keys import Chain
from router.mka.events import PortState
from router.mka.explain import KaySnapshot, KeySnapshot, ParticipantSnapshot
from router.mka.keychain import ChainKey, expiry_warning, phase

if TYPE_CHECKING:
    from router.mka.driver import KayDriver


def channel_keys(
    channel: Channel, chain: Chain, driver: KayDriver, *, now: float, wall: float
) -> dict[str, Any]:
    """Describe one channel; `now` is the KaY's clock, `wall` the time of day."""
    seen = driver.snapshot()
    skew = channel.macsec.mka.clock_skew_s
    expiry = expiry_warning(chain.keys, wall) if chain.keys else "the channel has no key"
    shown = ChannelKeys(
        kind="mka",
        port=driver.port_state.value,
        reason=_reason(seen, driver),
        policy=channel.macsec.mode.value,
        fail_open=channel.macsec.mode is MacsecMode.SHOULD_SECURE,
        cp_state=seen.state.value if seen else "",
        suite=str(driver.state.suite) if driver.state else None,
        wanted_suite=str(driver.wanted_suite) if driver.wanted_suite else None,
        suites=[str(suite) for suite in channel.macsec.suites],
        sci=str(driver.state.sci) if driver.state else None,
        principal=seen.principal.hex() if seen and seen.principal else None,
        current=_key(seen.current) if seen and seen.current else None,
        next=_key(seen.next) if seen and seen.next else None,
        chain=[_on_chain(key, chain, seen, wall, skew) for key in chain.keys],
        expiry=expiry,
        problems=list(chain.problems),
        participants=[_participant(p, now, wall) for p in seen.participants] if seen else [],
        unknown_ckns=[
            UnknownCkn(u.ckn.hex(), str(u.source), wall - (now - u.last_seen), u.count)
            for u in (seen.unknown_ckns if seen else ())
        ],
        drops=dict(seen.drops) if seen else {},
        transitions=[
            f"{wall - (now - t.at):.3f} {t.was.value} -> {t.now.value}: {t.why}"
            for t in (seen.transitions if seen else ())
        ],
        counters=asdict(driver.counters),
    )
    return asdict(shown)


def _reason(seen: KaySnapshot | None, driver: KayDriver) -> str:
    if seen is None:
        return driver.problem or "key agreement has not started yet"
    if driver.port_state is not seen.port:
        ordered = "opened" if seen.port is PortState.UNPROTECTED else "closed"
        return f"the port is to be {ordered}, and the SecY has not done it yet: {driver.port_problem or 'it is asked'}"
    return seen.suspicion or driver.problem


def _key(key: KeySnapshot) -> KeyInUse:
    return KeyInUse(
        ki=str(key.ki),
        ckn=key.ckn.hex(),
        an=key.an,
        suite=str(key.suite),
        confidentiality=key.confidentiality.label,
        rx=key.rx,
        tx=key.tx,
        age_s=round(key.age_s, 3),
        next_pn=key.next_pn,
        exhaustion_s=None if key.exhaustion_s is None else round(key.exhaustion_s),
        ssci=key.ssci,
        reason=key.reason,
    )


def _on_chain(key: ChainKey, chain: Chain, seen: KaySnapshot | None, wall: float, skew: float) -> KeyOnChain:
    participant = next((p for p in seen.participants if p.ckn == key.ckn), None) if seen else None
    live = [peer for peer in participant.peers if peer.live] if participant else []
    where = phase(key, wall, skew).value
    return KeyOnChain(
        ckn=key.ckn.hex(),
        fingerprint=key.fingerprint,
        bits=8 * len(key.cak),
        start=None if key.start == float("-inf") else key.start,
        end=None if key.end == float("inf") else key.end,
        phase="standby" if key.ckn in chain.standby and where == "active" else where,
        in_use=bool(seen and seen.current and seen.current.ckn == key.ckn),
        peers_live=len(live),
        managed=key.ckn in chain.files,
    )


def _participant(participant: ParticipantSnapshot, now: float, wall: float) -> MkaParticipant:
    def clock(when: float | None) -> float | None:
        return None if when is None else round(wall - (now - when), 3)

    return MkaParticipant(
        ckn=participant.ckn.hex(),
        mi=participant.mi.hex(),
        mn=participant.mn,
        principal=participant.principal,
        eligible=participant.eligible,
        key_server=str(participant.server) if participant.server else None,
        key_server_reason=participant.server_reason,
        heard_at=clock(participant.heard_at),
        icv_failures=participant.icv_failures,
        icv_failed_at=clock(participant.icv_failed_at),
        peers=[
            MkaPeer(
                sci=str(peer.sci),
                mi=peer.mi.hex(),
                mn=peer.mn,
                live=peer.live,
                last_seen=clock(peer.last_seen) or 0.0,
                since=clock(peer.since) or 0.0,
                priority=peer.priority,
                version=peer.version,
                offers=None if peer.offers is None else [str(suite) for suite in peer.offers],
            )
            for peer in participant.peers
        ],
    )
