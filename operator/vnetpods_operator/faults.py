"""Places where a crash must do no harm. Production passes through them; a crash test makes the process die at each."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum


class Point(StrEnum):
    """Between two of these, one thing becomes true outside of the process."""

    POOL_EMPTIED = "pool-emptied"  # it lists nothing, for the Node has another machine now
    POOL_ADOPTED = "pool-adopted"  # the pool exists with its owner and names the machine
    DECIDED = "decided"  # the NIC was read and the plan is made
    ANNOUNCED = "announced"  # Reconciling is written, the NIC not yet
    NIC_ACCEPTED = "nic-accepted"  # ARM has accepted the PUT and is at work
    NIC_WRITTEN = "nic-written"  # the NIC is done and read back
    STATUS_WRITTEN = "status-written"  # the pool says so


_hook: Callable[[Point], None] | None = None


def reached(point: Point) -> None:
    """Called by the code at the point."""
    if _hook is not None:
        _hook(point)


def install(hook: Callable[[Point], None] | None) -> None:
    """For a crash test's own main program, before it starts the operator's."""
    global _hook  # noqa: PLW0603 - one process, one hook
    _hook = hook
