"""Threads for the event loop's blocking work: one kind of work per thread, in order.

The loop submits a job and awaits its outcome. A submitted job always runs, whatever happens to the awaiting task: these
futures refuse cancellation, so a task's cancellation takes effect only after the job. (Otherwise an abandoned call
would leave the kernel's thread with descriptors that are closed, or already another call's.)
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


class Outcome(asyncio.Future[T]):
    """A future that can't be cancelled. Cancelling a task that awaits it takes effect when the future is done."""

    def cancel(self, msg: Any | None = None) -> bool:  # noqa: ARG002 - the base class's signature
        return False


@dataclass(slots=True)
class Job:
    """One call and its result."""

    call: Callable[..., Any]
    args: tuple[Any, ...]
    outcome: Outcome[Any]
    result: Any = None
    error: BaseException | None = None

    def do(self) -> None:
        try:
            self.result = self.call(*self.args)
        except BaseException as error:  # noqa: BLE001 - the thread's edge: raised where the outcome is awaited
            self.error = error


class WorkerThread(threading.Thread):
    """A thread that runs jobs in order. `busy_since`: monotonic time, for the watchdog; None when idle."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.busy_since: float | None = None

    def submit(self, call: Callable[..., T], *args: Any) -> Outcome[T]:
        """From the loop: runs `call(*args)` after all earlier jobs."""
        outcome: Outcome[T] = Outcome(loop=self._loop)
        self._jobs.put(Job(call, args, outcome))
        return outcome

    def close(self) -> None:
        """Runs the submitted jobs, then ends the thread."""
        self._jobs.put(None)
        self.join()

    def run(self) -> None:
        while (job := self._jobs.get()) is not None:
            self.work([job])

    def work(self, jobs: Sequence[Job]) -> None:
        """In the thread: runs the jobs, then hands the outcomes to the loop."""
        self.busy_since = time.monotonic()
        for job in jobs:
            job.do()
        self.busy_since = None
        self._loop.call_soon_threadsafe(settle, jobs)


def settle(jobs: Sequence[Job]) -> None:
    """In the loop: sets the jobs' outcomes."""
    for job in jobs:
        if job.error is not None:
            job.outcome.set_exception(job.error)
        else:
            job.outcome.set_result(job.result)
