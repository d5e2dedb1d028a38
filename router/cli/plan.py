"""`lastmile plan`: what a configuration would change in this kernel and at the running sessions."""

from __future__ import annotations

from pathlib import Path

from router.accepted import load_accepted
from router.config.effective import EffectiveConfig
from router.config.impact import Impact, impact
from router.errors import ConfigError
from router.kernel.netlink import NetlinkKernel
from router.kernel.support import lacking_kinds
from router.reconcile.desired import desired_state
from router.reconcile.diff import plan
from router.secy_choice import settle


def running_config(run_dir: Path) -> EffectiveConfig | None:
    """Return what the router of `run_dir` runs on, or None where none was ever accepted there."""
    try:
        return load_accepted(run_dir)
    except (OSError, ConfigError):
        return None


async def make_plan(
    config: EffectiveConfig, run_dir: Path
) -> tuple[list[str], tuple[Impact, ...], list[str]]:
    """Return the ordered actions, the impact, and who does MACsec where. Raises KernelError."""
    settled, choices = settle(config, lacking_kinds())
    kernel = await NetlinkKernel.open()
    try:
        desired = desired_state(settled)
        actions = plan(desired, await kernel.observe(desired)).actions
    finally:
        await kernel.close()
    secys = [f"channel {name}: {choice.secy} ({choice.reason})" for name, choice in choices.items()]
    return [action.describe() for action in actions], impact(running_config(run_dir), config), secys
