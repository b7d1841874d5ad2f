"""Real packets under Azure's policies: security groups, user routes, public addresses, balancers, endpoints,
captures."""

from __future__ import annotations

import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import pace
from tests.azure import client
from tests.azure.client import Azure
from tests.azure.fabric import namespaces
from tests.azure.packets import get, own, says, serving

NSG, ASG = "Microsoft.Network/networkSecurityGroups", "Microsoft.Network/applicationSecurityGroups"
PIP, LB = "Microsoft.Network/publicIPAddresses", "Microsoft.Network/loadBalancers"
STANDARD = {"name": "Standard"}
ONPREMISES = ("onpremises", "192.168.0.10")
INTERNET = ("internet", "203.0.113.10")


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azure]:
    cloud = client.start(tmp_path_factory.mktemp("azure"), duration=0, outlive=False)
    try:
        cloud.create_vnet("net", "10.240.0.0/12")
        cloud.create_subnet("net", "pods", "10.240.0.0/16")
        cloud.create_subnet("net", "back", "10.241.0.0/16")
        for name, subnet in (("a", "net/pods"), ("b", "net/back"), ("c", "net/back")):
            cloud.create_vm(name, subnet)
        yield cloud
        assert cloud.bugs() == []
    finally:
        cloud.stop()


A, B, C = ("a", "10.240.0.4"), ("b", "10.241.0.4"), ("c", "10.241.0.5")


def rule(priority: int, direction: str, access: str, **properties: Any) -> dict[str, Any]:
    defaults = {"sourceAddressPrefix": "*", "destinationAddressPrefix": "*", "protocol": "*"}
    ports = {"sourcePortRange": "*", "destinationPortRange": "*"}
    values = {"priority": priority, "direction": direction, "access": access, **defaults, **ports, **properties}
    return {"name": f"rule{priority}", "properties": values}


def subnet(azure: Azure, name: str, prefix: str, **properties: Any) -> None:
    azure.create_subnet("net", name, prefix, **properties)


def soon(found: Callable[[], Any], expected: Any) -> None:
    """Waits for the expected value: health probes need a moment."""
    deadline = time.monotonic() + pace.stretched(5)
    while (last := found()) != expected:
        assert time.monotonic() < deadline, f"{last!r} is not {expected!r}"
        time.sleep(0.05)


def test_security_group_of_a_subnet(azure: Azure) -> None:
    rules = [
        rule(100, "Inbound", "Allow", protocol="Udp", destinationPortRange="5555", sourceAddressPrefix=A[1]),
        rule(200, "Inbound", "Deny", sourceAddressPrefix="VirtualNetwork"),
    ]
    group = azure.put(NSG, "back", {"securityRules": rules})["id"]
    subnet(azure, "back", "10.241.0.0/16", networkSecurityGroup={"id": group})
    before = azure.drops()["security"]
    assert says(A, B) == A[1]
    assert says(B, C) is None, "also within the subnet"
    assert azure.drops()["security"] == before + 1
    assert says(B, A) == B[1]
    with serving("b", B[1], 8080), serving("a", A[1], 8080):
        assert get("a", f"http://{B[1]}:8080/", "-m", "0.3") == ""
        assert get("b", f"http://{A[1]}:8080/") == f"hello {B[1]}", "answers of an allowed flow pass"
    azure.put(NSG, "back", {"securityRules": []})
    assert says(B, C) == B[1], "the default rules allow the virtual network"
    subnet(azure, "back", "10.241.0.0/16")


