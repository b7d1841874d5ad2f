"""The work queue of nodes: one worker per node at a time, by priority, repeated adds coalesced.

Everything here runs on the event loop. A node added a thousand times is reconciled once, and once more if it was added
while being reconciled. A node due later waits outside the queue; an earlier time or an `add` overrides its timer. A few
reserved workers take only nodes with waiting pods, so that these never queue behind thousands of others for a worker.
Nothing survives a restart: all nodes are added again.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from vnetpods_operator.caller import Priority

RESERVED = 16
"""Workers for nodes with waiting pods only, in addition to the configured number."""


@dataclass(slots=True)
class _Entry:
    """A queued node."""

    priority: Priority
    since: float


@dataclass(slots=True)
class Queue:
    """The queue itself."""

    clock: Callable[[], float]
    priority: Callable[[str], Priority] = lambda _: Priority.AUDIT
    """Returns the priority of a node whose timer fires."""
    crowded: Callable[[Priority], None] = lambda _: None
    """Called with a node's priority when no idle worker accepts it, so that less urgent work may yield one."""
    _line: dict[str, _Entry] = field(default_factory=dict)
    _heap: list[tuple[Priority, int, str]] = field(default_factory=list)
    _busy: dict[str, Priority | None] = field(default_factory=dict)
    """Nodes being reconciled, with the priority at which they were added meanwhile."""
    _began: dict[str, float] = field(default_factory=dict)
    """When each of them was dequeued."""
    _timers: dict[str, asyncio.TimerHandle] = field(default_factory=dict)
    _order: itertools.count[int] = field(default_factory=itertools.count)
    _idle: deque[tuple[Priority, asyncio.Future[None]]] = field(default_factory=deque)
    """Idle workers, those that take any node first."""

    def add(self, name: str, priority: Priority = Priority.AUDIT) -> None:
        """Queues the node."""
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()
        if name in self._busy:
            before = self._busy[name]
            self._busy[name] = priority if before is None else min(priority, before)
            return
        entry = self._line.get(name)
        if entry is None:
            self._line[name] = _Entry(priority, self.clock())
        elif priority < entry.priority:
            entry.priority = priority
        else:
            return
        heapq.heappush(self._heap, (priority, next(self._order), name))
        self._wake(priority)

    def add_at(self, name: str, when: float) -> None:
        """Queues the node at this time, unless it is added earlier."""
        if when <= self.clock():
            self._due(name)
            return
        timer = self._timers.get(name)
        if timer is not None:
            if timer.when() <= when:
                return
            timer.cancel()
        if name not in self._line and self._busy.get(name) is None:
            loop = asyncio.get_running_loop()
            self._timers[name] = loop.call_at(when, self._due, name)

    def forget(self, name: str) -> None:
        """Drops the timer of a deleted node."""
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    @property
    def depth(self) -> int:
        """Number of queued nodes."""
        return len(self._line)

    @property
    def age(self) -> float:
        """Seconds that the oldest entry has been queued."""
        oldest = min((entry.since for entry in self._line.values()), default=None)
        return 0.0 if oldest is None else self.clock() - oldest

    @property
    def longest(self) -> float:
        """Seconds that the longest-running reconcile has taken so far."""
        first = min(self._began.values(), default=None)
        return 0.0 if first is None else self.clock() - first

    @property
    def at_work(self) -> int:
        return len(self._busy)

    def _due(self, name: str) -> None:
        self._timers.pop(name, None)
        self.add(name, self.priority(name))

    async def take(self, least: Priority = Priority.AUDIT) -> str:
        """Dequeues the most urgent node, at least as urgent as `least`; this worker owns it until `done`."""
        while True:
            name = self._first(least)
            if name is not None:
                del self._line[name]
                self._busy[name] = None
                self._began[name] = self.clock()
                return name
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waiter = (least, turn)
            (self._idle.append if least is Priority.WAITING else self._idle.appendleft)(waiter)
            try:
                await turn
            finally:
                if waiter in self._idle:
                    self._idle.remove(waiter)

    def done(self, name: str, again: float | None) -> None:
        """Ends the reconcile of the node; `again`: when to requeue it, None for the next event only."""
        added = self._busy.pop(name)
        del self._began[name]
        if added is not None:
            self.add(name, added)
        elif again is not None:
            self.add_at(name, again)

    def _wake(self, priority: Priority) -> None:
        """Wakes one idle worker that accepts this priority, not all of them."""
        for waiter in self._idle:
            least, turn = waiter
            if priority <= least and not turn.done():
                self._idle.remove(waiter)
                turn.set_result(None)
                return
        self.crowded(priority)

    def _first(self, least: Priority) -> str | None:
        while self._heap:
            priority, _, name = self._heap[0]
            entry = self._line.get(name)
            if entry is None or entry.priority != priority:
                heapq.heappop(self._heap)  # already dequeued, or queued again at a higher priority
                continue
            if priority > least:
                return None
            heapq.heappop(self._heap)
            return name
        return None


async def work(queue: Queue, look: Callable[[str], Awaitable[float | None]], workers: int) -> None:
    """Runs the workers until cancelled. `look` reconciles a node, returns when to requeue it, and does not raise."""

    async def worker(least: Priority) -> None:
        while True:
            name = await queue.take(least)
            again: float | None = None
            try:
                again = await look(name)
            finally:
                queue.done(name, again)

    async with asyncio.TaskGroup() as group:
        for number in range(workers + RESERVED):
            group.create_task(worker(Priority.WAITING if number < RESERVED else Priority.AUDIT))
