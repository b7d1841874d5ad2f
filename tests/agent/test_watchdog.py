"""What is stuck ends the process, with every thread's stack on standard error."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests import pace

PROGRAM = """
import asyncio, time
from vnetpods_agent.ipam.worker import WorkerThread
from vnetpods_agent.watchdog import Watchdog

async def main():
    worker = WorkerThread("kernel")
    worker.start()
    Watchdog([worker], limit=2).start()
    {stuck}
    await asyncio.sleep(3)
    print("alive")

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("stuck", "code", "said"),
    [
        pytest.param("pass", 0, "", id="nothing"),
        pytest.param("[await worker.submit(time.sleep, 0.5) for _ in range(6)]", 0, "", id="busy"),
        pytest.param("worker.submit(time.sleep, 30)", 70, "kernel thread", id="kernel"),
        pytest.param("worker.close()", 70, "kernel thread has ended", id="ended"),
        pytest.param("time.sleep(30)", 70, "event loop", id="loop"),
    ],
)
def test_watchdog(stuck: str, code: int, said: str) -> None:
    program = PROGRAM.format(stuck=stuck)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=pace.stretched(30), check=False
    )
    assert (done.returncode, "alive" in done.stdout) == (code, code == 0)
    assert said in done.stdout
    assert ("Thread 0x" in done.stderr) is bool(code)