@pytest.mark.parametrize(
    ("deny", "passes"),
    [
        ({"destinationAddressPrefix": "Internet"}, {"vnet": True, "internet": False}),
        ({"destinationAddressPrefix": "VirtualNetwork"}, {"vnet": False, "internet": True}),
        ({"destinationPortRanges": ["5000-6000", "80"], "protocol": "Udp"}, {"vnet": False, "internet": False}),
        ({"destinationPortRange": "80", "protocol": "Tcp"}, {"vnet": True, "internet": True}),
    ],
    ids=["Internet", "VirtualNetwork", "ports", "protocol"],
)
def test_security_group_of_a_nic(azure: Azure, deny: dict[str, Any], passes: dict[str, bool]) -> None:
    group = azure.put(NSG, "nic", {"securityRules": [rule(100, "Outbound", "Deny", **deny)]})["id"]
    nic = azure.nic("a-nic")
    nic["properties"]["networkSecurityGroup"] = {"id": group}
    azure.request("PUT", nic["id"], nic)
    assert says(A, B) == (A[1] if passes["vnet"] else None)
    assert says(A, INTERNET) == (A[1] if passes["internet"] else None)
    del nic["properties"]["networkSecurityGroup"]
    azure.request("PUT", nic["id"], nic)
    assert says(A, B) == A[1]


def test_application_security_group_follows_its_members(azure: Azure) -> None:
    web = azure.put(ASG, "web")["id"]
    allow = rule(100, "Inbound", "Allow", sourceApplicationSecurityGroups=[{"id": web}])
    del allow["properties"]["sourceAddressPrefix"]
    group = azure.put(NSG, "asg", {"securityRules": [allow, rule(200, "Inbound", "Deny")]})["id"]
    subnet(azure, "back", "10.241.0.0/16", networkSecurityGroup={"id": group})
    assert says(A, B) is None
    nic = azure.nic("a-nic")
    nic["properties"]["ipConfigurations"][0]["properties"]["applicationSecurityGroups"] = [{"id": web}]
    azure.request("PUT", nic["id"], nic)
    assert says(A, B) == A[1]
    pod = azure.add_address("a-nic", "pod", applicationSecurityGroups=[{"id": web}])
    with own("a", pod):
        assert says(("a", pod), B) == pod
    azure.remove_address("a-nic", "pod")
    del nic["properties"]["ipConfigurations"][0]["properties"]["applicationSecurityGroups"]
    azure.request("PUT", nic["id"], nic)
    subnet(azure, "back", "10.241.0.0/16")


def route(name: str, prefix: str, hop: str, address: str | None = None) -> dict[str, Any]:
    properties = {"addressPrefix": prefix, "nextHopType": hop}
    return {"name": name, "properties": properties | ({"nextHopIpAddress": address} if address else {})}


def test_user_routes(azure: Azure) -> None:
    table = azure.put("Microsoft.Network/routeTables", "t", {"routes": [route("drop", "203.0.113.0/24", "None")]})["id"]
    subnet(azure, "pods", "10.240.0.0/16", routeTable={"id": table})
    before = azure.drops()["route"]
    assert says(A, INTERNET) is None
    assert azure.drops()["route"] == before + 1
    assert says(A, B) == A[1], "the rest goes on"
    routes = [route("through-c", "10.241.0.0/16", "VirtualAppliance", C[1])]
    azure.put("Microsoft.Network/routeTables", "t", {"routes": routes})
    assert says(A, INTERNET) == A[1]
    subprocess.run(["ip", "netns", "exec", "c", "sysctl", "-qw", "net.ipv4.ip_forward=1"], check=True)
    before = azure.drops()["source"]
    assert says(A, B) is None, "the appliance forwards, but its NIC may not"
    assert azure.drops()["source"] == before + 1
    nic = azure.nic("c-nic")
    nic["properties"]["enableIPForwarding"] = True
    azure.request("PUT", nic["id"], nic)
    assert says(A, B) == A[1]
    azure.power("c", "deallocate")
    assert says(A, B) is None, "no appliance, no way"
    azure.power("c", "start")
    subnet(azure, "pods", "10.240.0.0/16")
    assert says(A, B) == A[1]


def test_onpremises_needs_a_gateway_and_sees_pods(azure: Azure) -> None:
    assert says(A, ONPREMISES) is None
    azure.connect_onpremises("net")
    pod = azure.add_address("a-nic", "pod")
    with own("a", pod):
        assert says(("a", pod), ONPREMISES) == pod
        assert says(ONPREMISES, ("a", pod)) == ONPREMISES[1]
    azure.remove_address("a-nic", "pod")


