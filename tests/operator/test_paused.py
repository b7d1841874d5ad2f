"""A pool that is paused at the last moment."""

from __future__ import annotations

import msgspec
import pytest

from tests.operator.benches import bench, full
from tests.operator.worlds import World
from vnetpods_kit import faultpoints
from vnetpods_kit.faultpoints import OperatorPoint
from vnetpods_operator.kube import MERGE
from vnetpods_operator.state.pools import PATH


@pytest.mark.apiserver
async def test_a_pool_that_is_paused_after_its_nic_was_read_is_not_written(world: World) -> None:
    """Though no write had to wait for the budget."""
    _, agent = await world.worker("one")
    async with bench(world, agent) as found:

        def pause(reached: faultpoints.Point) -> None:
            if reached is OperatorPoint.ANNOUNCED:  # the watch tells
                pool = found.cluster.pools[agent.node]
                found.cluster.pools[agent.node] = msgspec.structs.replace(
                    pool, spec=msgspec.structs.replace(pool.spec, paused=True)
                )

        faultpoints.install(pause)
        try:
            await found.look()
            await found.look()
        finally:
            faultpoints.install(None)
        assert world.writes() == 0


@pytest.mark.apiserver
async def test_a_pool_that_is_paused_before_the_watch_tells_is_not_written(world: World) -> None:
    """The API server refuses the announcement, and the pool that is read anew is paused."""
    _, agent = await world.worker("one")
    async with bench(world, agent) as found:
        await full(found, agent)
        await found.look()
        agent.start(10)
        await agent.sync()
        await found.see()
        writes = world.writes()
        paused = {"spec": {"paused": True}}
        await world.kube.request("PATCH", f"{PATH}/{agent.node}", body=paused, content_type=MERGE)
        await found.look()
        assert world.writes() == writes
        ready = await world.condition(agent.node)
        assert ready is not None
        assert ready.reason == "Paused"
