"""The main job, end to end: real SDK, real API server, the operator's own loop."""

from __future__ import annotations

import asyncio

import pytest

from tests.operator.worlds import World
from vnetpods_api.conditions import ConditionType
from vnetpods_operator.kube import MERGE

pytestmark = pytest.mark.apiserver


async def test_a_node_gets_its_minimum_in_one_write(world: World) -> None:
    node, _ = await world.worker("one")
    async with world.operator():
        pool = await world.until_allocated(node, 4)
    interface = pool.status.interfaces[0]
    assert set(interface.addresses) == world.addresses("one-nic")
    assert interface.primary_address == "10.240.0.4"
    assert interface.prefixes == ("10.240.0.0/16",)
    assert pool.status.direct_cidrs == ("10.240.0.0/12",)
    assert pool.status.subnet == "pods"
    assert pool.status.capacity == 255
    assert [o.name for o in pool.metadata.owner_references] == [node]
    assert world.writes() == 1
    ready = await world.condition(node)
    assert ready is not None
    assert (ready.status, ready.reason) == ("True", "PoolReady")


async def test_waiting_pods_get_addresses_and_surplus_goes_back(world: World) -> None:
    node, agent = await world.worker("one")
    async with world.operator():
        await world.until_allocated(node, 4)
        agent.start(30)
        await world.until_pods_run(agent)
        assert agent.held <= world.addresses("one-nic")
        agent.end(29)

        async def shrunk() -> bool:
            await agent.sync()
            return (await world.pool(node)).status.allocated == 9  # one held, 2 x warm free

        await world.until("the surplus to go back", shrunk)
        assert agent.held <= world.addresses("one-nic")
        pool = await world.pool(node)
    assert set(pool.status.interfaces[0].addresses) == world.addresses("one-nic")
    assert pool.status.interfaces[0].releasing == ()


async def test_250_pods_take_six_writes_and_churn_takes_none(world: World) -> None:
    """With the default sizes, 40 pods per second, and an Azure that needs 1.5 s for a write."""
    world.settings["groups"] = [{}]
    world.settings["release"] = {}
    world.azure.build.set_duration("Microsoft.Network/networkInterfaces", 1.5)
    node, agent = await world.worker("one")
    status = {"status": {"allocatable": {"pods": "250"}}}
    await world.kube.request("PATCH", f"/api/v1/nodes/{node}/status", body=status, content_type=MERGE)
    async with world.operator():
        await world.until_allocated(node, 16)
        for _ in range(25):
            agent.start(10)
            await agent.sync()
            await asyncio.sleep(0.25)
        await world.until_pods_run(agent)
        assert len(agent.held) == 250
        assert world.writes() <= 6
        agent.end(100)
        await agent.sync()
        before = len(world.azure.build.requests())
        for _ in range(10):
            agent.start(60)
            await agent.sync()
            agent.end(60)
            await agent.sync()
        await asyncio.sleep(0.5)
        assert len(world.azure.build.requests()) == before


async def test_bad_nodes_say_so_and_disturb_nobody(world: World) -> None:
    bare = await world.node("bare")
    foreign = await world.node("foreign", "gce://project/zone/name")
    gone = await world.node("gone", world.machine("ghost").replace("ghost", "nobody"))
    good, _ = await world.worker("good")
    async with world.operator():
        await world.until_allocated(good, 4)
        for node, reason in ((bare, "NoProviderID"), (foreign, "ForeignProvider"), (gone, "MachineNotFound")):
            ready = await world.until_reason(node, reason)
            assert ready.status == "False"
            stalled = await world.condition(node, ConditionType.STALLED)
            assert stalled is not None
            assert stalled.status == "True"
