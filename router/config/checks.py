"""What does not fit together: one small function per rule."""

from __future__ import annotations

from router.config.findings import Finding
from router.config.resolve import Draft


def check(draft: Draft) -> tuple[Finding, ...]:
    """Run all checks."""
    assert draft.effective is not None
    return ()
