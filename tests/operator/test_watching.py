"""What the watch missed is found by lists. A deletion during a gap of the watch is never reported by anybody."""

from __future__ import annotations

import asyncio

import pytest

from tests import pace
from tests.operator.worlds import World
from vnetpods_api import OwnerReference
from vnetpods_operator import watching
from vnetpods_operator.nodes import node_from
from vnetpods_operator.pools import PATH
from vnetpods_operator.queueing import Queue
from vnetpods_operator.roster import Roster

pytestmark = pytest.mark.apiserver


async def test_vanished_nodes_and_pools(world: World) -> None:
    roster, queue = Roster(), Queue(asyncio.get_running_loop().time)
    for name in ("stays", "goes", "bare"):
        node = node_from(world.api.get("node", await world.node(name)))
        roster.hold_node(node)
        owner = OwnerReference(api_version="v1", kind="Node", name=node.name, uid=node.uid)
        roster.hold_pool(await world.pools.adopt(node.name, owner, None))
    stays, goes, bare = world.nodes
    await world.kube.request("DELETE", f"/api/v1/nodes/{goes}")
    await world.kube.request("DELETE", f"{PATH}/{bare}")
    await watching.compare(world.kube, roster, queue)
    assert set(roster.nodes) == {stays, bare}
    assert set(roster.pools) == {stays, goes}  # a pool without Node goes with the garbage collector, or is told so
    assert {await queue.take(), await queue.take()} == {bare, goes}
    assert queue.depth == 0


async def test_lists_of_several_pages(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_PAGE", 2)
    nodes = {await world.node(f"n{number}") for number in range(5)}
    assert nodes <= (await watching._names(world.kube, "/api/v1/nodes")).keys()


async def test_the_crd_is_waited_for(world: World) -> None:
    async with asyncio.timeout(pace.stretched(5)):
        await watching.served(world.kube)


async def test_the_first_list_of_nodes_puts_them_in_line(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_PAGE", 2)
    roster, queue = Roster(), Queue(asyncio.get_running_loop().time)
    nodes = {await world.node(f"n{number}") for number in range(5)}
    await watching.first_nodes(world.kube, roster, queue)
    assert nodes <= set(roster.nodes)
    assert queue.depth == len(roster.nodes)


async def test_the_first_list_fills_the_roster(world: World) -> None:
    roster = Roster()
    node = node_from(world.api.get("node", await world.node("one")))
    owner = OwnerReference(api_version="v1", kind="Node", name=node.name, uid=node.uid)
    await world.pools.adopt(node.name, owner, None)
    await watching.first_list(world.pools, roster)
    assert roster.pools[node.name].metadata.owner_references == (owner,)
    assert not roster.hold_pool(roster.pools[node.name])  # an echo is no news
