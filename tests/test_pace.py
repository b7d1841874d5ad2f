"""Waits follow the machine, within bounds, and a hang still ends with every stack shown."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import pace

ROOT = Path(__file__).parents[1]

LIMITS = """
import pytest

def limit(request):
    return request.node.get_closest_marker("timeout").args[0]

def test_usual(request):
    assert limit(request) == 21.0

@pytest.mark.timeout(40)
def test_own(request):
    assert limit(request) == 120.0
"""
SLOW_EXAMPLE = """
import time
from hypothesis import given, settings, strategies

@settings(max_examples=1)
@given(strategies.none())
def test_slow(_):
    time.sleep(0.3)
"""
HANGS = """
import threading

def wait_forever():
    threading.Event().wait()

def test_hangs():
    threading.Thread(target=wait_forever, name="the other one", daemon=True).start()
    threading.Event().wait()
"""


@pytest.mark.parametrize(
    ("seconds", "times"), [(0.01, 1), (pace.QUIET_SECONDS, 1), (0.26, 2), (0.51, 4), (1.1, 8), (100.0, pace.MOST)]
)
def test_factor_is_a_power_of_two_within_bounds(seconds: float, times: int) -> None:
    assert pace.slower(seconds) == times


def run(program: str, folder: Path, limit: int, given: str) -> subprocess.CompletedProcess[str]:
    """Such a test in a run of its own, with this limit and this pace."""
    file = folder / "test_inner.py"
    file.write_text(program)
    options = ["-q", "-p", "tests.limits", f"--rootdir={folder}", "-c", str(ROOT / "pyproject.toml")]
    command = [sys.executable, "-m", "pytest", *options, "-o", f"timeout={limit}", "--confcutdir", str(folder)]
    environment = os.environ | {pace.VARIABLE: given}
    return subprocess.run([*command, str(file)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_limits_of_tests_follow_the_pace(tmp_path: Path) -> None:
    done = run(LIMITS, tmp_path, limit=7, given="3")
    assert done.returncode == 0, done.stdout


def test_an_example_may_take_long(tmp_path: Path) -> None:
    done = run(SLOW_EXAMPLE, tmp_path, limit=60, given="1")
    assert done.returncode == 0, done.stdout


def test_a_hang_ends_with_every_stack_shown(tmp_path: Path) -> None:
    done = run(HANGS, tmp_path, limit=1, given="2")
    assert done.returncode == 1
    for words in ("Stack of the other one", "in wait_forever", "in test_hangs"):
        assert words in done.stdout + done.stderr


@pytest.mark.parametrize("given", ["0", "-1", "1.5", "fast"])
def test_nonsense_is_refused(given: str) -> None:
    environment = os.environ | {pace.VARIABLE: given}
    command = [sys.executable, "-m", "tests.pace"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"VNETPODS_PACE={given!r} must be a whole number from 1 on" in done.stderr
