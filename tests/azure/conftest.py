"""The cloud that most tests here start from: VNet `net` with the subnets `pods` and `tiny`, and the VM `w1`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from azure.core.exceptions import HttpResponseError
from azure.mgmt.network.aio import NetworkManagementClient

from tests.azure.arm.builder import GROUP, LOCATION
from tests.azure.arm.clock import VirtualClock
from tests.azure.arm.sdk import network_client
from tests.azure.arm.server import Emulator
from tests.azure.arm.settings import Settings

Body = dict[str, Any]
WriteNic = Callable[..., Awaitable[dict[str, str]]]


@pytest.fixture
async def cloud() -> AsyncIterator[Emulator]:
    """An emulator on a virtual clock."""
    async with Emulator(Settings(retry_after=0), VirtualClock()) as emulator:
        build = emulator.build
        build.create_vnet("net", "10.240.0.0/12")
        build.create_subnet("net", "pods", "10.240.0.0/16")
        build.create_subnet("net", "tiny", "10.241.0.0/28")
        build.create_vm("w1", "net/pods")
        yield emulator


@pytest.fixture
async def network(cloud: Emulator) -> AsyncIterator[NetworkManagementClient]:
    async with network_client(cloud.url) as client:
        yield client


def part(cloud: Emulator, name: str, subnet: str = "net/pods", **properties: Any) -> Body:
    """One ipConfiguration of a request body."""
    reference = {"id": cloud.build.id("Microsoft.Network/virtualNetworks/subnets", subnet)}
    return {"name": name, "properties": {"subnet": reference, **properties}}


@pytest.fixture
def write_nic(cloud: Emulator, network: NetworkManagementClient) -> WriteNic:
    """PUTs a NIC with these ipConfigurations through the SDK; returns configuration → address."""

    async def write(name: str, *parts: Body, **properties: Any) -> dict[str, str]:
        body: Any = {"location": LOCATION, "properties": {"ipConfigurations": list(parts), **properties}}
        poller = await network.network_interfaces.begin_create_or_update(GROUP, name, body)
        await poller.result()
        return cloud.build.addresses(name)

    return write


async def refusal(awaitable: Awaitable[Any]) -> tuple[int, str]:
    """Status and code of the error that this raises."""
    with pytest.raises(HttpResponseError) as caught:
        await awaitable
    error = caught.value
    return error.status_code or 0, (error.error.code or "") if error.error else ""
