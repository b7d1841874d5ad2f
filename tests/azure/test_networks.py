"""VNets, subnets, peerings and usages through the real SDK."""

from __future__ import annotations

from typing import Any

import pytest
from azure.mgmt.network.aio import NetworkManagementClient

from tests.azure.arm.builder import GROUP, LOCATION
from tests.azure.arm.server import Emulator
from tests.azure.conftest import refusal

FAR = "/subscriptions/other/resourceGroups/hub/providers/Microsoft.Network/virtualNetworks/hub"


def vnet(*prefixes: str, **subnets: str) -> Any:
    entries = [{"name": name, "properties": {"addressPrefix": prefix}} for name, prefix in subnets.items()]
    properties: dict[str, Any] = {"addressSpace": {"addressPrefixes": list(prefixes)}}
    if entries:
        properties["subnets"] = entries
    return {"location": LOCATION, "properties": properties}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (vnet("10.240.0.0/12", pods="10.240.0.0/16"), ""),
        (vnet("10.240.0.0/12", pods="10.240.0.0/16", tiny="10.241.0.0/28", more="10.242.0.0/16"), ""),
        (vnet("10.240.0.0/12", tiny="10.241.0.0/28"), "InUseSubnetCannotBeDeleted"),
        (vnet("10.240.0.0/12", pods="10.240.0.0/17"), "InUsePrefixCannotBeDeleted"),
        (vnet("10.240.0.0/12", pods="10.240.0.0/16", more="10.240.4.0/24"), "NetcfgSubnetRangesOverlap"),
        (vnet("10.240.0.0/12", pods="10.240.0.0/16", more="192.168.0.0/24"), "NetcfgInvalidSubnet"),
        (vnet("10.9.0.0/16"), "NetcfgInvalidSubnet"),
        (vnet("10.240.0.1/12"), "InvalidCIDRNotation"),
        (vnet(), "InvalidRequestFormat"),
        (vnet("10.240.0.0/12", "10.9.0.0/16"), ""),
    ],
    ids=[
        "unused subnet goes",
        "one more",
        "used subnet left out",
        "used prefix changed",
        "overlap",
        "outside",
        "prefix of a subnet taken away",
        "host bits",
        "no prefix",
        "second prefix",
    ],
)
async def test_vnet_is_written_whole_or_not_at_all(
    cloud: Emulator, network: NetworkManagementClient, body: Any, code: str
) -> None:
    before = cloud.build.get("Microsoft.Network/virtualNetworks", "net")
    if not code:
        await (await network.virtual_networks.begin_create_or_update(GROUP, "net", body)).result()
        return
    assert await refusal(network.virtual_networks.begin_create_or_update(GROUP, "net", body)) == (400, code)
    assert cloud.build.get("Microsoft.Network/virtualNetworks", "net") == before


async def test_used_things_are_not_deleted(cloud: Emulator, network: NetworkManagementClient) -> None:
    assert await refusal(network.virtual_networks.begin_delete(GROUP, "net")) == (400, "InUseSubnetCannotBeDeleted")
    assert await refusal(network.subnets.begin_delete(GROUP, "net", "pods")) == (400, "InUseSubnetCannotBeDeleted")
    await (await network.subnets.begin_delete(GROUP, "net", "tiny")).result()
    assert [subnet.name async for subnet in network.subnets.list(GROUP, "net")] == ["pods"]


async def test_subnet_of_an_unknown_vnet(network: NetworkManagementClient) -> None:
    body: Any = {"properties": {"addressPrefix": "10.0.0.0/24"}}
    refused = network.subnets.begin_create_or_update(GROUP, "missing", "pods", body)
    assert await refusal(refused) == (404, "ParentResourceNotFound")


async def test_peering_needs_both_sides_and_may_cross_subscriptions(
    cloud: Emulator, network: NetworkManagementClient
) -> None:
    cloud.build.put("Microsoft.Network/virtualNetworks", FAR, {"addressSpace": {"addressPrefixes": ["10.9.0.0/16"]}})
    body: Any = {"properties": {"remoteVirtualNetwork": {"id": FAR}, "allowVirtualNetworkAccess": True}}
    peerings = network.virtual_network_peerings
    one = await (await peerings.begin_create_or_update(GROUP, "net", "hub", body)).result()
    assert one.peering_state == "Initiated"
    assert one.remote_address_space.address_prefixes == ["10.9.0.0/16"]
    back = {"properties": {"remoteVirtualNetwork": {"id": cloud.build.id("Microsoft.Network/virtualNetworks", "net")}}}
    cloud.build.request("PUT", f"{FAR}/virtualNetworkPeerings/net", back)
    assert (await peerings.get(GROUP, "net", "hub")).peering_state == "Connected"
    found = await network.virtual_networks.get(GROUP, "net")
    assert [peering.name for peering in found.virtual_network_peerings] == ["hub"]
    more = {"addressSpace": {"addressPrefixes": ["10.9.0.0/16", "10.10.0.0/16"]}}
    cloud.build.put("Microsoft.Network/virtualNetworks", FAR, more)
    assert (await peerings.get(GROUP, "net", "hub")).remote_address_space.address_prefixes[1] == "10.10.0.0/16"
    cloud.build.request("DELETE", f"{FAR}/virtualNetworkPeerings/net")
    assert (await peerings.get(GROUP, "net", "hub")).peering_state == "Disconnected"


async def test_overlapping_networks_dont_peer(cloud: Emulator, network: NetworkManagementClient) -> None:
    cloud.build.create_vnet("same", "10.245.0.0/16")
    same = cloud.build.id("Microsoft.Network/virtualNetworks", "same")
    body: Any = {"properties": {"remoteVirtualNetwork": {"id": same}}}
    refused = network.virtual_network_peerings.begin_create_or_update(GROUP, "net", "same", body)
    assert await refusal(refused) == (400, "VnetAddressSpacesOverlap")
