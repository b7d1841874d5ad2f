"""A VM with networks beside the pool's NIC: a storage NIC, a VPN.

What is direct leaves by the pod's NIC all the same; what only the other interface leads to leaves under that one's
address, and answers find back.
"""

from __future__ import annotations

import pytest

from tests.agent.dataplane.keeper import NIC, STATE, Keeper
from tests.agent.dataplane.world import (
    DIRECT,
    INTERNET,
    PEER,
    PRIMARY,
    PodHandle,
    World,
    caller_seen,
    eventually,
    run,
    run_in,
)
from vnetpods_agent.dataplane import HostState
from vnetpods_agent.dataplane.pod.transparent import Transparent

STORAGE, VPN = "10.9.8.7", "172.20.0.9"
STORAGE_OWN, VPN_OWN = "10.9.8.4", "172.20.0.4"


@pytest.fixture
def other(world: World) -> str:
    """eth1 in a part of the direct ranges, wg0 in a network of its own; both end in a namespace of theirs."""
    other = world.namespace("other")
    run_in(other, "ip link set lo up")
    for name, own, beyond in (("eth1", STORAGE_OWN, STORAGE), ("wg0", VPN_OWN, VPN)):
        run(f"ip link add {name} type veth peer name {name} netns {other}")
        for command in (f"addr add {own}/24 dev {name}", f"link set {name} up"):
            run(f"ip {command}")
        for command in (f"addr add {beyond}/24 dev {name}", f"link set {name} up"):
            run_in(other, f"ip {command}")
    run_in(world.outside, f"ip addr add {STORAGE}/32 dev lo")  # the VNet leads there, too
    return other


def translated(world: World, pod: PodHandle, other: str) -> bool:
    """All the ways at once."""
    return (
        caller_seen(pod.namespace, world.outside, STORAGE) == pod.address
        and caller_seen(pod.namespace, other, STORAGE) is None
        and caller_seen(pod.namespace, other, VPN) == VPN_OWN
        and caller_seen(pod.namespace, world.outside, PEER) == pod.address
        and caller_seen(pod.namespace, world.outside, INTERNET) == PRIMARY
    )


def test_what_is_direct_leaves_by_the_pods_nic_and_the_rest_under_the_interfaces_address(
    world: World, other: str, pod: PodHandle
) -> None:
    assert translated(world, pod, other)
    assert caller_seen(world.host, other, STORAGE) == STORAGE_OWN, "the node itself goes by its own table"


def test_also_if_the_interface_comes_later_and_it_ends_with_it(
    world: World, pod: PodHandle, other: str, keeper: Keeper
) -> None:
    eventually(lambda: translated(world, pod, other), 15)
    assert "fwmark 0x100" in run("ip rule")
    run("ip link del eth1")
    eventually(lambda: "fwmark" not in run("ip rule"))
    eventually(lambda: caller_seen(pod.namespace, other, VPN) == VPN_OWN)


@pytest.mark.parametrize("source", [STORAGE, VPN])
def test_who_comes_in_by_the_other_interface_is_answered_there(
    world: World, other: str, pod: PodHandle, source: str
) -> None:
    own = STORAGE_OWN if source == STORAGE else VPN_OWN
    run_in(other, f"ip route add {pod.address} via {own}")
    assert caller_seen(other, pod.namespace, pod.address, source=source) == source


def test_a_node_port_is_answered_there_too(world: World, other: str, pod: PodHandle) -> None:
    run("nft add table ip kube")
    run("nft add chain ip kube inbound { type nat hook prerouting priority -100 ; }")
    run(f"nft add rule ip kube inbound iifname eth1 tcp dport 30080 dnat to {pod.address}:80")
    assert caller_seen(other, pod.namespace, STORAGE_OWN, source=STORAGE, port=80, dialled=30080) == STORAGE


def test_pods_on_the_node_still_meet(world: World, other: str, pod: PodHandle, plane: Transparent) -> None:
    second = world.pod("10.240.0.6", "second")
    plane.attach(second.attachment, second.handles)
    assert caller_seen(pod.namespace, second.namespace, second.address) == pod.address
    assert caller_seen(pod.namespace, world.host, PRIMARY) == pod.address
    assert caller_seen(world.host, pod.namespace, pod.address) is not None


def test_a_pod_whose_nic_is_not_known_is_nowhere_seen_under_its_own_address(
    world: World, pod: PodHandle, keeper: Keeper
) -> None:
    keeper.declare(HostState((), DIRECT))
    assert caller_seen(pod.namespace, world.outside, INTERNET) == PRIMARY
    keeper.declare(STATE)
    assert NIC in STATE.nics
    assert caller_seen(pod.namespace, world.outside, PEER) == pod.address
