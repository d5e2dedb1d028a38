"""The data plane's process, what of it needs no device."""

import json

from router.dataplane import engine, process
from router.dataplane.engine import Path


def test_paths_are_measured_once_a_boot(tmp_path, monkeypatch):
    """Measured where there is no file, or a broken one; then taken from it, in the order of their cost."""
    measured = []

    def measure():
        measured.append(1)
        return {Path.XDP_TX: 900, Path.PACKET: 1000}

    monkeypatch.setattr(engine, "measure_paths", measure)
    file = tmp_path / "path-costs.json"
    for _ in range(2):
        assert list(process.path_costs(file).items()) == [(Path.XDP_TX, 900), (Path.PACKET, 1000)]
    assert len(measured) == 1
    for broken in ("{", "[]", json.dumps({"no such path": 1})):
        file.write_text(broken)
        assert list(process.path_costs(file)) == [Path.XDP_TX, Path.PACKET]
    assert len(measured) == 4
