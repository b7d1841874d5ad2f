"""Rules of a NIC PUT, and the addresses it gets, through the real SDK."""

from __future__ import annotations

from typing import Any

import pytest
from azure.mgmt.network.aio import NetworkManagementClient

from tests.azure.arm.builder import GROUP
from tests.azure.arm.sdk import compute_client
from tests.azure.arm.server import Emulator
from tests.azure.conftest import WriteNic, part, refusal

MISSING = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/{}"

REFUSED: dict[str, tuple[list[dict[str, Any]], str]] = {
    "no configuration": ([], "NetworkInterfaceMustHaveAtLeastOneIpConfiguration"),
    "two primaries": ([{"primary": True}, {"primary": True}], "MultiplePrimaryIpConfigurationsOnNic"),
    "no primary": (
        [{"primary": False}, {"primary": False}],
        "NetworkInterfaceMustHaveExactlyOnePrimaryIpConfiguration",
    ),
    "IPv6 primary": ([{"primary": True, "privateIPAddressVersion": "IPv6"}], "Ipv6IPConfigurationCannotBePrimary"),
    "two subnets": ([{}, {"subnet": "net/tiny"}], "IpConfigurationsOnSameNicCannotUseDifferentSubnets"),
    "unknown subnet": ([{"subnet": MISSING.format("virtualNetworks/v/subnets/s")}], "InvalidResourceReference"),
    "no subnet": ([{"subnet": None}], "SubnetNotSpecified"),
    "unknown group": (
        [{"applicationSecurityGroups": [{"id": MISSING.format("applicationSecurityGroups/a")}]}],
        "InvalidResourceReference",
    ),
    "subnet that is no id": ([{"subnet": "/pods"}], "LinkedInvalidPropertyId"),
    "address outside": (
        [{"privateIPAllocationMethod": "Static", "privateIPAddress": "10.250.0.9"}],
        "PrivateIPAddressNotInSubnet",
    ),
    "first addresses": (
        [{"privateIPAllocationMethod": "Static", "privateIPAddress": "10.240.0.3"}],
        "PrivateIPAddressInReservedRange",
    ),
    "last address": (
        [{"privateIPAllocationMethod": "Static", "privateIPAddress": "10.240.255.255"}],
        "PrivateIPAddressInReservedRange",
    ),
    "address of another NIC": (
        [{"privateIPAllocationMethod": "Static", "privateIPAddress": "10.240.0.4"}],
        "PrivateIPAddressIsAllocated",
    ),
    "the same address twice": (
        [{"privateIPAllocationMethod": "Static", "privateIPAddress": "10.240.9.9"}] * 2,
        "PrivateIPAddressIsAllocated",
    ),
    "no address": ([{"privateIPAllocationMethod": "Static"}], "PrivateIPAddressNotSpecified"),
    "nonsense address": ([{"privateIPAllocationMethod": "Static", "privateIPAddress": "pod"}], "InvalidIPAddress"),
    "block as primary": ([{"privateIPAddressPrefixLength": 28}], "PrimaryIpConfigurationCannotHavePrefixLength"),
    "block of another size": ([{}, {"privateIPAddressPrefixLength": 24}], "InvalidPrivateIPAddressPrefixLength"),
}


@pytest.mark.parametrize(("parts", "code"), REFUSED.values(), ids=REFUSED.keys())
async def test_refused_and_nothing_changed(
    cloud: Emulator, write_nic: WriteNic, parts: list[dict[str, Any]], code: str
) -> None:
    body = []
    for number, given in enumerate(parts):
        properties = dict(given)
        subnet = properties.pop("subnet", "net/pods")
        entry = part(cloud, f"c{number}", subnet or "net/pods", **properties)
        if subnet is None:
            del entry["properties"]["subnet"]
        body.append(entry)
    before = cloud.build.get("Microsoft.Network/virtualNetworks", "net")
    assert await refusal(write_nic("n1", *body)) == (400, code)
    assert cloud.build.get("Microsoft.Network/virtualNetworks", "net") == before
    assert cloud.build.addresses("w1-nic") == {"ipconfig1": "10.240.0.4"}


