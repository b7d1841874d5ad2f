"""The source against a real API server: what it hears, what it writes, and that neither depends on luck."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.kube.apiserver import ApiServer
from vnetpods_agent.kubeapi import KubeApi, from_kubeconfig
from vnetpods_agent.nodeippool import NodeIPPoolSource
from vnetpods_agent.source import Report, SourceUnavailable, Supply
from vnetpods_api import Usage

pytestmark = pytest.mark.apiserver
ROOT = Path(__file__).resolve().parents[2]
INTERFACE = {
    "name": "nic",
    "mac": "00:0d:3a:1b:c7:21",
    "subnet": "/subscriptions/s/subnets/pods",
    "prefixes": ["10.240.0.0/16"],
    "primaryAddress": "10.240.0.4",
}


class Pool:
    """A NodeIPPool as the operator keeps it."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server
        self.name = f"worker-{uuid4().hex[:8]}"

    def create(self) -> None:
        pool = {"apiVersion": "vnetpods.io/v1alpha1", "kind": "NodeIPPool", "metadata": {"name": self.name}, "spec": {}}
        self.server.apply(json.dumps(pool))

    def status(self, **status: Any) -> None:
        body = {"apiVersion": "vnetpods.io/v1alpha1", "kind": "NodeIPPool", "metadata": {"name": self.name}}
        options = ("--server-side", "--field-manager=vnetpods-operator", "--subresource=status", "--force-conflicts")
        self.server.kubectl("apply", *options, "-f", "-", stdin=json.dumps(body | {"status": status}))

    def addresses(self, *addresses: str, releasing: tuple[str, ...] = ()) -> None:
        self.status(interfaces=[INTERFACE | {"addresses": list(addresses), "releasing": list(releasing)}])

    def seen(self) -> dict[str, Any]:
        found: dict[str, Any] = self.server.get("nodeippool", self.name).get("status", {})
        return found

    def delete(self) -> None:
        self.server.kubectl("delete", "nodeippool", self.name)


@pytest.fixture
def pool(apiserver: ApiServer) -> Pool:
    apiserver.apply((ROOT / "crds/nodeippool.yaml").read_text())
    return Pool(apiserver)


@contextlib.asynccontextmanager
async def watching(pool: Pool) -> AsyncIterator[tuple[NodeIPPoolSource, asyncio.Queue[Supply]]]:
    source = NodeIPPoolSource(KubeApi(from_kubeconfig(pool.server.admin_kubeconfig)), pool.name)
    heard: asyncio.Queue[Supply] = asyncio.Queue()

    async def listen() -> None:
        async for supply in source.watch():
            heard.put_nowait(supply)

    task = asyncio.create_task(listen())
    try:
        yield source, heard
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await source.close()


async def next_addresses(heard: asyncio.Queue[Supply]) -> list[str]:
    async with asyncio.timeout(10):
        supply = await heard.get()
    return [address for interface in supply.interfaces for address in interface.addresses]


async def test_a_pool_that_comes_later_and_changes_is_heard(pool: Pool) -> None:
    async with watching(pool) as (source, heard):
        await asyncio.sleep(0.3)
        assert "there is no NodeIPPool" in source.trouble
        await asyncio.to_thread(pool.create)
        assert await next_addresses(heard) == []
        await asyncio.to_thread(pool.addresses, "10.240.0.5")
        assert await next_addresses(heard) == ["10.240.0.5"]
        assert source.trouble == ""


async def test_others_pools_are_not_heard(pool: Pool) -> None:
    other = Pool(pool.server)
    await asyncio.to_thread(pool.create)
    async with watching(pool) as (_, heard):
        assert await next_addresses(heard) == []
        await asyncio.to_thread(other.create)
        await asyncio.to_thread(pool.addresses, "10.240.0.9")
        assert await next_addresses(heard) == ["10.240.0.9"]


async def test_nothing_follows_from_a_deleted_pool(pool: Pool) -> None:
    await asyncio.to_thread(pool.create)
    async with watching(pool) as (source, heard):
        await next_addresses(heard)
        await asyncio.to_thread(pool.delete)
        await asyncio.sleep(0.3)
        assert heard.empty()
        assert "deleted" in source.trouble
        with pytest.raises(SourceUnavailable, match="404"):
            await source.publish(Report(Usage()))


async def test_a_report_is_the_agents_own_fields_and_the_operators_stay(pool: Pool) -> None:
    await asyncio.to_thread(pool.create)
    await asyncio.to_thread(pool.addresses, "10.240.0.5", "10.240.0.6", releasing=("10.240.0.6",))
    async with watching(pool) as (source, heard):
        await next_addresses(heard)
        usage = Usage(assigned=1)
        await source.publish(Report(usage, released=("10.240.0.6",), missing=("10.240.0.9",), serving=True))
        seen = pool.seen()
        assert seen["usage"] == {"assigned": 1, "cooling": 0, "free": 0, "waiting": 0}
        assert (seen["released"], seen["missing"]) == (["10.240.0.6"], ["10.240.0.9"])
        assert seen["interfaces"][0]["addresses"] == ["10.240.0.5", "10.240.0.6"]
        ready = seen["conditions"][0]
        assert (ready["type"], ready["status"], ready["reason"]) == ("AgentReady", "True", "AgentServing")

        await source.publish(Report(usage, serving=False, message="no address is known"))
        seen = pool.seen()
        assert "released" not in seen
        assert "missing" not in seen
        assert (seen["conditions"][0]["reason"], seen["conditions"][0]["message"]) == (
            "AgentStarting",
            "no address is known",
        )


async def test_the_operators_words_are_the_cause(pool: Pool) -> None:
    await asyncio.to_thread(pool.create)
    condition = {"lastTransitionTime": "2026-01-01T00:00:00Z", "status": "True", "type": "Stalled"}
    stalled = condition | {"reason": "Forbidden", "message": "the role lacks networkInterfaces/write"}
    await asyncio.to_thread(pool.status, conditions=[stalled])
    async with watching(pool) as (_, heard):
        async with asyncio.timeout(10):
            supply = await heard.get()
        assert supply.cause == "Forbidden: the role lacks networkInterfaces/write"
