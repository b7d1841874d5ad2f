"""Resource types with little behaviour of their own: security groups, route tables, NAT gateways, public IPs.

Pure. Deleting a resource that a NIC or a subnet still refers to is refused.
"""

from __future__ import annotations

import ipaddress

from tests.azure.arm.errors import ArmError, check_names
from tests.azure.arm.ids import ResourceId
from tests.azure.arm.model import Kind, Model
from tests.azure.arm.store import Body, Resource, guid

PUBLIC_IP = "Microsoft.Network/publicIPAddresses"
PARTS = ("securityRules", "routes")
PUBLIC_RANGE = ipaddress.IPv4Network("20.1.0.0/16")
"""The range of public addresses."""


def write(model: Model, resource: ResourceId, body: Body, current: Resource | None, now: float) -> Body:
    properties = {field: value for field, value in (body.get("properties") or {}).items() if value is not None}
    for name in PARTS:
        if name in properties:
            check_names(properties[name], resource)
            properties[name] = [_part(resource, name, entry) for entry in properties[name]]
    return {**body, "properties": {**properties, "resourceGuid": guid(resource.kind, resource.key)}}


def _part(resource: ResourceId, kind: str, entry: Body) -> Body:
    """A rule or a route, with the id under which it can be read alone."""
    properties = {"provisioningState": "Succeeded", **(entry.get("properties") or {})}
    return {**entry, "id": f"{resource}/{kind}/{entry['name']}", "properties": properties}


def remove(model: Model, resource: Resource, now: float) -> None:
    users = model.links(resource.id.key)
    if users:
        raise ArmError(
            400,
            "InUseResourceCannotBeDeleted",
            f"{resource.id} is used by {users[0]} and can't be deleted while it is.",
        )


def write_public_ip(model: Model, resource: ResourceId, body: Body, current: Resource | None, now: float) -> Body:
    written = write(model, resource, body, current, now)
    properties = written["properties"]
    properties.pop("ipConfiguration", None)
    properties.setdefault("publicIPAllocationMethod", "Dynamic")
    properties.setdefault("publicIPAddressVersion", "IPv4")
    properties.setdefault("idleTimeoutInMinutes", 4)
    had = current.properties.get("ipAddress") if current else None
    if had or properties["publicIPAllocationMethod"].lower() == "static" or model.links(resource.key):
        properties["ipAddress"] = had or _lowest_public(model)  # a dynamic one has none until something uses it
    written.setdefault("sku", {"name": "Basic", "tier": "Regional"})
    return written


def used(model: Model, resource: Resource) -> None:
    """Called when a public IP gets a user: a dynamic one gets its address."""
    if not resource.properties.get("ipAddress"):
        resource.properties["ipAddress"] = _lowest_public(model)


def shown_public_ip(model: Model, resource: Resource) -> Body:
    """With the ipConfiguration that uses it, if one does."""
    users = model.links(resource.id.key)
    if not users:
        return resource.body
    return {**resource.body, "properties": {**resource.properties, "ipConfiguration": {"id": users[0]}}}


def _lowest_public(model: Model) -> str:
    used = {other.properties.get("ipAddress") for other in model.store.of_kind(PUBLIC_IP)}
    return next(str(address) for address in PUBLIC_RANGE.hosts() if str(address) not in used)


KINDS = (
    Kind("Microsoft.Network/networkSecurityGroups", write, remove=remove),
    Kind("Microsoft.Network/applicationSecurityGroups", write, remove=remove),
    Kind("Microsoft.Network/routeTables", write, remove=remove),
    Kind("Microsoft.Network/natGateways", write, remove=remove),
    Kind(PUBLIC_IP, write_public_ip, remove=remove, shown=shown_public_ip),
)
