"""Static keys: what it installs, in which order, and that no packet number comes twice."""

import errno
import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import structlog

from router.config.effective import SecretRef, StaticKeys, StaticSa
from router.config.load import load
from router.errors import ConfigError, SecretError
from router.kernel.fake import FakeKernel
from router.keyd import Keyd
from router.model import ChannelId, CipherSuite, Confidentiality, Sci, Secret
from router.reconcile.diff import Action, Verb
from router.reconcile.objects import EgressGuard, MacsecLink, PortLink
from router.static_keys import FIRST_PN, MARGIN, MARGIN_XPN, SAVE_S, PnHistory, StaticKeyer, key_id

PEER = Sci.parse("02:00:00:00:01:01/1")
TX, RX = SecretRef("file", "/tx"), SecretRef("file", "/rx")


def sak(ref, size):
    return Secret(bytes([len(ref.value) + ord(ref.value[1])]) * size)


SHIPPED = load(Path(__file__).parents[3] / "config" / "four-channels.yaml").effective


def channel(suite=CipherSuite.GCM_AES_XPN_256, an=0):
    salt = bytes(12) if suite.is_xpn else b""
    keys = StaticKeys(PEER, StaticSa(an, TX, 1), StaticSa(an, RX, 2), salt)
    first = SHIPPED.channels[0]
    macsec = replace(first.macsec, suite=suite, static=keys)
    return replace(first, id=ChannelId("a1"), port="p1", macsec=macsec, macsec_device="ms1")


async def build(kernel, suite=CipherSuite.GCM_AES_XPN_256):
    for target in (
        EgressGuard("p1", (0x88E5,)),
        PortLink("p1", 9100, up=True, guarded=True),
        MacsecLink("ms1", "p1", 9068, 1, suite, 64, send_sci=True, up=True),
    ):
        await kernel.apply(Action(Verb.CREATE, target))


@pytest.fixture
def kernel():
    return FakeKernel(("p1",))


@pytest.fixture
def history(tmp_path):
    return PnHistory(tmp_path / "state" / "packet-numbers.json")


def keyer(kernel, history, suite=CipherSuite.GCM_AES_XPN_256, an=0, resolve=sak):
    return StaticKeyer(channel(suite, an), kernel.secy("ms1"), history, resolve, structlog.get_logger())


def sent(kernel, pn, an=0):
    """Pretend that frames were sent up to `pn`."""
    secy = kernel.secy("ms1")
    secy.transmit[an] = replace(secy.transmit[an], next_pn=pn)


@pytest.mark.parametrize("suite", CipherSuite)
async def test_it_keys_a_new_device(kernel, history, suite):
    """Receive SC and SA, then the transmit SA; a second look changes nothing."""
    await build(kernel, suite)
    keys = keyer(kernel, history, suite)
    await keys.tick(0.0)
    state = await kernel.secy("ms1").observe()
    assert state.operational
    assert [sa.next_pn for sa in state.transmit] == [FIRST_PN]
    assert [(sc.sci, [sa.active for sa in sc.sas]) for sc in state.receive] == [(PEER, [True])]
    await keys.tick(1.0)
    assert await kernel.secy("ms1").observe() == state


async def test_it_waits_for_the_device(kernel, history):
    """Without a device there is nothing to key, and that is no crash."""
    keys = keyer(kernel, history)
    await keys.tick(0.0)
    await build(kernel)
    await keys.tick(1.0)
    assert (await kernel.secy("ms1").observe()).operational


@pytest.mark.parametrize(
    ("suite", "margin"), [(CipherSuite.GCM_AES_XPN_256, MARGIN_XPN), (CipherSuite.GCM_AES_256, MARGIN)]
)
async def test_a_packet_number_never_comes_twice(kernel, history, suite, margin):
    """After each rebuild the same SAK starts above everything that was sent, also after keyd itself died."""
    await build(kernel, suite)
    highest = 0
    for rebuild in range(4):
        # Every other time another process takes over, with what is on disk.
        if rebuild % 2:
            path = history._path
            history = PnHistory(path)
            history.load()
        keys = keyer(kernel, history, suite)
        await keys.tick(float(rebuild))
        start = kernel.secy("ms1").transmit[0].next_pn
        assert start > highest
        sent(kernel, start + 1000)
        await keys.tick(rebuild + 0.5)
        highest = start + 1000 + margin // 4  # sent after the last look
        kernel.remove_link("ms1")
        await build(kernel, suite)


async def test_a_refused_key_does_not_eat_packet_numbers(kernel, history):
    """While the kernel refuses the SA, the start stays where it is: nothing was sent."""
    await build(kernel)
    keys = keyer(kernel, history)
    await keys.tick(0.0)
    kernel.remove_link("ms1")
    await build(kernel)
    create = kernel.secy("ms1").create_transmit_sa

    async def refuse(*_):
        from router.errors import KernelError

        raise KernelError("refused", errno.ENOMEM)

    kernel.secy("ms1").create_transmit_sa = refuse
    for second in range(20):
        await keys.tick(1.0 + second)
    kernel.secy("ms1").create_transmit_sa = create
    await keys.tick(30.0)
    assert kernel.secy("ms1").transmit[0].next_pn <= FIRST_PN + 12 * MARGIN_XPN


