"""All kinds of machines, end to end: standalone VMs, flexible and uniform instances, several NICs, other places."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.azure.arm.builder import Builder
from tests.operator.agents import Agent
from tests.operator.benches import bench
from tests.operator.worlds import World
from vnetpods_api import ConditionType
from vnetpods_operator.azure.scale_set import ScaleSetInstance
from vnetpods_operator.planning.machine import Entry, Naming, Nic, usable_by_pods
from vnetpods_operator.state.pools import PATH

pytestmark = pytest.mark.apiserver

INSTANCE_WRITE = "Microsoft.Compute/virtualMachineScaleSets/virtualMachines/write"


async def life(world: World, node: str, agent: Agent) -> None:
    """Grows for pods, and gives back when they are gone."""
    await world.until_allocated(node, 4)
    agent.start(12)
    await world.until_pods_run(agent)
    agent.end(11, newest=True)

    async def shrunk() -> bool:
        await agent.sync()
        return (await world.pool(node)).status.allocated == 9

    await world.until("the surplus to go back", shrunk)


def uniform_addresses(world: World, instance: str) -> set[str]:
    """What the emulator says that the NIC of `set/instance` has of ours."""
    name = instance.split("/", maxsplit=1)[0]
    kind = "Microsoft.Compute/virtualMachineScaleSets/virtualMachines/networkInterfaces"
    body = world.azure.build.get(kind, f"{instance}/{name}-nic")
    parts = body["properties"]["ipConfigurations"]
    return {p["properties"]["privateIPAddress"] for p in parts if p["name"].startswith("vnetpods-")}


async def test_standalone_with_a_shouted_provider_id(world: World) -> None:
    node = await world.node("one", world.machine("one").upper().replace("AZURE://", "azure://"))
    async with world.operator():
        await life(world, node, Agent(world.kube, node))


async def test_flexible_instance(world: World) -> None:
    world.azure.build.create_scale_set("flex", "net/pods", 1, mode="Flexible")
    vm = world.azure.build.id("Microsoft.Compute/virtualMachines", "flex_0")
    node = await world.node("flex", "azure://" + vm)
    async with world.operator():
        await life(world, node, Agent(world.kube, node))


async def uniform(world: World, **profile: Any) -> tuple[str, Agent]:
    made = world.azure.build.create_scale_set("set", "net/pods", 2, **profile)
    node = await world.node("set", f"azure://{made}/virtualMachines/1")
    return node, Agent(world.kube, node)


async def test_uniform_instance(world: World) -> None:
    node, agent = await uniform(world)
    async with world.operator():
        await life(world, node, agent)
    pool = await world.pool(node)
    assert set(pool.status.interfaces[0].addresses) == uniform_addresses(world, "set/1")
    assert uniform_addresses(world, "set/0") == set()


async def test_the_first_entry_of_an_instance_is_written_as_its_primary(world: World) -> None:
    node, _ = await uniform(world)
    model = world.azure.build.get("Microsoft.Compute/virtualMachineScaleSets/virtualMachines", "set/1")
    assert "primary" not in str(entries_of(model)), "as recorded: models of instances don't say"
    async with world.operator():
        await world.until_allocated(node, 4)
    model = world.azure.build.get("Microsoft.Compute/virtualMachineScaleSets/virtualMachines", "set/1")
    assert [one["properties"]["primary"] for one in entries_of(model)] == [True, False, False, False, False]


def entries_of(model: dict[str, Any]) -> list[dict[str, Any]]:
    (nic,) = model["properties"]["networkProfileConfiguration"]["networkInterfaceConfigurations"]
    found: list[dict[str, Any]] = nic["properties"]["ipConfigurations"]
    return found


async def test_what_another_writes_to_an_instance_at_the_same_time_stays(world: World) -> None:
    world.azure.build.fault("writer", operation=INSTANCE_WRITE, change="configuration", argument="foreign")
    node, _ = await uniform(world)
    async with world.operator():
        await world.until_allocated(node, 4)
    assert "foreign" in uniform_entries(world)
    assert len(world.azure.build.requests(INSTANCE_WRITE)) == 2, "the first was refused with 412"


async def test_the_limit_of_one_machine_holds_up_no_other(world: World) -> None:
    """Compute counts updates per machine; a 429 about one closed all writes of the subscription."""
    refused = {"method": "PUT", "status": 429, "code": "OperationNotAllowed", "retry_after": 600}
    words = "The server rejected the request because too many requests have been received for this resource."
    world.azure.build.fault("status", resource="*/virtualMachines/1", message=words, times=None, **refused)
    node, _ = await uniform(world)
    async with world.operator():
        await world.until_reason(node, "Throttled")
        other, _ = await world.worker("other")
        await world.until_allocated(other, 4)


async def test_the_limit_of_compute_holds_up_no_nics(world: World) -> None:
    refused = {"method": "PUT", "status": 429, "code": "OperationNotAllowed", "retry_after": 600}
    words = "The server rejected the request because too many requests have been received for this subscription."
    world.azure.build.fault("status", resource="*/virtualMachines/1", message=words, times=None, **refused)
    node, _ = await uniform(world)
    async with world.operator():
        await world.until_reason(node, "Throttled")
        made = world.azure.build.id("Microsoft.Compute/virtualMachineScaleSets", "set")
        sibling = await world.node("sibling", f"azure://{made}/virtualMachines/0")
        await world.until_reason(sibling, "Throttled")
        other, _ = await world.worker("other")
        await world.until_allocated(other, 4)
    assert uniform_addresses(world, "set/0") == set()
    assert len(world.azure.build.requests(INSTANCE_WRITE)) == 1


async def test_a_pool_that_is_paused_while_its_write_waits_for_the_budget_is_not_written(world: World) -> None:
    world.settings["azure"]["budget"] = {"writes": {"perSecond": 0.1, "burst": 1}}
    first, _ = await world.worker("first")
    async with world.operator() as running:
        await world.until_allocated(first, 4)
        node, _ = await world.worker("second")

        async def waits() -> bool:
            return running._budget.waiting > 0 and await world.pool(node) is not None

        await world.until("the second write to wait for the budget", waits)
        body = {"spec": {"paused": True}}
        merge = "application/merge-patch+json"
        await world.kube.request("PATCH", f"{PATH}/{node}", body=body, content_type=merge)
        await world.until_reason(node, "Paused")
    assert world.addresses("second-nic") == set()


async def test_c24_the_image_of_a_gallery_is_not_echoed(world: World) -> None:
    """cilium#19695: 403 LinkedAuthorizationFailed on the gallery, retried until the subscription throttled."""
    gallery = "/subscriptions/11111111-1111-1111-1111-111111111111/resourceGroups/g/providers/Microsoft.Compute"
    image = {"id": f"{gallery}/galleries/ours/images/node/versions/1.0.0"}
    world.azure.build.assign_role(
        "operator", ["*/read", "Microsoft.Compute/virtualMachineScaleSets/virtualMachines/write"]
    )
    world.azure.build.assign_role("operator", ["Microsoft.Network/virtualNetworks/subnets/join/action"])
    node, _ = await uniform(world, storageProfile={"imageReference": image})
    async with world.operator():
        await world.until_allocated(node, 4)
    model = world.azure.build.get("Microsoft.Compute/virtualMachineScaleSets/virtualMachines", "set/1")
    assert model["properties"]["storageProfile"]["imageReference"] == image


