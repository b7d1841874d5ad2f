"""The operator at scale: thousands of new Nodes at once, then a restart in the midst of them.

    python -m tests.bench.operator [--nodes 5000] [--writes 25]    → a table, and build/bench-operator.json

The operator is a process of its own; the API server is a real one and the ARM emulator runs in this process, so that
the operator's memory and CPU are its own. Each Node wants 32 addresses. The exit code tells whether all goals are met.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from rich.console import Console
from rich.table import Table

from tests.azure.arm.server import Emulator
from tests.install.rendering import operator_rights
from tests.isolation import isolate
from tests.kube import apiserver
from tests.kube.apiserver import ApiServer
from vnetpods_operator import kube
from vnetpods_operator.kube import Kube

ROOT = Path(__file__).parents[2]
ADDRESSES = 32
BURST = 50
LAG = 3.0
"""Seconds by which a request may be seen late."""
PORT = 19462
NIC_WRITE = "Microsoft.Network/networkInterfaces/write"

console = Console()


@dataclass
class Run:
    """The operator's process, and what it tells about itself."""

    process: asyncio.subprocess.Process
    http: aiohttp.ClientSession
    began: float

    async def metrics(self) -> dict[str, float]:
        """Sums over labels, by name."""
        found: dict[str, float] = {}
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with self.http.get("/metrics") as answer:
                for line in (await answer.text()).splitlines():
                    if match := re.match(r"^([a-z_]+)(?:\{[^}]*\})? (\S+)$", line):
                        found[match[1]] = found.get(match[1], 0.0) + float(match[2])
        return found

    def memory(self) -> tuple[float, float]:
        """Resident MiB, now and at most."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return tuple(int(re.search(rf"{key}:\s+(\d+)", text)[1]) / 1024 for key in ("VmRSS", "VmHWM"))  # type: ignore[index, return-value]

    def cpu(self) -> float:
        """Seconds used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.asynccontextmanager
async def operator(folder: Path, settings: dict[str, Any], kubeconfig: Path) -> AsyncIterator[Run]:
    path = folder / "operator.yaml"
    path.write_text(yaml.safe_dump(settings))
    arguments = ["-m", "vnetpods_operator", "--config", str(path), "--kubeconfig", str(kubeconfig)]
    with (folder / "operator.log").open("a") as log:
        began = time.monotonic()
        process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stderr=log)
        try:
            async with aiohttp.ClientSession(f"http://127.0.0.1:{PORT}") as http:
                yield Run(process, http, began)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


async def populate(azure: Emulator, api: Kube, number: int) -> None:
    """VMs and Nodes."""
    azure.build.create_vnet("net", "10.0.0.0/8")
    azure.build.create_subnet("net", "pods", "10.0.0.0/9")
    for machine in azure.build.create_vms(number, "net/pods"):
        name = machine.rpartition("/")[2]
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": {f"example.com/label-{i}": "a-value" for i in range(10)}},
            "spec": {"providerID": f"azure://{machine}"},
        }
        await api.request("POST", "/api/v1/nodes", body=node)


def check_rate(azure: Emulator, rate: float) -> float:
    """Seconds that the writes took; AssertionError if at any time more than the budget arrived.

    They are seen where they arrive, in a busy process, so what was sent in time may arrive in bunches.
    """
    times = [request["at"] for request in azure.build.requests(NIC_WRITE)]
    for start in range(0, len(times), 10):
        for end in range(start + 1, len(times), 50):
            allowed = BURST + rate * (times[end] - times[start] + LAG)
            assert end - start <= allowed, f"{end - start} writes in {times[end] - times[start]:.2f} s"
    return float(times[-1] - times[0])


async def new_nodes(run: Run, azure: Emulator, number: int, rate: float) -> dict[str, float]:
    said = run.began
    while True:
        await asyncio.sleep(1)
        writes = len(azure.build.requests(NIC_WRITE))
        found = await run.metrics()
        assert run.process.returncode is None, f"the operator ended with {run.process.returncode}"
        have = found.get("vnetpods_addresses", 0)
        if have >= number * ADDRESSES:
            break
        if time.monotonic() - said > 15:
            said = time.monotonic()
            console.print(f"  {said - run.began:4.0f} s: {writes} NIC writes, {have:.0f} addresses")
    took = check_rate(azure, rate)
    allowed = (number - BURST) / rate
    return {
        "nodes": number,
        "writes": len(azure.build.requests(NIC_WRITE)),
        "writes_took_s": round(took, 1),
        "budget_allows_s": round(allowed, 1),
        "over_budget_percent": round(100 * (took / allowed - 1), 1),
        "rss_mb": round(run.memory()[0], 1),
        "peak_mb": round(run.memory()[1], 1),
        "cpu_s": round(run.cpu(), 1),
    }


