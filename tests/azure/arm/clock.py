"""The cloud's clock: real, or one that a test moves.

With a VirtualClock minutes of cloud time cost nothing: `advance` it, or let it move by itself whenever a client asks
about an unfinished operation (`leap`).
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since the epoch, as far as this cloud is concerned."""


class SystemClock:
    def now(self) -> float:
        return time.time()


class VirtualClock:
    """Stands still until it is moved."""

    def __init__(self, start: float = 1_800_000_000.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError(f"the clock only goes forward, not by {seconds} s")
        self._now += seconds
