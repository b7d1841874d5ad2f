"""Two NICs on a fabric that drops, as Azure does, what leaves by a NIC that doesn't own its source address."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.agent.dataplane.keeper import HURRY, NIC
from tests.agent.dataplane.world import (
    AZURE_DNS,
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
from tests.pace import stretched
from vnetpods_agent.attachment import Address
from vnetpods_agent.dataplane import HostState, Nic
from vnetpods_agent.dataplane.host.reconciler import HostReconciler
from vnetpods_agent.dataplane.pod.transparent import Transparent

SECOND_PRIMARY = "10.241.0.4"
SECOND = Nic("00:0d:3a:00:00:02", Address(SECOND_PRIMARY), ("10.241.0.0/16",), ("10.241.0.5", "10.241.0.16/28"))
STATE = HostState((NIC, SECOND), (*DIRECT, "10.241.0.0/16"))


@pytest.fixture
def reconciler(world: World) -> Iterator[HostReconciler]:
    """eth1 beside eth0, and strict reverse path filtering everywhere, as hardened images set it."""
    run(f"ip link add eth1 address {SECOND.mac} type veth peer name nic1 netns {world.outside}")
    run(f"ip addr add {SECOND_PRIMARY}/16 dev eth1")
    run("ip link set eth1 up")
    run("sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1")
    for command in ("addr add 10.241.0.1/16 dev nic1", "link set nic1 up"):
        run_in(world.outside, f"ip {command}")
    for address in ("10.241.0.5/32", "10.241.0.16/28"):
        run_in(world.outside, f"ip route add {address} via {SECOND_PRIMARY}")
    rules = (
        "add table ip azure",
        "add chain ip azure prerouting { type filter hook prerouting priority -300 ; }",
        "add rule ip azure prerouting iifname nic0 ip saddr != { 10.240.0.4-10.240.0.31 } drop",
        "add rule ip azure prerouting iifname nic1 ip saddr != { 10.241.0.4-10.241.0.31 } drop",
    )
    for rule in rules:
        run_in(world.outside, f"nft {rule}")
    reconciler = HostReconciler(lambda kind, message: None, HURRY)
    reconciler.start()
    reconciler.declare(STATE)
    assert reconciler.wait(stretched(5))
    yield reconciler
    reconciler.close()


@pytest.fixture
def pods(world: World, plane: Transparent, reconciler: HostReconciler) -> tuple[PodHandle, PodHandle]:
    pods = world.pod("10.240.0.5", "a"), world.pod("10.241.0.5", "b")
    for pod in pods:
        plane.attach(pod.attachment, pod.handles)
    return pods


def test_each_pod_goes_out_by_its_own_nic(world: World, pods: tuple[PodHandle, PodHandle]) -> None:
    first, second = pods
    assert caller_seen(first.namespace, world.outside, PEER) == first.address
    assert caller_seen(second.namespace, world.outside, PEER) == second.address
    assert caller_seen(second.namespace, world.outside, "10.240.0.1") == second.address
    assert caller_seen(first.namespace, world.outside, "10.241.0.1") == first.address
    assert caller_seen(first.namespace, world.outside, INTERNET) == PRIMARY
    assert caller_seen(second.namespace, world.outside, INTERNET) == SECOND_PRIMARY


def test_pods_of_different_nics_reach_each_other_and_the_node(world: World, pods: tuple[PodHandle, PodHandle]) -> None:
    first, second = pods
    assert caller_seen(first.namespace, second.namespace, second.address) == first.address
    assert caller_seen(second.namespace, first.namespace, first.address) == second.address
    assert caller_seen(second.namespace, world.host, PRIMARY) == second.address
    assert caller_seen(world.host, second.namespace, second.address) is not None


def test_both_are_reached_from_outside(world: World, pods: tuple[PodHandle, PodHandle]) -> None:
    for pod in pods:
        assert caller_seen(world.outside, pod.namespace, pod.address) is not None


def test_what_dhcp_routes_singly_goes_its_way(world: World, pods: tuple[PodHandle, PodHandle]) -> None:
    run(f"ip route add {AZURE_DNS} via 10.240.0.1 dev eth0")
    assert caller_seen(pods[1].namespace, world.outside, AZURE_DNS, port=53) == PRIMARY


@pytest.mark.parametrize("entry", [PRIMARY, SECOND_PRIMARY])
@pytest.mark.parametrize("which", [0, 1])
def test_a_node_port_is_answered_by_the_nic_of_entry(
    world: World, pods: tuple[PodHandle, PodHandle], entry: str, which: int
) -> None:
    """aws#75: with externalTrafficPolicy Local the pod sees the client, and must answer by the NIC of entry."""
    make_node_port(world, pods[which])
    assert caller_seen_through(world, pods[which], entry) == "198.51.100.9"


