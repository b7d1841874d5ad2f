"""Virtual networks, their peerings, and the usages list.

Pure. A subnet is a resource of its own (an address space belongs to it); a VNet's body is put together when it is read.
Two peerings that point at each other are Connected, one alone is Initiated; a remote VNet may be in another
subscription.
"""

from __future__ import annotations

import ipaddress
from typing import Any

from tests.azure.arm import subnets
from tests.azure.arm.errors import ArmError, check_names, missing_reference
from tests.azure.arm.ids import ResourceId, key, parse
from tests.azure.arm.model import Model
from tests.azure.arm.store import Body, Resource, guid
from tests.azure.arm.subnets import network

TYPE = "Microsoft.Network/virtualNetworks"
SUBNET = subnets.TYPE
PEERING = f"{TYPE}/virtualNetworkPeerings"


def prefixes(vnet: Resource) -> list[str]:
    found: list[str] = vnet.properties["addressSpace"]["addressPrefixes"]
    return found


def write(model: Model, vnet: ResourceId, body: Body, current: Resource | None, now: float) -> Body:
    """Checks inline subnets, which `written` stores; subnets missing from a given list are deleted."""
    properties = dict(body.get("properties") or {})
    spaces = [network(prefix) for prefix in (properties.get("addressSpace") or {}).get("addressPrefixes") or ()]
    if not spaces:
        raise ArmError(400, "InvalidRequestFormat", f"Virtual network {vnet} has no address prefixes.")
    present = {subnet.id.name.lower(): subnet for subnet in model.store.below(str(vnet), SUBNET)}
    inline = properties.get("subnets")
    if inline is None:
        inline = [subnet.body for subnet in present.values()]
    check_names(inline, vnet)
    names = [entry["name"].lower() for entry in inline]
    if len(set(names)) < len(names):
        raise ArmError(400, "DuplicateResourceName", f"Resource {vnet} has two child resources with the same name.")
    others: dict[str, list[ipaddress.IPv4Network]] = {}
    for entry in inline:
        made = subnets.accept(model, vnet.child("subnets", entry["name"]), entry, spaces, others)
        others[entry["name"]] = subnets.ranges(made["properties"])
    for name, subnet in present.items():
        if name not in names:
            subnets.check_unused(model, subnet)
    properties.setdefault("enableDdosProtection", False)
    properties["resourceGuid"] = guid("vnet", vnet.key)
    return {**body, "properties": properties}


def remove(model: Model, vnet: Resource, now: float) -> None:
    inside = list(model.store.below(vnet.id.text, SUBNET))
    for subnet in inside:
        subnets.check_unused(model, subnet)
    for subnet in inside:
        subnets.remove(model, subnet, now)
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
        for subnet_left in list(model.store.below(vnet.id.text, SUBNET)):
            if subnet_left.id.name.lower() not in names:
                subnets.remove(model, subnet_left, 0.0)
                model.store.remove(subnet_left)
        for entry in inline:
            subnet = vnet.id.child("subnets", entry["name"])
            resource = model.store.get(subnet) or Resource(subnet, {})
            made = subnets.accept(model, subnet, entry, [network(prefix) for prefix in prefixes(vnet)], {})
            resource.body = {**made, "name": subnet.name, "id": str(subnet), "type": SUBNET}
            subnets.store_space(model, resource, None)
            resource.changed("Succeeded")
            model.store.add(resource)
    _refresh_peerings(model, vnet.id.key)


def shown(model: Model, vnet: Resource) -> Body:
    inside = [subnets.shown(model, subnet) for subnet in model.store.below(vnet.id.text, SUBNET)]
    if vnet.state == "Updating":  # as recorded, its subnets with it
        inside = [{**one, "properties": {**one["properties"], "provisioningState": "Updating"}} for one in inside]
    peerings = [peering.body for peering in model.store.below(vnet.id.text, PEERING)]
    return {**vnet.body, "properties": {**vnet.properties, "subnets": inside, "virtualNetworkPeerings": peerings}}


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
    mine = [network(prefix) for prefix in prefixes(_existing(model, peering.parent))]
    if any(a.overlaps(network(b)) for a in mine for b in prefixes(target)):
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
