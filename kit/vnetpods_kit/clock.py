"""A clock that nobody can set."""

from __future__ import annotations

import time


def boottime() -> float:
    """Seconds since boot, suspend included; unaffected by changes to the system time."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
