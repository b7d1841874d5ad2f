"""Load balancers and their backend pools, filled by NICs or by addresses.

Pure. A pool is a resource of its own (it can be written alone); frontends, rules and probes are parts of the balancer's
body. A member is an ipConfiguration that names the pool (kept in the model's links), or an address in
`loadBalancerBackendAddresses`; one pool never has both. Documented: address pools need a Standard balancer and one
VNet; outbound rules refuse pools with secondary ipConfigurations.
"""

from __future__ import annotations

import ipaddress
from typing import Any

from tests.azure.arm import networks
from tests.azure.arm.addresses import Claim
from tests.azure.arm.errors import ArmError, check_names, missing_reference
from tests.azure.arm.ids import ResourceId, key, parse
from tests.azure.arm.model import Kind, Model
from tests.azure.arm.store import Body, Resource, guid

TYPE = "Microsoft.Network/loadBalancers"
POOL = f"{TYPE}/backendAddressPools"
PARTS = (
    "frontendIPConfigurations",
    "loadBalancingRules",
    "probes",
    "outboundRules",
    "inboundNatRules",
    "inboundNatPools",
)


def write(model: Model, balancer: ResourceId, body: Body, current: Resource | None, now: float) -> Body:
    properties = {name: value for name, value in (body.get("properties") or {}).items() if value is not None}
    for name in (*PARTS, "backendAddressPools"):
        check_names(properties.get(name) or (), balancer)
    for name in PARTS:
        properties[name] = [_part(balancer, name, entry) for entry in properties.get(name) or ()]
    sku = {"name": "Basic", **(body.get("sku") or {})}
    pools = properties.get("backendAddressPools") or []
    for entry in pools:
        _check_pool(model, balancer.child("backendAddressPools", entry["name"]), entry, sku["name"])
    _check_left_out(model, balancer, pools)
    _check_outbound(model, properties)
    claims = _frontends(model, balancer, properties["frontendIPConfigurations"], current, now)
    if current is not None:
        release(model, current, now)
    for claim in claims:
        claim.commit(0.0)
    properties["resourceGuid"] = guid("balancer", balancer.key)
    return {**body, "sku": {"tier": "Regional", **sku}, "properties": properties}


def written(model: Model, balancer: Resource, previous: Body | None) -> None:
    """Inline pools become resources; those left out go; frontends are linked to their public addresses."""
    pools = balancer.properties.pop("backendAddressPools", None) or []
    names = {entry["name"].lower() for entry in pools}
    for entry in pools:
        pool = balancer.id.child("backendAddressPools", entry["name"])
        resource = model.store.get(pool) or Resource(pool, {})
        resource.body = _pool_body(pool, entry)
        resource.changed("Succeeded")
        model.store.add(resource)
    for pool_left in model.store.below(balancer.id.text, POOL):
        if pool_left.id.name.lower() not in names:
            model.store.remove(pool_left)
    for reference, user in _public(previous):
        model.unlink(reference, user)
    for reference, user in _public(balancer.body):
        model.link(reference, user)


def shown(model: Model, balancer: Resource) -> Body:
    pools = [shown_pool(model, pool) for pool in model.store.below(balancer.id.text, POOL)]
    return {**balancer.body, "properties": {**balancer.properties, "backendAddressPools": pools}}


def remove(model: Model, balancer: Resource, now: float) -> None:
    pools = list(model.store.below(balancer.id.text, POOL))
    for pool in pools:
        _check_unused(model, pool)
    for pool in pools:
        model.store.remove(pool)
    release(model, balancer, now)
    for reference, user in _public(balancer.body):
        model.unlink(reference, user)


def release(model: Model, balancer: Resource, now: float) -> None:
    """Gives the frontends' private addresses back."""
    for part in balancer.properties["frontendIPConfigurations"]:
        subnet = part["properties"].get("subnet")
        if subnet and key(subnet["id"]) in model.spaces:
            held = {part["name"].lower(): part["properties"]["privateIPAddress"]}
            Claim(model.spaces[key(subnet["id"])], balancer.id.key, now, held).commit(0.0)


def write_pool(model: Model, pool: ResourceId, body: Body, current: Resource | None, now: float) -> Body:
    balancer = model.store.get(pool.parent)
    if balancer is None:
        raise ArmError(404, "ParentResourceNotFound", f"Parent resource {pool.parent} was not found.")
    _check_pool(model, pool, body, balancer.body["sku"]["name"])
    return _pool_body(pool, body)


