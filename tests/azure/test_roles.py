"""Least privilege: the operator's role is enough for what it does, and each line of it is needed."""

from __future__ import annotations

import pytest

from tests.azure.arm.builder import GROUP
from tests.azure.arm.sdk import compute_client, network_client
from tests.azure.arm.server import Emulator
from tests.azure.conftest import refusal

NETWORK = "Microsoft.Network"
ROLE = [
    "Microsoft.Compute/virtualMachines/read",
    f"{NETWORK}/networkInterfaces/read",
    f"{NETWORK}/networkInterfaces/write",
    f"{NETWORK}/virtualNetworks/read",
    f"{NETWORK}/virtualNetworks/subnets/read",
    f"{NETWORK}/virtualNetworks/subnets/join/action",
    f"{NETWORK}/networkSecurityGroups/join/action",
    f"{NETWORK}/applicationSecurityGroups/joinIpConfiguration/action",
]


@pytest.fixture
def cloud_with_groups(cloud: Emulator) -> Emulator:
    nsg = cloud.build.put("Microsoft.Network/networkSecurityGroups", "nsg")["id"]
    asg = cloud.build.put("Microsoft.Network/applicationSecurityGroups", "web")["id"]
    nic = cloud.build.nic("w1-nic")
    nic["properties"]["networkSecurityGroup"] = {"id": nsg}
    nic["properties"]["ipConfigurations"][0]["properties"]["applicationSecurityGroups"] = [{"id": asg}]
    cloud.build.request("PUT", nic["id"], nic)
    return cloud


async def everyday(azure: Emulator) -> None:
    """What the operator does for a standalone VM."""
    async with compute_client(azure.url) as compute, network_client(azure.url) as network:
        vm = await compute.virtual_machines.get(GROUP, "w1")
        nic = await network.network_interfaces.get(GROUP, vm.network_profile.network_interfaces[0].id.rsplit("/", 1)[1])
        await network.virtual_networks.get(GROUP, "net")
        await network.subnets.get(GROUP, "net", "pods")
        first = nic.ip_configurations[0]
        groups = [{"id": group.id} for group in first.application_security_groups or ()]
        properties = {"subnet": {"id": first.subnet.id}, "applicationSecurityGroups": groups}
        nic.ip_configurations.append({"name": "vnetpods-1", "properties": properties})
        await (await network.network_interfaces.begin_create_or_update(GROUP, "w1-nic", nic)).result()


async def test_role_is_sufficient(cloud_with_groups: Emulator) -> None:
    cloud_with_groups.build.assign_role("operator", ROLE)
    await everyday(cloud_with_groups)


@pytest.mark.parametrize("missing", ROLE)
async def test_each_line_is_necessary(cloud_with_groups: Emulator, missing: str) -> None:
    cloud_with_groups.build.assign_role("operator", [action for action in ROLE if action != missing])
    code = "LinkedAuthorizationFailed" if "join" in missing else "AuthorizationFailed"
    assert await refusal(everyday(cloud_with_groups)) == (403, code)


async def test_scope_limits_a_role(cloud: Emulator) -> None:
    nic = cloud.build.id("Microsoft.Network/networkInterfaces", "w1-nic")
    cloud.build.assign_role("operator", ["Microsoft.Network/networkInterfaces/*"], nic)
    async with network_client(cloud.url) as network:
        await network.network_interfaces.get(GROUP, "w1-nic")
        assert await refusal(network.network_interfaces.get(GROUP, "other")) == (403, "AuthorizationFailed")


async def test_another_principal_may_everything(cloud: Emulator) -> None:
    cloud.build.assign_role("operator", [])
    async with network_client(cloud.url, principal="terraform") as network:
        await network.network_interfaces.get(GROUP, "w1-nic")


async def test_unchanged_references_can_go_unchecked(cloud_with_groups: Emulator) -> None:
    build = cloud_with_groups.build
    build.assign_role("operator", [f"{NETWORK}/networkInterfaces/*"])
    async with network_client(cloud_with_groups.url) as network:
        nic = await network.network_interfaces.get(GROUP, "w1-nic")
        write = network.network_interfaces.begin_create_or_update
        assert await refusal(write(GROUP, "w1-nic", nic)) == (403, "LinkedAuthorizationFailed")
        build.configure(joins_checked="changed")
        await write(GROUP, "w1-nic", nic)