async def restart(run: Run, azure: Emulator, number: int) -> dict[str, float]:
    before = len(azure.build.requests())
    while True:
        await asyncio.sleep(0.25)
        found = await run.metrics()
        looked = found.get("vnetpods_look_duration_seconds_count", 0)
        if looked >= number and found.get("vnetpods_queue_depth", 1) == 0:
            break
    converged = time.monotonic() - run.began
    cpu = run.cpu()
    await asyncio.sleep(10)  # the SDK is imported with the first audit
    before_idle = run.cpu()
    await asyncio.sleep(20)
    requests = azure.build.requests()[before:]
    return {
        "converged_s": round(converged, 1),
        "rss_mb": round(run.memory()[0], 1),
        "peak_mb": round(run.memory()[1], 1),
        "cpu_s": round(cpu, 1),
        "idle_cpu_percent": round(100 * (run.cpu() - before_idle) / 20, 1),
        "arm_writes": sum(r["method"] == "PUT" for r in requests),
        "arm_reads_in_30_s": sum(r["method"] == "GET" for r in requests),
        "api_requests": found.get("vnetpods_kubernetes_requests_total", 0),
    }


async def bench(server: ApiServer, folder: Path, number: int, rate: float) -> dict[str, Any]:
    server.apply((ROOT / "crds" / "nodeippool.yaml").read_text())
    server.apply(operator_rights())
    kubeconfig = server.kubeconfig_for("vnetpods-operator", "kube-system")
    async with Emulator() as azure, kube.opened(server.admin_kubeconfig) as api:
        os.environ |= {
            "AZURE_TOKEN_CREDENTIALS": "ManagedIdentityCredential",
            "AZURE_POD_IDENTITY_AUTHORITY_HOST": azure.url,
        }
        console.print(f"making {number} VMs and Nodes")
        await populate(azure, api, number)
        reads = {"perSecond": 15, "burst": 250}
        settings: dict[str, Any] = {
            "listen": f"127.0.0.1:{PORT}",
            "metricsListen": f"127.0.0.1:{PORT}",
            "groups": [{"minimum": ADDRESSES}],
            "election": {"duration": "60s", "renew": "45s", "retry": "2s"},  # the machine does much besides
            "azure": {"endpoint": azure.url, "budget": {"reads": {"perSecond": 1000, "burst": 1000}}},
        }
        settings["azure"]["budget"]["writes"] = {"perSecond": rate, "burst": BURST}
        console.print("new Nodes, all at once")
        async with operator(folder, settings, kubeconfig) as run:
            fresh = await new_nodes(run, azure, number, rate)
        settings["azure"]["budget"] = {"reads": reads}
        console.print("restart")
        async with operator(folder, settings, kubeconfig) as run:
            again = await restart(run, azure, number)
    return {"new_nodes": fresh, "restart": again}


GOALS = {
    "new_nodes.over_budget_percent": 10.0,
    "restart.converged_s": 60.0,
    "restart.peak_mb": 350.0,
    "restart.arm_writes": 0.0,
}


def show(result: dict[str, Any]) -> bool:
    """Prints the table; whether all goals are met."""
    table = Table("figure", "value", "goal", "", title="vnetpods-operator at scale")
    met = True
    for part, figures in result.items():
        for name, value in figures.items():
            goal = GOALS.get(f"{part}.{name}")
            fits = goal is None or value <= goal
            met = met and fits
            mark = "" if goal is None else "[green]met" if fits else "[red]missed"
            table.add_row(f"{part}: {name}", f"{value:g}", "" if goal is None else f"<= {goal:g}", mark)
    console.print(table)
    return met


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.bench.operator", description=__doc__)
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--writes", type=float, default=25.0, help="NIC writes per second")
    given = parser.parse_args()
    isolate()
    with tempfile.TemporaryDirectory(prefix="bench-operator-") as name, apiserver.running(Path(name)) as server:
        result = asyncio.run(bench(server, Path(name), given.nodes, given.writes))
    path = ROOT / "build" / "bench-operator.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if show(result) else 1


if __name__ == "__main__":
    sys.exit(main())
