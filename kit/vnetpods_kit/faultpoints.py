"""Points at which the process may die without harm, by name. Production passes through them.

Each marks a moment between two effects that a crash could tear apart. A crash test ends the process there as kill -9
does: it names a point in VNETPODS_FAULT (`add.durable`, or `add.durable:3` for its third visit), or installs a hook.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from enum import StrEnum


class AgentPoint(StrEnum):
    """On the way of an address to a pod and back."""

    ADD_CHOSEN = "add.chosen"  # an address is taken in memory
    LEDGER_WRITTEN = "ledger.written"  # the transaction is written and not yet committed
    LEDGER_COMMITTED = "ledger.committed"  # it is durable, nobody has been told
    ADD_DURABLE = "add.durable"  # the row is there, the kernel knows nothing
    ADD_ATTACHED = "add.attached"  # the pod's interface works, nobody has been told
    ADD_ROLLING_BACK = "add.rolling-back"  # an ADD has failed, its row is still there
    DEL_BEGUN = "del.begun"  # nothing is done yet
    DEL_DETACHED = "del.detached"  # the address is unreachable, its row is still there
    DEL_RELEASED = "del.released"  # the row is gone, nobody has been told
    RELEASE_WITHDRAWN = "release.withdrawn"  # the ledger has it, the source hasn't been told
    RELEASE_REPORTED = "release.reported"  # the source has been told, we don't know it
    POOL_SAVING = "pool.saving"  # the new file is written beside its place


class OperatorPoint(StrEnum):
    """Between two of these, one thing becomes true outside of the process."""

    POOL_EMPTIED = "pool-emptied"  # it lists nothing, for the Node has another machine now
    POOL_ADOPTED = "pool-adopted"  # the pool exists with its owner and names the machine
    DECIDED = "decided"  # the NIC was read and the plan is made
    ANNOUNCED = "announced"  # Reconciling is written, the NIC not yet
    NIC_ACCEPTED = "nic-accepted"  # ARM has accepted the PUT and is at work
    NIC_WRITTEN = "nic-written"  # the NIC is done and read back
    STATUS_WRITTEN = "status-written"  # the pool says so


Point = AgentPoint | OperatorPoint


def reach(point: Point) -> None:
    """Called by the code at the point."""
    if _hook is not None:
        _hook(point)


def install(hook: Callable[[Point], None] | None) -> None:
    """For a crash test, before the program starts."""
    global _hook  # noqa: PLW0603 - one process, one hook
    _hook = hook


def killer(name: str, visit: int = 1) -> Callable[[Point], None]:
    """A hook that ends the process at the point's n-th visit."""
    left = visit

    def hook(point: Point) -> None:
        nonlocal left
        if point == name:
            left -= 1
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


def _from_environment() -> Callable[[Point], None] | None:
    name, _, visit = os.environ.get("VNETPODS_FAULT", "").partition(":")
    return killer(name, int(visit or 1)) if name else None


_hook = _from_environment()