async def test_names_are_unique_without_regard_to_case(cloud: Emulator, write_nic: WriteNic) -> None:
    assert await refusal(write_nic("n1", part(cloud, "a"), part(cloud, "A"))) == (400, "DuplicateResourceName")


async def test_dynamic_takes_the_lowest_and_keeps_it(cloud: Emulator, write_nic: WriteNic) -> None:
    assert await write_nic("n1", part(cloud, "a"), part(cloud, "b")) == {"a": "10.240.0.5", "b": "10.240.0.6"}
    assert await write_nic("n1", part(cloud, "b", primary=True), part(cloud, "c", primary=False)) == {
        "b": "10.240.0.6",
        "c": "10.240.0.7",
    }
    assert await write_nic("n2", part(cloud, "a")) == {"a": "10.240.0.5"}


async def test_new_dynamic_ones_avoid_static_ones_of_the_same_write(cloud: Emulator, write_nic: WriteNic) -> None:
    fixed = part(cloud, "b", privateIPAllocationMethod="Static", privateIPAddress="10.240.0.5")
    assert await write_nic("n1", part(cloud, "a"), fixed) == {"a": "10.240.0.6", "b": "10.240.0.5"}


async def test_another_subnet_gives_everything_back(cloud: Emulator, write_nic: WriteNic) -> None:
    await write_nic("n1", part(cloud, "a"), part(cloud, "b"))
    assert await write_nic("n1", part(cloud, "a", "net/tiny")) == {"a": "10.241.0.4"}
    assert await write_nic("n2", part(cloud, "a"), part(cloud, "b")) == {"a": "10.240.0.5", "b": "10.240.0.6"}


async def test_full_subnet(cloud: Emulator, write_nic: WriteNic, network: NetworkManagementClient) -> None:
    parts = [part(cloud, f"c{number}", "net/tiny") for number in range(12)]
    assert await refusal(write_nic("n1", *parts)) == (400, "SubnetIsFull")
    assert len(await write_nic("n1", *parts[:11])) == 11
    usage = {str(u.id).rsplit("/", 1)[1]: u async for u in network.virtual_networks.list_usage(GROUP, "net")}
    assert (usage["tiny"].current_value, usage["tiny"].limit) == (11, 11)


async def test_blocks_are_aligned_and_mix_with_single_addresses(cloud: Emulator, write_nic: WriteNic) -> None:
    block = part(cloud, "block", privateIPAddressPrefixLength=28)
    assert await write_nic("n1", part(cloud, "a"), block) == {"a": "10.240.0.5", "block": "10.240.0.16/28"}
    inside = part(cloud, "x", privateIPAllocationMethod="Static", privateIPAddress="10.240.0.20")
    assert await refusal(write_nic("n2", inside)) == (400, "PrivateIPAddressIsAllocated")
    fixed = part(
        cloud,
        "x",
        privateIPAllocationMethod="Static",
        privateIPAddress="10.240.1.5",
        privateIPAddressPrefixLength=28,
    )
    assert (await write_nic("n2", part(cloud, "a"), fixed))["x"] == "10.240.1.5/28"
    taken = part(cloud, "y", privateIPAllocationMethod="Static", privateIPAddress="10.240.1.15")
    assert await refusal(write_nic("n3", taken)) == (400, "PrivateIPAddressIsAllocated")


async def test_256_per_nic_and_per_machine(cloud: Emulator, write_nic: WriteNic) -> None:
    parts = [part(cloud, f"c{number}") for number in range(257)]
    guesses = cloud.cloud.settings.guesses
    assert await refusal(write_nic("n1", *parts)) == (400, guesses.nic_limit_code)
    assert len(await write_nic("n1", *parts[:256])) == 256
    cloud.build.create_nic("n2", "net/pods")
    cloud.build.create_nic("n3", "net/pods")
    cloud.build.create_vm("big", nics=["n2", "n3"])
    await write_nic("n2", *parts[:200])
    assert await refusal(write_nic("n3", *parts[:57])) == (400, guesses.vm_limit_code)
    await write_nic("n3", *parts[:56])


