"""The real dockerd on a VM of the fabric: what a user sees, and what is left when things restart in any order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.azure import packets
from tests.kube.machine import MachineError
from tests.standalone import vm as vms
from tests.standalone.vm import ADDRESSES, GATEWAY, INTERNET, PEER, PEER_ADDRESS, PRIMARY, SUBNET, Vm, until

pytestmark = [pytest.mark.timeout(240), pytest.mark.skipif(bool(vms.unable()), reason=vms.unable())]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vm]:
    made = Vm(tmp_path_factory.mktemp("vm"))
    try:
        made.up()
        yield made
    finally:
        made.down()


@pytest.fixture
def vm(whole: Vm) -> Iterator[Vm]:
    yield whole
    whole.mend()
    whole.remove_all()
    until("nothing is left of the test's containers", whole.agreed)
    assert not whole.shown()


def test_the_network_shows_what_it_is(vm: Vm) -> None:
    address = vm.run("one")
    network = json.loads(vm.docker("network", "inspect", "vnet").stdout)[0]
    assert (network["Driver"], network["IPAM"]["Driver"]) == ("vnetpods", "vnetpods")
    assert [config["Subnet"] for config in network["IPAM"]["Config"]] == [SUBNET]
    assert [each["IPv4Address"] for each in network["Containers"].values()] == [f"{address}/32"]
    container = json.loads(vm.docker("inspect", "one").stdout)[0]["NetworkSettings"]["Networks"]["vnet"]
    assert (container["Gateway"], container["IPAddress"]) == ("169.254.1.1", address)
    assert GATEWAY not in ADDRESSES


def test_containers_speak_under_their_own_addresses_behind_dockers_own_firewall(vm: Vm) -> None:
    vm.machine.run("iptables", "-P", "FORWARD", "DROP")  # as dockerd does where it is the first to forward
    one, two = vm.run("one"), vm.run("two")
    assert {one, two} <= set(ADDRESSES)
    assert until("the agent has let containers through", lambda: vm.called(one)) == PEER_ADDRESS
    with packets.serving(PEER, PEER_ADDRESS, 80):
        assert vm.calls("one", PEER_ADDRESS, 80).split()[-1] == one
    assert vm.calls("one", two) == one
    assert vm.calls("one", "two") == one, "Docker's DNS knows its containers"
    assert vm.calls("one", INTERNET, 80) == PRIMARY
    bridged = vm.run("bridged", network="bridge")
    assert vm.calls("one", bridged)
    assert vm.calls("bridged", one)
    assert vm.agreed()


def test_an_address_that_is_named(vm: Vm) -> None:
    assert vm.run("one", "--ip", ADDRESSES[7]) == ADDRESSES[7]
    with pytest.raises(MachineError, match="is in use, by"):
        vm.run("two", "--ip", ADDRESSES[7])
    with pytest.raises(MachineError, match="none of the addresses that this machine may use"):
        vm.run("three", "--ip", "10.240.9.9")
    vm.docker("restart", "-t", "1", "one")
    assert vm.address("one") == ADDRESSES[7]
    assert vm.called(ADDRESSES[7]) == PEER_ADDRESS
    assert vm.agreed()


def test_published_ports_are_refused_with_the_way_to_reach_them(vm: Vm) -> None:
    with pytest.raises(MachineError, match=r"ports are not published \(80\).*10\.240\.0\..*leave out -p"):
        vm.run("one", "-p", "8080:80")


def test_networks_that_cannot_be(vm: Vm) -> None:
    for options, why in (
        (("--subnet", SUBNET), "add --ipam-driver vnetpods"),
        (("--ipam-driver", "vnetpods"), f"--subnet {SUBNET}"),
        (("--ipam-driver", "vnetpods", "--subnet", "10.0.0.0/24"), "no subnet of this VM"),
        (("--ipam-driver", "vnetpods", "--subnet", SUBNET, "--internal"), "leave out --internal"),
    ):
        with pytest.raises(MachineError, match=why):
            vm.docker("network", "create", "-d", "vnetpods", *options, "other")
    assert "other" not in vm.docker("network", "ls").stdout


def test_a_container_joins_and_leaves_while_it_runs(vm: Vm) -> None:
    vm.run("one", network="bridge")
    vm.docker("network", "connect", "vnet", "one")
    assert len(vm.shown()) == 1
    assert vm.agreed()
    vm.docker("network", "disconnect", "vnet", "one")
    until("the address is free", vm.agreed)


def test_of_several_networks_the_first_by_name_leads_out(vm: Vm) -> None:
    """So a container in a bridge network, too, is reached from the VNet when this network's name comes first."""
    vm.create_network("a-vnet")
    try:
        vm.run("one", network="bridge")
        vm.docker("network", "connect", "vnet", "one")
        assert "default via 172.17.0.1" in vm.docker("exec", "one", "ip", "route").stdout
        vm.docker("network", "disconnect", "vnet", "one")
        vm.docker("network", "connect", "a-vnet", "one")
        assert "default via 169.254.1.1" in vm.docker("exec", "one", "ip", "route").stdout
        form = '{{(index .NetworkSettings.Networks "a-vnet").IPAddress}}'
        address = vm.docker("inspect", "-f", form, "one").stdout.strip()
        assert vm.called(address) == PEER_ADDRESS
        bridged = vm.run("bridged", network="bridge")
        assert vm.calls("one", bridged)
        vm.docker("rm", "-f", "one")
    finally:
        vm.docker("network", "rm", "a-vnet", check=False)