def make_node_port(world: World, pod: PodHandle) -> None:
    run("nft add table ip kube")
    run("nft add chain ip kube inbound { type nat hook prerouting priority -100 ; }")
    run(f"nft add rule ip kube inbound iifname eth* tcp dport 30080 dnat to {pod.address}:80")
    run_in(world.outside, "ip route del 10.240.0.4")
    run_in(world.outside, "ip addr add 198.51.100.9/32 dev lo")


def caller_seen_through(world: World, pod: PodHandle, entry: str) -> str | None:
    """A client outside calls the node's port; the pod behind it listens on 80."""
    return caller_seen(world.outside, pod.namespace, entry, port=80, source="198.51.100.9", dialled=30080)


class TestPoolOnTheSecondNicAlone:
    """interfaces.primary: false. The host's default route leaves by eth0, which owns no pod's address."""

    @pytest.fixture
    def pod(self, world: World, plane: Transparent, reconciler: HostReconciler) -> PodHandle:
        reconciler.declare(HostState((SECOND,), STATE.direct))
        assert reconciler.wait(stretched(5))
        pod = world.pod("10.241.0.5", "b")
        plane.attach(pod.attachment, pod.handles)
        return pod

    def test_it_reaches_and_is_reached(self, world: World, pod: PodHandle) -> None:
        run(f"ip route add {AZURE_DNS} via 10.240.0.1 dev eth0")
        assert caller_seen(pod.namespace, world.outside, PEER) == pod.address
        assert caller_seen(pod.namespace, world.outside, INTERNET) == SECOND_PRIMARY
        assert caller_seen(pod.namespace, world.outside, AZURE_DNS, port=53) == PRIMARY
        assert caller_seen(pod.namespace, world.host, PRIMARY) == pod.address
        assert caller_seen(world.host, pod.namespace, pod.address) is not None
        assert caller_seen(world.outside, pod.namespace, pod.address) is not None

    @pytest.mark.parametrize("entry", [PRIMARY, SECOND_PRIMARY])
    def test_a_node_port_is_answered_by_the_nic_of_entry(self, world: World, pod: PodHandle, entry: str) -> None:
        make_node_port(world, pod)
        assert caller_seen_through(world, pod, entry) == "198.51.100.9"

    def test_the_node_goes_its_own_way(self, world: World, pod: PodHandle) -> None:
        assert caller_seen(world.host, world.outside, INTERNET) == PRIMARY


def test_rules_and_tables_come_back(world: World, pods: tuple[PodHandle, PodHandle]) -> None:
    rules, table = run("ip rule"), run("ip route show table 11802")
    assert "11801" in rules
    run("ip rule flush")
    run("ip rule add pref 32766 lookup main")
    run("ip route flush table 11802")
    eventually(lambda: run("ip route show table 11802") == table)
    eventually(lambda: all(line in run("ip rule") for line in rules.splitlines() if "proto 118" in line))
    assert caller_seen(pods[1].namespace, world.outside, INTERNET) == SECOND_PRIMARY


def test_foreign_rules_stay_and_ours_go_with_the_second_nic(world: World, reconciler: HostReconciler) -> None:
    run("ip rule add pref 11801 fwmark 0x1 lookup 77")
    reconciler.declare(HostState((NIC,), DIRECT))
    assert reconciler.wait(stretched(5))
    assert [line for line in run("ip rule").splitlines() if line.startswith("118")] == [
        "11801:	from all fwmark 0x1 lookup 77"
    ]
    assert run("ip route show table 11802", check=False) == ""
