"""Named points at which the process may crash without harm. They do nothing in production.

Each marks a moment between two effects that a crash could separate. A crash test kills the process there like kill -9:
it names the point in VNETPODS_FAULT (`add.durable`, or `add.durable:3` for its third visit), or installs a hook.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from enum import StrEnum


class AgentPoint(StrEnum):
    """From the assignment of an address to its release."""

    ADD_CHOSEN = "add.chosen"  # an address is assigned in memory
    LEDGER_WRITTEN = "ledger.written"  # the transaction is written, not committed
    LEDGER_COMMITTED = "ledger.committed"  # the transaction is durable, its caller not notified
    ADD_DURABLE = "add.durable"  # the row exists, the kernel is unchanged
    ADD_ATTACHED = "add.attached"  # the pod's interface works, the ADD is not answered
    ADD_ROLLING_BACK = "add.rolling-back"  # an ADD has failed, its row still exists
    DEL_BEGUN = "del.begun"  # nothing is done yet
    DEL_DETACHED = "del.detached"  # the address is unreachable, its row still exists
    DEL_RELEASED = "del.released"  # the row is deleted, the DEL is not answered
    RELEASE_WITHDRAWN = "release.withdrawn"  # the release is in the ledger, not reported to the source
    RELEASE_REPORTED = "release.reported"  # the release is reported to the source, we don't know it yet
    POOL_SAVING = "pool.saving"  # the temporary file is written, not yet renamed


class OperatorPoint(StrEnum):
    """Between two consecutive points, one external effect happens."""

    POOL_EMPTIED = "pool-emptied"  # the pool lists no interface, because the Node has another machine now
    POOL_ADOPTED = "pool-adopted"  # the pool exists with its owner and names the machine
    DECIDED = "decided"  # the NIC was read and the plan is made
    ANNOUNCED = "announced"  # Reconciling is written, the NIC is not
    NIC_ACCEPTED = "nic-accepted"  # ARM has accepted the PUT, which still runs
    NIC_WRITTEN = "nic-written"  # the write of the NIC is complete and read back
    STATUS_WRITTEN = "status-written"  # the pool's status reports it


Point = AgentPoint | OperatorPoint


def reach(point: Point) -> None:
    """Called by the code at the point."""
    if _hook is not None:
        _hook(point)


def install(hook: Callable[[Point], None] | None) -> None:
    """Sets the hook of a crash test, before the program starts."""
    global _hook  # noqa: PLW0603 - one process, one hook
    _hook = hook


def killer(name: str, visit: int = 1) -> Callable[[Point], None]:
    """A hook that kills the process at the point's n-th visit."""
    left = visit

    def hook(point: Point) -> None:
        nonlocal left
        if point == name:
            left -= 1
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


def from_environment() -> Callable[[Point], None] | None:
    """The hook that VNETPODS_FAULT asks for."""
    name, _, visit = os.environ.get("VNETPODS_FAULT", "").partition(":")
    return killer(name, int(visit or 1)) if name else None


_hook = from_environment()
