"""Load balancers through the real SDK: pools by NIC and by address, and their refusals."""

from __future__ import annotations

from typing import Any

import pytest
from azure.mgmt.network.aio import NetworkManagementClient

from tests.azure.arm.builder import GROUP, LOCATION
from tests.azure.arm.server import Emulator
from tests.azure.conftest import WriteNic, part, refusal

LB = "Microsoft.Network/loadBalancers"


@pytest.fixture
def pool(cloud: Emulator) -> str:
    """Id of the pool `pods` of the internal Standard balancer `lb`."""
    return make(cloud, "lb")


def make(cloud: Emulator, name: str, sku: str = "Standard", **properties: Any) -> str:
    subnet = {"id": cloud.build.id("Microsoft.Network/virtualNetworks/subnets", "net/tiny")}
    balancer = cloud.build.id(LB, name)
    body = {
        "frontendIPConfigurations": [{"name": "front", "properties": {"subnet": subnet}}],
        "backendAddressPools": [{"name": "pods"}],
        "loadBalancingRules": [
            {
                "name": "http",
                "properties": {
                    "frontendIPConfiguration": {"id": f"{balancer}/frontendIPConfigurations/front"},
                    "backendAddressPool": {"id": f"{balancer}/backendAddressPools/pods"},
                    "protocol": "Tcp",
                    "frontendPort": 80,
                    "backendPort": 8080,
                },
            }
        ],
        **properties,
    }
    cloud.build.put(LB, name, body, sku={"name": sku})
    return f"{balancer}/backendAddressPools/pods"


def outbound(cloud: Emulator, name: str) -> dict[str, Any]:
    balancer = cloud.build.id(LB, name)
    return {
        "outboundRules": [
            {
                "name": "out",
                "properties": {
                    "backendAddressPool": {"id": f"{balancer}/backendAddressPools/pods"},
                    "frontendIPConfigurations": [{"id": f"{balancer}/frontendIPConfigurations/front"}],
                    "protocol": "All",
                },
            }
        ]
    }


def members(cloud: Emulator, *addresses: str, vnet: str = "net") -> Any:
    reference = {"id": cloud.build.id("Microsoft.Network/virtualNetworks", vnet)}
    entries = [
        {"name": f"pod-{address}", "properties": {"ipAddress": address, "virtualNetwork": reference}}
        for address in addresses
    ]
    return {"properties": {"loadBalancerBackendAddresses": entries}}


async def test_internal_frontend_has_an_address_of_its_subnet(
    cloud: Emulator, network: NetworkManagementClient, pool: str
) -> None:
    balancer = await network.load_balancers.get(GROUP, "lb")
    assert balancer.frontend_ip_configurations[0].private_ip_address == "10.241.0.4"
    balancer.tags = {"a": "1"}
    again = await (await network.load_balancers.begin_create_or_update(GROUP, "lb", balancer)).result()
    assert again.frontend_ip_configurations[0].private_ip_address == "10.241.0.4"
    await (await network.load_balancers.begin_delete(GROUP, "lb")).result()
    assert (
        cloud.cloud.spaces[cloud.build.id("Microsoft.Network/virtualNetworks/subnets", "net/tiny").lower()].taken == {}
    )


async def test_pool_by_nic_lists_its_members(
    cloud: Emulator, network: NetworkManagementClient, write_nic: WriteNic, pool: str
) -> None:
    await write_nic("w1-nic", part(cloud, "ipconfig1", loadBalancerBackendAddressPools=[{"id": pool}]))
    found = await network.load_balancer_backend_address_pools.get(GROUP, "lb", "pods")
    assert [member.id.rsplit("/", 1)[1] for member in found.backend_ip_configurations] == ["ipconfig1"]
    assert len(found.load_balancer_backend_addresses) == 1
    assert [rule.id.rsplit("/", 1)[1] for rule in found.load_balancing_rules] == ["http"]
    refused = await refusal(network.load_balancer_backend_address_pools.begin_delete(GROUP, "lb", "pods"))
    assert refused == (400, "InUseBackendAddressPoolCannotBeDeleted")


