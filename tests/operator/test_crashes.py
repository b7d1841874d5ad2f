"""kill -9 at every fault point that the code lists, in growth and in release; then a new operator takes over.

After that: no second write for the same need but one that changes nothing, no address forgotten, none removed that a
pod holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator

import pytest

from tests import pace
from tests.operator.agents import Agent
from tests.operator.worlds import NIC_WRITE, World
from vnetpods_kit.faultpoints import OperatorPoint
from vnetpods_operator.kube import KubeError

pytestmark = pytest.mark.apiserver


@contextlib.asynccontextmanager
async def living(world: World, agent: Agent, nic: str) -> AsyncIterator[None]:
    """The agent goes about its work meanwhile, and never misses an address that a pod holds."""

    async def live() -> None:
        while True:
            with contextlib.suppress(KubeError):
                await agent.sync()
            assert agent.held <= world.addresses(nic)
            await asyncio.sleep(0.02)

    task = asyncio.create_task(live())
    try:
        yield
        assert not task.done(), task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def crash(world: World, point: OperatorPoint, nth: int) -> None:
    """Runs the operator until it dies at the point."""
    process = await world.started(fault=f"{point.value}:{nth}")
    try:
        assert await asyncio.wait_for(process.wait(), pace.stretched(30)) == -signal.SIGKILL
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    await world.free_the_lease()


def accepted(world: World) -> int:
    """NIC writes that Azure took."""
    return sum(1 for request in world.azure.build.requests(NIC_WRITE) if request["status"] < 300)


GROWTH = [
    (OperatorPoint.POOL_ADOPTED, 1),
    (OperatorPoint.STATUS_WRITTEN, 1),
    (OperatorPoint.DECIDED, 1),
    (OperatorPoint.ANNOUNCED, 1),
    (OperatorPoint.NIC_ACCEPTED, 1),
    (OperatorPoint.NIC_WRITTEN, 1),
    (OperatorPoint.STATUS_WRITTEN, 2),
]
RELEASE = [
    (OperatorPoint.DECIDED, 1),  # nothing is marked yet
    (OperatorPoint.STATUS_WRITTEN, 1),  # marked
    (OperatorPoint.DECIDED, 2),  # acknowledged, about to be removed
    (OperatorPoint.ANNOUNCED, 1),
    (OperatorPoint.NIC_ACCEPTED, 1),
    (OperatorPoint.NIC_WRITTEN, 1),
    (OperatorPoint.STATUS_WRITTEN, 2),
]

MOVE = [
    (OperatorPoint.POOL_EMPTIED, 1),
    (OperatorPoint.POOL_ADOPTED, 1),
    (OperatorPoint.STATUS_WRITTEN, 1),
    (OperatorPoint.DECIDED, 1),
    (OperatorPoint.NIC_WRITTEN, 1),
]


def test_every_point_is_visited() -> None:
    assert {point for point, _ in GROWTH + RELEASE + MOVE} == set(OperatorPoint)


@pytest.mark.parametrize("slow", [False, True], ids=["quick", "slow-azure"])
@pytest.mark.parametrize(("point", "nth"), GROWTH, ids=[f"{p.value}-{n}" for p, n in GROWTH])
async def test_c21_growth(world: World, point: OperatorPoint, nth: int, slow: bool) -> None:
    if slow:
        if point is not OperatorPoint.NIC_ACCEPTED:
            pytest.skip("a difference only while Azure is at work")
        world.azure.build.set_duration("Microsoft.Network/networkInterfaces", 3.0)
    node, agent = await world.worker("one")
    await crash(world, point, nth)
    async with living(world, agent, "one-nic"), world.operator():
        pool = await world.until_allocated(node, 4)
    assert set(pool.status.interfaces[0].addresses) == world.addresses("one-nic")
    # what no pool lists may have been removed by the dead process: a write of what was read proves that it wasn't
    unlisted = point in (OperatorPoint.NIC_ACCEPTED, OperatorPoint.NIC_WRITTEN)
    assert accepted(world) == 1 + unlisted


@pytest.mark.parametrize(("point", "nth"), MOVE, ids=[f"{p.value}-{n}" for p, n in MOVE])
async def test_a_node_that_has_another_machine_now(world: World, point: OperatorPoint, nth: int) -> None:
    node, _ = await world.worker("one")
    async with world.operator():
        await world.until_allocated(node, 4)
    other = world.machine("other")
    await world.node_again(node, other)
    await crash(world, point, nth)
    pool = await world.pool(node)  # never names one machine and lists the addresses of the other
    listed = {address for interface in pool.status.interfaces for address in interface.addresses}
    assert listed <= world.addresses("other-nic")
    async with world.operator():
        pool = await world.until_allocated(node, 4)
    assert pool.spec.machine == other.removeprefix("azure://")
    assert set(pool.status.interfaces[0].addresses) == world.addresses("other-nic")


@pytest.mark.parametrize(("point", "nth"), RELEASE, ids=[f"{p.value}-{n}" for p, n in RELEASE])
async def test_c18_release(world: World, point: OperatorPoint, nth: int) -> None:
    node, agent = await world.worker("one")
    async with world.operator():
        await world.until_allocated(node, 4)
        agent.start(30)
        await world.until_pods_run(agent)
    async with living(world, agent, "one-nic"):
        writes = accepted(world)
        agent.end(28)
        await crash(world, point, nth)
        async with world.operator():
            await world.until_allocated(node, 10)  # 2 held, twice `warm` free
            await world.until("the agent to forget", lambda: _forgotten(world, node))
            pool = await world.pool(node)
    assert agent.held <= world.addresses("one-nic")
    assert set(pool.status.interfaces[0].addresses) == world.addresses("one-nic")
    assert 1 <= accepted(world) - writes <= 3  # more than one only if held addresses were among those asked for


async def _forgotten(world: World, node: str) -> bool:
    return (await world.pool(node)).status.released == ()
