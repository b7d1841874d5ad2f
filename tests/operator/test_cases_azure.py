"""Faults of the Azure control plane that users of other CNIs reported, each with the value that is right.

Names begin with the case's number. Real SDK against the emulator, real API server.
"""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import pytest

from tests.azure.arm.faults import Effect
from tests.azure.arm.ids import parse
from tests.operator.worlds import NIC_READ, NIC_WRITE, World
from vnetpods_api.conditions import ConditionType

pytestmark = pytest.mark.apiserver

NIC = "Microsoft.Network/networkInterfaces"
GROUP = "Microsoft.Network/applicationSecurityGroups"
BALANCER = "Microsoft.Network/loadBalancers"


def foreign_part(body: dict[str, Any]) -> dict[str, Any]:
    """A NIC without what is ours and what changes by itself."""
    kept = copy.deepcopy(body)
    kept.pop("etag", None)
    parts = kept["properties"]["ipConfigurations"]
    kept["properties"]["ipConfigurations"] = [p for p in parts if not p["name"].startswith("vnetpods-")]
    for part in kept["properties"]["ipConfigurations"]:
        part.pop("etag", None)
    return kept


async def test_c21_a_write_that_was_not_recorded_is_adopted(world: World) -> None:
    """aws#66: the process died between the cloud's success and its own record."""
    node, _ = await world.worker("one")
    async with world.operator():
        await world.until_allocated(node, 4)
    # somebody kills the operator after the NIC was written, before the pool says so: the pool is behind the NIC
    body = world.azure.build.nic("one-nic")
    parts = body["properties"]["ipConfigurations"]
    reference = parts[0]["properties"]["subnet"]
    parts += [{"name": f"vnetpods-0000000{i}", "properties": {"subnet": reference}} for i in range(4)]
    world.azure.build.request("PUT", body["id"], body)
    world.settings["groups"] = [{"minimum": 8, "warm": 4, "batch": 4}]
    before = world.writes()
    async with world.operator():
        pool = await world.until_allocated(node, 8)
    assert set(pool.status.interfaces[0].addresses) == world.addresses("one-nic")
    assert world.writes() == before + 1  # which changes nothing: it proves that what was read was no late read


async def test_c25_nothing_is_sent_before_retry_after(world: World) -> None:
    world.azure.build.fault("status", method="PUT", status=429, code="TooManyRequests", retry_after=2)
    node, _ = await world.worker("one")
    async with world.operator():
        throttled = await world.until_reason(node, "Throttled")
        assert "2 s" in throttled.message
        await world.until_allocated(node, 4)
    first, second = world.azure.build.requests(NIC_WRITE)
    assert first["status"] == 429
    assert second["at"] - first["at"] >= 2.0


async def test_c25_every_node_that_waits_for_azure_says_so(world: World) -> None:
    """The second node's request is not even sent: that it waits for the same reason must be seen all the same."""
    world.azure.build.fault("status", method="PUT", status=429, code="TooManyRequests", retry_after=60)
    one, _ = await world.worker("one")
    async with world.operator():
        await world.until_reason(one, "Throttled")
        two, _ = await world.worker("two")
        throttled = await world.until_reason(two, "Throttled")
    assert "again at" in throttled.message
    assert world.writes() == 1


async def test_c25_a_lock_is_not_taken_for_the_quota(world: World) -> None:
    world.azure.build.fault(
        "status", method="PUT", status=429, code="RetryableErrorDueToAnotherOperation", resource="*/one-nic"
    )
    one, _ = await world.worker("one")
    two, _ = await world.worker("two")
    async with world.operator():
        await world.until_allocated(two, 4)
        await world.until_allocated(one, 4)
    assert world.writes() == 3


async def test_c25_idle_costs_next_to_nothing(world: World) -> None:
    workers = [await world.worker(f"w{i}") for i in range(10)]
    async with world.operator():
        for node, _ in workers:
            await world.until_allocated(node, 4)
        for _, agent in workers:
            agent.start(2)
            await agent.sync()
        for node, agent in workers:
            await world.until_allocated(node, 8)  # 2 of 4 in use is less than `warm` free
            await agent.sync()
        before = len(world.azure.build.requests())
        for _ in range(5):  # pods come and go within the warm addresses
            for _, agent in workers:
                agent.end(2)
                agent.start(2)
                await agent.sync()
        await asyncio.sleep(0.5)
        assert len(world.azure.build.requests()) == before


