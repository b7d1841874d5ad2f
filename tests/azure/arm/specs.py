"""Bodies against the published API description (specs/): requests that it forbids are refused, answers that it forbids
are bugs.

Pure. Properties the description doesn't know are allowed, as in the service (the SDK may be newer than the
description). Called by `server.Emulator` for every body when checking is on, by tests for the published examples.
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
    """The first thing in the body of a resource that its description forbids; None when there is nothing."""
    where = BY_TYPE.get(kind.lower())
    if where is None:
        return None
    for error in _validator(*where).iter_errors(_without_nulls(body)):
        path = ".".join(str(step) for step in error.absolute_path)
        return f"{path or 'body'}: {error.message}"[:500]
    return None


def _without_nulls(value: Any) -> Any:
    """The service takes null for "not given", and answers it now and then (a large subnet's ipConfigurations)."""
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
            described.setdefault("type", "object")  # the description means it and often doesn't say it
    return Draft4Validator({"$ref": f"#/definitions/{definition}", "definitions": definitions})