def uniform_entries(world: World) -> list[str]:
    """What the model of `set/1` has."""
    model = world.azure.build.get("Microsoft.Compute/virtualMachineScaleSets/virtualMachines", "set/1")
    (nic,) = model["properties"]["networkProfileConfiguration"]["networkInterfaceConfigurations"]
    return [one["name"] for one in nic["properties"]["ipConfigurations"]]


def fail_half_way(world: World) -> None:
    world.azure.build.fault("half", operation=INSTANCE_WRITE, code="NetworkingInternalOperationError")


async def test_half_made_entries_of_a_failed_update_are_swept(world: World) -> None:
    fail_half_way(world)
    node, _ = await uniform(world)
    async with world.operator():
        await world.until_allocated(node, 4)
    assert len(uniform_entries(world)) == 5


async def test_what_an_operator_of_before_has_left_half_made_is_not_swept_but_told(world: World) -> None:
    """Nobody knows any more whether it ever was an address."""
    node, agent = await uniform(world)
    fail_half_way(world)
    async with bench(world, agent) as found:
        await found.look()
    left = uniform_entries(world)
    assert len(left) == 5
    async with bench(world, agent) as found:
        for _ in range(3):
            found.cluster.record(node).not_before = found.cluster.record(node).repair_after = 0.0
            await found.look()
        found.cluster.record(node).not_before = 0.0
        await found.look()
    assert uniform_entries(world) == left
    stalled = await world.condition(node, ConditionType.STALLED)
    assert stalled is not None
    assert (stalled.status, stalled.reason) == ("True", "NicFailed")


