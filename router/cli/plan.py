"""`lastmile plan`: what a configuration would change in this kernel and at the running sessions."""

from __future__ import annotations

from pathlib import Path

from router.accepted import load_accepted
from router.config.effective import EffectiveConfig
from router.config.impact import Impact, impact
from router.errors import ConfigError
from router.kernel.netlink import NetlinkKernel
from router.reconcile.desired import desired_state
from router.reconcile.diff import plan


def running_config(run_dir: Path) -> EffectiveConfig | None:
    """Return what the router of `run_dir` runs on, or None where none was ever accepted there."""
    try:
        return load_accepted(run_dir)
    except (OSError, ConfigError):
        return None


async def make_plan(config: EffectiveConfig, run_dir: Path) -> tuple[list[str], tuple[Impact, ...]]:
    """Return the ordered actions and the impact. Raises KernelError."""
    kernel = await NetlinkKernel.open()
    try:
        desired = desired_state(config)
        actions = plan(desired, await kernel.observe(desired)).actions
    finally:
        await kernel.close()
    return [action.describe() for action in actions], impact(running_config(run_dir), config)
