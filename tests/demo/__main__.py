"""`python -m tests.demo`: brings the world up, runs the steps, takes it down.

--keep leaves everything up and prints how to use kubectl with it; --down takes down what --keep left.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from pathlib import Path

from rich.console import Console

from tests import pace
from tests.demo import STEPS
from tests.demo.report import Report, StepFailed
from tests.demo.world import World
from tests.isolation import isolate

STATE = Path("build/demo").absolute()


def main() -> int:
    """Exit code 0 when every step saw what it expected."""
    parser = argparse.ArgumentParser(prog="python -m tests.demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave everything up at the end")
    parser.add_argument("--down", action="store_true", help="take down what --keep left")
    arguments = parser.parse_args()
    report = Report(Console(width=150, highlight=False))
    World.down_left_over(STATE)
    if arguments.down:
        return 0
    started = time.monotonic()
    if pace.factor() > 1:
        report.say(f"this machine is busy or slow: every wait may take {pace.factor()} times as long ({pace.VARIABLE})")
    isolate()
    for number in (signal.SIGINT, signal.SIGTERM):  # take down what is up
        signal.signal(number, signal.default_int_handler)
    failure = play(World(STATE, report, keep=arguments.keep), report)
    if failure:
        report.console.print(f"[red bold]FAILED[/] {failure}", soft_wrap=True)
    else:
        report.console.print(f"[green bold]Everything was as expected[/], in {time.monotonic() - started:.0f} s")
    if arguments.keep:
        report.console.print(
            f"\nStill up. Try:\n  {STATE}/kubectl get nodeippools\nTake it down:  make clean", soft_wrap=True
        )
    return 1 if failure else 0


def play(world: World, report: Report) -> str:
    """Brings the world up, runs the steps, takes it down unless it is kept; what failed, or nothing."""
    failure = ""
    try:
        with report.step("0. A small Azure and a real Kubernetes"):
            world.up()
        for step in STEPS:
            with report.step(step.TITLE):
                step.run(world, report)
    except StepFailed as error:
        failure = str(error)
    except Exception as error:  # noqa: BLE001 - whatever it is, people want to see where to look
        traceback.print_exc()
        failure = f"{report.current}: {type(error).__name__}: {error}"
    finally:
        if failure:
            world.tell_why()
        if not world.keep:
            world.down()
    return failure


if __name__ == "__main__":
    sys.exit(main())