async def test_put_resets_what_it_leaves_out_and_keeps_what_it_doesnt_know(
    cloud: Emulator, network: NetworkManagementClient
) -> None:
    group = cloud.build.put("Microsoft.Network/networkSecurityGroups", "nsg")["id"]
    nic = cloud.build.nic("w1-nic")
    nic["tags"] = {"a": "1"}
    nic["properties"] |= {"networkSecurityGroup": {"id": group}, "auxiliarySku": "A8", "invented": {"deep": [1, 2]}}
    nic["properties"]["ipConfigurations"][0]["properties"]["inventedToo"] = "x"
    cloud.build.request("PUT", nic["id"], nic)
    model = await network.network_interfaces.get(GROUP, "w1-nic")
    assert (model.network_security_group.id, model.tags) == (group, {"a": "1"})
    await (await network.network_interfaces.begin_create_or_update(GROUP, "w1-nic", model)).result()
    after = cloud.build.nic("w1-nic")
    assert after["properties"]["invented"] == {"deep": [1, 2]}
    assert after["properties"]["ipConfigurations"][0]["properties"]["inventedToo"] == "x"
    bare: Any = {"location": "westeurope", "properties": {"ipConfigurations": after["properties"]["ipConfigurations"]}}
    await (await network.network_interfaces.begin_create_or_update(GROUP, "w1-nic", bare)).result()
    reset = cloud.build.nic("w1-nic")
    assert "tags" not in reset
    assert {"networkSecurityGroup", "invented"}.isdisjoint(reset["properties"])
    for kept in ("macAddress", "virtualMachine", "primary"):
        assert reset["properties"][kept] == after["properties"][kept]


async def test_all_configurations_have_the_same_groups(cloud: Emulator, write_nic: WriteNic) -> None:
    asg = [{"id": cloud.build.put("Microsoft.Network/applicationSecurityGroups", "web")["id"]}]
    code = "AllIpConfigurationsOnANicMustBelongToTheSameApplicationSecurityGroups"
    with_group = part(cloud, "a", primary=True, applicationSecurityGroups=asg)
    assert await refusal(write_nic("n1", with_group, part(cloud, "b", primary=False))) == (400, code)
    await write_nic("n1", with_group, part(cloud, "b", primary=False, applicationSecurityGroups=asg))


async def test_public_ip_belongs_to_one_configuration(cloud: Emulator, write_nic: WriteNic) -> None:
    public = cloud.build.put("Microsoft.Network/publicIPAddresses", "front", {"publicIPAllocationMethod": "Static"})
    reference = {"id": public["id"]}
    await write_nic("n1", part(cloud, "a", publicIPAddress=reference))
    assert await refusal(write_nic("n2", part(cloud, "a", publicIPAddress=reference))) == (400, "PublicIPAddressInUse")
    shown = cloud.build.get("Microsoft.Network/publicIPAddresses", "front")["properties"]
    assert shown["ipConfiguration"]["id"].endswith("/networkInterfaces/n1/ipConfigurations/a")
    await write_nic("n1", part(cloud, "a"))
    await write_nic("n2", part(cloud, "a", publicIPAddress=reference))


async def test_removed_address_stays_taken_for_minutes(cloud: Emulator, write_nic: WriteNic) -> None:
    cloud.build.configure(removed_stays_taken=480)
    await write_nic("n1", part(cloud, "a"), part(cloud, "b"))
    await write_nic("n1", part(cloud, "a"))
    again = part(cloud, "b", privateIPAllocationMethod="Static", privateIPAddress="10.240.0.6")
    assert await refusal(write_nic("n2", again)) == (400, "PrivateIPAddressIsAllocated")
    cloud.build.advance(481)
    assert await write_nic("n2", again) == {"b": "10.240.0.6"}


