"""Every effect of a fault rule, through the real SDK."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from azure.core.exceptions import DecodeError, HttpResponseError, ServiceRequestError, ServiceResponseError

from tests.azure.arm import metadata
from tests.azure.arm.builder import GROUP
from tests.azure.arm.clock import VirtualClock
from tests.azure.arm.faults import Effect
from tests.azure.arm.sdk import network_client
from tests.azure.arm.server import Emulator
from tests.azure.arm.settings import Settings

NIC = "Microsoft.Network/networkInterfaces"


@pytest.fixture
async def azure() -> AsyncIterator[Emulator]:
    async with Emulator(Settings(retry_after=0), VirtualClock()) as emulator:
        emulator.build.create_vnet("net", "10.240.0.0/12")
        emulator.build.create_subnet("net", "pods", "10.240.0.0/16")
        emulator.build.create_vm("w1", "net/pods")
        yield emulator


async def write(azure: Emulator, name: str = "vnetpods-1") -> str:
    """GET, one more configuration, PUT with If-Match; returns the address it got."""
    async with network_client(azure.url) as network:
        nic = await network.network_interfaces.get(GROUP, "w1-nic")
        subnet = nic.ip_configurations[0].subnet.id
        nic.ip_configurations.append({"name": name, "properties": {"subnet": {"id": subnet}}})
        match = {"If-Match": nic.etag}
        poller = await network.network_interfaces.begin_create_or_update(GROUP, "w1-nic", nic, headers=match)
        return str((await poller.result()).ip_configurations[-1].private_ip_address)


@pytest.mark.parametrize("effect", ["reset", "timeout"])
@pytest.mark.parametrize("after", [False, True], ids=["before the effect", "after the effect"])
async def test_connection_is_cut(azure: Emulator, effect: Effect, after: bool) -> None:
    # Twice: aiohttp itself sends an idempotent request again when a connection that was used before breaks.
    azure.build.fault(effect, method="PUT", after=after, times=2)
    with pytest.raises((ServiceRequestError, ServiceResponseError)):
        await write(azure)
    assert len(azure.build.addresses("w1-nic")) == (2 if after else 1)


async def test_third_write_is_throttled_with_retry_after(azure: Emulator) -> None:
    azure.build.fault("status", operation=f"{NIC}/write", nth=3, status=429, code="TooManyRequests", retry_after=17)
    await write(azure, "a")
    await write(azure, "b")
    with pytest.raises(HttpResponseError) as caught:
        await write(azure, "c")
    assert caught.value.response is not None
    assert dict(caught.value.response.headers)["Retry-After"] == "17"  # type: ignore[attr-defined]  # SDK's protocol lacks it
    await write(azure, "c")
    statuses = [entry["status"] for entry in azure.build.requests(f"{NIC}/write")]
    assert statuses == [200, 200, 429, 200]
    assert azure.build.fault_hits() == [1]


@pytest.mark.parametrize("after", [False, True], ids=["before the effect", "after the effect"])
@pytest.mark.parametrize(("effect", "code"), [("fail", "InternalServerError"), ("preempt", "OperationPreempted")])
async def test_operation_fails_with_status_200(azure: Emulator, effect: Effect, code: str, after: bool) -> None:
    azure.build.set_duration(NIC, 60)
    azure.build.fault(effect, method="PUT", after=after)
    with pytest.raises(HttpResponseError) as caught:
        await write(azure)
    assert (caught.value.status_code, caught.value.error and caught.value.error.code) == (200, code)
    assert len(azure.build.addresses("w1-nic")) == (2 if after else 1)
    assert azure.build.nic("w1-nic")["properties"]["provisioningState"] == "Failed"
    azure.build.set_duration(NIC, 0)
    await write(azure, "vnetpods-2")
    assert azure.build.nic("w1-nic")["properties"]["provisioningState"] == "Succeeded"


@pytest.mark.parametrize("change", ["tag", "configuration"])
async def test_other_writer_between_get_and_put_means_412(azure: Emulator, change: str) -> None:
    azure.build.fault("writer", method="PUT", change=change)
    with pytest.raises(HttpResponseError) as caught:
        await write(azure)
    assert caught.value.status_code == 412
    assert await write(azure) == ("10.240.0.5" if change == "tag" else "10.240.0.6")


async def test_other_writer_removes_one_of_ours(azure: Emulator) -> None:
    await write(azure)
    azure.build.fault("writer", method="PUT", change="remove")
    with pytest.raises(HttpResponseError):
        await write(azure, "vnetpods-2")
    assert list(azure.build.addresses("w1-nic")) == ["ipconfig1"]


async def test_stale_read_is_caught_by_the_etag(azure: Emulator) -> None:
    azure.build.fault("stale", method="GET", resource="*/w1-nic")
    azure.build.add_address("w1-nic", "foreign")
    with pytest.raises(HttpResponseError) as caught:
        await write(azure)
    assert caught.value.status_code == 412


@pytest.mark.parametrize(("after", "status"), [(False, 412), (True, 200)], ids=["before the PUT", "after accepting it"])
async def test_machine_vanishes_mid_write(azure: Emulator, after: bool, status: int) -> None:
    azure.build.fault("vanish", method="PUT", after=after)
    with pytest.raises(HttpResponseError) as caught:
        await write(azure)
    assert caught.value.status_code == status
    async with network_client(azure.url) as network:
        assert [nic async for nic in network.network_interfaces.list(GROUP)] == []


@pytest.mark.parametrize(
    ("body", "error"), [("", json.JSONDecodeError), ("oops", DecodeError)], ids=["HTML of a proxy", "cut JSON"]
)
async def test_garbage_is_no_json(azure: Emulator, body: str, error: type[Exception]) -> None:
    """The SDK wraps decoding errors if the content type is JSON, and passes the decoder's own error otherwise."""
    azure.build.fault("garbage", method="GET", argument=body)
    with pytest.raises(error):
        await write(azure)


async def test_slow_answer_costs_cloud_time_only(azure: Emulator) -> None:
    before = azure.build.now()
    azure.build.fault("slow", method="GET", seconds=300)
    await write(azure)
    assert azure.build.now() - before == 300


async def test_minutes_of_operation_cost_milliseconds(azure: Emulator) -> None:
    azure.build.set_duration(NIC, 600)
    before = azure.build.now()
    for number in range(5):
        await write(azure, f"vnetpods-{number}")
    assert azure.build.now() - before == 3000


async def test_probability_is_reproducible(azure: Emulator) -> None:
    azure.build.fault("status", method="GET", times=None, probability=0.5, seed=7)
    async with network_client(azure.url) as network:
        for _ in range(40):
            try:
                await network.network_interfaces.get(GROUP, "w1-nic")
            except HttpResponseError:
                continue
    assert azure.build.fault_hits() == [25]


@pytest.mark.parametrize(
    ("lag", "moments"), [(None, {0: 2}), (30.0, {0: 1, 89: 1, 91: 2}), (-20.0, {0: 1, 39: 1, 41: 2})], ids=str
)
async def test_metadata_is_early_or_late(azure: Emulator, lag: float | None, moments: dict[int, int]) -> None:
    azure.build.configure(metadata_lag=lag)
    azure.build.set_duration(NIC, 60)
    start = azure.build.now()
    await write(azure)
    key = azure.build.nic("w1-nic")["id"].lower()
    for moment, count in moments.items():
        seen = metadata.network(azure.cloud, [key], start + moment)["interface"][0]["ipv4"]["ipAddress"]
        assert len(seen) == count, moment
