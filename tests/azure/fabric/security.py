"""Security groups, as chains of the ruleset.

Pure: from the cloud to plain rules (`read`), from rules to nft lines (`chains`). A packet is filtered where it leaves
its sender (the NIC's and the subnet's group) and where it reaches its receiver; within a group the first rule by
priority decides, then Azure's default rules. Established flows are not filtered again. The tags are VirtualNetwork (the
VNet, its peers, on-premises), AzureLoadBalancer and Internet.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any

from tests.azure.arm import nics, scalesets
from tests.azure.arm.cloud import Cloud
from tests.azure.arm.ids import key
from tests.azure.fabric.ruleset import STORAGE, WIRESERVER

TYPE = "Microsoft.Network/networkSecurityGroups"
ANYTHING = ("*", "any", "0.0.0.0/0")
PORTED = {"tcp": "tcp", "udp": "udp", "*": "{ tcp, udp }"}


@dataclass(frozen=True, slots=True)
class Side:
    """Source or destination of a rule: prefixes and tags, or ASGs."""

    prefixes: tuple[str, ...]
    groups: tuple[str, ...]
    ports: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    priority: int
    inbound: bool
    allow: bool
    protocol: str
    source: Side
    destination: Side


@dataclass(frozen=True, slots=True)
class Security:
    groups: dict[str, tuple[Rule, ...]]
    """Security group → its rules by priority, without the default ones."""
    members: dict[str, frozenset[str]]
    """ASG → addresses of the ipConfigurations in it."""


def read(cloud: Cloud) -> Security:
    groups = {
        group.id.key: tuple(
            sorted((_rule(entry["properties"]) for entry in group.properties.get("securityRules") or ()), key=_priority)
        )
        for group in cloud.store.of_kind(TYPE)
    }
    members: dict[str, set[str]] = {}
    for kind in (nics.TYPE, scalesets.NIC) if groups else ():
        for nic in cloud.store.of_kind(kind):
            for part in nics.configurations(nic):
                for asg in part["properties"].get("applicationSecurityGroups") or ():
                    text = part["properties"]["privateIPAddress"]
                    found = members.setdefault(key(asg["id"]), set())
                    found.update(map(str, ipaddress.IPv4Network(text, strict=False)))
    return Security(groups, {asg: frozenset(addresses) for asg, addresses in members.items()})


def chain(rules: tuple[Rule, ...], inbound: bool, vnet_set: str, asg_set: dict[str, str]) -> tuple[str, ...]:
    """The lines of a group's chain for one direction. `return` allows, `goto drop_security` denies."""
    lines = []
    for rule in rules:
        if rule.inbound == inbound:
            lines += _lines(rule, vnet_set, asg_set)
    lines.append(f"ip saddr @{vnet_set} ip daddr @{vnet_set} return")
    lines.append(f"ip saddr {WIRESERVER} return" if inbound else f"ip daddr != @{vnet_set} return")
    lines.append("goto drop_security")
    return tuple(lines)


def _lines(rule: Rule, vnet_set: str, asg_set: dict[str, str]) -> list[str]:
    verdict = "return" if rule.allow else "goto drop_security"
    sources = _matches("saddr", rule.source, vnet_set, asg_set)
    destinations = _matches("daddr", rule.destination, vnet_set, asg_set)
    transport = _transport(rule)
    return [
        " ".join(part for part in (transport, source, destination, verdict) if part)
        for source in sources
        for destination in destinations
    ]


def _transport(rule: Rule) -> str:
    ports = [
        f"th {side} {{ {', '.join(values)} }}"
        for side, values in (("sport", rule.source.ports), ("dport", rule.destination.ports))
        if values and "*" not in values
    ]
    protocol = rule.protocol.lower()
    if ports:
        return f"meta l4proto {PORTED[protocol]} {' '.join(ports)}"
    return "" if protocol == "*" else f"ip protocol {protocol}"


def _matches(field: str, side: Side, vnet_set: str, asg_set: dict[str, str]) -> list[str]:
    """One match per prefix, tag or group; an empty text matches everything."""
    if side.groups:
        return [f"ip {field} @{asg_set[group]}" for group in side.groups if group in asg_set]
    found = []
    for prefix in side.prefixes:
        tag = prefix.lower()
        if tag in ANYTHING:
            found.append("")
        elif tag == "virtualnetwork":
            found.append(f"ip {field} @{vnet_set}")
        elif tag == "internet":
            found.append(f"ip {field} != @{vnet_set} ip {field} != {WIRESERVER}")
        elif tag == "azureloadbalancer":
            found.append(f"ip {field} {WIRESERVER}")
        elif tag.startswith("storage"):
            found.append(f"ip {field} {STORAGE}")
        else:
            found.append(f"ip {field} {prefix}")
    return found


def _priority(rule: Rule) -> int:
    return rule.priority


def _rule(properties: dict[str, Any]) -> Rule:
    return Rule(
        priority=properties["priority"],
        inbound=properties["direction"].lower() == "inbound",
        allow=properties["access"].lower() == "allow",
        protocol=properties["protocol"],
        source=_side(properties, "source"),
        destination=_side(properties, "destination"),
    )


def _side(properties: dict[str, Any], name: str) -> Side:
    prefixes = [properties.get(f"{name}AddressPrefix"), *(properties.get(f"{name}AddressPrefixes") or ())]
    ports = [properties.get(f"{name}PortRange"), *(properties.get(f"{name}PortRanges") or ())]
    groups = tuple(key(group["id"]) for group in properties.get(f"{name}ApplicationSecurityGroups") or ())
    return Side(tuple(filter(None, prefixes)), groups, tuple(filter(None, ports)))
