"""The cloud's clock: real, or one that a test moves.

With a VirtualClock minutes of cloud time cost nothing: `advance` it. With `leaps` (the default) it also moves by
itself: a poll of an unfinished operation takes it to the operation's end, a slow answer takes it to the answer.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since the epoch by this cloud's clock."""

    async def sleep(self, seconds: float) -> None:
        """Lets cloud time pass before a slow answer."""

    def polled(self, due: float) -> None:
        """Called when a poller waits for an operation that ends at `due`."""


class SystemClock:
    def now(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def polled(self, due: float) -> None: ...


class VirtualClock:
    """Stands still until it is moved."""

    def __init__(self, start: float = 1_800_000_000.0, *, leaps: bool = True) -> None:
        self._now = start
        self._leaps = leaps

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError(f"the clock only goes forward, not by {seconds} s")
        self._now += seconds

    async def sleep(self, seconds: float) -> None:
        if self._leaps:
            self.advance(seconds)
        await asyncio.sleep(0)

    def polled(self, due: float) -> None:
        if self._leaps:
            self._now = max(self._now, due)