async def test_a_list_of_nics_that_lags_takes_no_address_from_pods(world: World, monkeypatch: Any) -> None:
    """Not even where the machine is Failed for a reason of its own and its pool was deleted."""
    node, agent = await uniform(world)
    mark = world.azure.build.keep("*/networkinterfaces/*")
    async with bench(world, agent) as found:
        for _ in range(2):
            await found.look()
        await agent.sync()
        agent.start(3)
        await agent.sync()
        model = ScaleSetInstance._model

        async def failed(instance: ScaleSetInstance) -> dict[str, Any]:
            found = await model(instance)
            return found | {"properties": found["properties"] | {"provisioningState": "Failed"}}

        world.azure.build.lag(mark=mark)
        monkeypatch.setattr(ScaleSetInstance, "_model", failed)
        await world.kube.request("DELETE", f"{PATH}/{node}")
        found.cluster.delete_pool(node)
        for _ in range(4):
            record = found.cluster.record(node)
            record.not_before = record.repair_after = record.audit_at = 0.0
            await found.look()
            assert agent.held <= uniform_addresses(world, "set/1")
        monkeypatch.undo()
        world.azure.build.release()
        record.not_before = record.audit_at = 0.0
        await found.look()
        await agent.sync()
        pool = await found.see()
    assert len(agent.held) == 3
    assert agent.held <= set(pool.status.interfaces[0].addresses)


@pytest.mark.parametrize(
    ("listed", "fenced", "swept"),
    [
        (("10.0.0.5", "10.0.0.6"), False, {"half"}),
        (("10.0.0.5",), False, set()),
        (("10.0.0.5",), True, {"half"}),
    ],
    ids=["whole", "lagging", "fenced"],
)
def test_a_list_that_lacks_what_is_published_is_no_ground_for_sweeping(
    listed: tuple[str, ...], fenced: bool, swept: set[str]
) -> None:
    """What has no address there may be what a pod holds, and on a uniform scale set nothing brings it back."""
    entries = (
        *(Entry(f"vnetpods-{a}", a, "Succeeded", False) for a in listed),
        Entry("vnetpods-half", None, "Failed", False),
    )
    nic = Nic("/nic", "nic", "00:0d:3a:00:00:01", "/s", "e", "Succeeded", True, entries, fenced=fenced)
    (view,) = usable_by_pods([nic], {"10.0.0.5", "10.0.0.6"}, Naming(), {})
    assert {name.removeprefix("vnetpods-") for name in view.broken} == swept
    assert view.pending == len({"half"} - swept)


async def test_a_uniform_instance_that_is_gone(world: World) -> None:
    made = world.azure.build.create_scale_set("set", "net/pods", 1)
    node = await world.node("set", f"azure://{made}/virtualMachines/7")
    async with world.operator():
        await world.until_reason(node, "MachineNotFound")


@pytest.fixture
def two_nics(world: World) -> str:
    """A VM with NICs in two subnets; returns its providerID."""
    world.azure.build.create_subnet("net", "extra", "10.241.0.0/24")
    world.azure.build.create_nic("main-nic", "net/pods")
    world.azure.build.create_nic("extra-nic", "net/extra")
    return "azure://" + world.azure.build.create_vm("two", nics=["main-nic", "extra-nic"])


