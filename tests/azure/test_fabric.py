"""Real packets through the fabric: reachability, and drops with their reasons."""

from __future__ import annotations

import json
import socket
import subprocess
import urllib.request
from collections.abc import Iterator

import pytest

from tests import pace
from tests.azure import client
from tests.azure.client import Azure
from tests.azure.fabric import namespaces
from tests.azure.packets import get, own, says


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azure]:
    cloud = client.start(tmp_path_factory.mktemp("azure"), duration=0, outlive=False)
    try:
        cloud.create_vnet("net", "10.240.0.0/12")
        cloud.create_subnet("net", "pods", "10.240.0.0/16")
        cloud.create_vnet("peer", "10.9.0.0/16")
        cloud.create_subnet("peer", "hosts", "10.9.1.0/24")
        cloud.create_vnet("island", "10.8.0.0/16")
        cloud.create_subnet("island", "hosts", "10.8.1.0/24")
        cloud.peer("net", "peer")
        cloud.create_vm("w1", "net/pods")
        cloud.create_vm("w2", "net/pods")
        cloud.create_vm("far", "peer/hosts")
        cloud.create_vm("lost", "island/hosts")
        yield cloud
        assert cloud.bugs() == []
    finally:
        cloud.stop()


def test_machines_reach_each_other_and_the_peer(azure: Azure) -> None:
    assert says(("w1", "10.240.0.4"), ("w2", "10.240.0.5")) == "10.240.0.4"
    assert says(("w1", "10.240.0.4"), ("far", "10.9.1.4")) == "10.240.0.4"
    assert says(("far", "10.9.1.4"), ("w1", "10.240.0.4")) == "10.9.1.4"


def test_every_neighbour_has_the_fabrics_mac(azure: Azure) -> None:
    says(("w1", "10.240.0.4"), ("w2", "10.240.0.5"))
    shown = subprocess.run(["ip", "-n", "w1", "neigh"], check=True, capture_output=True, text=True).stdout
    assert "10.240.0.5 dev eth0 lladdr 12:34:56:78:9a:bc" in shown


def test_secondary_address_passes_only_while_the_nic_has_it(azure: Azure) -> None:
    address = azure.add_address("w1-nic", "pod")
    with own("w1", address):
        assert says(("w1", address), ("w2", "10.240.0.5")) == address
        assert says(("w2", "10.240.0.5"), ("w1", address)) == "10.240.0.5"
        azure.remove_address("w1-nic", "pod")
        before = azure.drops()
        assert says(("w1", address), ("w2", "10.240.0.5")) is None
        assert says(("w2", "10.240.0.5"), ("w1", address)) is None
        after = azure.drops()
        assert (after["source"] - before["source"], after["unowned"] - before["unowned"]) == (1, 1)
        row = {"from": "w1", "source": address, "destination": "10.240.0.5", "packets": 1}
        assert row in azure.dropped("source")


def test_packets_pass_before_the_operation_says_so(azure: Azure) -> None:
    azure.set_duration("Microsoft.Network/networkInterfaces", 3600)
    nic = azure.nic("w1-nic")
    subnet = nic["properties"]["ipConfigurations"][0]["properties"]["subnet"]
    nic["properties"]["ipConfigurations"].append({"name": "late", "properties": {"subnet": subnet}})
    request = urllib.request.Request(
        f"{azure.url}{nic['id']}?api-version=2024-01-01",
        json.dumps(nic).encode(),
        {"Authorization": "Bearer operator", "Content-Type": "application/json"},
        method="PUT",
    )
    with urllib.request.urlopen(request, timeout=pace.stretched(5)) as answer:
        operation = urllib.request.Request(
            answer.headers["Azure-AsyncOperation"], headers={"Authorization": "Bearer operator"}
        )
    azure.set_duration("Microsoft.Network/networkInterfaces", 0)
    address = azure.addresses("w1-nic")["late"]
    with own("w1", address):
        assert says(("w1", address), ("w2", "10.240.0.5")) == address
        assert says(("w2", "10.240.0.5"), ("w1", address)) == "10.240.0.5"
    with urllib.request.urlopen(operation, timeout=pace.stretched(5)) as answer:
        assert json.load(answer)["status"] == "InProgress"
    azure.remove_address("w1-nic", "late")


def test_address_moves_to_another_machine(azure: Azure) -> None:
    address = azure.add_address("w1-nic", "pod")
    azure.remove_address("w1-nic", "pod")
    azure.add_address("w2-nic", "pod", address)
    with own("w2", address):
        assert says(("w1", "10.240.0.4"), ("w2", address)) == "10.240.0.4"
        azure.remove_address("w2-nic", "pod")


def test_foreign_mac_is_dropped(azure: Azure) -> None:
    azure.create_vm("odd", "net/pods")
    subprocess.run(["ip", "-n", "odd", "link", "set", "eth0", "address", "00:0d:3a:ff:ff:ff"], check=True)
    before = azure.drops()["mac"]
    address = azure.addresses("odd-nic")["ipconfig1"]
    assert says(("odd", address), ("w2", "10.240.0.5")) is None
    assert azure.drops()["mac"] == before + 1
    azure.delete_vm("odd")
    assert not namespaces.exists("odd")


def test_unpeered_network_is_unreachable(azure: Azure) -> None:
    before = azure.drops()["unreachable"]
    assert says(("w1", "10.240.0.4"), ("lost", "10.8.1.4")) is None
    assert azure.drops()["unreachable"] == before + 1


