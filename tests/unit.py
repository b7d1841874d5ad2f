"""`python -m tests.unit`: every test that needs no cluster, in parts that run side by side.

Each part is a pytest of its own with namespaces of its own, because most tests wait for something most of the time.
What a part says is in build/unit-<part>.log, and printed when the part has ended. Ctrl-C and SIGTERM interrupt all
parts, which take down what they have up; whatever a part leaves running nevertheless is ended with its session, and
named. The machine's pace is measured before the parts load it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from tests import pace

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build"
# by name, so that each takes about as long as the others: crashes, cases, and upgrades and shim weigh most
PARTS = {
    "agent-crashes": ("tests/agent/test_c[n-z]*.py",),
    "agent": ("tests/agent/test_[abd-i]*.py", "tests/agent/test_c[a-m]*.py"),
    "agent-process": ("tests/agent/test_[j-r]*.py",),
    "agent-shim": ("tests/agent/test_[s-z]*.py", "tests/agent/dataplane"),
    "operator-cases": ("tests/operator/test_c*.py",),
    "operator": (
        "tests/crds",
        "tests/operator/test_[abd-m]*.py",
        "tests/operator/test_ne*.py",
        "tests/operator/test_[o-z]*.py",
    ),
    "operator-nics": ("tests/operator/test_nic*.py",),
    "standalone": ("tests/standalone",),
    "others": (
        "tests",
        "--ignore=tests/agent",
        "--ignore=tests/operator",
        "--ignore=tests/crds",
        "--ignore=tests/standalone",
    ),
}
GRACE = 30.0
"""Seconds that an interrupted part has for taking down what it has up."""


@dataclass(frozen=True)
class Part:
    """A running pytest, and the session that it leads."""

    name: str
    log: Path
    process: subprocess.Popen[bytes]

    def leftovers(self) -> dict[int, str]:
        """Processes of its session that outlived it: their ids and commands."""
        return {pid: command for pid, session, command in _processes() if session == self.process.pid}

    def end(self) -> None:
        """Ends what is left, and says what that was; returns when it is gone."""
        said: set[int] = set()
        deadline = time.monotonic() + pace.stretched(GRACE)
        while (left := self.leftovers()) and time.monotonic() < deadline:
            for pid, command in left.items():
                if pid not in said:
                    print(f"{self.name} left running, ended now: {pid} {command}", flush=True)
                said.add(pid)
                with suppress(ProcessLookupError):  # it has just ended
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)  # a killed process runs until the kernel gives it its turn


def main(parts: Mapping[str, Sequence[str]] = PARTS, folder: Path = FOLDER) -> int:
    """0 when every part passed. `folder` gets the logs."""
    pace.factor()
    folder.mkdir(exist_ok=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupted)
    running: list[Part] = []
    codes: list[int] = []
    try:
        for name, arguments in parts.items():
            running.append(start(name, arguments, folder))
        began = time.monotonic()
        for part in running:
            codes.append(part.process.wait())
            print(f"-- {part.name}", flush=True)
            print(part.log.read_text(errors="replace"), flush=True)
        print(f"all parts: {time.monotonic() - began:.0f} s", flush=True)
    except KeyboardInterrupt:
        interrupt(running)
        codes.append(128 + signal.SIGINT)
    finally:
        for part in running:
            part.end()
    return max((abs(code) for code in codes), default=0)


def start(name: str, arguments: Sequence[str], folder: Path) -> Part:
    """Starts a part; it is interrupted when this process dies."""
    paths = [path for argument in arguments for path in _spread(argument)]
    pytest = [sys.executable, "-m", "pytest", "-q", "-m", "not e2e", "--durations=5", *paths]
    log = folder / f"unit-{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "INT", "--", *pytest],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    return Part(name, log, process)


def interrupt(parts: Sequence[Part]) -> None:
    """As Ctrl-C in each of them; returns when they have ended, by force after a while."""
    deadline = time.monotonic() + pace.stretched(GRACE)
    for part in parts:
        if part.process.poll() is None:
            part.process.send_signal(signal.SIGINT)
    for part in parts:
        try:
            part.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            part.process.kill()
            part.process.wait()
        print(f"-- {part.name} was interrupted: {part.log}", flush=True)


def _interrupted(number: int, _frame: FrameType | None) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)  # the parts are being ended already
    raise KeyboardInterrupt(number)


def _spread(argument: str) -> list[str]:
    """The files that a pattern means; options and folders as they are."""
    if argument.startswith("-") or "*" not in argument:
        return [argument]
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(argument))


def _processes() -> Iterator[tuple[int, int, str]]:
    """Process id, session and command of everything that runs."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, session = (folder / "stat").read_text().rpartition(") ")[2].split()[:4]
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue  # it has just ended
        if state not in "ZX":
            yield int(folder.name), int(session), command


if __name__ == "__main__":
    sys.exit(main())
