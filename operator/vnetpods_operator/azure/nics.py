"""Parses ARM's JSON of a NIC, and edits our own ipConfigurations in it and nothing else.

A NIC is written as a whole, and a property missing from the write is reset; so the body is sent back as it was read,
with our entries added or removed. Azure's rules shape our entries: all entries of a NIC are in one subnet and name the
same application security groups, so both are copied from the primary; load balancer pools are not, because outbound
rules refuse pools with secondary entries. Pure.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from ipaddress import IPv4Network
from typing import Any

from vnetpods_api.names import IP_CONFIGURATION_PREFIX
from vnetpods_operator.planning.machine import Entry, Nic
from vnetpods_operator.planning.model import Change


def parse(body: dict[str, Any]) -> Nic:
    """Parses ARM's response for a NIC."""
    properties = body.get("properties") or {}
    configurations = properties["ipConfigurations"]  # never empty: a response without it is malformed
    return Nic(
        id=body["id"],
        name=body.get("name") or body["id"].rpartition("/")[2],
        mac=(properties.get("macAddress") or "").replace("-", ":").lower(),
        subnet=_subnet(configurations),
        etag=body.get("etag") or properties.get("etag") or "",
        state=properties.get("provisioningState") or "Succeeded",
        primary=bool(properties.get("primary")),
        entries=tuple(entry(configuration) for configuration in configurations),
        tags=body.get("tags") or {},
        body=body,
        carries=names(configurations),
    )


def names(configurations: Iterable[dict[str, Any]]) -> frozenset[str]:
    """The entries' names in lower case."""
    return frozenset(entry(configuration).name.lower() for configuration in configurations)


def entry(configuration: dict[str, Any]) -> Entry:
    """Parses one ipConfiguration."""
    properties = configuration.get("properties") or {}
    return Entry(
        name=configuration.get("name") or "",
        address=_address(properties),
        state=properties.get("provisioningState") or "Succeeded",
        primary=bool(properties.get("primary")),
    )


def edited(body: dict[str, Any], change: Change, new_name: Callable[[], str]) -> dict[str, Any]:
    """A copy of a NIC's body with the change applied. `new_name` returns eight hex digits."""
    result = dict(body)
    properties = result["properties"] = dict(body["properties"])
    properties["ipConfigurations"] = edited_configurations(properties["ipConfigurations"], change, new_name)
    return result


def edited_configurations(
    configurations: list[dict[str, Any]], change: Change, new_name: Callable[[], str]
) -> list[dict[str, Any]]:
    """The entries after the change: those kept, unchanged and in order, then the new ones."""
    kept = [c for c in configurations if not _leaves(entry(c), change)]
    primary = next((c for c in configurations if entry(c).primary), configurations[0])
    taken = {entry(c).name.lower() for c in kept}
    wanted: list[dict[str, Any]] = [{"privateIPAllocationMethod": "Dynamic"}] * change.add
    wanted += [{"privateIPAllocationMethod": "Dynamic", "privateIPAddressPrefixLength": 28}] * change.blocks
    wanted += [{"privateIPAllocationMethod": "Static", "privateIPAddress": address} for address in change.restore]
    for allocation in wanted:
        name = _fresh(taken, new_name)
        kept.append({"name": name, "properties": allocation | _like(primary)})
    return kept


def _leaves(found: Entry, change: Change) -> bool:
    return found.ours and found.name in change.remove | change.sweep


def _like(primary: dict[str, Any]) -> dict[str, Any]:
    """Properties that a new entry copies from the primary."""
    properties = primary["properties"]
    common: dict[str, Any] = {"privateIPAddressVersion": "IPv4", "primary": False}
    common["subnet"] = {"id": properties["subnet"]["id"]}
    groups = properties.get("applicationSecurityGroups")
    if groups:
        common["applicationSecurityGroups"] = [{"id": group["id"]} for group in copy.copy(groups)]
    return common


def _fresh(taken: set[str], new_name: Callable[[], str]) -> str:
    while (name := IP_CONFIGURATION_PREFIX + new_name()) in taken:
        pass
    taken.add(name)
    return name


def _subnet(configurations: Iterable[dict[str, Any]]) -> str:
    for configuration in configurations:
        subnet = ((configuration.get("properties") or {}).get("subnet") or {}).get("id")
        if subnet:
            return str(subnet)
    return ""


def _address(properties: dict[str, Any]) -> str | None:
    """Azure returns blocks as `10.0.0.16/28` or as a bare address and a prefix length, possibly with host bits set."""
    if (properties.get("privateIPAddressVersion") or "IPv4") != "IPv4":
        return None
    value = properties.get("privateIPAddress") or None
    if value is None:
        return None
    bare, _, length = str(value).partition("/")
    length = length or str(properties.get("privateIPAddressPrefixLength") or 32)
    return bare if length == "32" else str(IPv4Network(f"{bare}/{length}", strict=False))