async def test_c25_a_restart_reads_no_nic_and_writes_none(world: World) -> None:
    node, _ = await world.worker("one")
    await asyncio.sleep(1.0)  # the pool is written in a later second: the Node is not one that was made since
    async with world.operator():
        await world.until_allocated(node, 4)
    reads, writes = len(world.azure.build.requests(NIC_READ)), world.writes()
    async with world.operator():
        await asyncio.sleep(1.0)
    assert (len(world.azure.build.requests(NIC_READ)), world.writes()) == (reads, writes)


async def test_c28_an_unknown_number_of_free_addresses_is_not_zero(world: World) -> None:
    """cilium#36379: `subnet.ipConfigurations` is null on a large subnet."""
    world.azure.build.configure(listed_configurations=0)
    node, _ = await world.worker("one")
    async with world.operator():
        pool = await world.until_allocated(node, 4)
    assert pool.status.interfaces[0].subnet.endswith("/subnets/pods")


async def test_c30_security_groups_are_copied(world: World) -> None:
    """cilium#15194: a configuration without the NIC's application security groups is refused."""
    groups = [{"id": str(world.azure.build.put(GROUP, name)["id"])} for name in ("web", "db")]
    node, _ = await world.worker("one")
    body = world.azure.build.nic("one-nic")
    body["properties"]["ipConfigurations"][0]["properties"]["applicationSecurityGroups"] = groups
    world.azure.build.request("PUT", body["id"], body)
    async with world.operator():
        await world.until_allocated(node, 4)
    for part in world.azure.build.nic("one-nic")["properties"]["ipConfigurations"]:
        assert part["properties"]["applicationSecurityGroups"] == groups


async def test_c31_balancer_pools_are_not_copied(world: World) -> None:
    """egressip-ipam-operator#74: outbound rules refuse pools that secondary configurations belong to."""
    balancer = world.azure.build.put(
        BALANCER, "lb", {"backendAddressPools": [{"name": "out"}]}, sku={"name": "Standard"}
    )
    pools = [{"id": balancer["properties"]["backendAddressPools"][0]["id"]}]
    node, _ = await world.worker("one")
    body = world.azure.build.nic("one-nic")
    body["properties"]["ipConfigurations"][0]["properties"]["loadBalancerBackendAddressPools"] = pools
    world.azure.build.request("PUT", body["id"], body)
    async with world.operator():
        await world.until_allocated(node, 4)
    primary, *others = world.azure.build.nic("one-nic")["properties"]["ipConfigurations"]
    assert primary["properties"]["loadBalancerBackendAddressPools"] == pools
    assert all("loadBalancerBackendAddressPools" not in other["properties"] for other in others)


@pytest.mark.parametrize("change", ["tag", "configuration"])
async def test_c32_what_others_write_meanwhile_is_kept(world: World, change: str) -> None:
    """kubernetes#71991: the other writer comes between our GET and our PUT."""
    world.azure.build.fault("writer", method="PUT", change=change, argument="theirs")
    node, _ = await world.worker("one")
    async with world.operator():
        await world.until_allocated(node, 4)
    after = world.azure.build.nic("one-nic")
    if change == "tag":
        assert after["tags"]["changed-by"] == "theirs"
    else:
        assert "theirs" in world.azure.build.addresses("one-nic")
    assert next(r["status"] for r in world.azure.build.requests(NIC_WRITE)) == 412


async def test_c32_the_rest_of_the_nic_is_byte_for_byte_as_it_was(world: World) -> None:
    node, agent = await world.worker("one")
    body = world.azure.build.nic("one-nic")
    body["tags"] = {"owner": "network team"}
    body["properties"]["enableIPForwarding"] = True
    body["properties"]["dnsSettings"] = {"dnsServers": ["10.9.9.9"], "appliedDnsServers": []}
    world.azure.build.request("PUT", body["id"], body)
    world.azure.build.add_address("one-nic", "theirs")
    before = foreign_part(world.azure.build.nic("one-nic"))
    async with world.operator():
        await world.until_allocated(node, 4)
        agent.start(20)
        await world.until_pods_run(agent)
        agent.end(20)

        async def shrunk() -> bool:
            await agent.sync()
            return len(world.addresses("one-nic")) == 8

        await world.until("the surplus to go back", shrunk)
    assert foreign_part(world.azure.build.nic("one-nic")) == before