def test_many_start_and_end_at_once(vm: Vm) -> None:
    names = [f"many-{number}" for number in range(len(ADDRESSES) - 2)]
    with ThreadPoolExecutor() as pool:
        assert len(set(pool.map(vm.run, names))) == len(names)
    assert vm.agreed()
    vm.docker("rm", "-f", *names)
    until("all addresses are free", vm.agreed)


def test_the_agent_killed_costs_no_container_anything(vm: Vm) -> None:
    one = vm.run("one")
    vm.crash("agent")
    assert vm.called(one) == PEER_ADDRESS
    with ThreadPoolExecutor() as pool:
        starting = pool.submit(vm.run, "two")  # dockerd asks again for half a minute
        vm.start_agent()
        two = starting.result()
    assert vm.calls("two", one) == two
    assert vm.agreed()


def test_dockerd_killed_starts_its_containers_with_other_addresses(vm: Vm) -> None:
    """They are other endpoints; what the former ones had comes back."""
    vm.run("fixed", "--restart", "always", "--ip", ADDRESSES[8])
    vm.run("one", "--restart", "always")
    vm.run("ends")
    vm.crash("dockerd")
    vm.start_dockerd()
    until("two containers run again", lambda: len(vm.shown()) == 2)
    until("all agree", vm.agreed)
    assert vm.address("fixed") == ADDRESSES[8]
    assert vm.called(vm.address("one")) == PEER_ADDRESS


def test_containers_that_outlive_dockerd_keep_their_addresses(vm: Vm) -> None:
    vm.machine.daemons["dockerd"].stop()
    vm.start_dockerd("--live-restore")
    one = vm.run("one")
    vm.crash("dockerd", "agent")
    assert vm.called(one) == PEER_ADDRESS
    vm.start_agent()
    vm.start_dockerd("--live-restore")
    assert vm.address("one") == one
    assert vm.calls("one", PRIMARY, 9) == ""
    assert vm.called(one) == PEER_ADDRESS
    assert vm.agreed()
    vm.docker("stop", "-t", "1", "one")
    until("its address is free", vm.agreed)


def test_both_killed_and_the_agent_first_again(vm: Vm) -> None:
    vm.run("fixed", "--restart", "always", "--ip", ADDRESSES[9])
    vm.run("one", "--restart", "always")
    vm.crash("dockerd", "agent")
    vm.start_agent()
    vm.start_dockerd()
    until("both run again", lambda: len(vm.shown()) == 2)
    until("all agree", vm.agreed)
    assert vm.called(ADDRESSES[9]) == PEER_ADDRESS


def test_both_killed_and_dockerd_first_again(vm: Vm) -> None:
    """It looks for the driver for fifteen seconds, cannot give anything back, and leaves the container where it is."""
    vm.run("fixed", "--restart", "always", "--ip", ADDRESSES[9])
    vm.crash("dockerd", "agent")
    vm.machine.run("rm", "-f", "/run/docker/plugins/vnetpods.sock")
    vm.start_dockerd()
    assert not vm.address("fixed")
    vm.start_agent()
    until("what it had is free", vm.agreed)
    vm.docker("start", "fixed")
    assert vm.called(ADDRESSES[9]) == PEER_ADDRESS
    assert vm.agreed()


def test_after_a_reboot_containers_are_there_again(vm: Vm) -> None:
    vm.run("fixed", "--restart", "always", "--ip", ADDRESSES[10])
    vm.run("one", "--restart", "always")
    vm.run("ends")
    vm.reboot()
    vm.start_agent()
    vm.start_dockerd()
    until("two containers run again", lambda: len(vm.shown()) == 2)
    until("all agree", vm.agreed)
    assert until("it is reached", lambda: vm.called(ADDRESSES[10])) == PEER_ADDRESS
    assert vms.NETWORK in vm.docker("network", "ls").stdout
