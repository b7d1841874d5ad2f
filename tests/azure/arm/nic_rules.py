"""Checks of a NIC before it gets addresses: one per rule, each with ARM's error.

Pure; called from `nics.write` in the service's order, so that the first problem is the one reported.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.azure.arm.addresses import SubnetSpace
from tests.azure.arm.errors import ArmError, missing_reference
from tests.azure.arm.ids import ResourceId, key, parse
from tests.azure.arm.model import Model
from tests.azure.arm.store import Body, Resource

LIMIT = 256
"""ipConfigurations per NIC, and per VM."""
ASG_LIMIT = 20
SINGLE_REFERENCES = ("publicIPAddress", "gatewayLoadBalancer")
LIST_REFERENCES = (
    "applicationSecurityGroups",
    "loadBalancerBackendAddressPools",
    "loadBalancerInboundNatRules",
    "applicationGatewayBackendAddressPools",
    "virtualNetworkTaps",
)


def check_shape(nic: ResourceId, parts: list[Body]) -> None:
    if not parts:
        raise ArmError(
            400,
            "NetworkInterfaceMustHaveAtLeastOneIpConfiguration",
            f"Network interface {nic} has no IP configuration.",
        )
    names = [part["name"].lower() for part in parts]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ArmError(
            400, "DuplicateResourceName", f"Resource {nic} has two child resources with the same name ({twice})."
        )
    for part in parts:
        if not part["properties"].get("subnet", {}).get("id"):
            raise ArmError(400, "SubnetNotSpecified", f"IP configuration {part['id']} has no subnet.")
    primaries = [part for part in parts if part["properties"].get("primary")]
    if not primaries and (len(parts) == 1 or "primary" not in parts[0]["properties"]):
        primaries = parts[:1]
    if len(primaries) != 1:
        raise ArmError(
            400,
            "NetworkInterfaceMustHaveExactlyOnePrimaryIpConfiguration"
            if not primaries
            else "MultiplePrimaryIpConfigurationsOnNic",
            f"Network interface {nic} must have exactly one primary IP configuration, {len(primaries)} are given.",
        )
    for part in parts:
        part["properties"]["primary"] = part is primaries[0]
    _check_primary(primaries[0])


def _check_primary(part: Body) -> None:
    if part["properties"]["privateIPAddressVersion"] != "IPv4":
        raise ArmError(
            400, "Ipv6IPConfigurationCannotBePrimary", f"IP configuration {part['id']} is IPv6 and can't be primary."
        )
    if part["properties"].get("privateIPAddressPrefixLength"):
        raise ArmError(
            400,
            "PrimaryIpConfigurationCannotHavePrefixLength",
            f"IP configuration {part['id']} is primary and can't be a block.",
        )


def subnet_space(model: Model, nic: ResourceId, parts: list[Body]) -> SubnetSpace:
    subnets = {key(part["properties"]["subnet"]["id"]): part["properties"]["subnet"]["id"] for part in parts}
    for wanted in subnets.values():
        if parse(wanted).key not in model.spaces:
            raise missing_reference(wanted, str(nic))
    if len(subnets) > 1:
        raise ArmError(
            400,
            "IpConfigurationsOnSameNicCannotUseDifferentSubnets",
            f"Ip configurations on the same Network Interface {nic} cannot use different subnets: "
            f"{', '.join(subnets.values())}.",
        )
    return model.spaces[next(iter(subnets))]


def check_asgs(parts: list[Body]) -> None:
    sets = [{key(entry["id"]) for entry in part["properties"].get("applicationSecurityGroups", ())} for part in parts]
    if any(other != sets[0] for other in sets):
        raise ArmError(
            400,
            "AllIpConfigurationsOnANicMustBelongToTheSameApplicationSecurityGroups",
            f"All ip configurations of the NIC of {parts[0]['id']} must belong to the same application security "
            "groups.",
        )
    if len(sets[0]) > ASG_LIMIT:
        raise ArmError(
            400,
            "ApplicationSecurityGroupLimitReached",
            f"{parts[0]['id']} names {len(sets[0])} groups, {ASG_LIMIT} are allowed.",
        )


def check_references(model: Model, nic: ResourceId, wanted: Body, parts: list[Body]) -> None:
    """Everything that a NIC refers to must exist and be settled; only the first problem is reported, as by ARM."""
    for reference in references(wanted, parts):
        target = _referenced(model, parse(reference))
        if target is None:
            raise missing_reference(reference, str(nic))
        if target.state == "Failed":
            raise ArmError(
                429,
                "RetryableError",
                "A retryable error occurred.",
                [
                    (
                        "ReferencedResourceNotProvisioned",
                        f"Cannot proceed with operation because resource {reference} is in Failed state.",
                    )
                ],
                {"Retry-After": "10"},
            )


def _referenced(model: Model, wanted: ResourceId) -> Resource | None:
    """The resource, or the one that has it as a part (an inbound NAT rule of a load balancer)."""
    found = model.store.get(wanted)
    if found is not None or len(wanted.types) < 2:
        return found
    parent = model.store.get(wanted.parent)
    parts = parent.properties.get(wanted.types[-1]) if parent else None
    return parent if any(part["name"].lower() == wanted.name.lower() for part in parts or ()) else None


def references(properties: Body, parts: list[Body]) -> Iterator[str]:
    """Ids of everything but subnets that this NIC body names."""
    group = properties.get("networkSecurityGroup")
    if group:
        yield group.get("id", "")
    for part in parts:
        inner = part.get("properties") or {}
        yield from (inner[field]["id"] for field in SINGLE_REFERENCES if inner.get(field))
        for field in LIST_REFERENCES:
            yield from (entry["id"] for entry in inner.get(field) or ())


def check_public_ips(model: Model, nic: ResourceId, parts: list[Body]) -> None:
    seen: dict[str, str] = {}
    for part in parts:
        reference = part["properties"].get("publicIPAddress")
        if not reference:
            continue
        holder = next(iter(model.links(reference["id"])), "")
        twice = key(reference["id"]) in seen
        if twice or (holder and not key(holder).startswith(nic.key + "/")):
            raise ArmError(
                400,
                "PublicIPAddressInUse",
                f"Resource {part['id']} is referencing public IP address {reference['id']} that is already allocated "
                f"to resource {holder}.",
            )
        if part["properties"].get("privateIPAddressPrefixLength"):
            raise ArmError(
                400,
                "PublicIPAddressNotAllowedOnPrefix",
                f"IP configuration {part['id']} is a block and can't have a public IP.",
            )
        seen[key(reference["id"])] = part["id"]


def check_limits(model: Model, nic: ResourceId, count: int, current: Resource | None) -> None:
    guesses = model.settings.guesses
    if count > LIMIT:
        raise ArmError(
            400,
            guesses.nic_limit_code,
            f"Network interface {nic} would have {count} IP configurations, {LIMIT} are allowed.",
        )
    machine = current.properties.get("virtualMachine") if current else None
    vm = model.store.get(parse(machine["id"])) if machine else None
    if vm is None:
        return
    others = [key(entry["id"]) for entry in vm.properties.get("networkProfile", {}).get("networkInterfaces", ())]
    total = count + sum(
        len(other.properties["ipConfigurations"])
        for entry in others
        if entry != nic.key and (other := model.store.get(entry))
    )
    if total > LIMIT:
        raise ArmError(
            400,
            guesses.vm_limit_code,
            f"Virtual machine {vm.id} would have {total} IP configurations, {LIMIT} are allowed.",
        )
