"""The data plane's TAPs and the question what the kernel has, on the kernel that is here."""

import subprocess

import pytest

from router.errors import KernelError
from router.kernel.netlink import NetlinkKernel
from router.kernel.support import lacking_kinds
from router.reconcile.diff import Action, Verb, plan
from router.reconcile.objects import Address, DesiredState, TapLink

pytestmark = pytest.mark.root

TAP = TapLink("a1.1101", 8500, None, up=True)
STACK = DesiredState((TAP, Address("a1.1101", "169.254.11.1", 30, TAP.key)))


def ip(*arguments):
    return subprocess.run(["ip", *arguments], check=False, capture_output=True, text=True)


@pytest.mark.usefixtures("fresh_namespace")
def test_what_is_lacking_is_what_cannot_be_made():
    """The question makes nothing, and its answer agrees with an attempt."""
    trials = {
        "macsec": ("link", "add", "link", "d0", "m0", "type", "macsec"),
        "vlan": ("link", "add", "link", "d0", "d0.7", "type", "vlan", "id", "7"),
        "bridge": ("link", "add", "b0", "type", "bridge"),
    }
    before = ip("-br", "link").stdout
    lacking = lacking_kinds(("macsec", "vlan", "no-such-kind"))
    assert ip("-br", "link").stdout == before
    assert "no-such-kind" in lacking
    for kind in ("macsec", "vlan"):
        assert (kind in lacking) == (ip(*trials[kind]).returncode != 0)


async def test_a_tap_is_marked_finished_and_removed(fresh_namespace):
    """It is waited for, taken when it is there, not touched again, and removed when nobody wants it."""
    del fresh_namespace
    kernel = await NetlinkKernel.open()
    try:
        with pytest.raises(KernelError, match="waits for the data plane"):
            await kernel.apply(Action(Verb.CREATE, TAP))
        ip("tuntap", "add", "dev", "a1.1101", "mode", "tap")
        for action in plan(STACK, await kernel.observe(STACK)).actions:
            await kernel.apply(action)
        observed = await kernel.observe(STACK)
        assert not plan(STACK, observed)
        assert observed.objects[TAP.key] == TAP
        assert "169.254.11.1/30" in ip("address", "show", "dev", "a1.1101").stdout
        for action in plan(DesiredState(), await kernel.observe(DesiredState())).actions:
            await kernel.apply(action)
        assert ip("link", "show", "dev", "a1.1101").returncode != 0
    finally:
        await kernel.close()


async def test_somebody_elses_tap_is_left_alone(fresh_namespace):
    """An alias that is not ours says that it is another program's."""
    del fresh_namespace
    ip("tuntap", "add", "dev", "a1.1101", "mode", "tap")
    ip("link", "set", "dev", "a1.1101", "alias", "vm 7")
    kernel = await NetlinkKernel.open()
    try:
        with pytest.raises(KernelError, match="not the data plane's"):
            await kernel.apply(Action(Verb.CREATE, TAP))
    finally:
        await kernel.close()