async def test_pool_by_address_is_written_alone(cloud: Emulator, network: NetworkManagementClient, pool: str) -> None:
    pools = network.load_balancer_backend_address_pools
    before = (await network.load_balancers.get(GROUP, "lb")).etag
    body = members(cloud, "10.240.0.9", "10.240.0.10")
    await (await pools.begin_create_or_update(GROUP, "lb", "pods", body)).result()
    balancer = await network.load_balancers.get(GROUP, "lb")
    shown = balancer.backend_address_pools[0].load_balancer_backend_addresses
    assert [member.ip_address for member in shown] == ["10.240.0.9", "10.240.0.10"]
    assert balancer.etag != before
    stale = (await pools.get(GROUP, "lb", "pods")).etag
    await (await pools.begin_create_or_update(GROUP, "lb", "pods", members(cloud, "10.240.0.9"))).result()
    refused = pools.begin_create_or_update(GROUP, "lb", "pods", body, headers={"If-Match": stale})
    assert await refusal(refused) == (412, "PreconditionFailed")


async def test_pool_by_address_is_refused(
    cloud: Emulator, network: NetworkManagementClient, write_nic: WriteNic, pool: str
) -> None:
    pools, guesses = network.load_balancer_backend_address_pools, cloud.cloud.settings.guesses
    make(cloud, "basic", sku="Basic")
    refused = pools.begin_create_or_update(GROUP, "basic", "pods", members(cloud, "10.240.0.9"))
    assert await refusal(refused) == (400, guesses.pool_sku_code)
    refused = pools.begin_create_or_update(GROUP, "lb", "pods", members(cloud, "10.9.0.9"))
    assert await refusal(refused) == (400, guesses.pool_address_code)
    refused = pools.begin_create_or_update(GROUP, "lb", "pods", members(cloud, "10.240.0.9", vnet="missing"))
    assert await refusal(refused) == (400, "InvalidResourceReference")
    await write_nic("w1-nic", part(cloud, "ipconfig1", loadBalancerBackendAddressPools=[{"id": pool}]))
    refused = pools.begin_create_or_update(GROUP, "lb", "pods", members(cloud, "10.240.0.9"))
    assert await refusal(refused) == (400, guesses.pool_mixed_code)


async def test_nic_cant_join_a_pool_of_addresses(
    cloud: Emulator, network: NetworkManagementClient, write_nic: WriteNic, pool: str
) -> None:
    pools = network.load_balancer_backend_address_pools
    await (await pools.begin_create_or_update(GROUP, "lb", "pods", members(cloud, "10.240.0.9"))).result()
    refused = write_nic("w1-nic", part(cloud, "ipconfig1", loadBalancerBackendAddressPools=[{"id": pool}]))
    assert await refusal(refused) == (400, cloud.cloud.settings.guesses.pool_mixed_code)


CODE = "OutboundRuleCannotBeUsedWithBackendAddressPoolThatIsReferencedBySecondaryIpConfigs"


async def test_outbound_rule_refuses_secondary_configurations(cloud: Emulator, write_nic: WriteNic) -> None:
    pool = make(cloud, "lb", **outbound(cloud, "lb"))
    pools = [{"id": pool}]
    first = part(cloud, "ipconfig1", primary=True, loadBalancerBackendAddressPools=pools)
    await write_nic("w1-nic", first, part(cloud, "pod", primary=False))
    copied = part(cloud, "pod", primary=False, loadBalancerBackendAddressPools=pools)
    assert await refusal(write_nic("w1-nic", first, copied)) == (400, CODE)


async def test_outbound_rule_comes_later(
    cloud: Emulator, network: NetworkManagementClient, write_nic: WriteNic, pool: str
) -> None:
    first = part(cloud, "ipconfig1", primary=True)
    await write_nic("w1-nic", first, part(cloud, "pod", primary=False, loadBalancerBackendAddressPools=[{"id": pool}]))
    body: Any = cloud.build.get(LB, "lb")
    body["properties"] |= outbound(cloud, "lb")
    assert await refusal(network.load_balancers.begin_create_or_update(GROUP, "lb", body)) == (400, CODE)


async def test_public_frontend_uses_its_public_ip(cloud: Emulator, network: NetworkManagementClient) -> None:
    public = cloud.build.put("Microsoft.Network/publicIPAddresses", "front", sku={"name": "Standard"})
    body: Any = {
        "location": LOCATION,
        "sku": {"name": "Standard"},
        "properties": {
            "frontendIPConfigurations": [{"name": "f", "properties": {"publicIPAddress": {"id": public["id"]}}}]
        },
    }
    await (await network.load_balancers.begin_create_or_update(GROUP, "public", body)).result()
    refused = await refusal(network.public_ip_addresses.begin_delete(GROUP, "front"))
    assert refused == (400, "InUseResourceCannotBeDeleted")
