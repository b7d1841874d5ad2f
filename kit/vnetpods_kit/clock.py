"""The clock for what must not depend on anybody's setting it."""

from __future__ import annotations

import time


def boottime() -> float:
    """Seconds since the machine has booted: nobody sets this clock, and it goes on while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
