"""Throttling through the SDK: 429 with Retry-After, and the remaining-requests headers."""

from __future__ import annotations

from typing import Any

from azure.core.exceptions import HttpResponseError
from azure.mgmt.network.aio import NetworkManagementClient

from tests.azure.arm.builder import GROUP
from tests.azure.arm.sdk import compute_client, network_client
from tests.azure.arm.server import Emulator

REMAINING = "x-ms-ratelimit-remaining-subscription-reads"


async def read(network: NetworkManagementClient) -> dict[str, str]:
    """Headers of one GET, or its Retry-After under "429"."""
    headers: dict[str, str] = {}

    def keep(response: Any) -> None:
        headers.update(response.http_response.headers)

    try:
        await network.network_interfaces.get(GROUP, "w1-nic", raw_response_hook=keep)
    except HttpResponseError as error:
        return {str(error.status_code): headers["Retry-After"], "code": (error.error and error.error.code) or ""}
    return headers


async def test_bucket_empties_and_fills(cloud: Emulator, network: NetworkManagementClient) -> None:
    cloud.build.limit(reads=(3, 0.5))
    assert [(await read(network))[REMAINING] for _ in range(3)] == ["2", "1", "0"]
    refused = await read(network)
    assert refused == {"429": "2", "code": "SubscriptionRequestsThrottled"}
    assert (await read(network))["429"] == "4", "asking early makes it longer"
    cloud.build.advance(2)
    assert (await read(network))[REMAINING] == "0"


async def test_principals_have_buckets_of_their_own(cloud: Emulator, network: NetworkManagementClient) -> None:
    cloud.build.limit(reads=(1, 0.1))
    await read(network)
    async with network_client(cloud.url, principal="terraform") as other:
        assert REMAINING in await read(other)
    assert "429" in await read(network)


async def test_network_provider_is_shared_by_the_subscription(
    cloud: Emulator, network: NetworkManagementClient
) -> None:
    cloud.build.limit(network_reads=(2, 300))
    await read(network)
    async with network_client(cloud.url, principal="terraform") as other:
        await read(other)
    refused = await read(network)
    assert refused == {"429": "300", "code": cloud.cloud.settings.guesses.throttle_code}
    cloud.build.advance(300)
    assert REMAINING in await read(network)


async def test_instance_writes_have_a_bucket_of_their_own(cloud: Emulator) -> None:
    cloud.build.limit(instance_writes=(2, 4 / 60))
    cloud.build.create_scale_set("pool", "net/pods", 2)
    statuses: dict[str, list[int]] = {"0": [], "1": []}
    async with compute_client(cloud.url) as compute:
        vms = compute.virtual_machine_scale_set_vms
        for instance in ("0", "0", "0", "1"):
            vm = await vms.get(GROUP, "pool", instance)
            try:
                await (await vms.begin_update(GROUP, "pool", instance, vm)).result()
                statuses[instance].append(200)
            except HttpResponseError as error:
                statuses[instance].append(error.status_code or 0)
    assert statuses == {"0": [200, 200, 429], "1": [200]}


async def test_published_figures_hold_by_default(cloud: Emulator, network: NetworkManagementClient) -> None:
    cloud.build.configure(throttling=True)
    answers = [await read(network) for _ in range(251)]
    assert [("429" in answer) for answer in answers] == [False] * 250 + [True]
