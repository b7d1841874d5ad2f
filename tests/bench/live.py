"""What the agent costs a node at rest: memory and CPU with a live watch of its NodeIPPool on a real API server, without
pods and with 250.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tests.agent.machine import Machine, supply
from tests.agent.shim import ROOT, program
from tests.kube import apiserver

NODE = "worker-1"
REST_SECONDS = 30.0
_API = "vnetpods.io/v1alpha1"
_MACHINE = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/worker-1"


@dataclass(frozen=True)
class Cost:
    """Of the agent: megabytes resident, and the share of a CPU at rest with all the pods."""

    empty_mb: float
    full_mb: float
    cpu_percent: float


async def cost(folder: Path, server: apiserver.ApiServer, pods: int) -> Cost:
    """Starts an agent against the API server, gives it a pool and the pods, and lets it rest."""
    addresses = [f"10.240.4.{number + 1}" for number in range(pods)]
    node = Machine(
        folder,
        {
            "node": NODE,
            "source": {"kubernetes": {"kubeconfig": str(folder / "kubeconfig")}, "confirmation": 0},
            "cooldown": 30.0,
            "reportInterval": 10.0,
            "sweepInterval": 30.0,
        },
        shim=program(),
    )
    node.build()
    try:
        node.connect(server)
        _pool(server, addresses)
        await node.start()
        await asyncio.sleep(3.0)
        empty = rss_mb(node)
        for number in range(pods):
            await node.add(f"live-{number}", node.sandbox(f"live-{number}"))
        await asyncio.sleep(12.0)  # the report of all this
        began, used = time.monotonic(), node.processor_seconds()
        await asyncio.sleep(REST_SECONDS)
        resting = 100 * (node.processor_seconds() - used) / (time.monotonic() - began)
        return Cost(empty, rss_mb(node), resting)
    finally:
        if node.process:
            await node.kill()
        node.close()


def _pool(server: apiserver.ApiServer, addresses: Sequence[str]) -> None:
    server.apply((ROOT / "crds" / "nodeippool.yaml").read_text())
    pool = {"apiVersion": _API, "kind": "NodeIPPool", "metadata": {"name": NODE}, "spec": {"machine": _MACHINE}}
    server.apply(json.dumps(pool))
    status = msgspec.json.encode({"status": supply(addresses)}).decode()
    server.kubectl("patch", "nip", NODE, "--subresource=status", "--type=merge", "-p", status)


def rss_mb(node: Machine) -> float:
    assert node.process
    return int(Path(f"/proc/{node.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