def written_pool(model: Model, pool: Resource, previous: Body | None) -> None:
    """A change to a pool is one to its balancer: a new etag for both."""
    balancer = model.store.get(pool.id.parent)
    if balancer is not None:
        balancer.changed()


def shown_pool(model: Model, pool: Resource) -> Body:
    """With its members by NIC, listed twice as the service does, and the rules that use it."""
    members = model.links(pool.id.key)
    extra: Body = {}
    if members:
        extra["backendIPConfigurations"] = [{"id": member} for member in members]
        extra["loadBalancerBackendAddresses"] = [
            {"name": guid("member", key(member)), "properties": {"networkInterfaceIPConfiguration": {"id": member}}}
            for member in members
        ]
    balancer = model.store.get(pool.id.parent)
    for name in ("loadBalancingRules", "outboundRules"):
        users = [part for part in (balancer.properties[name] if balancer else ()) if _uses(part, pool.id.key)]
        if users:
            extra[name] = [{"id": part["id"]} for part in users]
    return {**pool.body, "properties": {**pool.properties, **extra}}


def remove_pool(model: Model, pool: Resource, now: float) -> None:
    _check_unused(model, pool)
    balancer = model.store.get(pool.id.parent)
    for name in ("loadBalancingRules", "outboundRules"):
        for part in balancer.properties[name] if balancer else ():
            if _uses(part, pool.id.key):
                raise ArmError(400, "InUseBackendAddressPoolCannotBeDeleted", f"{pool.id} is used by {part['id']}.")


def check_members(model: Model, parts: list[Body]) -> None:
    """Checks a NIC that joins pools against their rules and outbound rules."""
    for part in parts:
        for reference in part["properties"].get("loadBalancerBackendAddressPools", ()):
            pool = model.store.get(reference["id"])
            balancer = model.store.get(pool.id.parent) if pool else None
            if pool is None or balancer is None:
                continue
            if pool.properties.get("loadBalancerBackendAddresses"):
                raise _mixed(model, pool.id)
            outbound = [rule for rule in balancer.properties["outboundRules"] if _uses(rule, pool.id.key)]
            if outbound and not part["properties"]["primary"]:
                raise _outbound(outbound[0]["id"], str(pool.id), part["id"])


def addresses(pool: Resource) -> list[str]:
    """Members by address."""
    entries = pool.properties.get("loadBalancerBackendAddresses") or ()
    return [entry["properties"]["ipAddress"] for entry in entries]


def _part(balancer: ResourceId, kind: str, entry: Any) -> Body:
    properties = {name: value for name, value in (entry.get("properties") or {}).items() if value is not None}
    if kind == "frontendIPConfigurations":
        properties.setdefault("privateIPAllocationMethod", "Dynamic")
        properties.setdefault("privateIPAddressVersion", "IPv4")
    return {
        **{name: value for name, value in entry.items() if name not in ("etag", "properties")},
        "id": f"{balancer}/{kind}/{entry['name']}",
        "type": f"{TYPE}/{kind}",
        "properties": {"provisioningState": "Succeeded", **properties},
    }


def _pool_body(pool: ResourceId, entry: Body) -> Body:
    properties = {name: value for name, value in (entry.get("properties") or {}).items() if value is not None}
    for name in ("backendIPConfigurations", "loadBalancingRules", "outboundRules"):
        properties.pop(name, None)
    given = properties.pop("loadBalancerBackendAddresses", None) or []
    own = [member for member in given if (member.get("properties") or {}).get("ipAddress")]
    if own:
        properties["loadBalancerBackendAddresses"] = own
    return {"name": pool.name, "id": str(pool), "type": POOL, "properties": properties}


