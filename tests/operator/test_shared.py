"""Two Nodes that name one machine: a renamed VM leaves its former Node behind, or a providerID was copied.

Which of the two is real, only a person can say; until then nothing changes on the NIC, and no list does.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.operator.agents import Agent
from tests.operator.benches import bench, full, release
from tests.operator.worlds import World
from vnetpods_api import ConditionType, Interface, Metadata, NodeIPPool, Reason, Status
from vnetpods_operator.planning.node import Node
from vnetpods_operator.state.cluster import ClusterState
from vnetpods_operator.state.pools import PATH


async def pause(world: World, node: str, *, paused: bool) -> None:
    body = {"spec": {"paused": paused}}
    await world.kube.request("PATCH", f"{PATH}/{node}", body=body, content_type="application/merge-patch+json")


@pytest.mark.apiserver
@pytest.mark.parametrize("paused", [True, False], ids=["paused-meanwhile", "operator-down-meanwhile"])
async def test_a_renamed_machine_leaves_a_node_behind(world: World, paused: bool) -> None:
    """The former pool has an acknowledged release; those addresses must not go to pods first, and then from the NIC."""
    provider = world.machine("one")
    old = await world.node("old", provider)
    agent = Agent(world.kube, old)
    async with bench(world, agent) as found:
        await full(found, agent)
        before = await release(found, agent)
    writes = world.writes()
    if paused:
        await pause(world, old, paused=True)
    new = await world.node("new", provider.upper().replace("AZURE://", "azure://"))
    agent = Agent(world.kube, new)
    async with world.operator():
        said = await world.until_reason(new, Reason.MACHINE_SHARED)
        assert old in said.message
        await world.until_reason(old, Reason.MACHINE_SHARED)
        stalled = await world.condition(old, ConditionType.STALLED)
        assert stalled is not None
        assert stalled.status == "True"
        await pause(world, old, paused=False)
        agent.start(30)
        for _ in range(10):
            await agent.sync()
            await asyncio.sleep(0.05)
        assert world.writes() == writes
        assert (await world.pool(new)).status.interfaces == ()
        assert (await world.pool(old)).status.interfaces == before.status.interfaces
        # the person has decided; no garbage collector comes by here
        await world.kube.request("DELETE", f"/api/v1/nodes/{old}")
        await world.kube.request("DELETE", f"{PATH}/{old}")
        await world.until_pods_run(agent)
        await world.until_reason(new, Reason.POOL_READY)
        await asyncio.sleep(0.5)
        assert agent.held <= world.addresses("one-nic")


@pytest.mark.apiserver
async def test_a_node_that_appears_while_a_write_is_decided(world: World) -> None:
    node, agent = await world.worker("one")
    async with bench(world, agent) as found:
        body = found.cluster.nodes[node]

        async def appears(_: str) -> int:
            found.cluster.upsert_node(replace(body, name="other", uid="other"))
            return 0

        found.reconciler._parts = replace(found.reconciler._parts, host_pods=appears)
        found.cluster.nodes[node] = replace(body, pod_limit=30)  # so that the pods in the host's network are counted
        outcome = await found.look()
        assert outcome.requeue_after is not None
        assert world.writes() == 0
        found.cluster.delete_node("other")
        await found.look()
        assert world.addresses("one-nic")


@pytest.mark.apiserver
async def test_what_another_pool_lists_is_neither_removed_nor_used_again(world: World) -> None:
    """However it came about. What was read of the NIC may be from before a write whose operator died right after it:
    then Azure has given the address to the other node, and both would give it to a pod.
    """
    _, agent = await world.worker("one")
    async with bench(world, agent) as found:
        await full(found, agent)
        pool = await release(found, agent)
        claimed, *rest = pool.status.released
        (interface,) = pool.status.interfaces
        other = NodeIPPool(
            metadata=Metadata(name="other", resource_version="1"),
            status=Status(interfaces=(Interface(name="x", mac=interface.mac, subnet="s", addresses=(claimed,)),)),
        )
        found.cluster.upsert_pool(other)
        await found.look()
        there = world.addresses("one-nic")
        assert claimed in there
        assert not there.intersection(rest)
        await found.see()
        await agent.sync()
        pool = await found.see()
        assert claimed in pool.status.released
        assert claimed in pool.status.interfaces[0].releasing
        found.cluster.delete_pool("other")
        await found.look()
        assert claimed not in world.addresses("one-nic")  # now the release ends as any other


def node(name: str, provider_id: str) -> Node:
    return Node(name=name, uid=name, provider_id=provider_id, pod_limit=110, labels={})


def test_who_shares_a_machine() -> None:
    cluster = ClusterState()
    for name, provider_id in (("a", "azure://X/one"), ("b", "azure://x/ONE"), ("c", "azure://x/two"), ("d", "")):
        cluster.upsert_node(node(name, provider_id))
    cluster.upsert_node(node("e", ""))
    assert [cluster.sharers(name) for name in "abcdef"] == [{"b"}, {"a"}, set(), set(), set(), set()]
    cluster.upsert_node(node("b", "azure://x/two"))
    assert [cluster.sharers(name) for name in "abc"] == [set(), {"c"}, {"b"}]
    cluster.delete_node("c")
    cluster.delete_node("c")
    assert [cluster.sharers(name) for name in "abc"] == [set(), set(), set()]


@pytest.mark.parametrize(
    ("status", "claimed"),
    [
        pytest.param({"missing": ("10.0.0.5",)}, {"10.0.0.5"}, id="held-and-not-listed"),
        pytest.param({"kept": ("10.0.0.5",)}, {"10.0.0.5"}, id="kept"),
        pytest.param({"missing": ("10.0.1.15",)}, {"10.0.1.0/28"}, id="of-a-block"),
        pytest.param({"kept": ("10.0.0.0/28",)}, {"10.0.0.5", "10.0.0.7"}, id="in-a-block"),
        pytest.param({"missing": ("10.0.1.16", "10.0.0.6")}, set(), id="others"),
    ],
)
def test_what_other_agents_speak_of(status: dict[str, tuple[str, ...]], claimed: set[str]) -> None:
    cluster, units = ClusterState(), ("10.0.0.5", "10.0.0.7", "10.0.1.0/28")
    pool = NodeIPPool(metadata=Metadata(name="a", resource_version="1"), status=Status(**status))  # type: ignore[arg-type]
    cluster.upsert_pool(pool)
    assert cluster.claimed("b", units) == claimed
    assert cluster.claimed("a", units) == set()  # its own
