"""Details of recorded ARM traffic that a client may rely on."""

from __future__ import annotations

from typing import Any

import pytest
from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError
from azure.mgmt.network.aio import NetworkManagementClient

from tests.azure.arm.admin import API_VERSION
from tests.azure.arm.builder import GROUP, LOCATION
from tests.azure.arm.requests import Reply, Request
from tests.azure.arm.sdk import compute_client
from tests.azure.arm.server import Emulator
from tests.azure.conftest import refusal

NIC = "Microsoft.Network/networkInterfaces"
VM = "Microsoft.Compute/virtualMachines"
SET = "Microsoft.Compute/virtualMachineScaleSets"


def ask(cloud: Emulator, method: str, path: str, body: Any = None, **headers: str) -> Reply:
    """One request as the operator; returns the response with all headers."""
    query = {"api-version": API_VERSION}
    request = Request(method, path, query, headers, body=body, principal="operator", base=cloud.url)
    return cloud.cloud.handle(request, cloud.clock.now())


def test_a_nic_says_succeeded_while_its_operation_runs(cloud: Emulator) -> None:
    cloud.build.set_duration(NIC, 60)
    path = cloud.build.id(NIC, "w1-nic")
    written = ask(cloud, "PUT", path, cloud.build.nic("w1-nic"))
    assert (written.status, written.body["properties"]["provisioningState"]) == (200, "Succeeded")
    poll = written.headers["Azure-AsyncOperation"].removeprefix(cloud.url).partition("?")[0]
    assert ask(cloud, "GET", poll).body == {"status": "InProgress"}
    cloud.build.advance(60)
    assert ask(cloud, "GET", poll).body == {"status": "Succeeded"}
    assert ask(cloud, "GET", path).body["etag"] == written.body["etag"], "the end of an operation is no change"


@pytest.mark.parametrize(
    ("style", "state", "followed"),
    [("recorded", "Succeeded", True), ("header", "Updating", True), ("body", "Updating", False),
     ("none", "Succeeded", False)],
)  # fmt: skip
def test_all_ways_to_follow_the_write_of_a_nic(cloud: Emulator, style: str, state: str, followed: bool) -> None:
    cloud.build.configure(operation_style=style)
    cloud.build.set_duration(NIC, 60)
    written = ask(cloud, "PUT", cloud.build.id(NIC, "w1-nic"), cloud.build.nic("w1-nic"))
    assert written.body["properties"]["provisioningState"] == state
    assert ("Azure-AsyncOperation" in written.headers) == followed


def test_retry_after_varies(cloud: Emulator) -> None:
    cloud.build.configure(retry_after=(10, 2, 160))
    cloud.build.set_duration(NIC, 60)
    path = cloud.build.id(NIC, "w1-nic")
    written = ask(cloud, "PUT", path, cloud.build.nic("w1-nic"))
    poll = written.headers["Azure-AsyncOperation"].removeprefix(cloud.url).partition("?")[0]
    asked = [written.headers["Retry-After"], *(ask(cloud, "GET", poll).headers["Retry-After"] for _ in range(3))]
    assert asked == ["10", "2", "160", "10"]


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_unknown_group(cloud: Emulator, method: str) -> None:
    path = cloud.build.id(NIC, "w1-nic").replace(f"/resourceGroups/{GROUP}/", "/resourceGroups/elsewhere/")
    answered = ask(cloud, method, path, cloud.build.nic("w1-nic"))
    assert (answered.status, answered.body["error"]["code"]) == (404, "ResourceGroupNotFound")
    assert answered.headers["x-ms-failure-cause"] == "gateway"


def test_a_deletion_can_be_followed_in_two_ways(cloud: Emulator) -> None:
    cloud.build.set_duration(NIC, 60)
    cloud.build.create_nic("spare", "net/pods")
    deleted = ask(cloud, "DELETE", cloud.build.id(NIC, "spare"))
    assert (deleted.status, deleted.body) == (202, None)
    operation, result = (
        deleted.headers[name].removeprefix(cloud.url).partition("?")[0] for name in ("Azure-AsyncOperation", "Location")
    )
    assert ask(cloud, "GET", operation).body == {"status": "InProgress"}
    assert ask(cloud, "GET", result).status == 202
    cloud.build.advance(60)
    assert ask(cloud, "GET", result).status == 204


async def test_an_instance_takes_tags_alone(cloud: Emulator) -> None:
    cloud.build.create_scale_set("pool", "net/pods", 1)
    async with compute_client(cloud.url) as compute:
        vms = compute.virtual_machine_scale_set_vms
        body: Any = {"location": LOCATION, "tags": {"team": "net"}}
        await (await vms.begin_update(GROUP, "pool", "0", body)).result()
        found = await vms.get(GROUP, "pool", "0")
        assert found.tags == {"team": "net"}
        assert found.network_profile_configuration.network_interface_configurations
        assert await refusal(vms.get(GROUP, "pool", "pool_0")) == (400, "InvalidParameter")