def test_public_ip_is_both_ways(azure: Azure) -> None:
    public = azure.put(PIP, "pod", {"publicIPAllocationMethod": "Static"}, sku=STANDARD)
    pod = azure.add_address("a-nic", "pod", publicIPAddress={"id": public["id"]})
    with own("a", pod), serving("a", pod, 8080):
        assert get("a", "http://203.0.113.10/", "--interface", pod) == public["properties"]["ipAddress"]
        url = f"http://{public['properties']['ipAddress']}:8080/"
        assert get("internet", url) == f"hello {INTERNET[1]}"
        azure.remove_address("a-nic", "pod")
        assert get("internet", url, "-m", "0.3") == ""


def test_nat_gateway_gives_pods_a_way_out(azure: Azure) -> None:
    public = azure.put(PIP, "nat", {"publicIPAllocationMethod": "Static"}, sku=STANDARD)
    gateway = {"publicIpAddresses": [{"id": public["id"]}]}
    nat = azure.put("Microsoft.Network/natGateways", "nat", gateway, sku=STANDARD)["id"]
    subnet(azure, "pods", "10.240.0.0/16", natGateway={"id": nat})
    pod = azure.add_address("a-nic", "pod")
    with own("a", pod):
        for address in (A[1], pod):
            seen = get("a", "http://203.0.113.10/", "--interface", address)
            assert seen == public["properties"]["ipAddress"]
        subnet(azure, "pods", "10.240.0.0/16")
        assert get("a", "http://203.0.113.10/", "--interface", pod, "-m", "0.3") == ""
    azure.remove_address("a-nic", "pod")


def balancer(azure: Azure, name: str, front: dict[str, Any], *, probe: str = "Tcp") -> str:
    """A balancer 80 → 8080 with the pool `pods`; returns the pool's id."""
    own_id = azure.id(LB, name)
    properties = {
        "frontendIPConfigurations": [{"name": "front", "properties": front}],
        "backendAddressPools": [{"name": "pods"}],
        "probes": [
            {
                "name": "alive",
                "properties": {"protocol": probe, "port": 8080, "requestPath": "/", "intervalInSeconds": 5},
            }
        ],
        "loadBalancingRules": [
            {
                "name": "http",
                "properties": {
                    "frontendIPConfiguration": {"id": f"{own_id}/frontendIPConfigurations/front"},
                    "backendAddressPool": {"id": f"{own_id}/backendAddressPools/pods"},
                    "probe": {"id": f"{own_id}/probes/alive"},
                    "protocol": "Tcp",
                    "frontendPort": 80,
                    "backendPort": 8080,
                },
            }
        ],
    }
    azure.put(LB, name, properties, sku=STANDARD)
    return f"{own_id}/backendAddressPools/pods"


def fill(azure: Azure, pool: str, *addresses: str) -> None:
    vnet = {"id": azure.id("Microsoft.Network/virtualNetworks", "net")}
    members = [{"name": text, "properties": {"ipAddress": text, "virtualNetwork": vnet}} for text in addresses]
    azure.request("PUT", pool, {"properties": {"loadBalancerBackendAddresses": members}})