async def test_c32_an_address_that_somebody_removed_comes_back_by_value(world: World) -> None:
    world.settings["audit"] = "500ms"
    node, agent = await world.worker("one")
    async with world.operator():
        await world.until_allocated(node, 4)
        agent.start(4)
        await world.until_pods_run(agent)
        lost = min(agent.held)
        name = next(n for n, a in world.azure.build.addresses("one-nic").items() if a == lost)
        world.azure.build.remove_address("one-nic", name)

        async def back() -> bool:
            await agent.sync()
            return lost in world.addresses("one-nic")

        await world.until("the lost address to come back", back)
        await world.until_reason(node, "PoolReady")
        assert agent.held <= world.addresses("one-nic")


async def test_c35_a_failed_nic_keeps_its_pods_and_is_repaired_by_one_write(world: World) -> None:
    """CAPZ#5515."""
    node, agent = await world.worker("one")
    async with world.operator():
        await world.until_allocated(node, 4)
        agent.start(1)
        await world.until_pods_run(agent)
        world.azure.build.fault("fail", method="PUT", code="InternalServerError", after=True)
        agent.start(9)
        await world.until_pods_run(agent)

        async def healed() -> bool:
            well = world.azure.build.nic("one-nic")["properties"]["provisioningState"] == "Succeeded"
            interface = (await world.pool(node)).status.interfaces[0]
            return well and set(interface.addresses) == world.addresses("one-nic")

        await world.until("the NIC to be healed, and the pool to say so", healed)
    assert agent.held <= world.addresses("one-nic")


async def test_c35_a_failed_entry_is_not_handed_out_and_never_taken_from_its_pod(world: World) -> None:
    world.settings["audit"] = "300ms"
    node, agent = await world.worker("one")
    async with world.operator():
        await world.until_allocated(node, 4)
        agent.start(2)
        await world.until_pods_run(agent)
        await world.until_allocated(node, 8)
        resource = world.azure.cloud.store.get(parse(world.azure.build.id(NIC, "one-nic")))
        assert resource is not None
        bad = min(agent.held)
        for part in resource.body["properties"]["ipConfigurations"]:
            if part["properties"]["privateIPAddress"] == bad:
                part["properties"]["provisioningState"] = "Failed"
        writes = world.writes()
        await world.until("the entry to be written again", lambda: _wrote(world, writes))
        for _ in range(10):
            await agent.sync()
            await asyncio.sleep(0.1)
            assert agent.held <= world.addresses("one-nic")
        assert len(world.addresses("one-nic")) >= 8
    assert bad in agent.held


async def _wrote(world: World, before: int) -> bool:
    return world.writes() > before


async def test_c37_asks_for_what_fits_and_says_that_the_nic_is_full(world: World) -> None:
    """aks-engine#1741: 250 entries are there, 20 are wanted."""
    world.settings["groups"] = [{"minimum": 0, "warm": 20, "batch": 20, "maximum": 4096}]
    node = await world.node("one")
    world.azure.build.create_nic("full-nic", "net/pods", secondaries=249)
    vm = world.azure.build.create_vm("full", nics=["full-nic"])
    node = await world.node("full", "azure://" + vm)
    async with world.operator():
        pool = await world.until_allocated(node, 6)
        ready = await world.until_reason(node, "AtCapacity")
        await asyncio.sleep(0.3)
    assert pool.status.capacity == 6
    assert ready.status == "True"  # the six can be handed out
    assert world.writes() == 1


