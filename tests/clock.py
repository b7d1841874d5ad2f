"""A wall clock that steps, for single programs: a preloaded library adds an offset that may change while they run.

The machine's own clock is never touched, and monotonic clocks go on, as with a real step of the clock (NTP, a person).
"""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path


class SteppingClock:
    """One offset, in seconds, shared by all programs that are started with `environment`."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock-offset"
        self._library = folder / "clock.so"
        self.step_to(0.0)
        source = Path(__file__).with_suffix(".c")
        command = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(self._library), str(source), "-ldl"]
        subprocess.run(command, check=True, capture_output=True)

    @property
    def environment(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self._library), "VNETPODS_CLOCK": str(self._file)}

    def step_to(self, offset: float) -> None:
        """From now on the wall clock is `offset` seconds ahead of the machine's (behind, if negative)."""
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(struct.pack("d", offset))
