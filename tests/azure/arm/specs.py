"""Checks bodies against the published API description (specs/): forbidden requests are rejected, forbidden responses
are bugs.

Pure. Properties unknown to the description are allowed, as in the service (the SDK may be newer than the description).
Called by `server.Emulator` for every body if checking is on, and by tests for the published examples.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from jsonschema import Draft4Validator

from tests.azure.arm import balancers, machines, networks, nics, plain, scalesets

FOLDER = Path(__file__).parents[1] / "specs"
NETWORK = "network-2024-01-01"
COMPUTE = "compute-2024-07-01"

DEFINITIONS = {
    nics.TYPE: (NETWORK, "NetworkInterface"),
    scalesets.NIC: (NETWORK, "NetworkInterface"),
    networks.TYPE: (NETWORK, "VirtualNetwork"),
    networks.SUBNET: (NETWORK, "Subnet"),
    networks.PEERING: (NETWORK, "VirtualNetworkPeering"),
    balancers.TYPE: (NETWORK, "LoadBalancer"),
    balancers.POOL: (NETWORK, "BackendAddressPool"),
    plain.PUBLIC_IP: (NETWORK, "PublicIPAddress"),
    "Microsoft.Network/networkSecurityGroups": (NETWORK, "NetworkSecurityGroup"),
    "Microsoft.Network/applicationSecurityGroups": (NETWORK, "ApplicationSecurityGroup"),
    "Microsoft.Network/routeTables": (NETWORK, "RouteTable"),
    "Microsoft.Network/natGateways": (NETWORK, "NatGateway"),
    machines.TYPE: (COMPUTE, "VirtualMachine"),
    scalesets.TYPE: (COMPUTE, "VirtualMachineScaleSet"),
    scalesets.INSTANCE: (COMPUTE, "VirtualMachineScaleSetVM"),
}
BY_TYPE = {kind.lower(): where for kind, where in DEFINITIONS.items()}


def problem(kind: str, body: Any) -> str | None:
    """The first violation of its description in a resource's body, or None."""
    where = BY_TYPE.get(kind.lower())
    if where is None:
        return None
    for error in _validator(*where).iter_errors(_without_nulls(body)):
        path = ".".join(str(step) for step in error.absolute_path)
        return f"{path or 'body'}: {error.message}"[:500]
    return None


def _without_nulls(value: Any) -> Any:
    """The service accepts null as "not given", and sometimes returns it (a large subnet's ipConfigurations)."""
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value


@cache
def _validator(name: str, definition: str) -> Draft4Validator:
    definitions = msgspec.json.decode((FOLDER / f"{name}.json").read_bytes())["definitions"]
    for described in definitions.values():
        if "properties" in described or "allOf" in described:
            described.setdefault("type", "object")  # the description often omits it
    return Draft4Validator({"$ref": f"#/definitions/{definition}", "definitions": definitions})