def test_internet_sees_the_primary_address_only(azure: Azure) -> None:
    assert get("w1", "http://203.0.113.10/") == "10.240.0.4"
    address = azure.add_address("w1-nic", "pod")
    with own("w1", address):
        before = azure.drops()["outbound"]
        assert get("w1", "http://203.0.113.10/", "--interface", address, "-m", "0.3") == ""
        assert azure.drops()["outbound"] > before
        azure.remove_address("w1-nic", "pod")
        assert says(("internet", "203.0.113.10"), ("w1", "10.240.0.4")) is None


def test_metadata_answers_the_primary_address_only(azure: Azure) -> None:
    url = "http://169.254.169.254/metadata/instance/network?api-version=2021-02-01"
    answer = get("w1", url, "-H", "Metadata: true")
    assert '"privateIpAddress": "10.240.0.4"' in answer
    address = azure.add_address("w1-nic", "pod")
    with own("w1", address):
        assert address in get("w1", url, "-H", "Metadata: true")
        assert get("w1", url, "-H", "Metadata: true", "--interface", address, "-m", "0.3") == ""
        azure.remove_address("w1-nic", "pod")


def test_arm_is_reachable_from_machines_and_from_the_desk(azure: Azure) -> None:
    assert "AuthenticationFailed" in get(
        "w1", f"{azure.url}/subscriptions/s/providers/Microsoft.Network/networkInterfaces"
    )
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{azure.url}/subscriptions/s/providers/Microsoft.Network/networkInterfaces", timeout=2)


def test_desk_reaches_machines(azure: Azure) -> None:
    with namespaces.open_socket("far") as server:
        server.bind(("10.9.1.4", 8000))
        server.listen()
        with socket.create_connection(("10.9.1.4", 8000), timeout=1):
            accepted, _ = server.accept()
            accepted.close()


def test_reboot_gives_a_fresh_namespace(azure: Azure) -> None:
    own("w2", "10.99.0.1")
    azure.reboot("w2")
    shown = subprocess.run(["ip", "-n", "w2", "addr"], check=True, capture_output=True, text=True).stdout
    assert "10.99.0.1" not in shown
    assert says(("w1", "10.240.0.4"), ("w2", "10.240.0.5")) == "10.240.0.4"


def test_stop_start_reimage_and_recreate(azure: Azure) -> None:
    azure.create_vm("s1", "net/pods")
    address = azure.addresses("s1-nic")["ipconfig1"]
    (azure.disk("s1") / "ledger").write_text("x")
    azure.power("s1", "deallocate")
    assert not namespaces.exists("s1")
    before = azure.drops()["unreachable"]
    assert says(("w1", "10.240.0.4"), ("internet", "203.0.113.10")) == "10.240.0.4"
    with namespaces.open_socket("w1", kind=socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", (address, 5555))
    assert azure.drops()["unreachable"] == before + 1
    azure.power("s1", "start")
    assert azure.addresses("s1-nic") == {"ipconfig1": address}
    assert says(("w1", "10.240.0.4"), ("s1", address)) == "10.240.0.4"
    assert (azure.disk("s1") / "ledger").exists()
    azure.power("s1", "reimage")
    assert list(azure.disk("s1").iterdir()) == []
    (azure.disk("s1") / "ledger").write_text("x")
    azure.delete_vm("s1")
    assert not azure.disk("s1").exists()
    azure.create_vm("s1", "net/pods")
    assert list(azure.disk("s1").iterdir()) == []
    assert says(("w1", "10.240.0.4"), ("s1", address)) == "10.240.0.4"
    azure.delete_vm("s1")


def test_machine_with_two_nics_in_two_subnets(azure: Azure) -> None:
    azure.create_subnet("net", "second", "10.241.0.0/24")
    azure.create_nic("two-second", "net/second")
    azure.create_vm("two", "net/pods", nics=["two-second"])
    first, second = azure.addresses("two-nic")["ipconfig1"], azure.addresses("two-second")["ipconfig1"]
    shown = subprocess.run(["ip", "-n", "two", "-br", "addr"], check=True, capture_output=True, text=True).stdout
    assert f"{first}/16" in shown
    assert f"{second}/24" in shown
    assert says(("w1", "10.240.0.4"), ("two", first)) == "10.240.0.4"
    before = azure.drops()["source"]
    assert says(("two", second), ("w1", "10.240.0.4")) is None, "sent through eth0, which doesn't hold it"
    assert azure.drops()["source"] == before + 1
    subprocess.run(["ip", "-n", "two", "rule", "add", "from", second, "lookup", "7"], check=True)
    subprocess.run(["ip", "-n", "two", "route", "add", "default", "via", "10.241.0.1", "table", "7"], check=True)
    assert says(("two", second), ("w1", "10.240.0.4")) == second
    azure.delete_vm("two")


def test_uniform_instances_have_namespaces(azure: Azure) -> None:
    azure.create_scale_set("pool", "net/pods", 1)
    instance = f"{azure.id('Microsoft.Compute/virtualMachineScaleSets', 'pool')}/virtualMachines/0"
    address = azure.addresses(f"{instance}/networkInterfaces/pool-nic")["ipconfig1"]
    assert says(("pool000000", address), ("w1", "10.240.0.4")) == address
    azure.request("DELETE", instance)
    assert not namespaces.exists("pool000000")
