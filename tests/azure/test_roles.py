"""Least privilege: the operator's role suffices, and each of its actions is needed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.azure.arm.builder import GROUP, LOCATION
from tests.azure.arm.sdk import compute_client, network_client
from tests.azure.arm.server import Emulator
from tests.azure.conftest import refusal

Task = Callable[[Emulator], Awaitable[None]]
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
    cloud.build.create_scale_set("pool", "net/pods", 1)
    pools = [{"name": "pods"}]
    cloud.build.put("Microsoft.Network/loadBalancers", "lb", {"backendAddressPools": pools}, sku={"name": "Standard"})
    return cloud


async def everyday(azure: Emulator) -> None:
    """The operator's requests for a standalone VM."""
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


async def uniform(azure: Emulator) -> None:
    """The operator's requests for a uniform instance."""
    async with compute_client(azure.url) as compute, network_client(azure.url) as network:
        vm = await compute.virtual_machine_scale_set_vms.get(GROUP, "pool", "0")
        vm.storage_profile.image_reference = None
        await (await compute.virtual_machine_scale_set_vms.begin_update(GROUP, "pool", "0", vm)).result()
        nics = network.network_interfaces.list_virtual_machine_scale_set_vm_network_interfaces(GROUP, "pool", "0")
        assert len([nic async for nic in nics]) == 1


async def public_ip(azure: Emulator) -> None:
    """Gives a pod a public address and removes it."""
    async with network_client(azure.url) as network:
        body: Any = {"location": LOCATION, "sku": {"name": "Standard"}, "properties": {}}
        made = await (await network.public_ip_addresses.begin_create_or_update(GROUP, "pod", body)).result()
        nic = await network.network_interfaces.get(GROUP, "w1-nic")
        nic.ip_configurations[0].public_ip_address = {"id": made.id}
        nic = await (await network.network_interfaces.begin_create_or_update(GROUP, "w1-nic", nic)).result()
        await network.public_ip_addresses.get(GROUP, "pod")
        nic.ip_configurations[0].public_ip_address = None
        await (await network.network_interfaces.begin_create_or_update(GROUP, "w1-nic", nic)).result()
        await (await network.public_ip_addresses.begin_delete(GROUP, "pod")).result()


async def load_balancer(azure: Emulator) -> None:
    """Puts a pod behind a load balancer, by address."""
    vnet = {"id": azure.build.id("Microsoft.Network/virtualNetworks", "net")}
    member = {"name": "pod", "properties": {"ipAddress": "10.240.0.9", "virtualNetwork": vnet}}
    async with network_client(azure.url) as network:
        await network.load_balancers.get(GROUP, "lb")
        pools = network.load_balancer_backend_address_pools
        await pools.get(GROUP, "lb", "pods")
        body: Any = {"properties": {"loadBalancerBackendAddresses": [member]}}
        await (await pools.begin_create_or_update(GROUP, "lb", "pods", body)).result()


INSTANCES = "Microsoft.Compute/virtualMachineScaleSets/virtualMachines"
TASKS: dict[str, tuple[Task, list[str]]] = {
    "standalone": (everyday, ROLE),
    "uniform": (
        uniform,
        [
            f"{INSTANCES}/read",
            f"{INSTANCES}/write",
            f"{INSTANCES}/networkInterfaces/read",
            f"{NETWORK}/virtualNetworks/subnets/join/action",
        ],
    ),
    "public IP": (
        public_ip,
        [
            *(f"{NETWORK}/publicIPAddresses/{verb}" for verb in ("read", "write", "delete", "join/action")),
            f"{NETWORK}/networkInterfaces/read",
            f"{NETWORK}/networkInterfaces/write",
            f"{NETWORK}/virtualNetworks/subnets/join/action",
            f"{NETWORK}/networkSecurityGroups/join/action",
            f"{NETWORK}/applicationSecurityGroups/joinIpConfiguration/action",
        ],
    ),
    "load balancer": (
        load_balancer,
        [
            f"{NETWORK}/loadBalancers/read",
            f"{NETWORK}/loadBalancers/backendAddressPools/read",
            f"{NETWORK}/loadBalancers/backendAddressPools/write",
            f"{NETWORK}/virtualNetworks/joinLoadBalancer/action",
        ],
    ),
}


@pytest.mark.parametrize("task", TASKS)
async def test_role_is_sufficient(cloud_with_groups: Emulator, task: str) -> None:
    work, role = TASKS[task]
    cloud_with_groups.build.assign_role("operator", role)
    await work(cloud_with_groups)


@pytest.mark.parametrize(("task", "missing"), [(task, line) for task, (_, role) in TASKS.items() for line in role])
async def test_each_line_is_necessary(cloud_with_groups: Emulator, task: str, missing: str) -> None:
    work, role = TASKS[task]
    cloud_with_groups.build.assign_role("operator", [action for action in role if action != missing])
    code = "LinkedAuthorizationFailed" if "join" in missing else "AuthorizationFailed"
    assert await refusal(work(cloud_with_groups)) == (403, code)


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
