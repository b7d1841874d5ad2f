"""Starts a program, and restarts it whenever it ends, as a kubelet does with a container.

A separate program (standard library only, `python -I -S supervise.py COMMAND…`) inside a machine, so that it lives as
long as the machine, also if that is kept. The first restart is immediate, the following ones back off; the back-off
resets once a program has run for a while. SIGTERM and SIGINT are forwarded and end both.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from types import FrameType

FIRST_WAIT, LONGEST_WAIT, FORGIVEN_AFTER = 1.0, 30.0, 60.0
"""Seconds. A kubelet has 10, 300 and 600; the demo has seconds where production has minutes."""


class Supervisor:
    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._child: subprocess.Popen[bytes] | None = None
        self._told_to_end = False

    def run(self) -> int:
        """Runs until it is signalled; returns the program's last exit code."""
        wait = 0.0
        while True:
            began = time.monotonic()
            self._child = subprocess.Popen(self._command)
            code = self._child.wait()
            if self._told_to_end:
                return code
            self._child = None
            if time.monotonic() - began > FORGIVEN_AFTER:
                wait = 0.0
            print(f"supervisor: {self._command[0]} ended with {code}, started again in {wait:g} s", flush=True)
            time.sleep(wait)
            wait = min(max(FIRST_WAIT, 2 * wait), LONGEST_WAIT)

    def end(self, number: int, _frame: FrameType | None) -> None:
        self._told_to_end = True
        if self._child is None:
            sys.exit(128 + number)
        self._child.send_signal(number)


def main() -> int:
    supervisor = Supervisor(sys.argv[1:])
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, supervisor.end)
    code = supervisor.run()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
