"""Network interfaces: rules of a PUT, and the addresses it gets.

Pure; called from `cloud.Cloud.handle`. A PUT replaces the whole NIC: omitted properties are reset, those owned by the
service (macAddress, virtualMachine, primary) are kept, properties unknown here survive. A write is applied as a whole
or not at all. Rules (documented by the service's errors): one subnet per NIC, one set of ASGs, exactly one primary and
it is IPv4, unique names, at most 256 addresses per NIC and per VM, /28 blocks on secondary configurations only.
"""

from __future__ import annotations

from typing import Any

from tests.azure.arm import balancers, nic_rules
from tests.azure.arm.addresses import BLOCK, Claim
from tests.azure.arm.errors import ArmError
from tests.azure.arm.ids import ResourceId, key
from tests.azure.arm.model import Model
from tests.azure.arm.store import Body, Resource, guid

TYPE = "Microsoft.Network/networkInterfaces"
SERVICE_OWNED = ("macAddress", "virtualMachine", "primary", "resourceGuid")
"""Properties that a PUT can't change."""


def configurations(resource: Resource) -> list[Body]:
    found: list[Body] = resource.properties.get("ipConfigurations") or []
    return found


def held(resource: Resource | None) -> dict[str, str]:
    """ipConfiguration (lower case) → address, IPv4 only."""
    if resource is None:
        return {}
    return {
        part["name"].lower(): part["properties"]["privateIPAddress"]
        for part in configurations(resource)
        if part["properties"].get("privateIPAddress") and ":" not in part["properties"]["privateIPAddress"]
    }


def write(model: Model, nic: ResourceId, body: Body, current: Resource | None, now: float) -> Body:
    """The NIC after this PUT, addresses allocated. Raises ArmError and changes nothing if a rule is violated."""
    wanted = body.get("properties") or {}
    parts = [_configuration(nic, part) for part in wanted.get("ipConfigurations") or ()]
    _inherit_subnet(parts)
    nic_rules.check_shape(nic, parts)
    space = nic_rules.subnet_space(model, nic, parts)
    nic_rules.check_asgs(parts)
    nic_rules.check_references(model, nic, wanted, parts)
    nic_rules.check_public_ips(model, nic, parts)
    balancers.check_members(model, parts)
    nic_rules.check_limits(model, nic, len(parts), current)
    before = held(current)
    if current is not None and _subnet_key(current) != key(parts[0]["properties"]["subnet"]["id"]):
        before = {}
    claim = Claim(space, nic.key, now, before)
    _allocate(claim, parts)
    if current is not None and not before:
        release(model, current, now)
    claim.commit(model.settings.removed_stays_taken)
    return _assemble(nic, body, wanted, parts, current)


def remove(model: Model, resource: Resource, now: float) -> None:
    """Raises NicInUse while a VM has it."""
    machine = resource.properties.get("virtualMachine")
    if machine:
        raise ArmError(
            400,
            "NicInUse",
            f"Network Interface {resource.id} is used by existing resource {machine['id']}. "
            "In order to delete the network interface, it must be dissociated from the resource.",
        )
    release(model, resource, now)
    unlinked(model, resource)


def unlinked(model: Model, resource: Resource) -> None:
    """A NIC that goes away uses nothing any more."""
    for reference, user in _linked(resource.body):
        model.unlink(reference, user)


def release(model: Model, resource: Resource, now: float) -> None:
    """Frees all addresses, without any check."""
    space = model.spaces.get(_subnet_key(resource))
    if space is not None:
        Claim(space, resource.id.key, now, held(resource)).commit(model.settings.removed_stays_taken)


def _subnet_key(resource: Resource) -> str:
    return key(configurations(resource)[0]["properties"]["subnet"]["id"])


def _configuration(nic: ResourceId, given: Any) -> Body:
    """One ipConfiguration as it will be stored: references reduced to ids, nulls and empty lists gone."""
    name = given.get("name") if isinstance(given, dict) else None
    if not isinstance(name, str) or not name:
        raise ArmError(400, "InvalidRequestFormat", f"An ipConfiguration of {nic} has no name.")
    properties = {field: value for field, value in (given.get("properties") or {}).items() if value not in (None, [])}
    for field in (*nic_rules.SINGLE_REFERENCES, "subnet"):
        if field in properties:
            properties[field] = {"id": properties[field].get("id", "")}
    for field in nic_rules.LIST_REFERENCES:
        if field in properties:
            properties[field] = [{"id": entry.get("id", "")} for entry in properties[field]]
    properties.setdefault("privateIPAllocationMethod", "Dynamic")
    properties.setdefault("privateIPAddressVersion", "IPv4")
    rest = {field: value for field, value in given.items() if field not in ("name", "id", "etag", "type", "properties")}
    return {
        "name": name,
        "id": f"{nic}/ipConfigurations/{name}",
        "type": f"{TYPE}/ipConfigurations",
        **rest,
        "properties": {"provisioningState": "Succeeded", **properties},
    }


