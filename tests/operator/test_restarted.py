"""An operator process that knows nothing of what the one before it removed, and reads of Azure that are from before."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.operator.benches import Bench, bench, full, release
from tests.operator.worlds import NIC_WRITE, World
from vnetpods_api import Interface, Metadata, NodeIPPool, Reason, Status
from vnetpods_operator.planning.machine import Entry, Naming, Nic, usable_by_pods
from vnetpods_operator.planning.model import Change
from vnetpods_operator.planning.trail import Trail
from vnetpods_operator.state.pools import PATH

NICS = "*/networkInterfaces/*"
NAMING = Naming()


async def listed(found: Bench) -> set[str]:
    return {a for interface in (await found.see()).status.interfaces for a in interface.addresses}


def restart(found: Bench) -> None:
    """Another operator process, and another disk of the node."""
    found.forget()
    found.cluster.record(found.agent.node).audit_at = 0.0
    found.agent.restart(boot=True)
    found.agent.retired.clear()


@pytest.mark.apiserver
async def test_what_a_former_process_removed_is_not_listed_on_a_late_read(world: World) -> None:
    _, agent = await world.worker("one")
    async with bench(world, agent) as found:
        await full(found, agent)
        removed = set((await release(found, agent)).status.released)
        before = world.azure.build.keep(NICS)
        await found.round()
        assert removed
        assert not removed & (world.addresses("one-nic") | await listed(found))

        restart(found)
        world.azure.build.lag(NICS, mark=before)
        await agent.sync()
        await found.see()
        await found.look()
        assert not removed & await listed(found)
        agent.start(20)
        await agent.sync()
        assert agent.held <= world.addresses("one-nic")
        assert found.told == [Reason.CONFLICT]

        world.azure.build.release()
        found.cluster.record(agent.node).not_before = 0.0
        for _ in range(5):
            await found.see()
            await found.round()
        assert agent.waiting == 0
        assert agent.held <= world.addresses("one-nic")


@pytest.mark.apiserver
async def test_a_pool_that_was_deleted_lists_what_a_write_has_proven(world: World) -> None:
    """And no address more is asked for."""
    _, agent = await world.worker("one")
    async with bench(world, agent) as found:
        await full(found, agent)
        there, writes = world.addresses("one-nic"), len(world.azure.build.requests(NIC_WRITE))
        await world.kube.request("DELETE", f"{PATH}/{agent.node}")
        found.forget()
        found.cluster.delete_pool(agent.node)
        for _ in range(3):
            await found.look()
            assert world.addresses("one-nic") == there
            assert await listed(found) == there
            assert len(world.azure.build.requests(NIC_WRITE)) == writes + 1


def nic(*names: str, carries: tuple[str, ...] = ()) -> Nic:
    entries = tuple(Entry(name, f"10.0.0.{place}", "Succeeded", primary=False) for place, name in enumerate(names, 5))
    first = Entry("ipconfig1", "10.0.0.4", "Succeeded", primary=True)
    more = {"primary": True, "entries": (first, *entries), "carries": frozenset(carries)}
    return Nic("/NIC", "nic", "m", "s", "etag", "Succeeded", **more)  # type: ignore[arg-type]


def pool(*interfaces: Interface) -> NodeIPPool:
    return NodeIPPool(metadata=Metadata(name="n"), status=Status(interfaces=interfaces))


def test_what_is_doubted() -> None:
    found, there = Trail(), nic("vnetpods-A", "vnetpods-b", "vnetpods-c", "somebody-else's")
    named = Interface(name="nic", mac="m", subnet="s", addresses=("10.0.0.5",), ip_configurations=("vnetpods-a",))
    assert found.doubted([there], pool(named)) == {"vnetpods-b", "vnetpods-c"}
    unnamed = Interface(name="nic", mac="m", subnet="s", addresses=("10.0.0.5", "10.0.0.6"))  # by an operator of before
    assert found.doubted([there], pool(unnamed)) == {"vnetpods-c"}
    found.wrote(there, Change("nic", rewrite=True), ["vnetpods-b"])
    assert found.doubted([there], pool(named)) == {"vnetpods-c"}


def test_what_no_write_would_carry_is_neither_listed_nor_waited_for() -> None:
    """A scale set's list of NICs may be later than the instance's model, which is what is written."""
    there = replace(nic("vnetpods-a", "vnetpods-b", carries=("vnetpods-b",)), fenced=False)
    view = usable_by_pods([there], (), NAMING, {}, (), {"vnetpods-a", "vnetpods-b"})[0]
    assert (view.addresses, view.pending, view.doubted) == ((), 1, True)
    view = usable_by_pods([there], (), NAMING, {}, (), {"vnetpods-a"})[0]
    assert (view.addresses, view.pending, view.doubted) == (("10.0.0.6",), 0, False)
