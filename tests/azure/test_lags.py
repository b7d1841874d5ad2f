"""Reads that lag behind writes, through the real SDK."""

from __future__ import annotations

from azure.mgmt.network.aio import NetworkManagementClient

from tests.azure.arm.builder import GROUP
from tests.azure.arm.sdk import compute_client
from tests.azure.arm.server import Emulator
from tests.azure.conftest import refusal


async def entries(network: NetworkManagementClient, nic: str = "w1-nic") -> list[str]:
    return [str(part.name) for part in (await network.network_interfaces.get(GROUP, nic)).ip_configurations or ()]


async def test_a_read_answers_what_was_for_some_seconds(cloud: Emulator, network: NetworkManagementClient) -> None:
    before = await network.network_interfaces.get(GROUP, "w1-nic")
    cloud.build.lag("*/w1-nic", seconds=120)
    cloud.build.add_address("w1-nic", "later")
    late = await network.network_interfaces.get(GROUP, "w1-nic")
    assert late.etag == before.etag
    assert await entries(network) == ["ipconfig1"]
    assert list(cloud.build.addresses("w1-nic")) == ["ipconfig1", "later"], "the owner sees what is"
    cloud.build.advance(120)
    assert await entries(network) == ["ipconfig1", "later"]


async def test_what_lags_is_refused_when_it_is_written(cloud: Emulator, network: NetworkManagementClient) -> None:
    cloud.build.lag("*/w1-nic")
    cloud.build.add_address("w1-nic", "later")
    late = await network.network_interfaces.get(GROUP, "w1-nic")
    written = network.network_interfaces.begin_create_or_update(
        GROUP, "w1-nic", late, headers={"If-Match": late.etag or ""}
    )
    assert await refusal(written) == (412, "PreconditionFailed")


async def test_reads_go_back_and_forth_and_then_forward(cloud: Emulator, network: NetworkManagementClient) -> None:
    mark = cloud.build.lag("*/w1-nic", alternating=True)
    cloud.build.add_address("w1-nic", "later")
    assert [len(await entries(network)) for _ in range(4)] == [1, 2, 1, 2]
    cloud.build.release(mark)
    assert [len(await entries(network)) for _ in range(2)] == [2, 2]


async def test_a_mark_answers_any_time_later(cloud: Emulator, network: NetworkManagementClient) -> None:
    mark = cloud.build.keep("*/w1-nic")
    cloud.build.add_address("w1-nic", "one")
    cloud.build.add_address("w1-nic", "two")
    assert await entries(network) == ["ipconfig1", "one", "two"]
    cloud.build.lag(mark=mark)
    assert await entries(network) == ["ipconfig1"]


async def test_what_went_is_still_there_and_what_came_is_not_yet(
    cloud: Emulator, network: NetworkManagementClient
) -> None:
    cloud.build.create_nic("spare", "net/pods")
    cloud.build.lag("*/networkinterfaces/*")
    cloud.build.delete("Microsoft.Network/networkInterfaces", "spare")
    cloud.build.create_nic("young", "net/pods")
    assert await entries(network, "spare") == ["ipconfig1"]
    assert (await refusal(network.network_interfaces.get(GROUP, "young")))[0] == 404
    assert [nic.name async for nic in network.network_interfaces.list(GROUP)] == ["w1-nic"]


async def test_nics_of_an_instance_lag_behind_its_model(cloud: Emulator, network: NetworkManagementClient) -> None:
    cloud.build.create_scale_set("pool", "net/pods", 1)
    cloud.build.lag("*/networkinterfaces/*")
    async with compute_client(cloud.url) as compute:
        vm = await compute.virtual_machine_scale_set_vms.get(GROUP, "pool", "0")
        (nic,) = vm.network_profile_configuration.network_interface_configurations
        nic.ip_configurations[0].primary = True
        subnet = {"id": nic.ip_configurations[0].subnet.id}
        nic.ip_configurations.append({"name": "vnetpods-1", "properties": {"subnet": subnet, "primary": False}})
        await (await compute.virtual_machine_scale_set_vms.begin_update(GROUP, "pool", "0", vm)).result()
    listing = network.network_interfaces.list_virtual_machine_scale_set_vm_network_interfaces(GROUP, "pool", "0")
    assert [len(nic.ip_configurations or ()) async for nic in listing] == [1]
    cloud.build.release()
    listing = network.network_interfaces.list_virtual_machine_scale_set_vm_network_interfaces(GROUP, "pool", "0")
    assert [len(nic.ip_configurations or ()) async for nic in listing] == [2]


async def test_answers_are_copies(cloud: Emulator) -> None:
    """A removed address lingers only if a caller's change to its copy did not reach the store."""
    taken = cloud.build.add_address("w1-nic", "vnetpods-1")
    cloud.build.configure(removed_stays_taken=480.0)
    cloud.build.remove_address("w1-nic", "vnetpods-1")
    assert list(cloud.build.addresses("w1-nic")) == ["ipconfig1"]
    cloud.build.create_nic("other", "net/pods")
    assert cloud.build.addresses("other") == {"ipconfig1": taken.replace(".5", ".6")}
    cloud.build.advance(480)
    cloud.build.create_nic("another", "net/pods")
    assert cloud.build.addresses("another") == {"ipconfig1": taken}
    body = cloud.build.nic("w1-nic")
    body["properties"]["ipConfigurations"].clear()
    assert list(cloud.build.addresses("w1-nic")) == ["ipconfig1"]
