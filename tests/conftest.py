"""Order: the scenarios take longest and start first, so that two workers end together."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what needs a lab before what needs root, and that before the rest."""
    items.sort(
        key=lambda item: 0 if item.get_closest_marker("lab") else 1 if item.get_closest_marker("root") else 2
    )