@pytest.mark.parametrize(
    ("rule", "answer"),
    [("retryable", (429, "RetryableErrorDueToAnotherOperation")), ("conflict", (409, "AnotherOperationInProgress"))],
)
async def test_second_write_while_one_runs(
    cloud: Emulator, write_nic: WriteNic, network: NetworkManagementClient, rule: str, answer: tuple[int, str]
) -> None:
    cloud.build.configure(parallel_writes=rule)
    cloud.build.set_duration("Microsoft.Network/networkInterfaces", 10)
    nic = await network.network_interfaces.get(GROUP, "w1-nic")
    running = await network.network_interfaces.begin_create_or_update(GROUP, "w1-nic", nic)
    assert await refusal(write_nic("w1-nic", part(cloud, "ipconfig1"))) == answer
    await running.result()
    await write_nic("w1-nic", part(cloud, "ipconfig1"))


async def test_later_write_preempts_the_earlier(
    cloud: Emulator, write_nic: WriteNic, network: NetworkManagementClient
) -> None:
    cloud.build.configure(parallel_writes="accept")
    cloud.build.set_duration("Microsoft.Network/networkInterfaces", 10)
    nic = await network.network_interfaces.get(GROUP, "w1-nic")
    earlier = await network.network_interfaces.begin_create_or_update(GROUP, "w1-nic", nic)
    await write_nic("w1-nic", part(cloud, "ipconfig1"))
    assert await refusal(earlier.result()) == (200, "OperationPreempted")
    assert cloud.build.nic("w1-nic")["properties"]["provisioningState"] == "Succeeded"


@pytest.mark.parametrize("style", ["body", "none"])
async def test_writes_without_operation_header(cloud: Emulator, write_nic: WriteNic, style: str) -> None:
    cloud.build.configure(operation_style=style)
    cloud.build.set_duration("Microsoft.Network/networkInterfaces", 10)
    await write_nic("w1-nic", part(cloud, "ipconfig1", primary=True), part(cloud, "pod", primary=False))
    assert "Microsoft.Network/locations/operations/read" not in cloud.build.counts()


async def test_nic_in_use_outlives_its_deletion(cloud: Emulator, network: NetworkManagementClient) -> None:
    assert await refusal(network.network_interfaces.begin_delete(GROUP, "w1-nic")) == (400, "NicInUse")
    async with compute_client(cloud.url) as compute:
        await (await compute.virtual_machines.begin_delete(GROUP, "w1")).result()
    assert "macAddress" not in cloud.build.nic("w1-nic")["properties"]
    await (await network.network_interfaces.begin_delete(GROUP, "w1-nic")).result()
    assert await refusal(network.network_interfaces.get(GROUP, "w1-nic")) == (404, "ResourceNotFound")


async def test_parts_can_be_read_alone(cloud: Emulator, network: NetworkManagementClient) -> None:
    names = [c.name async for c in network.network_interface_ip_configurations.list(GROUP, "w1-nic")]
    assert names == ["ipconfig1"]
    found = await network.network_interface_ip_configurations.get(GROUP, "w1-nic", "IPCONFIG1")
    assert found.private_ip_address == "10.240.0.4"
    assert await refusal(network.network_interface_ip_configurations.get(GROUP, "w1-nic", "x")) == (404, "NotFound")


async def test_big_subnet_lists_no_configurations(cloud: Emulator, network: NetworkManagementClient) -> None:
    assert len((await network.subnets.get(GROUP, "net", "pods")).ip_configurations) == 1
    cloud.build.configure(listed_configurations=4)
    cloud.build.create_nic("n1", "net/pods", secondaries=9)
    assert (await network.subnets.get(GROUP, "net", "pods")).ip_configurations is None
