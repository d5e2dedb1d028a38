"""The clients and the wanted set, without a data plane."""

from __future__ import annotations

import asyncio
import errno
import json
import traceback
from pathlib import Path

import pytest

from router.config.load import load
from router.dataplane.client import DataplaneClient
from router.dataplane.control import DataplaneControl, wanted_channels
from router.dataplane.secy import FastpathSecY
from router.dataplane.wanted import WantedChannel
from router.errors import DataplaneError, KernelError
from router.model import Confidentiality, Sci, Secret
from router.secy import SaKey

ROOT = Path(__file__).resolve().parents[2]
KEY = SaKey(Secret(b"K" * 32), b"i" * 16, 7, b"s" * 12)


class FakeDataplane:
    """Answers each line with what it is told to, and remembers what was asked."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "dataplane.sock"
        self.asked: list[dict] = []
        self.answers: list[dict] = []
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self) -> None:
        self.path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def stop(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()
        self._writers.clear()
        self.path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        while line := await reader.readline():
            self.asked.append(json.loads(line))
            answer = self.answers.pop(0) if self.answers else {"ok": True}
            writer.write(json.dumps(answer).encode() + b"\n")


@pytest.fixture
async def fake(tmp_path):
    fake = FakeDataplane(tmp_path)
    await fake.start()
    yield fake
    await fake.stop()


def example() -> tuple[WantedChannel, ...]:
    config = load(ROOT / "config/four-channels.yaml").effective
    return wanted_channels(config, [channel.id for channel in config.channels])


def test_wanted_set_of_the_example():
    """Each channel becomes one with the SecY's name, and its VLANs become TAPs with the tier's rate."""
    wanted = example()
    assert [channel.device for channel in wanted] == ["port1", "port2", "port3", "port4"]
    [feature] = wanted[0].features
    assert (feature.vlan, feature.mtu, feature.rate_bps) == (1101, 8500, 10_000_000_000)
    assert wanted[0].port_mtu == 9100
    assert len({channel.name for channel in wanted}) == 4


def test_wanted_channel_survives_json():
    """from_json undoes to_json."""
    for channel in example():
        assert WantedChannel.from_json(json.loads(json.dumps(channel.to_json()))) == channel


async def test_calls_as_they_go_over_the_socket(fake, tmp_path):
    """Every call of the SecY is one line that says all."""
    client = DataplaneClient(tmp_path)
    secy = FastpathSecY(client, "macsec0")
    peer = Sci.parse("02:00:00:00:00:09/1")
    await secy.create_receive_sc(peer)
    await secy.create_receive_sa(peer, 1, KEY, 5)
    await secy.enable_receive_sa(peer, 1, active=False)
    await secy.update_receive_pn(peer, 1, 9)
    await secy.delete_receive_sa(peer, 1)
    await secy.delete_receive_sc(peer)
    await secy.create_transmit_sa(2, KEY, 3)
    await secy.enable_transmit_sa(2)
    await secy.delete_transmit_sa(2)
    await secy.set_controlled_port(unprotected=True)
    await secy.set_confidentiality(Confidentiality.OFFSET_30)
    key = {"sak": "4b" * 32, "key_id": "69" * 16, "ssci": 7, "salt": "73" * 12}
    sci = {"sci": "02:00:00:00:00:09/1"}
    assert [{k: v for k, v in asked.items() if k != "secy"} for asked in fake.asked] == [
        {"do": "create_receive_sc", **sci},
        {"do": "create_receive_sa", **sci, "an": 1, "key": key, "lowest_pn": 5},
        {"do": "enable_receive_sa", **sci, "an": 1, "active": False},
        {"do": "update_receive_pn", **sci, "an": 1, "lowest_pn": 9},
        {"do": "delete_receive_sa", **sci, "an": 1},
        {"do": "delete_receive_sc", **sci},
        {"do": "create_transmit_sa", "an": 2, "key": key, "next_pn": 3},
        {"do": "enable_transmit_sa", "an": 2},
        {"do": "delete_transmit_sa", "an": 2},
        {"do": "set_controlled_port", "unprotected": True},
        {"do": "set_confidentiality", "confidentiality": "offset-30"},
    ]
    assert {asked["secy"] for asked in fake.asked} == {"macsec0"}
    await client.close()


async def test_refusals_are_kernel_errors_with_their_number(fake, tmp_path):
    """What the data plane refuses is raised as the kernel's SecY would raise it."""
    fake.answers = [{"ok": False, "error": "AN 0 holds another key", "errno": errno.EBUSY}]
    client = DataplaneClient(tmp_path)
    with pytest.raises(KernelError, match="another key") as caught:
        await FastpathSecY(client, "macsec0").create_transmit_sa(0, KEY, 1)
    assert caught.value.errno == errno.EBUSY
    await client.close()


async def test_comes_back_after_a_restart(fake, tmp_path):
    """A data plane that was restarted is spoken to again; one that is away is ENOTCONN."""
    client = DataplaneClient(tmp_path)
    control = DataplaneControl(client)
    assert await control.status() == {}
    await fake.stop()
    with pytest.raises(DataplaneError) as caught:
        await control.status()
    assert caught.value.errno == errno.ENOTCONN
    await fake.start()
    assert await control.status() == {}
    await fake.stop()
    await fake.start()
    assert await control.status() == {}
    await client.close()


async def test_no_key_in_an_error(tmp_path):
    """The error of a call with a key, with its whole traceback, does not show the key."""
    client = DataplaneClient(tmp_path)
    with pytest.raises(DataplaneError) as caught:
        await FastpathSecY(client, "macsec0").create_transmit_sa(0, KEY, 1)
    text = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert "4b4b" not in text
    assert "KKKK" not in text
