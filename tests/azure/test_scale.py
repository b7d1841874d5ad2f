"""Many VMs fit into one process, which tests and benches of a large cluster rely on. Benches measure the speed."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.azure.client import ROOT


def test_a_machine_takes_little_memory() -> None:
    """5,000 of them: less than 500 MB."""
    command = [sys.executable, "-m", "tests.bench.emulator", "500"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    figures = json.loads(done.stdout)
    assert figures["machines"] == 500
    assert figures["machine_kb"] <= 90
