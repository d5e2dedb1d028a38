"""Key agreement against our own key daemon and against wpa_supplicant."""

from __future__ import annotations

from router.lab.lab import Lab
from router.lab.report import Report
from router.lab.scenarios.channels import check_channels, check_cleartext, start_and_wait


def one_channel(lab: Lab, report: Report) -> None:
    """One channel comes up."""
    report.figure("start_to_channels_up", round(start_and_wait(lab, report), 1), "s")
    check_channels(lab, report)
    check_cleartext(lab, report)