async def test_only_the_primary_nic_by_default(world: World, two_nics: str) -> None:
    node = await world.node("two", two_nics)
    async with world.operator():
        pool = await world.until_allocated(node, 4)
    assert [i.name for i in pool.status.interfaces] == ["main-nic"]
    assert world.addresses("extra-nic") == set()


@pytest.mark.parametrize("fault", ["null", "404", "403", "500"])
async def test_a_nic_that_is_not_chosen_and_cannot_be_read_hinders_nobody(
    world: World, two_nics: str, fault: str
) -> None:
    match fault:
        case "null":
            body = world.azure.build.nic("extra-nic")
            body["properties"]["ipConfigurations"] = None
            world.azure.build.fault("garbage", resource="*/extra-nic", argument=json.dumps(body), times=None)
        case status:
            code = {"404": "ResourceNotFound", "403": "AuthorizationFailed", "500": "InternalServerError"}[status]
            world.azure.build.fault("status", resource="*/extra-nic", status=int(status), code=code, times=None)
    node = await world.node("two", two_nics)
    async with world.operator():
        pool = await world.until_allocated(node, 4)
        ready = await world.until_reason(node, "NicUnreadable")

        async def told() -> list[str]:
            return [e["note"] for e in await world.events(node) if e["reason"] == "NicUnreadable"]

        notes = await world.until("an Event about it", told)
    assert [i.name for i in pool.status.interfaces] == ["main-nic"]
    assert ready.status == "True"
    assert "NIC extra-nic is left out: " in ready.message
    assert notes == [ready.message]


@pytest.mark.parametrize(("fault", "reason"), [(403, "Forbidden"), (404, "MachineNotFound")])
async def test_a_chosen_nic_that_cannot_be_read_is_not_taken_for_gone(
    world: World, two_nics: str, fault: int, reason: str
) -> None:
    world.settings["interfaces"] = {"names": ["extra-*"]}
    world.settings["audit"] = "300ms"
    node = await world.node("two", two_nics)
    async with world.operator():
        before = await world.until_allocated(node, 4)
        code = {"Forbidden": "AuthorizationFailed", "MachineNotFound": "ResourceNotFound"}[reason]
        world.azure.build.fault("status", resource="*/extra-nic", status=fault, code=code, times=None)
        await world.until_reason(node, reason)
    assert [i.addresses for i in (await world.pool(node)).status.interfaces] == [
        i.addresses for i in before.status.interfaces
    ]


@pytest.mark.parametrize("etag", ["", "*"], ids=["none", "one that fits everything"])
async def test_a_write_that_nothing_fences_is_refused(world: World, etag: str) -> None:
    """Old versions of the compute API give instances no etag: a write could undo another's."""
    node, _ = await uniform(world)
    kind = "Microsoft.Compute/virtualMachineScaleSets/virtualMachines"
    body = world.azure.build.get(kind, "set/1") | {"etag": etag}
    world.azure.build.fault(
        "garbage", method="GET", resource="*/virtualMachines/1", argument=json.dumps(body), times=None
    )
    async with world.operator():
        refused = await world.until_reason(node, "Refused")
    assert "azure.computeApiVersion" in refused.message
    assert world.azure.build.requests(INSTANCE_WRITE) == []


async def test_another_nic_by_name_with_its_own_subnet(world: World, two_nics: str) -> None:
    world.settings["interfaces"] = {"primary": False, "names": ["extra-*"]}
    node = await world.node("two", two_nics)
    async with world.operator():
        await life(world, node, Agent(world.kube, node))
        pool = await world.pool(node)
    (interface,) = pool.status.interfaces
    assert interface.subnet.endswith("/subnets/extra")
    assert interface.prefixes == ("10.241.0.0/24",)
    assert set(interface.addresses) == world.addresses("extra-nic")


