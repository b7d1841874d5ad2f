"""5,000 VMs fit into one process: what tests and benches of a large cluster rely on. Its speed is a bench's figure."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.azure.client import ROOT


@pytest.mark.timeout(120)
def test_5000_machines() -> None:
    command = [sys.executable, "-m", "tests.bench.emulator"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    figures = json.loads(done.stdout)
    assert figures["machines"] == 5000
    assert figures["resident_mb"] <= 500
