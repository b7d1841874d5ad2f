"""Virtual networks, their subnets and peerings, and the usages list.

Pure. A subnet is a resource of its own (an address space belongs to it); a VNet's body is put together when it is read.
Two peerings that point at each other are Connected, one alone is Initiated; a remote VNet may be in another
subscription.
"""

from __future__ import annotations

import ipaddress
from typing import Any

from tests.azure.arm.addresses import SubnetSpace
from tests.azure.arm.errors import ArmError, missing_reference
from tests.azure.arm.ids import ResourceId, key, parse
from tests.azure.arm.model import Model
from tests.azure.arm.store import Body, Resource, guid

TYPE = "Microsoft.Network/virtualNetworks"
SUBNET = f"{TYPE}/subnets"
PEERING = f"{TYPE}/virtualNetworkPeerings"


def prefixes(vnet: Resource) -> list[str]:
    found: list[str] = vnet.properties["addressSpace"]["addressPrefixes"]
    return found


def write(model: Model, vnet: ResourceId, body: Body, current: Resource | None, now: float) -> Body:
    """Subnets given inline are stored by `written`; those left out are deleted there."""
    properties = {field: value for field, value in (body.get("properties") or {}).items() if value is not None}
    given = (properties.get("addressSpace") or {}).get("addressPrefixes") or []
    for prefix in given:
        _network(prefix)
    if not given:
        raise ArmError(400, "InvalidRequestFormat", f"Virtual network {vnet} has no address prefixes.")
    properties.setdefault("enableDdosProtection", False)
    properties["resourceGuid"] = guid("vnet", vnet.key)
    return {**body, "properties": properties}


def remove(model: Model, vnet: Resource, now: float) -> None:
    for subnet in model.store.below(vnet.id.text, SUBNET):
        remove_subnet(model, subnet, now)
        model.store.remove(subnet)
    for peering in list(model.store.below(vnet.id.text, PEERING)):
        remove_peering(model, peering, now)
        model.store.remove(peering)


def written(model: Model, vnet: Resource, previous: Body | None) -> None:
    """After the VNet is stored: its inline subnets become resources; peers learn its address space."""
    inline = vnet.properties.pop("subnets", None)
    vnet.properties.pop("virtualNetworkPeerings", None)
    if inline is not None:
        names = {entry["name"].lower() for entry in inline}
        for entry in inline:
            subnet = vnet.id.child("subnets", entry["name"])
            current = model.store.get(subnet)
            resource = current or Resource(subnet, {})
            resource.body = {
                **write_subnet(model, subnet, entry, current, 0.0),
                "name": subnet.name,
                "id": str(subnet),
                "type": SUBNET,
            }
            resource.changed("Succeeded")
            model.store.add(resource)
        for subnet_left in model.store.below(vnet.id.text, SUBNET):
            if subnet_left.id.name.lower() not in names:
                remove_subnet(model, subnet_left, 0.0)
                model.store.remove(subnet_left)
    _refresh_peerings(model, vnet.id.key)


def shown(model: Model, vnet: Resource) -> Body:
    subnets = [shown_subnet(model, subnet) for subnet in model.store.below(vnet.id.text, SUBNET)]
    peerings = [peering.body for peering in model.store.below(vnet.id.text, PEERING)]
    return {**vnet.body, "properties": {**vnet.properties, "subnets": subnets, "virtualNetworkPeerings": peerings}}


def write_subnet(model: Model, subnet: ResourceId, body: Body, current: Resource | None, now: float) -> Body:
    vnet = model.store.get(subnet.parent)
    if vnet is None:
        raise ArmError(
            404,
            "ParentResourceNotFound",
            f"Failed to perform the operation: parent resource {subnet.parent} was not found.",
        )
    properties = {field: value for field, value in (body.get("properties") or {}).items() if value is not None}
    properties.pop("ipConfigurations", None)
    given = properties.get("addressPrefixes") or [properties.get("addressPrefix") or ""]
    networks = [_network(prefix) for prefix in given]
    _check_ranges(model, vnet, subnet, networks)
    space = model.spaces.get(subnet.key)
    if space is not None and space.taken and space.networks != networks:
        raise ArmError(
            400, "InUsePrefixCannotBeDeleted", f"The prefix of subnet {subnet} is in use and can't be changed."
        )
    for field in ("networkSecurityGroup", "routeTable", "natGateway"):
        if field in properties:
            properties[field] = {"id": properties[field].get("id", "")}
            if model.store.get(parse(properties[field]["id"])) is None:
                raise missing_reference(properties[field]["id"], str(subnet))
    if space is None or not space.taken:
        model.spaces[subnet.key] = SubnetSpace(subnet.name, networks)
    properties.setdefault("privateEndpointNetworkPolicies", "Disabled")
    properties.setdefault("privateLinkServiceNetworkPolicies", "Enabled")
    return {**body, "properties": properties}


def _check_ranges(model: Model, vnet: Resource, subnet: ResourceId, networks: list[ipaddress.IPv4Network]) -> None:
    spaces = [_network(prefix) for prefix in prefixes(vnet)]
    for network in networks:
        if not any(network.subnet_of(space) for space in spaces):
            raise ArmError(
                400,
                "NetcfgInvalidSubnet",
                f"Subnet '{subnet.name}' is not valid because its IP address range is outside the virtual network.",
            )
    for other in model.store.below(str(subnet.parent), SUBNET):
        if other.id.key != subnet.key and any(
            a.overlaps(b) for a in networks for b in model.spaces[other.id.key].networks
        ):
            raise ArmError(
                400,
                "NetcfgSubnetRangesOverlap",
                f"Subnet '{subnet.name}' is not valid because its IP address range overlaps {other.id.name}.",
            )


