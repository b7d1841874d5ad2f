"""The published examples against the emulator: a GET returns what was PUT, with the published properties."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.azure.arm import balancers, machines, networks, nics, plain, scalesets, specs
from tests.azure.arm.builder import GROUP, LOCATION, SUBSCRIPTION
from tests.azure.arm.ids import key, parse
from tests.azure.arm.roles import referred
from tests.azure.arm.sdk import network_client
from tests.azure.arm.server import Emulator
from tests.azure.conftest import refusal

EXAMPLES = specs.FOLDER / "examples"
VNET = {"addressSpace": {"addressPrefixes": ["10.0.0.0/8", "172.16.0.0/12"]}}
NSG, ASG = "Microsoft.Network/networkSecurityGroups", "Microsoft.Network/applicationSecurityGroups"

WRITTEN = {
    "NetworkInterfaceCreate": nics.TYPE,
    "VirtualNetworkCreate": networks.TYPE,
    "VirtualNetworkCreateSubnet": networks.TYPE,
    "VirtualNetworkCreateSubnetWithAddressPrefixes": networks.TYPE,
    "VirtualNetworkCreateServiceEndpoints": networks.TYPE,
    "SubnetCreate": networks.SUBNET,
    "SubnetCreateServiceEndpoint": networks.SUBNET,
    "VirtualNetworkPeeringCreate": networks.PEERING,
    "LoadBalancerCreate": balancers.TYPE,
    "LoadBalancerCreateStandardSku": balancers.TYPE,
    "LoadBalancerCreateWithOutboundRules": balancers.TYPE,
    "LBBackendAddressPoolWithBackendAddressesPut": balancers.POOL,
    "PublicIpAddressCreateCustomizedValues": plain.PUBLIC_IP,
    "NetworkSecurityGroupCreate": NSG,
    "NetworkSecurityGroupCreateWithRule": NSG,
    "ApplicationSecurityGroupCreate": ASG,
    "RouteTableCreate": "Microsoft.Network/routeTables",
    "RouteTableCreateWithRoute": "Microsoft.Network/routeTables",
    "VirtualMachine_Create_WithSshAuthentication": machines.TYPE,
}
NAMES = {
    NSG: ("networkSecurityGroupName",),
    ASG: ("applicationSecurityGroupName",),
    networks.SUBNET: ("virtualNetworkName", "subnetName"),
    networks.PEERING: ("virtualNetworkName", "virtualNetworkPeeringName"),
    balancers.POOL: ("loadBalancerName", "backendAddressPoolName"),
}
NOT_GIVEN = {
    # the service's internals, and defaults of fields that vnetpods never reads
    "loadDistribution", "enableTcpReset", "allowBackendPortConflict", "ipTags", "remoteBgpCommunities",
    "inboundNatRules", "outboundRules", "loadBalancingRules", "defaultSecurityRules", "networkInterfaces",
    "disableBgpRoutePropagation", "idleTimeoutInMinutes", "remoteVirtualNetworkEncryption", "protocol",
    "enableFloatingIP", "provisioningState", "zones", "sku", "probes", "inboundNatPools", "frontendIPConfigurations",
    "backendAddressPools", "privateIPAddress", "serviceEndpoints", "locations", "virtualNetworkPeerings", "subnets",
    "ipConfigurations", "requestPath", "ddosSettings", "flushConnection", "ipConfiguration", "osType",
}  # fmt: skip


def load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((EXAMPLES / f"{name}.json").read_text(encoding="utf-8"))
    return found


def localized(value: Any) -> Any:
    """The example with its ids moved into our subscription and group."""
    if isinstance(value, dict):
        return {name: localized(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [localized(inner) for inner in value]
    if isinstance(value, str) and value.lower().startswith("/subscriptions/"):
        parts = value.split("/")
        parts[2], parts[4] = SUBSCRIPTION, GROUP
        return "/".join(parts)
    return value


def prepare(azure: Emulator, target: str, body: Any) -> None:
    """Creates what an example refers to."""
    wanted = parse(target)
    for text in [*referred(wanted, body), *([str(wanted.parent)] if len(wanted.types) > 1 else [])]:
        reference = parse(text)
        if azure.cloud.store.get(reference) is not None:
            continue
        if reference.type == networks.TYPE:
            space = (
                {"addressSpace": {"addressPrefixes": ["12.0.0.0/8"]}} if "remote" in text or "vnet2" in text else VNET
            )
            azure.build.put(networks.TYPE, text, space)
        elif reference.type == networks.SUBNET:
            azure.build.put(networks.TYPE, str(reference.parent), VNET)
            azure.build.request("PUT", text, {"properties": {"addressPrefix": "10.0.0.0/24"}})
        elif reference.type == nics.TYPE:
            azure.build.put(networks.TYPE, "for-nics", VNET)
            azure.build.create_subnet("for-nics", "s", "10.0.0.0/24")
            azure.build.create_nic(text, "for-nics/s")
        elif reference.type == balancers.TYPE:
            azure.build.put(balancers.TYPE, text, {}, sku={"name": "Standard"})
        elif reference.type.startswith("Microsoft.Network/") and len(reference.types) == 1:
            azure.build.put(reference.type, text)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All scalars with their paths; list entries by name where they have one."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, f"{path}.{name}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            mark = inner.get("name", number) if isinstance(inner, dict) else number
            yield from leaves(inner, f"{path}[{mark}]")
    else:
        yield path, key(value) if isinstance(value, str) and value.startswith("/") else value


@pytest.mark.parametrize("name", WRITTEN)
async def test_published_example_round_trips(name: str) -> None:
    kind, example = WRITTEN[name], load(name)
    parameters = example["parameters"]
    body = localized(next(value for value in parameters.values() if isinstance(value, dict)))
    names = NAMES.get(kind) or (
        next(field for field in parameters if field.lower().endswith("name") and "roup" not in field),
    )
    async with Emulator() as azure:
        target = azure.build.id(kind, "/".join(parameters[field].strip("{}") for field in names))
        prepare(azure, target, body)
        assert specs.problem(kind, body) is None
        answer = azure.build.request("PUT", target, {"location": LOCATION, **body})
        assert specs.problem(kind, answer) is None
        shown = azure.build.request("GET", target)
    assert shown == answer
    have = dict(leaves(shown))
    lost = {path: value for path, value in leaves(body) if have.get(path) != value}
    assert lost == {}
    published = localized(next(iter(example["responses"].values()))["body"])
    missing = {
        path
        for path, _ in leaves(published)
        if path not in have and not NOT_GIVEN & set(path.replace("[", ".").split("."))
    }
    assert {path for path in missing if not path.endswith(".etag")} == set()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NetworkInterfaceGet", nics.TYPE),
        ("VirtualNetworkGet", networks.TYPE),
        ("VirtualMachineScaleSetVM_Get_WithUserData", scalesets.INSTANCE),
    ],
)
def test_published_answers_fit_the_description(name: str, kind: str) -> None:
    assert specs.problem(kind, load(name)["responses"]["200"]["body"]) is None


def test_every_definition_is_there() -> None:
    for kind in specs.DEFINITIONS:
        specs.problem(kind, {})


@pytest.mark.parametrize(
    "broken",
    [
        {"properties": {"ipConfigurations": {}}},
        {"properties": {"ipConfigurations": [{"name": 7}]}},
        {"properties": {"ipConfigurations": [{"name": "a", "properties": {"privateIPAllocationMethod": "Always"}}]}},
        {"tags": [1]},
    ],
    ids=["object for a list", "number for a name", "unknown method", "list of tags"],
)
async def test_body_that_the_description_forbids_is_refused(cloud: Emulator, broken: Any) -> None:
    body: Any = {"location": LOCATION, **broken}
    async with network_client(cloud.url) as network:
        refused = network.network_interfaces.begin_create_or_update(GROUP, "n1", body)
        assert await refusal(refused) == (400, "InvalidRequestFormat")


def test_examples_are_used() -> None:
    used = {*WRITTEN, "NetworkInterfaceGet", "VirtualNetworkGet", "VirtualMachineScaleSetVM_Get_WithUserData"}
    assert {Path(path).stem for path in EXAMPLES.iterdir()} == used
