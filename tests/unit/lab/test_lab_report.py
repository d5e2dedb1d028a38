"""Reports: the documented JSON, and no verdict that cannot fail."""

import json

from router.lab.report import Report, to_line
from router.lab.scenario import all_scenarios, find


def test_json_has_the_documented_shape():
    """`{"scenario", "ok", "checks": [{"name", "ok", "detail"}], "figures": {...}}`."""
    report = Report("s")
    report.check("a", True, "seen")
    report.figure("start_to_up", 1.5, "s")
    report.figure("channels_up", 4)
    report.figure("tcp", 200, "Mbit/s")
    report.finish()
    assert report.to_data() == {
        "scenario": "s",
        "ok": True,
        "checks": [{"name": "a", "ok": True, "detail": "seen"}],
        "figures": {"start_to_up_s": 1.5, "channels_up": 4, "tcp_mbps": 200},
    }


def test_one_failed_check_fails_the_report():
    """Every check counts."""
    report = Report("s")
    report.check("a", True)
    report.check("b", [])
    report.finish()
    assert not report.ok


def test_nothing_checked_is_not_ok():
    """A scenario that looked at nothing has shown nothing."""
    report = Report("s")
    report.finish()
    assert not report.ok


def test_a_scenario_that_did_not_end_is_not_ok():
    """A machine that died in the middle does not leave a good report behind."""
    report = Report("s")
    report.check("a", True)
    assert not report.ok


def test_events_rebuild_the_report_on_the_other_side():
    """What crosses the line as text makes the same report on the host."""
    host = Report("s")
    inside = Report("s", lambda event: host.take(json.loads(to_line(event))))
    inside.progress("x")
    inside.check("a", True, "d")
    inside.check("b", False, "e")
    inside.figure("f", 2, "ms")
    inside.note("log")
    inside.finish()
    assert host.to_data() == inside.to_data()
    assert host.notes == ["log"]
    assert host.finished


def test_every_scenario_can_be_loaded():
    """Each entry of the list names a function that exists, and a topology to run it on."""
    from router.lab import topology

    for scenario in all_scenarios():
        assert callable(scenario.load())
        assert scenario.edit(topology.load(scenario.topology)).name == scenario.topology
        assert find(scenario.name) is not None
