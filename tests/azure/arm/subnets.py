"""Subnets: their rules, whether written alone or inline in a VNet.

Pure. `accept` decides and changes nothing, `store_space` gives the subnet its address space. A prefix in use can't
change, ranges lie in the VNet and don't overlap, a subnet in use can't be deleted.
"""

from __future__ import annotations

import ipaddress

from tests.azure.arm.addresses import SubnetSpace
from tests.azure.arm.errors import ArmError, missing_reference
from tests.azure.arm.ids import ResourceId, parse
from tests.azure.arm.model import Model
from tests.azure.arm.store import Body, Resource

TYPE = "Microsoft.Network/virtualNetworks/subnets"
Networks = list[ipaddress.IPv4Network]


def network(prefix: str) -> ipaddress.IPv4Network:
    try:
        return ipaddress.IPv4Network(prefix)
    except ValueError as error:
        raise ArmError(400, "InvalidCIDRNotation", f"The address prefix '{prefix}' is not valid: {error}.") from error


def accept(model: Model, subnet: ResourceId, body: Body, spaces: Networks, others: dict[str, Networks]) -> Body:
    """The body as it will be stored. `spaces` are the VNet's prefixes, `others` the ranges of its other subnets by
    name."""
    properties = dict(body.get("properties") or {})
    properties.pop("ipConfigurations", None)
    given = ranges(properties)
    for wanted in given:
        if not any(wanted.subnet_of(space) for space in spaces):
            words = "is not valid because its IP address range is outside the virtual network."
            raise ArmError(400, "NetcfgInvalidSubnet", f"Subnet '{subnet.name}' {words}")
        for name, taken in others.items():
            if any(wanted.overlaps(other) for other in taken):
                words = f"is not valid because its IP address range overlaps that of '{name}'."
                raise ArmError(400, "NetcfgSubnetRangesOverlap", f"Subnet '{subnet.name}' {words}")
    space = model.spaces.get(subnet.key)
    if space is not None and space.taken and space.networks != sorted(given):
        words = f"The prefix of subnet {subnet} is in use and can't be changed."
        raise ArmError(400, "InUsePrefixCannotBeDeleted", words)
    for field in ("networkSecurityGroup", "routeTable", "natGateway"):
        if field in properties:
            properties[field] = {"id": properties[field].get("id", "")}
            if model.store.get(parse(properties[field]["id"])) is None:
                raise missing_reference(properties[field]["id"], str(subnet))
    properties.setdefault("privateEndpointNetworkPolicies", "Disabled")
    properties.setdefault("privateLinkServiceNetworkPolicies", "Enabled")
    return {**body, "properties": properties}


def write(model: Model, subnet: ResourceId, body: Body, current: Resource | None, now: float) -> Body:
    """A subnet written alone; its VNet exists (`writes.put` has looked)."""
    vnet = model.store.get(subnet.parent)
    prefixes = vnet.properties["addressSpace"]["addressPrefixes"] if vnet else ()
    others = {
        other.id.name: model.spaces[other.id.key].networks
        for other in model.store.below(str(subnet.parent), TYPE)
        if other.id.key != subnet.key
    }
    return accept(model, subnet, body, [network(prefix) for prefix in prefixes], others)


def store_space(model: Model, subnet: Resource, previous: Body | None) -> None:
    """After a subnet is stored. One with addresses in use keeps its space."""
    space = model.spaces.get(subnet.id.key)
    if space is None or not space.taken:
        model.spaces[subnet.id.key] = SubnetSpace(subnet.id.name, ranges(subnet.properties))


def check_unused(model: Model, subnet: Resource) -> None:
    taken = model.spaces[subnet.id.key].taken
    if taken:
        holder, part = next(iter(taken.values()))
        words = f"is in use by {holder}/ipConfigurations/{part} and cannot be deleted."
        raise ArmError(400, "InUseSubnetCannotBeDeleted", f"Subnet {subnet.id.name} {words}")


def remove(model: Model, subnet: Resource, now: float) -> None:
    check_unused(model, subnet)
    del model.spaces[subnet.id.key]


def shown(model: Model, subnet: Resource) -> Body:
    """With the list of ipConfigurations in it, which is null when there are many."""
    taken = model.spaces[subnet.id.key].taken
    listed: list[Body] | None = None
    if len(taken) <= model.settings.guesses.listed_configurations:
        listed = [{"id": f"{owner}/ipConfigurations/{name}"} for owner, name in dict.fromkeys(taken.values())]
    if listed == []:
        return subnet.body
    return {**subnet.body, "properties": {**subnet.properties, "ipConfigurations": listed}}


def ranges(properties: Body) -> Networks:
    given = properties.get("addressPrefixes") or [properties.get("addressPrefix") or ""]
    return [network(prefix) for prefix in given]
