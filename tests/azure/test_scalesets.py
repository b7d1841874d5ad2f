"""Scale sets through the real SDK: flexible ones are VMs, uniform ones are changed through their model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from azure.core import MatchConditions
from azure.mgmt.compute.aio import ComputeManagementClient
from azure.mgmt.network.aio import NetworkManagementClient

from tests.azure.arm.builder import GROUP
from tests.azure.arm.sdk import compute_client
from tests.azure.arm.server import Emulator
from tests.azure.conftest import refusal


@pytest.fixture
async def compute(cloud: Emulator) -> AsyncIterator[ComputeManagementClient]:
    cloud.build.create_scale_set("pool", "net/pods", 3)
    async with compute_client(cloud.url) as client:
        yield client


async def addresses(network: NetworkManagementClient, instance: str) -> list[str]:
    found = network.network_interfaces.list_virtual_machine_scale_set_vm_network_interfaces(GROUP, "pool", instance)
    return [str(part.private_ip_address) async for nic in found for part in nic.ip_configurations]


async def grow(
    compute: ComputeManagementClient, instance: str, *names: str, primary: bool | None = True, **properties: Any
) -> None:
    """Grows like the operator: GET, image reference to null, more configurations, PUT with If-Match."""
    vm = await compute.virtual_machine_scale_set_vms.get(GROUP, "pool", instance)
    parts = vm.network_profile_configuration.network_interface_configurations[0].ip_configurations
    parts[0].primary = primary
    subnet = {"id": parts[0].subnet.id}
    for name in names:
        parts.append({"name": name, "properties": {"subnet": subnet, "primary": False, **properties}})
    vm.storage_profile.image_reference = None
    poller = await compute.virtual_machine_scale_set_vms.begin_update(
        GROUP, "pool", instance, vm, etag=vm.etag, match_condition=MatchConditions.IfNotModified
    )
    await poller.result()


async def test_uniform_instance_gets_addresses_through_its_model(
    compute: ComputeManagementClient, network: NetworkManagementClient
) -> None:
    assert await addresses(network, "1") == ["10.240.0.6"]
    before = await compute.virtual_machine_scale_set_vms.get(GROUP, "pool", "1")
    assert (before.name, before.latest_model_applied, before.os_profile.computer_name) == ("pool_1", True, "pool000001")
    await grow(compute, "1", "vnetpods-1", "vnetpods-2")
    assert await addresses(network, "1") == ["10.240.0.6", "10.240.0.8", "10.240.0.9"]
    after = await compute.virtual_machine_scale_set_vms.get(GROUP, "pool", "1")
    assert after.latest_model_applied is False
    assert after.storage_profile.image_reference.offer == "debian-12"
    assert after.etag != before.etag


async def test_addresses_are_released_through_the_model(
    compute: ComputeManagementClient, network: NetworkManagementClient
) -> None:
    await grow(compute, "0", "vnetpods-1", "vnetpods-2")
    vm = await compute.virtual_machine_scale_set_vms.get(GROUP, "pool", "0")
    del vm.network_profile_configuration.network_interface_configurations[0].ip_configurations[1]
    await (await compute.virtual_machine_scale_set_vms.begin_update(GROUP, "pool", "0", vm)).result()
    assert await addresses(network, "0") == ["10.240.0.5", "10.240.0.9"]


async def test_stale_model_is_refused(compute: ComputeManagementClient) -> None:
    vm = await compute.virtual_machine_scale_set_vms.get(GROUP, "pool", "0")
    await grow(compute, "0", "vnetpods-1")
    refused = compute.virtual_machine_scale_set_vms.begin_update(
        GROUP, "pool", "0", vm, etag=vm.etag, match_condition=MatchConditions.IfNotModified
    )
    assert (await refusal(refused))[0] == 412


@pytest.mark.parametrize("change", ["tag", "configuration", "remove"])
async def test_other_writer_changes_the_model_first(
    cloud: Emulator, compute: ComputeManagementClient, network: NetworkManagementClient, change: str
) -> None:
    await grow(compute, "0", "vnetpods-1")
    cloud.build.fault("writer", method="PUT", change=change)
    assert (await refusal(grow(compute, "0", "vnetpods-2")))[0] == 412
    await grow(compute, "0", "vnetpods-2")
    assert len(await addresses(network, "0")) == {"tag": 3, "configuration": 4, "remove": 2}[change]


async def test_nics_of_instances_are_shown_by_the_set_only(
    compute: ComputeManagementClient, network: NetworkManagementClient
) -> None:
    assert [nic.name async for nic in network.network_interfaces.list_all()] == ["w1-nic"]
    listing = network.network_interfaces.list_virtual_machine_scale_set_network_interfaces(GROUP, "pool")
    assert len([nic async for nic in listing]) == 3
    nic = await network.network_interfaces.get_virtual_machine_scale_set_network_interface(
        GROUP, "pool", "2", "pool-nic"
    )
    assert nic.virtual_machine.id.endswith("/virtualMachineScaleSets/pool/virtualMachines/2")
    assert nic.primary is True


async def test_too_many(compute: ComputeManagementClient) -> None:
    refused = grow(compute, "0", *(f"vnetpods-{number}" for number in range(256)))
    assert await refusal(refused) == (400, "SecondaryIpConfigurationCountPerVMSSVMExceeded")


async def test_other_subnet_has_the_prefixed_code(cloud: Emulator, compute: ComputeManagementClient) -> None:
    subnet = {"id": cloud.build.id("Microsoft.Network/virtualNetworks/subnets", "net/tiny")}
    refused = grow(compute, "0", "vnetpods-1", subnet=subnet)
    assert await refusal(refused) == (400, "VMScaleSetIpConfigurationsOnSameNicCannotUseDifferentSubnets")


async def test_gallery_image_needs_a_permission_unless_it_is_null(
    cloud: Emulator, compute: ComputeManagementClient
) -> None:
    gallery = "/subscriptions/x/resourceGroups/g/providers/Microsoft.Compute/galleries/g/images/debian/versions/1.0.0"
    profile = cloud.build.get("Microsoft.Compute/virtualMachineScaleSets", "pool")["properties"]
    profile["virtualMachineProfile"]["storageProfile"]["imageReference"] = {"id": gallery}
    cloud.build.put("Microsoft.Compute/virtualMachineScaleSets", "pool", profile, sku={"name": "s", "capacity": 4})
    cloud.build.assign_role(
        "operator",
        ["Microsoft.Compute/*", "Microsoft.Network/virtualNetworks/subnets/join/action"],
        cloud.build.id("Microsoft.Compute/virtualMachineScaleSets", "pool"),
    )
    subnets = cloud.build.id("Microsoft.Network/virtualNetworks", "net")
    cloud.build.assign_role("operator", ["Microsoft.Network/virtualNetworks/subnets/join/action"], subnets)
    await grow(compute, "3", "vnetpods-1")
    vm = await compute.virtual_machine_scale_set_vms.get(GROUP, "pool", "3")
    refused = compute.virtual_machine_scale_set_vms.begin_update(GROUP, "pool", "3", vm)
    assert await refusal(refused) == (403, "LinkedAuthorizationFailed")


async def test_half_made_entries_fail_every_later_update(cloud: Emulator, compute: ComputeManagementClient) -> None:
    cloud.build.fault("half", method="PUT", code="NetworkingInternalOperationError")
    assert await refusal(grow(compute, "0", "vnetpods-1")) == (200, "NetworkingInternalOperationError")
    assert await refusal(grow(compute, "0", "vnetpods-2")) == (200, "NetworkingInternalOperationError")
    vm = await compute.virtual_machine_scale_set_vms.get(GROUP, "pool", "0")
    parts = vm.network_profile_configuration.network_interface_configurations[0].ip_configurations
    assert [part.name for part in parts] == ["ipconfig1", "vnetpods-1"]
    del parts[1]
    await (await compute.virtual_machine_scale_set_vms.begin_update(GROUP, "pool", "0", vm)).result()
    await grow(compute, "0", "vnetpods-2")


async def test_instance_that_is_gone(cloud: Emulator, compute: ComputeManagementClient) -> None:
    cloud.build.fault("vanish", method="PUT")
    assert (await refusal(grow(compute, "2", "vnetpods-1")))[0] == 412
    assert await refusal(compute.virtual_machine_scale_set_vms.get(GROUP, "pool", "2")) == (404, "NotFound")
    vm = await compute.virtual_machine_scale_set_vms.get(GROUP, "pool", "1")
    refused = compute.virtual_machine_scale_set_vms.begin_update(GROUP, "pool", "2", vm)
    assert await refusal(refused) == (400, "InstanceIdsListInstanceIdNotActiveVM")


async def test_scaling_never_reuses_an_instance_id(
    cloud: Emulator, compute: ComputeManagementClient, network: NetworkManagementClient
) -> None:
    scale_set = await compute.virtual_machine_scale_sets.get(GROUP, "pool")
    for capacity, expected in ((1, ["0"]), (3, ["0", "3", "4"]), (0, [])):
        assert scale_set.sku is not None
        scale_set.sku.capacity = capacity
        await (await compute.virtual_machine_scale_sets.begin_create_or_update(GROUP, "pool", scale_set)).result()
        listed = [vm.instance_id async for vm in compute.virtual_machine_scale_set_vms.list(GROUP, "pool")]
        assert listed == expected
    listing = network.network_interfaces.list_virtual_machine_scale_set_network_interfaces(GROUP, "pool")
    with pytest.raises(Exception, match="No network interfaces"):
        [nic async for nic in listing]


async def test_flexible_instances_are_ordinary_machines(cloud: Emulator, network: NetworkManagementClient) -> None:
    cloud.build.create_scale_set("flex", "net/pods", 2, mode="Flexible")
    async with compute_client(cloud.url) as compute:
        vm = await compute.virtual_machines.get(GROUP, "flex_1")
    assert vm.virtual_machine_scale_set.id.endswith("/flex")
    nic = await network.network_interfaces.get(GROUP, "flex_1-nic")
    assert nic.virtual_machine.id.endswith("/virtualMachines/flex_1")


async def test_of_several_entries_in_a_model_one_must_be_the_primary(compute: ComputeManagementClient) -> None:
    vm = await compute.virtual_machine_scale_set_vms.get(GROUP, "pool", "0")
    parts = vm.network_profile_configuration.network_interface_configurations[0].ip_configurations
    assert [part.primary for part in parts] == [None], "models of instances say nothing about it"
    code = "VMScaleSetNetworkInterfaceConfigurationMustHaveOneIpConfigAsPrimary"
    assert await refusal(grow(compute, "0", "vnetpods-1", primary=None)) == (400, code)
