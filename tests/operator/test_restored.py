"""The API server's data is restored from a backup while everything else goes on: nothing that it says then is believed
because it says it, and nothing waits for a restart.
"""

from __future__ import annotations

import pytest

from tests.operator.benches import bench, full
from tests.operator.worlds import World
from vnetpods_api import Metadata, NodeIPPool
from vnetpods_operator.state.cluster import ClusterState

pytestmark = pytest.mark.apiserver
NIC = "one-nic"


async def test_a_restored_release_takes_nothing_from_pods_and_pods_that_come_get_addresses(world: World) -> None:
    world.settings["election"] |= {"renew": "30s", "retry": "200ms"}
    node, agent = await world.worker("one")
    async with world.operator():
        await world.until_allocated(node, 4)
        agent.start(30)
        await world.until_pods_run(agent)
        agent.end(30)

        async def acknowledged() -> bool:
            return bool((await agent.sync()).status.released)

        await world.until("a release to be acknowledged", acknowledged)
        backup = world.api.backup()  # the operator runs in this very thread and has not seen it yet

        async def removed() -> bool:
            await agent.sync()
            return len(world.addresses(NIC)) <= 8

        await world.until("the release to end", removed)
        agent.start(20)
        await world.until_pods_run(agent)
        world.api.restore(backup)
        agent.start(19)

        async def served() -> bool:
            assert agent.held <= world.addresses(NIC)
            await agent.sync()
            return agent.waiting == 0

        await world.until("pods that come later to run", served, timeout=60)

        async def rest() -> bool:
            assert agent.held <= world.addresses(NIC)
            pool = await agent.sync()
            listed = {a for interface in pool.status.interfaces for a in interface.addresses}
            return listed == world.addresses(NIC) and not pool.status.released and agent.held <= listed

        await world.until("the pool to list what is on the NIC", rest)
        await world.until_reason(node, "PoolReady")


async def test_an_operator_that_is_refused_believes_what_it_reads(world: World) -> None:
    """No watch has told it; and no look comes at a rate that the API server would feel."""
    _, agent = await world.worker("one")
    restored: list[bool] = []
    async with bench(world, agent) as found:
        await full(found, agent)
        found.cluster.restored = lambda: restored.append(True)
        pool = await found.see()
        ahead = NodeIPPool(
            metadata=Metadata(name=agent.node, resource_version=str(int(pool.metadata.resource_version or 0) + 10_000)),
            spec=pool.spec,
            status=pool.status,
        )
        found.cluster.pools[agent.node] = ahead
        agent.start(9)
        await agent.sync()
        assert not found.cluster.upsert_pool(await world.pool(agent.node))
        found.cluster.record(agent.node).audit_at = 0.0
        for _ in range(3):
            await found.look()
        await agent.sync()
        assert restored
        assert agent.waiting == 0


def pool(version: int) -> NodeIPPool:
    return NodeIPPool(metadata=Metadata(name="n", resource_version=str(version)))


def test_which_version_counts() -> None:
    cluster, restored = ClusterState(), list[int]()
    cluster.restored = lambda: restored.append(1)
    assert cluster.upsert_pool(pool(5))
    assert not cluster.upsert_pool(pool(4))  # the watch lags behind the answer to a write
    assert not cluster.doubt("n", 5)
    assert cluster.doubt("n", 4)
    assert cluster.doubted == {"n"}
    assert not cluster.upsert_pool(pool(4), known=3)  # read before what is known was written
    assert not restored
    cluster.record("n").audit_at = 9.0
    assert cluster.upsert_pool(pool(4), known=5)
    assert (cluster.version("n"), cluster.record("n").audit_at, restored) == (4, 0.0, [1])