async def test_unwatched_time_is_skipped(kernel, history):
    """Where nobody looked for a minute, more packet numbers are left out, but no receiver is lost."""
    await build(kernel)
    await keyer(kernel, history).tick(0.0)
    kernel.remove_link("ms1")
    await build(kernel)
    await keyer(kernel, history).tick(SAVE_S + 1000.0)
    start = kernel.secy("ms1").transmit[0].next_pn
    assert 60 * MARGIN_XPN < start < 1 << 31


async def test_sas_of_ours_are_adopted(kernel, history, tmp_path):
    """A new keyd without history leaves running SAs as they are, and remembers them."""
    await build(kernel)
    await keyer(kernel, history).tick(0.0)
    sent(kernel, 5000)
    fresh = PnHistory(tmp_path / "other" / "packet-numbers.json")
    await keyer(kernel, fresh).tick(1.0)
    assert kernel.secy("ms1").transmit[0].next_pn == 5000
    assert fresh.sent("a1", key_id(sak(TX, 32))).ceiling > 5000


async def test_another_key_on_the_an_is_replaced(kernel, history):
    """The configuration is the truth: SAs of other keys go."""
    await build(kernel)
    await keyer(kernel, history).tick(0.0)
    await keyer(kernel, history, an=1).tick(1.0)
    state = await kernel.secy("ms1").observe()
    assert [sa.an for sa in state.transmit] == [1]
    assert state.encoding_an == 1


async def test_an_exhausted_sa_stays_off(kernel, history):
    """A SAK without packet numbers left is never enabled again."""
    await build(kernel)
    keys = keyer(kernel, history)
    await keys.tick(0.0)
    secy = kernel.secy("ms1")
    secy.transmit[0] = replace(secy.transmit[0], next_pn=0, active=False)
    await keys.tick(1.0)
    assert not secy.transmit[0].active


async def test_without_a_place_for_the_ceiling_nothing_is_sent(kernel, tmp_path):
    """A full or read-only disk: no transmit SA, since a rebuild could repeat packet numbers."""
    (tmp_path / "file").write_text("")
    await build(kernel)
    await keyer(kernel, PnHistory(tmp_path / "file" / "packet-numbers.json")).tick(0.0)
    assert not (await kernel.secy("ms1").observe()).operational


async def test_an_unreadable_key_is_no_crash(kernel, history):
    """A secret that cannot be used leaves the channel down."""

    def refuse(ref, size):
        raise SecretError("others can read it")

    await build(kernel)
    await keyer(kernel, history, resolve=refuse).tick(0.0)
    assert not (await kernel.secy("ms1").observe()).operational


async def test_the_state_file_holds_no_key_and_is_private(kernel, history):
    """Mode 0600, packet numbers and key ids only."""
    await build(kernel)
    await keyer(kernel, history).tick(0.0)
    assert stat.S_IMODE(history._path.stat().st_mode) == 0o600
    text = history._path.read_text()
    assert sak(TX, 32).reveal().hex() not in text
    assert set(json.loads(text)["transmit"][0]) == {"channel", "key_id", "ceiling", "seen_at"}


async def test_a_refused_configuration_keeps_the_old_one(kernel, history):
    """A broken file on reload changes nothing; the next good one does."""
    good = replace(SHIPPED, channels=(channel(),))
    answers = [good, ConfigError("broken"), good]

    def load():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    keyd = Keyd(
        load,
        lambda channel: kernel.secy(channel.macsec_device),
        history,
        sak,
        structlog.get_logger(),
        wall=lambda: 0.0,
    )
    await build(kernel)
    assert keyd.reload()
    assert not keyd.reload()
    await keyd.tick()
    assert (await kernel.secy("ms1").observe()).operational


async def test_the_policy_of_what_is_encrypted_holds_for_static_keys_too(kernel, history):
    """Set before the SAs, and put right where it is found otherwise."""
    await build(kernel)
    keys = keyer(kernel, history)
    macsec = replace(keys.channel.macsec, confidentiality=Confidentiality.INTEGRITY_ONLY)
    keys.channel = replace(keys.channel, macsec=macsec)
    await keys.tick(0.0)
    secy = kernel.secy("ms1")
    assert (await secy.observe()).confidentiality is Confidentiality.INTEGRITY_ONLY
    await secy.set_confidentiality(Confidentiality.OFFSET_0)
    await keys.tick(1.0)
    assert (await secy.observe()).confidentiality is Confidentiality.INTEGRITY_ONLY