@pytest.mark.parametrize("probe", ["Tcp", "Http"])
def test_internal_balancer_with_pod_addresses(azure: Azure, probe: str) -> None:
    reference = {"id": azure.id("Microsoft.Network/virtualNetworks/subnets", "net/back")}
    pool = balancer(azure, "lb", {"subnet": reference}, probe=probe)
    front = azure.get(LB, "lb")["properties"]["frontendIPConfigurations"][0]["properties"]["privateIPAddress"]
    pods = {name: azure.add_address(f"{name}-nic", "pod") for name in ("b", "c")}
    fill(azure, pool, *pods.values())

    def answers() -> set[str]:
        return {get("a", f"http://{front}/", "-m", "0.3") for _ in range(12)}

    assert answers() == {""}, "nobody is healthy yet"
    with own("b", pods["b"]), own("c", pods["c"]), serving("b", pods["b"], 8080, "b"):
        soon(answers, {f"b {A[1]}"})
        with serving("c", pods["c"], 8080, "c"):
            soon(answers, {f"b {A[1]}", f"c {A[1]}"})
        soon(answers, {f"b {A[1]}"})
    azure.delete(LB, "lb")
    for name in ("b", "c"):
        azure.remove_address(f"{name}-nic", "pod")


def test_public_balancer_with_nic_members(azure: Azure) -> None:
    public = azure.put(PIP, "front", {"publicIPAllocationMethod": "Static"}, sku=STANDARD)
    pool = balancer(azure, "public", {"publicIPAddress": {"id": public["id"]}})
    nic = azure.nic("b-nic")
    nic["properties"]["ipConfigurations"][0]["properties"]["loadBalancerBackendAddressPools"] = [{"id": pool}]
    azure.request("PUT", nic["id"], nic)
    url = f"http://{public['properties']['ipAddress']}/"
    with serving("b", B[1], 8080):
        soon(lambda: get("internet", url, "-m", "0.3"), f"hello {INTERNET[1]}")
        group = azure.put(
            NSG, "probe", {"securityRules": [rule(100, "Inbound", "Deny", sourceAddressPrefix="AzureLoadBalancer")]}
        )
        subnet(azure, "back", "10.241.0.0/16", networkSecurityGroup={"id": group["id"]})
        soon(lambda: get("internet", url, "-m", "0.3"), "")
        subnet(azure, "back", "10.241.0.0/16")
        soon(lambda: get("internet", url, "-m", "0.3"), f"hello {INTERNET[1]}")


def test_service_endpoint(azure: Azure) -> None:
    assert "not allowed" in get("a", "http://20.60.0.10/")
    pod = azure.add_address("a-nic", "pod")
    with own("a", pod):
        before = azure.drops()["endpoint"]
        assert get("a", "http://20.60.0.10/", "--interface", pod, "-m", "0.3") == ""
        assert azure.drops()["endpoint"] > before
        subnet(azure, "pods", "10.240.0.0/16", serviceEndpoints=[{"service": "Microsoft.Storage"}])
        assert get("a", "http://20.60.0.10/", "--interface", pod) == pod
    azure.remove_address("a-nic", "pod")
    subnet(azure, "pods", "10.240.0.0/16")


def test_wireserver_answers_the_primary_address_only(azure: Azure) -> None:
    assert get("a", "http://168.63.129.16/") == "Versions"
    pod = azure.add_address("a-nic", "pod")
    with own("a", pod):
        assert get("a", "http://168.63.129.16/", "--interface", pod, "-m", "0.3") == ""
    azure.remove_address("a-nic", "pod")


def test_capture_is_a_pcap_file(azure: Azure, tmp_path: Path) -> None:
    azure.capture("a", tmp_path / "a.pcap")
    assert says(A, B) == A[1]
    assert azure.capture_end("a") >= 1
    raw = (tmp_path / "a.pcap").read_bytes()
    assert struct.unpack_from("<IHH", raw) == (0xA1B2C3D4, 2, 4)
    frames, at = [], 24
    while at < len(raw):
        length = struct.unpack_from("<IIII", raw, at)[2]
        frames.append(raw[at + 16 : at + 16 + length])
        at += 16 + length
    sent = [frame for frame in frames if frame[26:30] == bytes([10, 240, 0, 4]) and frame.endswith(b"hello")]
    assert len(sent) == 1
    assert sent[0][:6].hex(":") == "12:34:56:78:9a:bc"


def test_no_namespace_is_left(azure: Azure) -> None:
    assert namespaces.exists("a")
    assert azure.drops().keys() >= {"mac", "source", "security", "route"}
