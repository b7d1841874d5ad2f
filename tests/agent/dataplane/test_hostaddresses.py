"""The node keeps the addresses that it lives from, whatever a NodeIPPool lists."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.agent.dataplane.keeper import NIC, Keeper
from tests.agent.dataplane.world import DIRECT, GATEWAY, POOL, PRIMARY, run
from vnetpods_agent.attachment import Address
from vnetpods_agent.dataplane import HostState, Nic
from vnetpods_agent.dataplane.host.actions import ADDRESS_ON_HOST, ADDRESS_TAKEN, NIC_MISSING
from vnetpods_agent.dataplane.host.addresses import found
from vnetpods_agent.dataplane.kernel_facts import Uplink
from vnetpods_agent.dataplane.netlink.messages import PROTOCOL, RTPROT_KERNEL, Link, Route
from vnetpods_agent.dataplane.netlink.tables import HeldAddress

DHCP = 16
FORMER = Address("10.240.0.200")
ANOTHER_MACHINES = replace(NIC, mac="00:0d:3a:ff:ff:ff", primary_address=FORMER, addresses=(PRIMARY, *POOL))
OUTDATED = replace(NIC, primary_address=FORMER, addresses=(PRIMARY, *POOL))


@pytest.mark.parametrize("nic", [ANOTHER_MACHINES, OUTDATED], ids=["image-of-another-machine", "outdated"])
@pytest.mark.parametrize("source", ["", f"src {PRIMARY}"], ids=["static", "dhcp"])
def test_the_primary_address_stays_though_the_pool_lists_it(keeper: Keeper, nic: Nic, source: str) -> None:
    run(f"ip route replace default via {GATEWAY} dev eth0 {source}")
    before = run("ip addr show eth0"), run("ip route")
    keeper.declare(HostState((nic,), DIRECT))
    assert (run("ip addr show eth0"), run("ip route")) == before
    assert ADDRESS_TAKEN not in keeper.kinds()
    if nic is OUTDATED:
        assert keeper.reconciler.held_by_host() == {PRIMARY}
        [message] = [message for kind, message in keeper.events if kind == ADDRESS_ON_HOST]
        assert "is the NodeIPPool outdated?" in message
    else:
        assert NIC_MISSING in keeper.kinds()


def test_nor_does_it_go_beside_the_former_primary(keeper: Keeper) -> None:
    """A NIC whose primary address was exchanged; cloud-init has configured the former one as well."""
    run(f"ip addr add {FORMER}/16 dev eth0")
    keeper.declare(HostState((OUTDATED,), DIRECT))
    assert f"{PRIMARY}/16" in run("ip addr show eth0")
    assert keeper.reconciler.held_by_host() == {PRIMARY}


def test_a_primary_address_is_never_a_pods_even_if_the_pool_lists_it(keeper: Keeper) -> None:
    run("ip addr add 10.240.0.7/16 dev eth0")
    keeper.declare(HostState((replace(NIC, addresses=(PRIMARY, *POOL)),), DIRECT))
    assert f"{PRIMARY}/16" in run("ip addr show eth0")
    assert "10.240.0.7/16" not in run("ip addr show eth0")


def test_what_another_interface_has_is_left_to_it_and_said(keeper: Keeper) -> None:
    run("ip link add docker0 type bridge")
    run("ip addr add 10.240.0.17/28 dev docker0")
    keeper.declare(HostState((NIC,), DIRECT))
    assert "10.240.0.17/28" in run("ip addr show docker0")
    assert keeper.reconciler.held_by_host() == {"10.240.0.17"}
    [message] = [message for kind, message in keeper.events if kind == ADDRESS_ON_HOST]
    assert "10.240.0.17 (docker0)" in message
    assert "give docker0 other addresses" in message
    assert "cloud-init" not in message


ETH0, ETH1 = (
    Link(index, name, True, f"00:0d:3a:00:00:0{index}", 1500, 65536, "", "", 0, 0, 0)
    for index, name in ((2, "eth0"), (3, "eth1"))
)
FIRST = Uplink(replace(NIC, mac=ETH0.mac), ETH0)
SECOND = Uplink(
    replace(NIC, mac=ETH1.mac, primary_address=Address("10.241.0.4"), addresses=("10.241.0.5", "10.241.0.16/28")), ETH1
)


def held(index: int, *addresses: str) -> list[HeldAddress]:
    """The first is the interface's first."""
    return [HeldAddress(index, address, 16, secondary=bool(number)) for number, address in enumerate(addresses)]


def default(source: str, protocol: int = DHCP) -> Route:
    return Route("0.0.0.0", 0, 2, GATEWAY, protocol=protocol, source=source)


@pytest.mark.parametrize(
    ("there", "routes", "taken", "why"),
    [
        pytest.param(held(2, PRIMARY, "10.240.0.7"), [], {"10.240.0.7"}, "", id="the-primary-came-first"),
        pytest.param(
            held(2, "10.240.0.7", PRIMARY), [default(PRIMARY)], {"10.240.0.7"}, "", id="networkd-static-before-dhcp"
        ),
        pytest.param(held(2, "10.240.0.7", PRIMARY), [], set(), "nothing confirms", id="nobody-confirms"),
        pytest.param(
            held(2, "10.240.0.7", PRIMARY),
            [default("10.240.0.7")],
            set(),
            "a route of the node has it as its source",
            id="the-kernel-says-otherwise",
        ),
        pytest.param(
            held(2, "10.240.0.7", PRIMARY),
            [default("10.240.0.7", RTPROT_KERNEL)],
            set(),
            "nothing confirms",
            id="the-subnets-own-route-proves-nothing",
        ),
        pytest.param(held(2, "10.240.0.7"), [], set(), f"lacks the primary address {PRIMARY}", id="the-last"),
        pytest.param(held(2, PRIMARY, "10.241.0.5"), [], set(), "isn't the interface of the NIC", id="another-nics"),
        pytest.param(held(2, PRIMARY, "10.242.0.5"), [], set(), None, id="nobodys"),
        pytest.param(
            [*held(2, PRIMARY), *held(3, "10.241.0.4", "10.241.0.17")], [], {"10.241.0.17"}, "", id="second-nic"
        ),
        pytest.param([*held(2, PRIMARY), *held(9, "10.240.0.7")], [], set(), "isn't the interface", id="docker0"),
    ],
)
def test_what_may_be_taken(there: list[HeldAddress], routes: list[Route], taken: set[str], why: str | None) -> None:
    links = [ETH0, ETH1, replace(ETH0, index=9, name="docker0", mac="02:42:00:00:00:01", kind="bridge")]
    judged = found([FIRST, SECOND], links, there, [*routes, Route("10.240.0.5", 32, 2, protocol=PROTOCOL)])
    assert {each.held.address for each in judged if not each.stays} == taken
    assert len(judged) == (why is not None)
    assert all(why and why in each.stays for each in judged if each.stays)
