"""Role assignments: a principal's role is a list of actions on a scope.

Pure. A principal without any assignment may do everything (tests that don't care); one with assignments only what they
grant. A write needs the permission on its resource, and the join permission on everything that its body refers to.
Codes and messages are ARM's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from tests.azure.arm.errors import ArmError
from tests.azure.arm.ids import ResourceId, key, parse

JOINS = {
    "microsoft.network/virtualnetworks/subnets": "Microsoft.Network/virtualNetworks/subnets/join/action",
    "microsoft.network/networksecuritygroups": "Microsoft.Network/networkSecurityGroups/join/action",
    "microsoft.network/applicationsecuritygroups": (
        "Microsoft.Network/applicationSecurityGroups/joinIpConfiguration/action"
    ),
    "microsoft.network/publicipaddresses": "Microsoft.Network/publicIPAddresses/join/action",
    "microsoft.network/loadbalancers/backendaddresspools": (
        "Microsoft.Network/loadBalancers/backendAddressPools/join/action"
    ),
    "microsoft.network/loadbalancers/inboundnatrules": "Microsoft.Network/loadBalancers/inboundNatRules/join/action",
    "microsoft.network/networkinterfaces": "Microsoft.Network/networkInterfaces/join/action",
    "microsoft.network/routetables": "Microsoft.Network/routeTables/join/action",
    "microsoft.network/natgateways": "Microsoft.Network/natGateways/join/action",
    "microsoft.network/virtualnetworks": "Microsoft.Network/virtualNetworks/joinLoadBalancer/action",
    "microsoft.compute/galleries/images": "Microsoft.Compute/galleries/images/read",
    "microsoft.compute/galleries/images/versions": "Microsoft.Compute/galleries/images/versions/read",
}
"""The permission that a reference to a resource of this type needs on it."""
PEER = "Microsoft.Network/virtualNetworks/peer/action"
FREE = ("*/locations/operations/read", "*/locations/operationresults/read")
"""Polling one's own operation needs no permission."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """Actions (with wildcards) on a scope and everything below it."""

    actions: tuple[str, ...]
    scope: str

    def permits(self, action: str, scope: str) -> bool:
        inside = key(self.scope) == "/" or f"{key(scope)}/".startswith(f"{key(self.scope)}/")
        return inside and any(fnmatchcase(action.lower(), pattern.lower()) for pattern in self.actions)


class Roles:
    """All assignments."""

    def __init__(self) -> None:
        self._of: dict[str, list[Assignment]] = {}

    def assign(self, principal: str, actions: list[str], scope: str = "/") -> None:
        self._of.setdefault(principal, []).append(Assignment(tuple(actions), scope))

    def revoke(self, principal: str) -> None:
        """Removes the principal's assignments: it may do everything again."""
        self._of.pop(principal, None)

    def check(self, principal: str, action: str, scope: str) -> None:
        if self._permitted(principal, action, scope) or any(fnmatchcase(action.lower(), free) for free in FREE):
            return
        raise ArmError(
            403,
            "AuthorizationFailed",
            f"The client '{principal}' with object id '{principal}' does not have authorization to perform action "
            f"'{action}' over scope '{scope}' or the scope is invalid. If access was recently granted, please refresh "
            "your credentials.",
        )

    def check_joins(self, principal: str, action: str, target: ResourceId, body: Any, known: Any) -> None:
        """`known` is the body before the write: references in it are not checked again (None: all are)."""
        if principal not in self._of:
            return
        before = {key(text) for text in referred(target, known)}
        for text in referred(target, body):
            linked = parse(text)
            join = JOINS.get(linked.kind)
            if join and "peerings" in target.kind:
                join = PEER
            if join and linked.key not in before and not self._permitted(principal, join, text):
                raise ArmError(
                    403,
                    "LinkedAuthorizationFailed",
                    f"The client '{principal}' with object id '{principal}' has permission to perform action "
                    f"'{action}' on scope '{target}'; however, it does not have permission to perform action(s) "
                    f"'{join}' on the linked scope(s) '{text}' (respectively) or the linked scope(s) are invalid.",
                )

    def _permitted(self, principal: str, action: str, scope: str) -> bool:
        assignments = self._of.get(principal)
        return assignments is None or any(assignment.permits(action, scope) for assignment in assignments)


def referred(target: ResourceId, body: Any) -> Iterator[str]:
    """Ids of other resources anywhere in a body, but not of the machine a NIC is attached to."""
    if isinstance(body, list):
        for entry in body:
            yield from referred(target, entry)
    elif isinstance(body, dict):
        text = body.get("id")
        if isinstance(text, str) and "/providers/" in text.lower() and not key(text).startswith(target.key):
            yield text
        for name, value in body.items():
            if name != "virtualMachine" and not (name in OUTPUTS and target.kind.endswith(OUTPUTS[name])):
                yield from referred(target, value)


OUTPUTS = {
    "backendIPConfigurations": ("/loadbalancers", "/backendaddresspools"),
    "networkInterfaceIPConfiguration": ("/loadbalancers", "/backendaddresspools"),
    "ipConfigurations": ("/subnets", "/virtualnetworks"),
    "ipConfiguration": ("/publicipaddresses",),
}
"""Properties that the service writes and the caller only echoes: they need no permission."""