async def test_the_second_nic_by_tag_helps_when_the_first_ones_subnet_is_full(world: World) -> None:
    world.azure.build.create_subnet("net", "extra", "10.241.0.0/24")
    world.azure.build.create_subnet("net", "full", "10.242.0.0/29")  # 3 usable, one of them the node's own
    world.azure.build.create_nic("main-nic", "net/full")
    world.azure.build.create_nic("extra-nic", "net/extra")
    body = world.azure.build.nic("extra-nic")
    body["tags"] = {"pods": "yes"}
    world.azure.build.request("PUT", body["id"], body)
    world.settings["interfaces"] = {"tags": {"pods": "yes"}}
    node = await world.node("two", "azure://" + world.azure.build.create_vm("two", nics=["main-nic", "extra-nic"]))
    agent = Agent(world.kube, node)
    async with world.operator():
        await world.until("the pool", lambda: world.condition(node))
        agent.start(6)
        await world.until_pods_run(agent)
        pool = await world.pool(node)
    assert [i.name for i in pool.status.interfaces] == ["main-nic", "extra-nic"]
    assert len(world.addresses("main-nic")) == 2
    assert agent.held <= world.addresses("main-nic") | world.addresses("extra-nic")


async def test_no_nic_for_pods(world: World, two_nics: str) -> None:
    world.settings["interfaces"] = {"primary": False, "names": ["nothing-*"]}
    node = await world.node("two", two_nics)
    async with world.operator():
        await world.until_reason(node, "NoInterface")


async def test_c26_a_vnet_of_another_subscription_that_may_not_be_read(world: World) -> None:
    """cilium#16079 needed read on all VNets of the subscription."""
    build = world.azure.build
    elsewhere = Builder(world.azure.admin.call, "22222222-2222-2222-2222-222222222222", "network")
    vnet = elsewhere.create_vnet("hub", "10.64.0.0/12")
    subnet = elsewhere.create_subnet("hub", "pods", "10.64.0.0/16")
    group = f"/subscriptions/{build.subscription}/resourceGroups/{build.group}"
    build.assign_role("operator", ["*/read", "Microsoft.Network/networkInterfaces/write"], group)
    build.assign_role(
        "operator",
        ["Microsoft.Network/virtualNetworks/subnets/read", "Microsoft.Network/virtualNetworks/subnets/join/action"],
        subnet,
    )
    world.settings["directCIDRs"] = ["192.168.0.0/16"]
    node = await world.node("one", "azure://" + build.create_vm("one", subnet))
    async with world.operator():
        pool = await world.until_allocated(node, 4)
        assert pool.status.interfaces[0].prefixes == ("10.64.0.0/16",)
        assert pool.status.direct_cidrs == ("10.64.0.0/16", "192.168.0.0/16")
    assert vnet.lower() in subnet.lower()


async def test_c48_a_new_prefix_and_a_new_peering_follow(world: World) -> None:
    """aws#737: pods were SNATed or unreachable until a restart."""
    world.settings["azure"]["networks"] = "200ms"
    node, _ = await world.worker("one")
    async with world.operator():
        await world.until_allocated(node, 4)
        hub = Builder(world.azure.admin.call, "22222222-2222-2222-2222-222222222222", "network")
        hub.create_vnet("far", "10.9.0.0/16")
        vnet = world.azure.build.get("Microsoft.Network/virtualNetworks", "net")
        vnet["properties"]["addressSpace"]["addressPrefixes"].append("172.20.0.0/16")
        world.azure.build.request("PUT", vnet["id"], vnet)
        world.azure.build.peer("net", hub.id("Microsoft.Network/virtualNetworks", "far"))

        async def followed() -> bool:
            cidrs = (await world.pool(node)).status.direct_cidrs
            return set(cidrs) == {"10.240.0.0/12", "172.20.0.0/16", "10.9.0.0/16"}

        await world.until("the direct CIDRs to follow", followed)


