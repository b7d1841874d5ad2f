"""How many times slower than a quiet one this machine is: the factor by which tests and demo stretch every wait.

A wait's written seconds are right for a quiet machine of two cores. Measured once per run, before anything else
starts, with work like the tests' own: processes that start and compute, on every core at once. Rounded up to a power of
two, so that noise changes nothing and what is built for a pace is built few times; bounded, so that a hang ends. Child
processes find it in the environment, where it can also be set by hand: VNETPODS_PACE=4 says so, 1 switches it off.
`python -m tests.pace` prints it.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time

VARIABLE = "VNETPODS_PACE"
QUIET_SECONDS = 0.25
"""What one round takes at the most when nothing else runs (measured: 0.17 on two cores of 2.6 GHz)."""
ROUNDS = 3
MOST = 8
WORK = "n = 0\nfor i in range(1_000_000): n += i * i"


@functools.cache
def factor() -> int:
    """Between 1 and MOST; what was set by hand may be more."""
    if not os.environ.get(VARIABLE):
        os.environ[VARIABLE] = str(slower(max(_round() for _ in range(ROUNDS))))
    given = os.environ[VARIABLE]
    if not given.isdecimal() or int(given) < 1:
        raise ValueError(
            f"{VARIABLE}={given!r} must be a whole number from 1 on: how many times slower this machine is"
        )
    return int(given)


def stretched(seconds: float) -> float:
    """These seconds of a quiet machine, on this one."""
    return seconds * factor()


def slower(seconds: float) -> int:
    """The factor that follows from the seconds of the slowest round."""
    times = 1
    while times < MOST and seconds > times * QUIET_SECONDS:
        times *= 2
    return times


def _round() -> float:
    """Seconds until every core has started a process and computed a little."""
    began = time.monotonic()
    command = [sys.executable, "-I", "-S", "-c", WORK]
    for process in [subprocess.Popen(command) for _ in range(os.cpu_count() or 1)]:
        process.wait()
    return time.monotonic() - began


if __name__ == "__main__":
    print(factor())
