"""Reads of Azure that are older than what was seen or done: they bring nothing back."""

from __future__ import annotations

import pytest

from tests.operator.benches import bench, full, release
from tests.operator.worlds import World
from vnetpods_api import Reason
from vnetpods_operator.planning import trail
from vnetpods_operator.planning.machine import Entry, Nic
from vnetpods_operator.planning.model import Change
from vnetpods_operator.planning.trail import Trail

READ = "*/networkInterfaces/*"


def nic(etag: str, *, fenced: bool = True) -> Nic:
    entries = (Entry("ipconfig1", "10.0.0.4", "Succeeded", primary=True),)
    return Nic("/NIC", "nic", "m", "s", etag, "Succeeded", primary=True, entries=entries, fenced=fenced)


def test_what_was_read_before_something_else_is_older() -> None:
    found = Trail()
    for etag in ("one", "two"):
        assert not found.older([nic(etag)], 0.0)
        found.saw([nic(etag)])
    assert found.older([nic("one")], 0.0) == "nic"
    assert not found.older([nic("two")], 0.0)
    assert not found.older([nic("three")], 0.0)


def test_what_was_read_before_a_write_is_older_though_nothing_else_was_read_yet() -> None:
    found = Trail()
    found.saw([nic("one")])
    found.wrote(nic("one"), Change("nic", add=1))
    assert found.older([nic("one")], 0.0)
    assert not found.older([nic("two")], 0.0)


@pytest.mark.parametrize(
    ("given", "change"),
    [
        pytest.param(nic("one"), Change("nic", rewrite=True), id="that-changes-nothing"),
        pytest.param(nic("one", fenced=False), Change("nic", add=1), id="whose-fence-is-another-resource's"),
        pytest.param(nic(""), Change("nic", add=1), id="without-etag"),
    ],
)
def test_a_write_after_which_the_etag_may_be_the_same(given: Nic, change: Change) -> None:
    found = Trail()
    found.saw([given])
    found.wrote(given, change)
    assert not found.older([given], 0.0)


def test_the_past_is_believed_when_nothing_else_comes_for_long() -> None:
    found = Trail()
    for etag in ("one", "two"):
        found.saw([nic(etag)])
    assert found.older([nic("one")], 100.0)
    assert found.older([nic("one")], 100.0 + trail.PATIENCE)
    assert not found.older([nic("one")], 101.0 + trail.PATIENCE)
    found.saw([nic("one")])
    assert not found.older([nic("one")], 102.0 + trail.PATIENCE)


def test_memory_is_bounded() -> None:
    found = Trail()
    for number in range(trail.NAMES + 5):
        found.saw([nic(str(number))])
        found.gone([f"vnetpods-{number}"])
    assert len(found.removed) == trail.NAMES
    assert f"vnetpods-{trail.NAMES + 4}" in found.removed
    assert found.older([nic(str(trail.NAMES))], 0.0)
    assert not found.older([nic("0")], 0.0)


@pytest.mark.apiserver
async def test_reads_that_stay_old_list_nothing_that_was_given_back(world: World) -> None:
    """Not for one read and another after it: for as long as it takes."""
    _, agent = await world.worker("one")
    world.azure.build.fault("stale", resource="*/nothing")  # the emulator keeps what was before, from now on
    async with bench(world, agent) as found:
        await full(found, agent)
        gone = set((await release(found, agent)).status.released)
        await found.look()
        world.azure.build.fault("stale", method="GET", resource=READ, times=None)
        assert not gone & world.addresses("one-nic")
        agent.start(20)
        for _ in range(5):
            found.cluster.record(agent.node).not_before = found.cluster.record(agent.node).audit_at = 0.0
            await agent.sync()
            await found.see()
            outcome = await found.look()
            assert agent.held <= world.addresses("one-nic")
        assert found.told == [Reason.CONFLICT]
        assert outcome.requeue_after is not None
        world.azure.build.clear_faults()
        found.cluster.record(agent.node).not_before = 0.0
        for _ in range(4):
            await found.round()
        assert agent.waiting == 0
        assert agent.held <= world.addresses("one-nic")


@pytest.mark.apiserver
async def test_entries_that_somebody_brings_back_are_listed_for_nobody_and_go(world: World) -> None:
    """An old list of entries is written to the NIC, by an infrastructure tool for instance."""
    _, agent = await world.worker("one")
    async with bench(world, agent) as found:
        await full(found, agent)
        pool = await release(found, agent)
        names = {a: n for i in pool.status.interfaces for a, n in i.names.items()}
        await found.look()
        address = min(pool.status.released)
        world.azure.build.add_address("one-nic", names[address], address)
        found.cluster.record(agent.node).audit_at = 0.0
        await found.round()
        assert address not in {a for i in (await found.see()).status.interfaces for a in i.addresses}
        for _ in range(3):
            await found.round()
        assert address not in world.addresses("one-nic")
