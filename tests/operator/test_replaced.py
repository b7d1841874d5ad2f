"""Nodes whose machine is another one than before, though name and resource id may be the same.

Addresses of the former machine may belong to any other by now: they must not stay listed until the next audit.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.operator.agents import Agent
from tests.operator.benches import Bench, bench, full
from tests.operator.worlds import World
from vnetpods_api import ManagedFields, Metadata, NodeIPPool, OwnerReference
from vnetpods_api.conditions import Reason
from vnetpods_api.names import AGENT_MANAGER, OPERATOR_MANAGER
from vnetpods_operator.planning.model import Problem
from vnetpods_operator.planning.node import Node, node_from
from vnetpods_operator.state.cluster import ClusterState

NODE = Node(
    name="n", uid="u", provider_id="", pod_limit=110, labels={}, boot=("b", "m", "s"), since="2026-01-01T00:00:00Z"
)


async def until_listed_as_there(world: World, node: str) -> NodeIPPool:
    """The pool lists what is on the NIC and nothing else."""

    async def check() -> NodeIPPool | None:
        pool = await world.pool(node)
        listed = {address for interface in pool.status.interfaces for address in interface.addresses}
        return pool if listed and listed == world.addresses("one-nic") else None

    found: NodeIPPool = await world.until("what the pool lists to be on the NIC", check, 10)
    return found


@pytest.mark.apiserver
async def test_a_machine_made_again_while_the_operator_is_down(world: World) -> None:
    node, _ = await world.worker("one")
    async with world.operator():
        before = await world.until_allocated(node, 4)
    await world.node_again(node, world.machine_again("one"))
    assert set(before.status.interfaces[0].addresses) <= world.addresses("one-heir-nic")
    async with world.operator():
        await until_listed_as_there(world, node)


@pytest.mark.apiserver
async def test_a_machine_made_again_under_the_same_node(world: World) -> None:
    """Its kubelet takes the Node over, and says that it runs on another system."""
    node, _ = await world.worker("one")
    async with world.operator():
        await world.until_allocated(node, 4)
        world.machine_again("one")
        status = {"status": {"nodeInfo": {"bootID": "another", "machineID": "another", "systemUUID": "another"}}}
        await world.kube.request(
            "PATCH", f"/api/v1/nodes/{node}/status", body=status, content_type="application/merge-patch+json"
        )
        await until_listed_as_there(world, node)
        agent = Agent(world.kube, node)
        agent.start(3)
        await world.until_pods_run(agent)
    assert agent.held <= world.addresses("one-nic")


async def take_over(found: Bench, provider: str) -> None:
    """The watch missed the deletion: the fresh Node comes as a change of the former one."""
    await found.world.node_again(found.agent.node, provider)
    found.cluster.upsert_node(node_from(found.world.api.get("node", found.agent.node)))


@pytest.mark.apiserver
async def test_an_agent_that_writes_before_the_list_is_emptied(world: World) -> None:
    _, agent = await world.worker("one")
    async with bench(world, agent) as found:
        await full(found, agent)
        await take_over(found, world.machine("other"))
        agent.start(1)
        await agent.sync()  # what the operator knows is outdated
        await found.look()
        pool = await found.see()
        assert pool.spec.machine is not None
        assert pool.spec.machine.endswith("/one")
        await found.look()
        pool = await found.see()
        assert pool.spec.machine is not None
        assert pool.spec.machine.endswith("/other")
        listed = {address for interface in pool.status.interfaces for address in interface.addresses}
        assert listed == world.addresses("other-nic")


@pytest.mark.apiserver
async def test_a_death_of_an_earlier_version_between_naming_the_machine_and_emptying_the_list(world: World) -> None:
    node, _ = await world.worker("one")
    async with world.operator():
        await world.until_allocated(node, 4)
    other = world.machine("other")
    await asyncio.sleep(1.0)  # the API server's times have seconds
    await world.node_again(node, other)
    owner: OwnerReference = node_from(world.api.get("node", node)).owner
    await world.pools.adopt(node, owner, other.removeprefix("azure://"))
    async with world.operator():

        async def others() -> bool:
            (interface,) = (await world.pool(node)).status.interfaces
            return set(interface.addresses) == world.addresses("other-nic") != set()

        await world.until("the other machine's addresses", others, 10)


@pytest.mark.apiserver
async def test_a_back_off_ends_with_the_node_that_caused_it(world: World) -> None:
    node, agent = await world.worker("one")
    async with bench(world, agent) as found:
        await full(found, agent)
        world.azure.build.delete("Microsoft.Compute/virtualMachines", "one")
        world.azure.build.delete("Microsoft.Network/networkInterfaces", "one-nic")
        for _ in range(8):
            found.cluster.record(node).audit_at = found.cluster.record(node).not_before = 0.0
            await found.look()
        await take_over(found, world.machine("one"))
        await found.look()
        pool = await found.see()
    assert set(pool.status.interfaces[0].addresses) == world.addresses("one-nic")


@pytest.mark.parametrize(
    ("changed", "reason", "forgotten"),
    [
        pytest.param({"uid": "v"}, Reason.THROTTLED, True, id="made-again"),
        pytest.param({"boot": ("c", "m", "s")}, Reason.THROTTLED, True, id="booted"),
        pytest.param({"pod_limit": 30}, Reason.MACHINE_NOT_FOUND, False, id="something-else"),
        pytest.param({"ready": True}, Reason.MACHINE_NOT_FOUND, True, id="ready-after-its-machine-was-gone"),
        pytest.param({"ready": True}, Reason.THROTTLED, False, id="ready"),
    ],
)
def test_what_is_remembered_of_a_node(changed: dict[str, object], reason: Reason, forgotten: bool) -> None:
    cluster, before = ClusterState(), replace(NODE, ready=False)
    cluster.upsert_node(before)
    record = cluster.record("n")
    record.problem = Problem(reason, "")
    assert cluster.upsert_node(replace(before, **changed))  # type: ignore[arg-type]
    assert (cluster.record("n") is not record) is forgotten


@pytest.mark.parametrize(
    ("written", "forgotten"),
    [
        pytest.param("2025-12-31T23:59:59Z", True, id="before"),
        pytest.param("2026-01-01T00:00:00Z", True, id="within-the-second"),
        pytest.param("2026-01-01T00:00:01Z", False, id="after"),
    ],
)
def test_what_a_new_operator_thinks_of_a_pool(written: str, forgotten: bool) -> None:
    """Only what the operator wrote counts: an agent may have written since."""
    cluster, late = ClusterState(), "2026-02-01T00:00:00Z"
    fields = (
        ManagedFields(manager=OPERATOR_MANAGER, subresource="status", time=written),
        ManagedFields(manager=OPERATOR_MANAGER, time=late),
        ManagedFields(manager=AGENT_MANAGER, subresource="status", time=late),
    )
    cluster.upsert_pool(NodeIPPool(metadata=Metadata(name="n", resource_version="1", managed_fields=fields)))
    record = cluster.record("n")  # its NICs are to be read some time
    cluster.upsert_node(NODE)
    assert (cluster.record("n") is not record) is forgotten
