"""The real SDK against the emulator: the everyday life of a NIC."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from azure.core.exceptions import HttpResponseError

from tests.azure.arm.builder import GROUP
from tests.azure.arm.sdk import compute_client, network_client
from tests.azure.arm.server import Emulator


@pytest.fixture
async def azure() -> AsyncIterator[Emulator]:
    async with Emulator() as emulator:
        emulator.build.create_vnet("net", "10.240.0.0/12")
        emulator.build.create_subnet("net", "pods", "10.240.0.0/16")
        emulator.build.create_vm("w1", "net/pods")
        yield emulator


async def test_nic_gets_addresses_by_one_put(azure: Emulator) -> None:
    async with network_client(azure.url) as network:
        nic = await network.network_interfaces.get(GROUP, "w1-nic")
        first = nic.ip_configurations[0]
        assert first.private_ip_address == "10.240.0.4"
        for number in range(16):
            nic.ip_configurations.append(
                {"name": f"vnetpods-{number}", "properties": {"subnet": {"id": first.subnet.id}}}
            )
        poller = await network.network_interfaces.begin_create_or_update(
            GROUP, "w1-nic", nic, headers={"If-Match": nic.etag}
        )
        result = await poller.result()
    assert [part.private_ip_address for part in result.ip_configurations] == [f"10.240.0.{n}" for n in range(4, 21)]
    assert azure.build.counts() == {
        "Microsoft.Network/networkInterfaces/read": 1,
        "Microsoft.Network/networkInterfaces/write": 1,
    }


async def test_stale_etag_is_refused(azure: Emulator) -> None:
    async with network_client(azure.url) as network:
        nic = await network.network_interfaces.get(GROUP, "w1-nic")
        azure.build.add_address("w1-nic", "other")
        with pytest.raises(HttpResponseError) as caught:
            await network.network_interfaces.begin_create_or_update(
                GROUP, "w1-nic", nic, headers={"If-Match": nic.etag}
            )
    assert caught.value.status_code == 412
    assert caught.value.error is not None
    assert caught.value.error.code == "PreconditionFailed"
    assert caught.value.error.details[0].code == "PreconditionFailedEtagMismatch"


async def test_long_write_is_polled(azure: Emulator) -> None:
    azure.build.set_duration("Microsoft.Network/networkInterfaces", 0.3)
    async with network_client(azure.url) as network:
        nic = await network.network_interfaces.get(GROUP, "w1-nic")
        poller = await network.network_interfaces.begin_create_or_update(GROUP, "w1-nic", nic)
        assert (await poller.result()).provisioning_state == "Succeeded"
    assert "Microsoft.Network/locations/operations/read" in azure.build.counts()


async def test_vm_names_its_nic_and_lists_page(azure: Emulator) -> None:
    azure.build.configure(page=2)
    azure.build.create_vms(4, "net/pods")
    async with compute_client(azure.url) as compute, network_client(azure.url) as network:
        vm = await compute.virtual_machines.get(GROUP, "w1")
        assert vm.network_profile.network_interfaces[0].id.endswith("/w1-nic")
        assert len([vm async for vm in compute.virtual_machines.list_all()]) == 5
        assert len([vm async for vm in compute.virtual_machines.list(GROUP)]) == 5
        assert len([nic async for nic in network.network_interfaces.list_all()]) == 5
        usage = [usage async for usage in network.virtual_networks.list_usage(GROUP, "net")]
        assert (usage[0].current_value, usage[0].limit) == (5, 65531)
