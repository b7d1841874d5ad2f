"""A small world for tests of the operator: the ARM emulator, a real API server, Nodes, and the operator itself.

The operator runs in the test's own event loop (or as a process), with the real SDK and managed identity, and manages
only the Nodes of its world: the API server is shared by the session.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import yaml

from tests import pace
from tests.azure.arm.server import Emulator
from tests.kube.apiserver import ApiServer
from tests.operator.agents import Agent
from tests.zygote import Process, zygote
from vnetpods_api import Condition, NodeIPPool, find
from vnetpods_api.conditions import ConditionType
from vnetpods_operator import config as configuration
from vnetpods_operator import kube
from vnetpods_operator.app import Operator
from vnetpods_operator.kube import Kube, KubeError, NotFound
from vnetpods_operator.state.pools import PATH, Pools

NIC_WRITE = "Microsoft.Network/networkInterfaces/write"
NIC_READ = "Microsoft.Network/networkInterfaces/read"
PROGRAM = ("vnetpods_operator.__main__", "vnetpods_operator.app", "azure.mgmt.network.aio", "azure.mgmt.network.models")


LEASE = 60.0
"""Seconds of the Lease: twice the tests' timeout, so that a sooner leader must have been handed the Lease."""


class World:
    """A test's actions and observations."""

    def __init__(self, azure: Emulator, api: ApiServer, admin: Kube, folder: Path, kubeconfig: Path) -> None:
        self.name = f"w{secrets.token_hex(3)}"
        self.azure = azure
        self.api = api
        self.kube = admin
        self.pools = Pools(admin)
        self.path = folder / f"{self.name}.yaml"
        self.kubeconfig = kubeconfig
        self.nodes: list[str] = []
        self.settings: dict[str, Any] = {
            "listen": "127.0.0.1:0",
            "metricsListen": "",
            "nodes": {"matchLabels": {"world": self.name}},
            "election": {
                "duration": f"{pace.stretched(LEASE):.0f}s",
                "renew": f"{pace.stretched(0.75 * LEASE):.0f}s",
                "retry": "200ms",
            },
            "azure": {"endpoint": azure.url, "scope": "https://management.azure.com/.default", "poll": "50ms"},
            "groups": [{"minimum": 4, "warm": 4, "batch": 4}],
            "release": {"after": "300ms", "patience": f"{pace.stretched(1):.0f}s"},  # a late agent isn't a silent one
            "workers": 8,
        }

    # Azure

    def machine(self, name: str, subnet: str = "net/pods", **more: Any) -> str:
        """A VM; returns its providerID."""
        return "azure://" + self.azure.build.create_vm(name, subnet, **more)

    def machine_again(self, name: str) -> str:
        """Deletes VM and NIC and recreates them under the same names; another VM has taken the addresses."""
        taken = len(self.azure.build.addresses(f"{name}-nic"))
        self.azure.build.delete("Microsoft.Compute/virtualMachines", name)
        self.azure.build.delete("Microsoft.Network/networkInterfaces", f"{name}-nic")
        self.machine(f"{name}-heir")
        for number in range(taken):
            self.azure.build.add_address(f"{name}-heir-nic", f"vnetpods-{number}")
        return self.machine(name)

    def addresses(self, nic: str) -> set[str]:
        """Our secondary addresses on a NIC."""
        found = self.azure.build.addresses(nic)
        return {address for name, address in found.items() if name.startswith("vnetpods-")}

    def writes(self) -> int:
        return len(self.azure.build.requests(NIC_WRITE))

    # Kubernetes

    async def node(self, name: str, provider_id: str | None = None, *, labels: dict[str, str] | None = None) -> str:
        """Creates a Node under a unique name; returns the name."""
        unique = f"{self.name}-{name}"
        body: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": unique, "labels": {"world": self.name} | (labels or {})},
            "spec": {"providerID": provider_id} if provider_id else {},
        }
        await self.kube.request("POST", "/api/v1/nodes", body=body)
        self.nodes.append(unique)
        return unique

    async def worker(self, name: str, subnet: str = "net/pods", **labels: str) -> tuple[str, Agent]:
        """Creates a VM with its Node and agent."""
        node = await self.node(name, self.machine(name, subnet), labels=labels)
        return node, Agent(self.kube, node)

    async def node_again(self, node: str, provider_id: str) -> None:
        """Deletes and recreates the Node; its pool stays, as no garbage collector runs."""
        await self.kube.request("DELETE", f"/api/v1/nodes/{node}")
        self.nodes.remove(node)
        await self.node(node.removeprefix(f"{self.name}-"), provider_id)

    async def pool(self, node: str) -> NodeIPPool:
        return await self.pools.get(node)

    async def condition(self, node: str, type_: ConditionType = ConditionType.READY) -> Condition | None:
        with contextlib.suppress(NotFound):
            return find((await self.pool(node)).status.conditions, type_)
        return None

    async def events(self, node: str) -> list[dict[str, Any]]:
        """Events about a Node, the newest last."""
        path = "/apis/events.k8s.io/v1/namespaces/default/events"
        found = json.loads(await self.kube.request("GET", path, query={"fieldSelector": f"regarding.name={node}"}))
        items: list[dict[str, Any]] = found["items"]
        return items

    async def until(
        self,
        what: str,
        check: Callable[[], Awaitable[Any]],
        timeout: float = 30.0,  # noqa: ASYNC109
    ) -> Any:
        """Waits until `check` returns a true value, and returns that."""
        loop = asyncio.get_running_loop()
        end, seen = loop.time() + pace.stretched(timeout), None
        while loop.time() < end:
            with contextlib.suppress(NotFound):
                seen = await check()
                if seen:
                    return seen
            await asyncio.sleep(0.02)
        raise AssertionError(f"not within {pace.stretched(timeout)} s: {what}; last seen {seen!r}")

    async def until_reason(self, node: str, reason: str) -> Condition:
        async def check() -> Condition | None:
            found = await self.condition(node)
            return found if found is not None and found.reason == reason else None

        found: Condition = await self.until(f"{node} to be {reason}", check)
        return found

    async def until_allocated(self, node: str, number: int) -> NodeIPPool:
        async def check() -> NodeIPPool | None:
            found = await self.pool(node)
            return found if found.status.allocated == number else None

        found: NodeIPPool = await self.until(f"{node} to have {number} addresses", check)
        return found

    async def until_pods_run(self, agent: Agent, timeout: float = 30.0) -> None:  # noqa: ASYNC109
        async def check() -> bool:
            await agent.sync()
            return agent.waiting == 0

        await self.until("all pods to have addresses", check, timeout)

    # the operator

    def config(self) -> configuration.Config:
        self.path.write_text(yaml.safe_dump(self.settings))
        return configuration.load(self.path)

    @contextlib.asynccontextmanager
    async def operator(self) -> AsyncIterator[Operator]:
        """Runs the operator during the block; every test asserts that it stops cleanly."""
        lost: list[str] = []
        running = Operator(self.path, self.kubeconfig, self.config(), lambda: lost.append("the Lease"))
        task = asyncio.create_task(running.run())
        try:
            yield running
            assert not task.done(), task.result()
        finally:
            running.stop()
            await asyncio.wait_for(task, pace.stretched(10))
        assert not lost

    @contextlib.asynccontextmanager
    async def process(self) -> AsyncIterator[Process]:
        """Runs the operator as a process during the block, and asserts that SIGTERM stops it cleanly."""
        process = await self.started()
        try:
            yield process
            if process.returncode is None:
                process.terminate()
            assert await asyncio.wait_for(process.wait(), pace.stretched(20)) == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def started(self, fault: str = "") -> Process:
        """Starts the operator as a process; with `fault` it kills itself at that point."""
        self.config()
        arguments = ("--config", str(self.path), "--kubeconfig", str(self.kubeconfig))
        return await zygote(*PROGRAM).start(*arguments, environment={**os.environ, "VNETPODS_FAULT": fault})

    async def free_the_lease(self) -> None:
        """Deletes the Lease, as if a dead leader's had expired."""
        path = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/vnetpods-operator"
        with contextlib.suppress(NotFound):
            await self.kube.request("DELETE", path)

    async def clean(self) -> None:
        await self.free_the_lease()
        for node in self.nodes:
            for path in (f"/api/v1/nodes/{node}", f"{PATH}/{node}"):
                with contextlib.suppress(KubeError):
                    await self.kube.request("DELETE", path)


@contextlib.asynccontextmanager
async def made(api: ApiServer, kubeconfig: Path, folder: Path) -> AsyncIterator[World]:
    """A world with the VNet `net` (10.240.0.0/12) and its subnet `pods` (10.240.0.0/16)."""
    async with Emulator() as azure, kube.opened(api.admin_kubeconfig) as admin:
        azure.build.create_vnet("net", "10.240.0.0/12")
        azure.build.create_subnet("net", "pods", "10.240.0.0/16")
        world = World(azure, api, admin, folder, kubeconfig)
        try:
            yield world
        finally:
            await world.clean()
