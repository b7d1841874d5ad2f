"""What the watch missed is found by lists. A deletion during a gap of the watch is never reported by anybody."""

from __future__ import annotations

import asyncio

import pytest

from tests import pace
from tests.operator.worlds import World
from vnetpods_api import OwnerReference
from vnetpods_operator.planning.node import node_from
from vnetpods_operator.state import relist
from vnetpods_operator.state.cluster import ClusterState
from vnetpods_operator.state.pools import PATH
from vnetpods_operator.state.queue import Queue

pytestmark = pytest.mark.apiserver


async def test_vanished_nodes_and_pools(world: World) -> None:
    cluster, queue = ClusterState(), Queue(asyncio.get_running_loop().time)
    for name in ("stays", "goes", "bare"):
        node = node_from(world.api.get("node", await world.node(name)))
        cluster.upsert_node(node)
        owner = OwnerReference(api_version="v1", kind="Node", name=node.name, uid=node.uid)
        cluster.upsert_pool(await world.pools.adopt(node.name, owner, None))
    stays, goes, bare = world.nodes
    await world.kube.request("DELETE", f"/api/v1/nodes/{goes}")
    await world.kube.request("DELETE", f"{PATH}/{bare}")
    await relist.compare(world.kube, cluster, queue)
    assert set(cluster.nodes) == {stays, bare}
    assert set(cluster.pools) == {stays, goes}  # a pool without Node goes with the garbage collector, or is told so
    assert {await queue.take(), await queue.take()} == {bare, goes}
    assert queue.depth == 0


async def test_lists_of_several_pages(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relist, "_PAGE", 2)
    nodes = {await world.node(f"n{number}") for number in range(5)}
    assert nodes <= (await relist._names(world.kube, "/api/v1/nodes")).keys()


async def test_the_crd_is_waited_for(world: World) -> None:
    async with asyncio.timeout(pace.stretched(5)):
        await relist.served(world.kube)


async def test_the_first_list_of_nodes_puts_them_in_line(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relist, "_PAGE", 2)
    cluster, queue = ClusterState(), Queue(asyncio.get_running_loop().time)
    nodes = {await world.node(f"n{number}") for number in range(5)}
    await relist.first_nodes(world.kube, cluster, queue)
    assert nodes <= set(cluster.nodes)
    assert queue.depth == len(cluster.nodes)


async def test_the_first_list_fills_the_roster(world: World) -> None:
    cluster = ClusterState()
    node = node_from(world.api.get("node", await world.node("one")))
    owner = OwnerReference(api_version="v1", kind="Node", name=node.name, uid=node.uid)
    await world.pools.adopt(node.name, owner, None)
    await relist.first_list(world.pools, cluster)
    assert cluster.pools[node.name].metadata.owner_references == (owner,)
    assert not cluster.upsert_pool(cluster.pools[node.name])  # an echo is no news
