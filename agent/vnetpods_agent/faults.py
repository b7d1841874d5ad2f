"""Points at which the process may be killed without harm, by name.

Each marks a moment between two effects that a crash could tear apart. In production `reach` does nothing. When
VNETPODS_FAULT names a point (`add.durable`, or `add.durable:3` for its third visit) the process ends there as by kill
-9.
"""

from __future__ import annotations

import os
import signal
from typing import Final

POINTS: Final = (
    "add.chosen",  # an address is taken in memory
    "ledger.written",  # the transaction is written and not yet committed
    "ledger.committed",  # it is durable, nobody has been told
    "add.durable",  # the row is there, the kernel knows nothing
    "add.attached",  # the pod's interface works, nobody has been told
    "add.rolling-back",  # an ADD has failed, its row is still there
    "del.begun",  # nothing is done yet
    "del.detached",  # the address is unreachable, its row is still there
    "del.released",  # the row is gone, nobody has been told
    "release.withdrawn",  # the ledger has it, the source hasn't been told
    "release.reported",  # the source has been told, we don't know it
    "pool.saving",  # pool.json is written beside its place
)
"""All points. The crash tests visit each."""

_point, _, _visit = os.environ.get("VNETPODS_FAULT", "").partition(":")
_left = int(_visit or 1)


def reach(point: str) -> None:
    """Ends the process here if that was asked for."""
    global _left  # noqa: PLW0603 - counts visits of the one point that a test names
    if point != _point:
        return
    assert point in POINTS, f"{point} is not listed"
    _left -= 1
    if _left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)