async def test_c38_a_full_subnet_frees_and_recovers_by_itself(world: World) -> None:
    """terway#100."""
    world.azure.build.create_subnet("net", "tiny", "10.241.0.0/28")  # 11 usable, 2 of them the nodes' own
    world.settings["groups"] = [{"minimum": 1, "warm": 1, "batch": 1}]
    one, first = await world.worker("one", "net/tiny")
    two, second = await world.worker("two", "net/tiny")
    async with world.operator():
        await world.until_allocated(one, 1)
        await world.until_allocated(two, 1)
        first.start(40)

        async def all_taken() -> bool:
            await first.sync()
            return len(first.held) == 8  # 11 less the two nodes' own and the 1 of the other

        await world.until("the first node to take the rest", all_taken)
        full = await world.until_reason(one, "SubnetFull")
        assert "one-nic" in full.message
        first.end(39)
        second.start(5)

        async def moved() -> bool:
            await first.sync()
            await second.sync()
            return second.waiting == 0

        await world.until("addresses to move to the second node", moved, timeout=20)
    assert second.held <= world.addresses("two-nic")


async def test_c40_the_last_addresses_of_a_subnet_are_not_stranded(world: World) -> None:
    """AKS#4035: 11 are left, three nodes want batches of 16."""
    world.azure.build.create_subnet("net", "small", "10.241.0.0/28")
    world.settings["groups"] = [{"minimum": 0, "warm": 3, "batch": 16}]
    workers = [await world.worker(f"w{i}", "net/small") for i in range(3)]
    async with world.operator():

        async def used_up() -> bool:
            return sum(len(world.addresses(f"w{i}-nic")) for i in range(3)) == 8

        await world.until("all 8 to be configured", used_up)
        for node, _ in workers:
            await world.until(f"{node} to be judged", lambda node=node: world.condition(node))  # type: ignore[misc]
    assert world.writes() <= 8


async def test_c42_addresses_of_others_are_left_alone(world: World) -> None:
    """cilium#14655: 30 foreign configurations, some in use by another CNI's pods."""
    node = await world.node("one", world.machine("one"))
    for number in range(30):
        world.azure.build.add_address("one-nic", f"cni-{number}")
    before = foreign_part(world.azure.build.nic("one-nic"))
    async with world.operator():
        pool = await world.until_allocated(node, 4)
    assert set(pool.status.interfaces[0].addresses) == world.addresses("one-nic")
    assert foreign_part(world.azure.build.nic("one-nic")) == before


async def test_c42_unless_their_names_are_configured_then_no_write_is_needed(world: World) -> None:
    world.settings["adopt"] = ["pods-*"]
    node, agent = await world.worker("one")
    for number in range(30):
        world.azure.build.add_address("one-nic", f"pods-{number}")
    async with world.operator():
        await world.until_allocated(node, 30)
        agent.start(3)
        await world.until_pods_run(agent)
        for _ in range(15):  # a surplus for long enough, but not ours to give back
            await asyncio.sleep(0.1)
            pool = await agent.sync()
            assert pool.status.interfaces[0].releasing == ()
            agent.start(1)
    assert world.writes() == 0


async def test_a_standing_403_backs_off_and_names_the_action(world: World) -> None:
    """C24's kind: cilium#19695 retried a 403 until the subscription throttled."""
    scope = world.azure.build.id(NIC, "one-nic")
    world.azure.build.fault(
        "status",
        method="PUT",
        status=403,
        code="AuthorizationFailed",
        times=None,
        message=(
            "The client 'x' with object id 'x' does not have authorization to perform action "
            f"'Microsoft.Network/networkInterfaces/write' over scope '{scope}' or the scope is invalid."
        ),
    )
    node, agent = await world.worker("one")
    async with world.operator():
        ready = await world.until_reason(node, "Forbidden")
        for _ in range(5):
            agent.start(1)
            await agent.sync()
            await asyncio.sleep(0.1)
        stalled = await world.condition(node, ConditionType.STALLED)
        event = await world.until("an Event", lambda: world.events(node))
    assert f"needs Microsoft.Network/networkInterfaces/write on {scope}" in ready.message
    assert stalled is not None
    assert stalled.status == "True"
    assert world.writes() == 1
    assert [e["reason"] for e in event] == ["Forbidden"]


