"""What the data plane lets be done to a SecY: it opens only where that was wanted, and closes at once."""

from __future__ import annotations

import errno
from types import SimpleNamespace

import pytest
import structlog

from router.dataplane import process
from router.dataplane.process import Dataplane, RunningChannel
from router.dataplane.wanted import WantedChannel
from router.errors import DataplaneError
from router.model import CipherSuite, Confidentiality, MacAddress, Sci

MAC = MacAddress.parse("02:00:00:00:00:01")


class FakeChannel:
    """The engine's side: remembers what was done to it."""

    def __init__(self) -> None:
        self.policy = SimpleNamespace(sci=Sci(MAC), suite=CipherSuite.GCM_AES_256, out_worker=0, in_worker=0)
        self.encoding_an = None
        self.clear: list[bool] = []
        self.confidentiality: list[Confidentiality] = []

    def set_clear(self, *, clear: bool) -> None:
        self.clear.append(clear)

    def set_confidentiality(self, confidentiality: Confidentiality) -> None:
        self.confidentiality.append(confidentiality)

    def set_carrier(self, *, up: bool) -> None:
        self.up = up

    def secy_counters(self) -> dict[str, int]:
        return {}


def wanted(*, may_open: bool, suite: CipherSuite = CipherSuite.GCM_AES_256) -> WantedChannel:
    return WantedChannel("ms-a1", "port1", suite, 64, True, 1, 9100, (), may_open=may_open)


@pytest.fixture
def running(monkeypatch):
    """A data plane with one running channel, should-secure."""
    monkeypatch.setattr(process, "_ifindex", lambda _device: 7)
    monkeypatch.setattr(process.native, "device_mac", lambda _device: MAC)
    monkeypatch.setattr(process.native, "device_carrier", lambda _device: True)
    dataplane = Dataplane(SimpleNamespace(workers=1), None, structlog.get_logger(), costs={})
    channel = RunningChannel(wanted(may_open=True), FakeChannel(), 7)
    dataplane._running["ms-a1"] = channel
    dataplane.want([wanted(may_open=True)])
    return dataplane, channel


def test_an_open_port_has_carrier_and_says_so(running):
    """Routes may use it: frames pass without any SA."""
    dataplane, channel = running
    assert dataplane.secy("ms-a1", "observe", {})["state"]["unprotected"] is False
    dataplane.secy("ms-a1", "set_controlled_port", {"unprotected": True})
    assert dataplane.secy("ms-a1", "observe", {})["state"]["unprotected"] is True
    assert channel.channel.clear == [True]
    assert channel.channel.up
    dataplane.secy("ms-a1", "set_controlled_port", {"unprotected": False})
    assert channel.channel.clear == [True, False]
    assert not channel.channel.up


def test_must_secure_is_never_opened(running):
    """Whoever asks is refused, and nothing is done."""
    dataplane, channel = running
    dataplane.want([wanted(may_open=False)])
    with pytest.raises(DataplaneError, match="must-secure") as caught:
        dataplane.secy("ms-a1", "set_controlled_port", {"unprotected": True})
    assert caught.value.errno == errno.EPERM
    assert channel.channel.clear == []


def test_a_change_to_must_secure_closes_at_once(running):
    """By the want itself: the key daemon need not do anything."""
    dataplane, channel = running
    dataplane.secy("ms-a1", "set_controlled_port", {"unprotected": True})
    dataplane.want([wanted(may_open=False)])
    assert channel.channel.clear == [True, False]
    assert dataplane.secy("ms-a1", "observe", {})["state"]["unprotected"] is False


def test_a_want_of_before_is_must_secure():
    """A state file that says nothing of it opens nothing."""
    data = wanted(may_open=True).to_json()
    del data["may_open"]
    assert WantedChannel.from_json(data).may_open is False


def test_what_is_encrypted_is_set_and_shown(running):
    """By its name in the configuration; a word that is none is refused."""
    dataplane, channel = running
    dataplane.secy("ms-a1", "set_confidentiality", {"confidentiality": "offset-30"})
    assert channel.channel.confidentiality == [Confidentiality.OFFSET_30]
    assert dataplane.secy("ms-a1", "observe", {})["state"]["confidentiality"] == "offset-30"
    with pytest.raises(ValueError, match="is none of"):
        dataplane.secy("ms-a1", "set_confidentiality", {"confidentiality": "none"})
    with pytest.raises(ValueError, match="true or false"):
        dataplane.secy("ms-a1", "set_controlled_port", {"unprotected": "no"})
