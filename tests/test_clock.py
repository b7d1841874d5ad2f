"""The clock that other tests let step does so, and touches no other clock."""

import os
import subprocess
import sys
from pathlib import Path

from tests.clock import SteppingClock

CODE = """
import sys, time
for line in sys.stdin:
    print(int(time.time()), int(time.monotonic()), flush=True)
"""


def test_a_running_program_sees_its_wall_clock_step_and_no_other(tmp_path: Path) -> None:
    clock = SteppingClock(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", CODE],
        env=os.environ | clock.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        into, out = program.stdin, program.stdout
        assert into is not None
        assert out is not None

        def ask() -> list[int]:
            into.write("\n")
            into.flush()
            return [int(value) for value in out.readline().split()]

        before = ask()
        clock.step_to(-7200)
        behind = ask()
        clock.step_to(86400)
        ahead = ask()
        into.close()
    hour = 3600
    assert (behind[0] - before[0]) // hour == -2  # whatever few seconds have passed meanwhile
    assert (ahead[0] - before[0]) // hour == 24
    assert 0 <= ahead[1] - before[1] < hour