@pytest.mark.parametrize(
    ("effect", "more"),
    [
        ("reset", {"times": 4}),
        ("reset", {"times": 2, "after": True}),
        ("status", {"status": 500, "code": "InternalServerError"}),
        ("status", {"status": 409, "code": "AnotherOperationInProgress"}),
        ("garbage", {}),
        ("fail", {"code": "InternalServerError"}),
        ("fail", {"code": "InternalServerError", "after": True}),
        ("preempt", {}),
        ("preempt", {"after": True}),
        ("slow", {"seconds": 0.3}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value)) or "plain",
)
@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_whatever_fails_once_no_address_is_lost_and_the_need_is_met_once(
    world: World, effect: Effect, more: dict[str, Any], method: str
) -> None:
    if method == "GET" and (effect in ("fail", "preempt") or more.get("after")):
        pytest.skip("only writes fail so")
    world.azure.build.fault(effect, method=method, resource="*/networkInterfaces/*", **more)
    node, _ = await world.worker("one")
    async with world.operator():
        pool = await world.until_allocated(node, 4)
        await world.until_reason(node, "PoolReady")
        pool = await world.pool(node)
    assert set(pool.status.interfaces[0].addresses) == world.addresses("one-nic")
    assert len(world.addresses("one-nic")) == 4


async def test_a_machine_that_vanishes_ends_in_a_clear_condition(world: World) -> None:
    world.settings["audit"] = "400ms"
    node, _ = await world.worker("one")
    async with world.operator():
        before = await world.until_allocated(node, 4)
        world.azure.build.delete("Microsoft.Compute/virtualMachines", "one")
        await world.until_reason(node, "MachineNotFound")
        after = await world.pool(node)
        reads = len(world.azure.build.requests())
        await asyncio.sleep(1.0)
        assert len(world.azure.build.requests()) - reads <= 2
    assert after.status.interfaces == before.status.interfaces


async def test_excluded_addresses_are_never_handed_out(world: World) -> None:
    world.settings["exclude"] = ["10.240.0.5-10.240.0.6", "10.240.0.8"]
    node, _ = await world.worker("one")
    async with world.operator():
        pool = await world.until_allocated(node, 5)  # of 8 configured, 3 are out
    assert not {"10.240.0.5", "10.240.0.6", "10.240.0.8"} & set(pool.status.interfaces[0].addresses)


async def test_what_is_adopted_later_is_listed_without_waiting_for_an_audit(world: World) -> None:
    node, _ = await world.worker("one")
    world.azure.build.add_address("one-nic", "pods-1")
    async with world.operator():
        await world.until_allocated(node, 4)
        world.settings["adopt"] = ["pods-*"]
        world.config()  # written; the operator reloads it
        await world.until_allocated(node, 5)


async def test_an_address_excluded_later_goes_when_its_pod_goes(world: World) -> None:
    node, agent = await world.worker("one")
    async with world.operator():
        await world.until_allocated(node, 4)
        agent.start(1)
        await world.until_pods_run(agent)
        (held,) = agent.held
        world.settings["exclude"] = [held]
        world.config()  # written; the operator reloads it
        await world.until(
            "the address to be on its way out",
            lambda: _releasing(world, node, held),
        )
        assert held in world.addresses("one-nic")
        agent.end(1)

        async def gone() -> bool:
            await agent.sync()
            return held not in {a for i in (await world.pool(node)).status.interfaces for a in i.addresses}

        await world.until("the address to go", gone)


async def _releasing(world: World, node: str, address: str) -> bool:
    return address in (await world.pool(node)).status.interfaces[0].releasing


async def test_the_minimum_comes_in_one_write_although_many_pods_wait(world: World) -> None:
    node, agent = await world.worker("one")
    world.settings["groups"] = [{"maximum": 250}]
    async with world.operator():
        await world.until_allocated(node, 16)
        agent.start(250 - 16)
        agent.start(16)
        # the Node allows 110 pods as long as it says nothing else

        async def capped() -> bool:
            await agent.sync()
            ready = await world.condition(node)
            return ready is not None and ready.reason == "AtCapacity"

        await world.until("the node to be at its capacity", capped)
        assert (await world.pool(node)).status.allocated == 110
    assert world.writes() <= 3


async def test_c25_the_published_limits_are_never_met(world: World) -> None:
    """The emulator enforces ARM's and Microsoft.Network's limits; the default budget stays below them."""
    world.azure.build.configure(throttling=True)
    workers = [await world.worker(f"w{i}") for i in range(50)]
    async with world.operator():
        for node, _ in workers:
            await world.until_allocated(node, 4)
    statuses = [request["status"] for request in world.azure.build.requests(principal="operator")]
    assert 429 not in statuses
    assert world.writes() == 50