def remove_subnet(model: Model, subnet: Resource, now: float) -> None:
    space = model.spaces[subnet.id.key]
    if space.taken:
        holder, part = next(iter(space.taken.values()))
        raise ArmError(
            400,
            "InUseSubnetCannotBeDeleted",
            f"Subnet {subnet.id.name} is in use by {holder}/ipConfigurations/{part} and cannot be deleted.",
        )
    del model.spaces[subnet.id.key]


def shown_subnet(model: Model, subnet: Resource) -> Body:
    """With the list of ipConfigurations in it, which is null when there are many."""
    taken = model.spaces[subnet.id.key].taken
    listed: list[Body] | None = None
    if len(taken) <= model.settings.guesses.listed_configurations:
        listed = [{"id": f"{owner}/ipConfigurations/{name}"} for owner, name in dict.fromkeys(taken.values())]
    if listed == []:
        return subnet.body
    return {**subnet.body, "properties": {**subnet.properties, "ipConfigurations": listed}}


def usages(model: Model, vnet: Resource) -> list[Body]:
    """`GET …/virtualNetworks/V/usages`: how full each subnet is."""
    rows = []
    for subnet in model.store.below(vnet.id.text, SUBNET):
        space = model.spaces[subnet.id.key]
        rows.append(
            {
                "currentValue": float(len(space.taken)),
                "id": str(subnet.id),
                "limit": float(space.capacity),
                "name": {"localizedValue": "Subnet size and usage", "value": "SubnetSpace"},
                "unit": "Count",
            }
        )
    return rows


def write_peering(model: Model, peering: ResourceId, body: Body, current: Resource | None, now: float) -> Body:
    if model.store.get(peering.parent) is None:
        raise ArmError(
            404,
            "ParentResourceNotFound",
            f"Failed to perform the operation: parent resource {peering.parent} was not found.",
        )
    properties = {field: value for field, value in (body.get("properties") or {}).items() if value is not None}
    remote = (properties.get("remoteVirtualNetwork") or {}).get("id", "")
    target = model.store.get(parse(remote))
    if target is None:
        raise missing_reference(remote, str(peering))
    mine = [_network(prefix) for prefix in prefixes(_existing(model, peering.parent))]
    if any(a.overlaps(_network(b)) for a in mine for b in prefixes(target)):
        raise ArmError(
            400,
            "VnetAddressSpacesOverlap",
            f"Cannot create or update peering {peering}: the address spaces of both networks overlap.",
        )
    properties["remoteVirtualNetwork"] = {"id": remote}
    properties.setdefault("allowVirtualNetworkAccess", True)
    properties.setdefault("allowForwardedTraffic", False)
    properties.setdefault("allowGatewayTransit", False)
    properties.setdefault("useRemoteGateways", False)
    return {**body, "properties": properties}


def written_peering(model: Model, peering: Resource, previous: Body | None) -> None:
    _refresh_peerings(model, peering.id.parent.key)


def remove_peering(model: Model, peering: Resource, now: float) -> None:
    """The other side stays and is Disconnected."""
    back = _back(model, peering)
    if back is not None:
        back.properties["peeringState"] = "Disconnected"
        back.changed()


def connected(model: Model, vnet: str) -> list[str]:
    """Keys of the VNets that a VNet reaches: peerings Connected on both sides and allowed."""
    return [
        key(peering.properties["remoteVirtualNetwork"]["id"])
        for peering in model.store.below(vnet, PEERING)
        if peering.properties.get("peeringState") == "Connected" and peering.properties.get("allowVirtualNetworkAccess")
    ]


def _refresh_peerings(model: Model, vnet: str) -> None:
    """States and remote address spaces of all peerings from and to a VNet."""
    for peering in model.store.of_kind(PEERING):
        remote = key(peering.properties["remoteVirtualNetwork"]["id"])
        if vnet not in (peering.id.parent.key, remote):
            continue
        target = model.store.get(remote)
        if target is None:
            continue
        state = "Connected" if _back(model, peering) is not None else "Initiated"
        if peering.properties.get("peeringState") == "Disconnected" and state == "Initiated":
            state = "Disconnected"
        space = {"addressPrefixes": list(prefixes(target))}
        values: dict[str, Any] = {
            "peeringState": state,
            "peeringSyncLevel": "FullyInSync",
            "remoteAddressSpace": space,
            "remoteVirtualNetworkAddressSpace": space,
        }
        if {name: peering.properties.get(name) for name in values} != values:
            peering.properties.update(values)
            peering.changed()


def _back(model: Model, peering: Resource) -> Resource | None:
    remote = peering.properties["remoteVirtualNetwork"]["id"]
    here = peering.id.parent.key
    for other in model.store.below(remote, PEERING):
        if key(other.properties["remoteVirtualNetwork"]["id"]) == here:
            return other
    return None


def _existing(model: Model, wanted: ResourceId) -> Resource:
    found = model.store.get(wanted)
    if found is None:
        raise missing_reference(str(wanted), str(wanted))
    return found


def _network(prefix: str) -> ipaddress.IPv4Network:
    try:
        return ipaddress.IPv4Network(prefix)
    except ValueError as error:
        raise ArmError(400, "InvalidCIDRNotation", f"The address prefix '{prefix}' is not valid: {error}.") from error
