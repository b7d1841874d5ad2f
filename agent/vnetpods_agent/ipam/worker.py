"""Threads that do the event loop's blocking work, one kind of work per thread and in order.

The loop submits a job and awaits its outcome. A job that was submitted is done, whatever becomes of the task that
awaits it: the futures here refuse to be cancelled, so a cancelled task learns of it only after the job is over.
(Otherwise a call that was given up would leave the kernel's thread working with descriptors that are closed, or even
somebody else's.)
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
    """A future that will be fulfilled. Cancelling a task that awaits it takes effect when it is."""

    def cancel(self, msg: Any | None = None) -> bool:  # noqa: ARG002 - the base class's signature
        return False


@dataclass(slots=True)
class Job:
    """One call, and what came of it."""

    call: Callable[..., Any]
    args: tuple[Any, ...]
    outcome: Outcome[Any]
    result: Any = None
    error: BaseException | None = None

    def do(self) -> None:
        try:
            self.result = self.call(*self.args)
        except BaseException as error:  # noqa: BLE001 - the edge of the thread: whoever awaits the outcome gets it
            self.error = error


class WorkerThread(threading.Thread):
    """A thread that does one job after the other. `busy_since` is monotonic time, for the watchdog; None when idle."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.busy_since: float | None = None

    def submit(self, call: Callable[..., T], *args: Any) -> Outcome[T]:
        """From the loop: does `call(*args)` after all that was submitted before."""
        outcome: Outcome[T] = Outcome(loop=self._loop)
        self._jobs.put(Job(call, args, outcome))
        return outcome

    def close(self) -> None:
        """Does what was submitted, then ends the thread."""
        self._jobs.put(None)
        self.join()

    def run(self) -> None:
        while (job := self._jobs.get()) is not None:
            self.work([job])

    def work(self, jobs: Sequence[Job]) -> None:
        """In the thread: does the jobs and tells the loop."""
        self.busy_since = time.monotonic()
        for job in jobs:
            job.do()
        self.busy_since = None
        self._loop.call_soon_threadsafe(settle, jobs)


def settle(jobs: Sequence[Job]) -> None:
    """In the loop: whoever awaits the jobs goes on."""
    for job in jobs:
        if job.error is not None:
            job.outcome.set_exception(job.error)
        else:
            job.outcome.set_result(job.result)
