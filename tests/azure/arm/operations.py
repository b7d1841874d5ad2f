"""Long-running operations: started by writes, observed by polls.

An operation ends at its `due` moment, when `finish` is called with its outcome. Pure: the cloud calls `settle(now)`
before anything else reads the model, so nothing needs a timer. Poll URL and body as in recordings of ARM:
`…/providers/P/locations/L/operations/GUID`, `{"status": "InProgress" | "Succeeded" | "Failed" | "Canceled"}`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from typing import Any

from tests.azure.arm.errors import ArmError
from tests.azure.arm.store import guid


@dataclass(slots=True)
class Operation:
    """One operation; `error` is set when it is to fail or has failed."""

    id: str
    target: str
    due: float
    finish: Callable[[Operation], None]
    error: ArmError | None = None
    status: str = "InProgress"
    began: float = 0.0

    def body(self, *, timed: bool = False) -> dict[str, Any]:
        """The body of a poll's response; `timed` as in Microsoft.Compute's."""
        found: dict[str, Any] = {"status": self.status}
        if timed:
            found = {"startTime": _iso(self.began), **found, "name": self.id}
            if self.status != "InProgress":
                found["endTime"] = _iso(self.due)
        if self.error is not None and self.status in ("Failed", "Canceled"):
            found["error"] = self.error.error()
        return found


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat()


class Operations:
    """All operations ever started, by id, and the unfinished ones by due time."""

    def __init__(self) -> None:
        self._all: dict[str, Operation] = {}
        self._queue: list[tuple[float, int, Operation]] = []
        self._number = count()

    def start(
        self,
        target: str,
        now: float,
        due: float,
        finish: Callable[[Operation], None],
        error: ArmError | None = None,
    ) -> Operation:
        number = next(self._number)
        operation = Operation(guid("operation", number), target, due, finish, error, began=now)
        self._all[operation.id] = operation
        heapq.heappush(self._queue, (due, number, operation))
        return operation

    def get(self, name: str) -> Operation | None:
        return self._all.get(name.lower())

    def settle(self, now: float) -> None:
        """Ends everything that is due."""
        while self._queue and self._queue[0][0] <= now:
            operation = heapq.heappop(self._queue)[2]
            if operation.status == "InProgress":
                operation.status = "Failed" if operation.error else "Succeeded"
                operation.finish(operation)

    def cancel(self, operation: Operation, error: ArmError) -> None:
        """Ends the operation now, with the error of a preempted one: another takes its place."""
        operation.status, operation.error = "Failed", error

    def next_due(self) -> float | None:
        return self._queue[0][0] if self._queue else None

    @property
    def running(self) -> int:
        return sum(1 for entry in self._queue if entry[2].status == "InProgress")
