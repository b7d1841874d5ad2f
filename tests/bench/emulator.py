"""The ARM emulator with 5,000 VMs whose NICs have 17 addresses each: memory, and how fast one NIC is read.

    python -m tests.bench.emulator [MACHINES]    → one line of JSON

What the operator's bench can show is limited by it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import aiohttp

from tests.azure.arm.server import Emulator

MACHINES = 5000


async def main(machines: int) -> None:
    before = _resident()
    async with Emulator(checked=False) as azure:
        azure.build.create_vnet("net", "10.0.0.0/8")
        azure.build.create_subnet("net", "pods", "10.0.0.0/12")
        for number in range(machines):
            azure.build.create_nic(f"n{number}", "net/pods", secondaries=16)
            azure.build.create_vm(f"vm-{number}", nics=[f"n{number}"])
        taken = []
        async with aiohttp.ClientSession(headers={"Authorization": "Bearer operator"}) as session:
            for number in range(0, machines, 10):
                path = azure.build.id("Microsoft.Network/networkInterfaces", f"n{number}")
                start = time.perf_counter()
                async with session.get(f"{azure.url}{path}?api-version=2024-01-01") as answer:
                    body = await answer.json()
                taken.append(time.perf_counter() - start)
                assert len(body["properties"]["ipConfigurations"]) == 17, body
        median = sorted(taken)[len(taken) // 2] * 1000
        resident = _resident()
        figures = {"machines": machines, "get_p50_ms": round(median, 2), "resident_mb": round(resident)}
        print(json.dumps(figures | {"machine_kb": round((resident - before) * 1024 / machines, 1)}))


def _resident() -> float:
    """This process's memory in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else MACHINES))