async def test_groups_pool_sizing_and_pause(world: World) -> None:
    world.settings["groups"] = [
        {"nodes": {"matchLabels": {"size": "big"}}, "minimum": 20, "warm": 4, "batch": 4},
        {"minimum": 6, "warm": 4, "batch": 4},
    ]
    big, _ = await world.worker("big", size="big")
    small, _ = await world.worker("small")
    async with world.operator():
        await world.until_allocated(big, 20)
        await world.until_allocated(small, 6)
        world.api.kubectl("patch", "nip", small, "--type=merge", "-p", '{"spec":{"sizing":{"minimum":9}}}')
        await world.until_allocated(small, 9)
        world.api.kubectl("patch", "nip", small, "--type=merge", "-p", '{"spec":{"sizing":{"minimum":300}}}')
        await world.until_reason(small, "InvalidSizing")
        patch = '{"spec":{"paused":true,"sizing":{"minimum":12}}}'
        world.api.kubectl("patch", "nip", small, "--type=merge", "-p", patch)
        await world.until_reason(small, "Paused")
        assert (await world.pool(small)).status.allocated == 9
        world.api.kubectl("patch", "nip", small, "--type=merge", "-p", '{"spec":{"paused":false}}')
        await world.until_allocated(small, 12)


async def test_nodes_that_opt_out_are_left_alone(world: World) -> None:
    out = await world.node("out", world.machine("out"), labels={"vnetpods.io/managed": "false"})
    served, _ = await world.worker("in")
    async with world.operator():
        await world.until_allocated(served, 4)
        assert await world.condition(out) is None
    assert world.addresses("out-nic") == set()


async def test_blocks_and_single_addresses_mixed(world: World) -> None:
    world.settings["groups"] = [{"minimum": 36, "warm": 4, "batch": 4, "blocks": True}]
    node, agent = await world.worker("one")
    async with world.operator():
        pool = await world.until_allocated(node, 36)
        listed = pool.status.interfaces[0].addresses
        assert sum("/28" in address for address in listed) == 2
        assert len(listed) == 6
        agent.start(36)
        await world.until_pods_run(agent)
    assert world.writes() <= 3


async def test_single_addresses_where_no_aligned_block_is_free(world: World) -> None:
    world.azure.build.create_subnet("net", "narrow", "10.241.0.0/27")  # 32 addresses, and no whole aligned 16 usable
    world.settings["groups"] = [{"minimum": 20, "warm": 4, "batch": 4, "blocks": True}]
    node, _ = await world.worker("one", "net/narrow")
    async with world.operator():
        pool = await world.until_allocated(node, 20)
    assert not [a for a in pool.status.interfaces[0].addresses if "/" in a]
    assert world.writes() <= 3


async def test_a_machine_made_again_under_the_same_name_does_not_inherit_addresses(world: World) -> None:
    node, _ = await world.worker("one")
    async with world.operator():
        before = await world.until_allocated(node, 4)
    other = world.machine("other")
    await world.kube.request("DELETE", f"/api/v1/nodes/{node}")
    await world.node("one", other)
    world.azure.build.fault("status", method="GET", resource="*/other", status=503, code="ServiceUnavailable", times=3)
    async with world.operator():

        async def emptied() -> bool:
            return (await world.pool(node)).status.interfaces == ()

        await world.until("the former machine's addresses to be withdrawn", emptied)
        after = await world.until_allocated(node, 4)
    assert after.spec.machine == other.removeprefix("azure://")
    assert not set(before.status.interfaces[0].addresses) & set(after.status.interfaces[0].addresses)


async def test_a_second_write_reads_the_nic_and_not_the_machine_again(world: World) -> None:
    node, agent = await world.worker("one")
    async with world.operator():
        await world.until_allocated(node, 4)
        reads = len(world.azure.build.requests("Microsoft.Compute/virtualMachines/read"))
        agent.start(9)
        await world.until_pods_run(agent)
    assert len(world.azure.build.requests("Microsoft.Compute/virtualMachines/read")) == reads == 1


async def test_an_operation_that_azure_forgot_does_not_mean_that_the_machine_is_gone(world: World) -> None:
    """A poll that is answered 404 says nothing of the NIC: nobody is told to delete the Node."""
    world.azure.build.set_duration("Microsoft.Network/networkInterfaces", 0.5)
    world.azure.build.fault("status", method="GET", resource="*/operations/*", status=404, code="NotFound")
    node = await world.node("one", world.machine("one"))
    async with world.operator():
        await world.until_reason(node, "Conflict")
        await world.until_allocated(node, 4)
    assert world.writes() == 2  # the second adds nothing: it proves what the first, whose end nobody knows, has brought
    assert "MachineNotFound" not in {event["reason"] for event in await world.events(node)}
