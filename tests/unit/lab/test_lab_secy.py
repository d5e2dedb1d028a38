"""The lab's choice of SecY, and its conversation with the edges' guest."""

import base64
import json
import socket
import threading

import pytest

from router.config.load import load_text
from router.errors import LabError
from router.lab import detect, topology
from router.lab.guest_edges import Conversation
from router.lab.link import LINE_MAX, Link
from router.lab.network import Network, guest_wires
from router.lab.scenario import all_scenarios, find


@pytest.mark.parametrize("secy", ["kernel", "fastpath"])
@pytest.mark.parametrize("name", ["four-channels", "eight-channels", "static-keys"])
def test_the_choice_is_written_into_the_configuration_of_every_interconnect(name, secy):
    """And that configuration means it."""
    plan = find("four-channels").edit(topology.load(name), secy)
    effective = load_text(plan.config, plan.config_name, base_dir=topology.config_directory()).effective
    assert {channel.secy for channel in effective.channels} == {secy}


def test_without_a_choice_the_configuration_runs_as_it_stands():
    """Not one octet differs."""
    plan = topology.load("four-channels")
    assert find("four-channels").edit(plan).config == plan.config


def test_a_machine_that_does_not_exist_is_a_sentence():
    """It names those that do."""
    with pytest.raises(LabError, match="bridged"):
        detect.choose("vmware")


def test_each_side_of_a_bridged_lab_has_its_part():
    """Every node is on one side, every crossing wire has a device of the guest."""
    plan = topology.load("four-channels")
    host, guest = Network(plan, "host"), Network(plan, "guest")
    assert set(host.nodes) | set(guest.nodes) == set(plan.nodes)
    assert not set(host.nodes) & set(guest.nodes)
    assert [wire.tap for wire in guest_wires(plan)] == [f"t{n}" for n in range(8)]
    made = guest._namespaces_and_wires()
    assert sum(line.startswith("link set vec") and " netns pe" in line for line in made) == 8
    assert not any("veth" in line for line in made)


def test_scenarios_that_work_on_the_wire_are_bridged():
    """The bad wire is between two kernels."""
    assert {s.name for s in all_scenarios() if s.bridged} == {"fastpath-soak", "fastpath-soak-long"}


class Agent:
    """The other end of a line: feeds pieces, then answers as it is told."""

    def __init__(self, line, answers):
        self.line, self.answers, self.heard = line, answers, b""
        self.pieces = []
        threading.Thread(target=self.run, daemon=True).start()

    def say(self, **message):
        self.line.sendall(json.dumps(message).encode() + b"\n")

    def run(self):
        for text in self.line.makefile("rb"):
            assert len(text) <= LINE_MAX
            message = json.loads(text)
            if message["op"] == "stdin":
                self.heard += base64.b64decode(message["data"])
                self.pieces.append(len(text))
                self.say(op="taken", id=message["id"])
                if self.heard.endswith(b"\n"):
                    for answer in self.answers:
                        self.say(id=1, **answer)


def out(text, fd=1):
    return {"op": "out", "fd": fd, "data": base64.b64encode(text).decode()}


@pytest.fixture
def line():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Link(ours), theirs


def test_a_long_request_goes_in_pieces_and_its_answer_may_come_in_pieces(line):
    """A serial line takes no more at once."""
    link, theirs = line
    agent = Agent(theirs, [out(b'{"a"'), out(b"noise", fd=2), out(b": 1}\n")])
    talk = Conversation(link, ["edges"])
    assert talk.ask(5.0, {"text": "x" * 5000}) == {"a": 1}
    assert json.loads(agent.heard) == {"text": "x" * 5000}
    assert len(agent.pieces) == 5


def test_an_error_of_the_other_side_is_a_lab_error(line):
    """In its own words; so is its end, with the last it said."""
    link, theirs = line
    Agent(theirs, [out(b'{"error": "pe1 is not there"}\n')])
    talk = Conversation(link, ["edges"])
    with pytest.raises(LabError, match="pe1 is not there"):
        talk.ask(5.0, {})


def test_the_end_of_the_other_side_is_a_lab_error(line):
    """With its status and the last it said."""
    link, theirs = line
    Agent(theirs, [out(b"Killed\n", fd=2), {"op": "exit", "code": 137}])
    talk = Conversation(link, ["edges"])
    with pytest.raises(LabError, match="137: Killed"):
        talk.ask(5.0, {})