def test_compute_says_creating_then_updating_and_dates_its_operations(cloud: Emulator) -> None:
    cloud.build.set_duration(VM, 60)
    cloud.build.create_nic("w2-nic", "net/pods")
    body = cloud.build.get(VM, "w1")
    body["properties"]["networkProfile"]["networkInterfaces"] = [{"id": cloud.build.id(NIC, "w2-nic")}]
    path = cloud.build.id(VM, "w2")
    made = ask(cloud, "PUT", path, {"location": LOCATION, "properties": body["properties"]})
    assert (made.status, made.body["properties"]["provisioningState"]) == (201, "Creating")
    assert made.headers["ETag"] == made.body["etag"]
    poll = made.headers["Azure-AsyncOperation"].removeprefix(cloud.url).partition("?")[0]
    assert set(ask(cloud, "GET", poll).body) == {"startTime", "status", "name"}
    cloud.build.advance(60)
    assert set(ask(cloud, "GET", poll).body) == {"startTime", "status", "name", "endTime"}
    after = ask(cloud, "GET", path).body
    assert (after["properties"]["provisioningState"], after["etag"]) == ("Succeeded", made.body["etag"])
    assert ask(cloud, "PUT", path, after).body["properties"]["provisioningState"] == "Updating"


async def test_compute_refuses_a_stale_etag_without_details(cloud: Emulator) -> None:
    cloud.build.create_scale_set("pool", "net/pods", 1)
    async with compute_client(cloud.url) as compute:
        vms = compute.virtual_machine_scale_set_vms
        body: Any = {"location": LOCATION}
        with pytest.raises(HttpResponseError) as caught:
            await vms.begin_update(GROUP, "pool", "0", body, etag='"0"', match_condition=MatchConditions.IfNotModified)
    assert caught.value.status_code == 412
    assert caught.value.error is not None
    assert not caught.value.error.details


def test_a_vnet_answers_201_to_an_update_and_its_subnets_update_with_it(cloud: Emulator) -> None:
    kind = "Microsoft.Network/virtualNetworks"
    cloud.build.set_duration(kind, 60)
    updated = ask(cloud, "PUT", cloud.build.id(kind, "net"), cloud.build.get(kind, "net"))
    assert updated.status == 201
    assert {s["properties"]["provisioningState"] for s in updated.body["properties"]["subnets"]} == {"Updating"}
    cloud.build.advance(60)
    after = ask(cloud, "GET", cloud.build.id(kind, "net")).body["properties"]["subnets"]
    assert {s["properties"]["provisioningState"] for s in after} == {"Succeeded"}


def test_what_is_left_is_told_for_all_principals_too(cloud: Emulator) -> None:
    cloud.build.limit(reads=(250, 25))
    headers = ask(cloud, "GET", cloud.build.id(NIC, "w1-nic")).headers
    own, everybody = (headers[f"x-ms-ratelimit-remaining-subscription-{name}"] for name in ("reads", "global-reads"))
    assert (own, everybody) == ("249", "3749")


@pytest.mark.parametrize(
    ("kind", "part", "properties"),
    [
        ("Microsoft.Network/networkSecurityGroups", "securityRules",
         {"priority": 100, "direction": "Inbound", "access": "Allow", "protocol": "*", "sourceAddressPrefix": "*",
          "sourcePortRange": "*", "destinationAddressPrefix": "*", "destinationPortRange": "80"}),
        ("Microsoft.Network/loadBalancers", "inboundNatRules",
         {"protocol": "Tcp", "frontendPort": 2222, "backendPort": 22}),
        ("Microsoft.Network/routeTables", "routes", {"addressPrefix": "10.9.0.0/16", "nextHopType": "None"}),
    ],
)  # fmt: skip
async def test_parts_are_written_alone(
    cloud: Emulator, network: NetworkManagementClient, kind: str, part: str, properties: dict[str, Any]
) -> None:
    cloud.build.put(kind, "parent")
    path = f"{cloud.build.id(kind, 'parent')}/{part}/one"
    assert ask(cloud, "PUT", path, {"properties": properties}).status == 201
    assert ask(cloud, "PUT", path, {"properties": properties}).status == 200
    assert ask(cloud, "GET", path).body["properties"].items() >= properties.items()
    assert [one["name"] for one in cloud.build.get(kind, "parent")["properties"][part]] == ["one"]
    assert ask(cloud, "DELETE", path).status == 202
    assert ask(cloud, "DELETE", path).status == 204
    assert cloud.build.get(kind, "parent")["properties"][part] == []


def test_a_dynamic_public_address_comes_with_its_first_use(cloud: Emulator) -> None:
    kind = "Microsoft.Network/publicIPAddresses"
    fixed = cloud.build.put(kind, "fixed", {"publicIPAllocationMethod": "Static"})
    public = cloud.build.put(kind, "front", {"publicIPAllocationMethod": "Dynamic"})
    assert "ipAddress" in fixed["properties"]
    assert "ipAddress" not in public["properties"]
    body = cloud.build.nic("w1-nic")
    body["properties"]["ipConfigurations"][0]["properties"]["publicIPAddress"] = {"id": public["id"]}
    cloud.build.request("PUT", body["id"], body)
    assert cloud.build.get(kind, "front")["properties"]["ipAddress"]
