"""The runner of all parts: what it says at the end, and that nothing outlives it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import pytest

from tests import pace, unit
from tests.kube.machine import Identity

ROOT = Path(__file__).parents[1]
RUNNER = """
import sys
from pathlib import Path
from tests import unit
folder = Path(sys.argv[1])
sys.exit(unit.main({path.stem: (str(path),) for path in sorted(folder.glob("*.py"))}, folder))
"""
LASTS = """
import subprocess, time
from pathlib import Path
import pytest

@pytest.fixture
def up():
    yield
    Path(__file__).with_suffix(".down").write_text("")

def test_lasts(up):
    child = subprocess.Popen(["sleep", "3600"])
    Path(__file__).with_suffix(".child").write_text(str(child.pid))
    Path(__file__).with_suffix(".up").write_text("")
    time.sleep(3600)
"""


def runner(folder: Path) -> subprocess.Popen[str]:
    """Starts it with a part for each file in the folder."""
    return subprocess.Popen([sys.executable, "-c", RUNNER, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def files_of(arguments: Sequence[str]) -> list[Path]:
    """As pytest takes them: `--ignore` counts for what it finds in folders, not for files that are named."""
    ignored = [argument.partition("=")[2] for argument in arguments if argument.startswith("--ignore")]
    found: list[Path] = []
    for argument in (argument for argument in arguments if not argument.startswith("-")):
        for path in ROOT.glob(argument):
            inside = sorted(path.rglob("test_*.py")) if path.is_dir() else [path]
            found += [
                file
                for file in inside
                if path.is_file() or not any(file.match(i) or ROOT / i in file.parents for i in ignored)
            ]
    return found


def test_every_file_of_tests_is_in_one_part() -> None:
    taken = Counter(chain.from_iterable(map(files_of, unit.PARTS.values())))
    assert taken == Counter((ROOT / "tests").rglob("test_*.py"))


def test_every_part_is_shown_and_one_that_fails_fails_all(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text("def test_good(): pass\n")
    (tmp_path / "bad.py").write_text("def test_bad(): assert 1 == 2\n")
    running = runner(tmp_path)
    said, _ = running.communicate()
    assert running.returncode == 1
    assert ("1 passed" in said, "assert 1 == 2" in said) == (True, True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_takes_everything_down(tmp_path: Path, number: signal.Signals) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(LASTS)
    running = runner(tmp_path)
    deadline = time.monotonic() + pace.stretched(30)
    while len(list(tmp_path.glob("*.up"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = [Identity.of(int(path.read_text())) for path in tmp_path.glob("*.child")]
    running.send_signal(number)
    said, _ = running.communicate()
    assert running.returncode == 128 + signal.SIGINT
    assert [path.name for path in sorted(tmp_path.glob("*.down"))] == ["one.down", "two.down"]
    assert [child.alive for child in children] == [False, False]
    for name in ("one", "two"):
        assert f"{name} left running, ended now: " in said