def _inherit_subnet(parts: list[Body]) -> None:
    """A configuration without a subnet is in that of the first; the published examples leave it out."""
    first = parts[0]["properties"].get("subnet") if parts else None
    for part in parts:
        if first is not None:
            part["properties"].setdefault("subnet", first)


def _allocate(claim: Claim, parts: list[Body]) -> None:
    """Static values and kept ones first, so that nothing new is put where one of them is."""
    later: list[Body] = []
    for part in parts:
        properties = part["properties"]
        length = properties.get("privateIPAddressPrefixLength")
        if length is not None and length != BLOCK:
            raise ArmError(
                400,
                "InvalidPrivateIPAddressPrefixLength",
                f"{part['id']}: only /{BLOCK} is supported, /{length} is given.",
            )
        if properties["privateIPAddressVersion"] != "IPv4":
            continue
        if properties["privateIPAllocationMethod"].lower() == "static":
            properties["privateIPAddress"] = claim.static(part["name"], _static_text(part, length))
        elif part["name"].lower() in claim.previous:
            properties["privateIPAddress"] = claim.dynamic(part["name"], block=bool(length))
        else:
            later.append(part)
    for part in later:
        block = bool(part["properties"].get("privateIPAddressPrefixLength"))
        part["properties"]["privateIPAddress"] = claim.dynamic(part["name"], block=block)


def _static_text(part: Body, length: int | None) -> str:
    text = part["properties"].get("privateIPAddress")
    if not text:
        raise ArmError(
            400,
            "PrivateIPAddressNotSpecified",
            f"Private IP address is required when privateIPAllocationMethod is Static ({part['id']}).",
        )
    return text if length is None or "/" in text else f"{text}/{length}"


def _assemble(nic: ResourceId, body: Body, wanted: Body, parts: list[Body], current: Resource | None) -> Body:
    owned = (
        {field: current.properties[field] for field in SERVICE_OWNED if field in current.properties} if current else {}
    )
    properties = {field: value for field, value in wanted.items() if value is not None and field not in SERVICE_OWNED}
    if "networkSecurityGroup" in properties:
        properties["networkSecurityGroup"] = {"id": properties["networkSecurityGroup"].get("id", "")}
    dns = {"dnsServers": [], **(properties.get("dnsSettings") or {})}
    dns["appliedDnsServers"] = dns["dnsServers"]
    dns["internalDomainNameSuffix"] = "vnetpods.internal.cloudapp.net"
    properties.setdefault("enableAcceleratedNetworking", False)
    properties.setdefault("enableIPForwarding", False)
    properties.setdefault("disableTcpStateTracking", False)
    properties.setdefault("nicType", "Standard")
    properties.setdefault("vnetEncryptionSupported", False)
    rest = {field: value for field, value in body.items() if field not in ("properties", "etag") and value is not None}
    return {
        **rest,
        "properties": {
            **properties,
            "resourceGuid": guid("nic", nic.key),
            **owned,
            "dnsSettings": dns,
            "ipConfigurations": parts,
        },
    }


def written(model: Model, nic: Resource, previous: Body | None) -> None:
    """Updates the links from public IPs, security groups and pools to their users."""
    for reference in _linked(previous):
        model.unlink(reference[0], reference[1])
    for reference in _linked(nic.body):
        model.link(reference[0], reference[1])


def _linked(body: Body | None) -> list[tuple[str, str]]:
    """(target, user): the user is the ipConfiguration, or the NIC itself for a security group."""
    properties = (body or {}).get("properties") or {}
    found = []
    for part in properties.get("ipConfigurations") or ():
        found += [(reference, part["id"]) for reference in nic_rules.references({}, [part])]
    if properties.get("networkSecurityGroup"):
        found.append(
            (properties["networkSecurityGroup"]["id"], properties["ipConfigurations"][0]["id"].rsplit("/", 2)[0])
        )
    return found


def is_nic(resource: Resource) -> bool:
    """Whether it is a NIC, of a machine or of a scale-set instance."""
    return resource.id.kind.endswith("/networkinterfaces")
