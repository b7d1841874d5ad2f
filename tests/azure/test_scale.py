"""5,000 VMs with a NIC of 17 addresses each: what they cost, and how fast one NIC is read. Measured in a process of its
own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.azure.client import ROOT

PROGRAM = """
import asyncio, json, time
import aiohttp
from tests.azure.arm.server import Emulator

async def main():
    async with Emulator(checked=False) as azure:
        azure.build.create_vnet("net", "10.0.0.0/8")
        azure.build.create_subnet("net", "pods", "10.0.0.0/12")
        for number in range(5000):
            azure.build.create_nic(f"n{number}", "net/pods", secondaries=16)
            azure.build.create_vm(f"vm-{number}", nics=[f"n{number}"])
        taken = []
        async with aiohttp.ClientSession(headers={"Authorization": "Bearer operator"}) as session:
            for number in range(0, 5000, 10):
                path = azure.build.id("Microsoft.Network/networkInterfaces", f"n{number}")
                start = time.perf_counter()
                async with session.get(f"{azure.url}{path}?api-version=2024-01-01") as answer:
                    assert len((await answer.json())["properties"]["ipConfigurations"]) == 17
                taken.append(time.perf_counter() - start)
        resident = int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
        print(json.dumps({"get_p50_ms": sorted(taken)[len(taken) // 2] * 1000, "resident_mb": resident}))

asyncio.run(main())
"""


@pytest.mark.timeout(120)
def test_5000_machines() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, check=True, capture_output=True, text=True)
    figures = json.loads(done.stdout)
    assert figures["resident_mb"] <= 500
    assert figures["get_p50_ms"] <= 2