def _check_pool(model: Model, pool: ResourceId, entry: Body, sku: str) -> None:
    given = (entry.get("properties") or {}).get("loadBalancerBackendAddresses") or []
    own = [member for member in given if (member.get("properties") or {}).get("ipAddress")]
    if not own:
        return
    guesses = model.settings.guesses
    check_names(own, pool)
    if sku.lower() != "standard":
        raise ArmError(400, guesses.pool_sku_code, f"{pool}: backend addresses need a Standard load balancer.")
    if model.links(pool.key):
        raise _mixed(model, pool)
    vnets = {key((member["properties"].get("virtualNetwork") or {}).get("id", "")) for member in own}
    if len(vnets) != 1:
        raise ArmError(400, guesses.pool_vnet_code, f"{pool}: all backend addresses must be in one virtual network.")
    vnet = model.store.get(next(iter(vnets)))
    if vnet is None:
        raise missing_reference(own[0]["properties"].get("virtualNetwork", {}).get("id", ""), str(pool))
    spaces = [ipaddress.IPv4Network(prefix) for prefix in networks.prefixes(vnet)]
    for member in own:
        try:
            address = ipaddress.IPv4Address(member["properties"]["ipAddress"])
        except ValueError as error:
            raise ArmError(400, "InvalidIPAddress", f"{pool}: {error}.") from error
        if not any(address in space for space in spaces):
            raise ArmError(400, guesses.pool_address_code, f"{pool}: {address} is not in {vnet.id}.")
    names = [member["name"].lower() for member in own]
    if len(set(names)) < len(names):
        raise ArmError(400, "DuplicateResourceName", f"{pool} has two backend addresses with the same name.")


def _check_left_out(model: Model, balancer: ResourceId, pools: list[Body]) -> None:
    names = {entry["name"].lower() for entry in pools}
    for pool in model.store.below(str(balancer), POOL):
        if pool.id.name.lower() not in names:
            _check_unused(model, pool)


def _check_unused(model: Model, pool: Resource) -> None:
    users = model.links(pool.id.key)
    if users:
        raise ArmError(400, "InUseBackendAddressPoolCannotBeDeleted", f"{pool.id} is used by {users[0]}.")


def _check_outbound(model: Model, properties: Body) -> None:
    for rule in properties["outboundRules"]:
        pool = (rule["properties"].get("backendAddressPool") or {}).get("id", "")
        for member in model.links(pool):
            nic = model.store.get(parse(member).parent)
            for part in nic.properties["ipConfigurations"] if nic else ():
                if key(part["id"]) == key(member) and not part["properties"]["primary"]:
                    raise _outbound(rule["id"], pool, member)


def _frontends(
    model: Model, balancer: ResourceId, parts: list[Body], current: Resource | None, now: float
) -> list[Claim]:
    """Gives private frontends an address of their subnet; they keep one that they have."""
    before = {
        part["name"].lower(): part["properties"].get("privateIPAddress", "")
        for part in (current.properties["frontendIPConfigurations"] if current else ())
    }
    claims = []
    for part in parts:
        properties = part["properties"]
        reference = (properties.get("publicIPAddress") or properties.get("subnet") or {}).get("id", "")
        if model.store.get(parse(reference)) is None:
            raise missing_reference(reference, str(balancer))
        if "subnet" not in properties:
            continue
        space = model.spaces[key(reference)]
        name = part["name"].lower()
        inside = {name: before[name]} if before.get(name) and space.contains(_number(before[name])) else {}
        claim = Claim(space, balancer.key, now, inside)
        if properties["privateIPAllocationMethod"].lower() == "static":
            claim.static(name, properties["privateIPAddress"])
        else:
            properties["privateIPAddress"] = claim.dynamic(name)
        claims.append(claim)
    return claims


def _number(text: str) -> int:
    return int(ipaddress.IPv4Address(text))


def _uses(part: Body, pool: str) -> bool:
    inner = part["properties"]
    named = [inner.get("backendAddressPool") or {}, *(inner.get("backendAddressPools") or ())]
    return any(key(entry.get("id", "")) == pool for entry in named)


def _public(body: Body | None) -> list[tuple[str, str]]:
    parts = ((body or {}).get("properties") or {}).get("frontendIPConfigurations") or ()
    return [
        (part["properties"]["publicIPAddress"]["id"], part["id"])
        for part in parts
        if part["properties"].get("publicIPAddress")
    ]


def _mixed(model: Model, pool: ResourceId) -> ArmError:
    words = f"Backend pool {pool} can't have members by NIC and by address at the same time."
    return ArmError(400, model.settings.guesses.pool_mixed_code, words)


def _outbound(rule: str, pool: str, member: str) -> ArmError:
    return ArmError(
        400,
        "OutboundRuleCannotBeUsedWithBackendAddressPoolThatIsReferencedBySecondaryIpConfigs",
        f"OutboundRule {rule} cannot be used with Backend Address Pool {pool} that contains Secondary IPConfig "
        f"{member}.",
    )


KINDS = (Kind(TYPE, write, written, remove, shown), Kind(POOL, write_pool, written_pool, remove_pool, shown_pool))
