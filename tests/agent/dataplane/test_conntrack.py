"""Real conntrack entries: those of an address go, whoever began them, and no other."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from tests.agent.dataplane.world import PEER, PodHandle, World, inside, run, run_in
from tests.pace import stretched
from vnetpods_agent.dataplane import DataPlaneError
from vnetpods_agent.dataplane.netlink import conntrack
from vnetpods_agent.dataplane.netlink.socket import NetlinkSocket
from vnetpods_agent.dataplane.pod.reaper import NETLINK_NETFILTER, Reaper
from vnetpods_agent.dataplane.pod.transparent import Transparent

Flush = Callable[[NetlinkSocket, str], None]


def one_by_one(netlink: NetlinkSocket, address: str) -> None:
    """What kernels before 6.8 need."""
    for direction in (conntrack._TUPLE_ORIG, conntrack._TUPLE_REPLY):
        conntrack.flush_one_by_one(netlink, direction, address)


def say(namespace: str, address: str, source: str = "") -> None:
    with inside(namespace), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        if source:
            sender.bind((source, 0))
        sender.sendto(b"?", (address, 5353))


@pytest.fixture
def pods(world: World, plane: Transparent) -> list[PodHandle]:
    """Two pods with connections of their own, and a Service address that leads to the first."""
    run("sysctl -qw net.ipv4.ip_forward=1")
    run("nft add table ip service")
    run("nft add chain ip service inbound { type nat hook prerouting priority -100 ; }")
    run("nft add rule ip service inbound ip daddr 10.0.99.99 dnat to 10.240.0.5")
    pods = [world.pod("10.240.0.5", "a"), world.pod("10.240.0.6", "b")]
    for pod in pods:
        plane.attach(pod.attachment, pod.handles)
    say(pods[0].namespace, PEER)  # begun by it
    say(pods[1].namespace, "10.240.0.5")  # begun by the other, to it
    say(pods[1].namespace, "10.0.99.99")  # to it, through a Service
    say(pods[1].namespace, PEER)  # none of its business
    assert len(entries()) == 4
    return pods


def entries() -> list[str]:
    return [line for line in run("conntrack -L -p udp --dport 5353").splitlines() if line]


@pytest.mark.parametrize("flush", [conntrack.flush, one_by_one])
def test_all_connections_of_the_address_and_no_other_are_forgotten(pods: list[PodHandle], flush: Flush) -> None:
    with NetlinkSocket(NETLINK_NETFILTER) as netlink:
        flush(netlink, "10.240.0.5")
        [left] = entries()
        assert f"src=10.240.0.6 dst={PEER}" in left
        flush(netlink, "10.240.0.5")


@pytest.mark.parametrize("errno_said", sorted(conntrack.UNABLE))
def test_a_kernel_that_cannot_forget_does_not_keep_the_address(
    pods: list[PodHandle], plane: Transparent, reaper: Reaper, monkeypatch: pytest.MonkeyPatch, errno_said: int
) -> None:
    """Without the module nf_conntrack_netlink, which can't be taken away here."""

    def refuse(*_: object) -> None:
        raise DataPlaneError("forget connections of", "10.240.0.5", errno_said)

    monkeypatch.setattr(conntrack, "flush", refuse)
    plane.detach(pods[0].attachment)
    assert reaper.wait(stretched(5))
    assert pods[0].host_ifname not in run("ip link")


def test_a_sandbox_that_is_gone_before_the_delete_leaves_no_connections(
    pods: list[PodHandle], plane: Transparent, reaper: Reaper
) -> None:
    run_in(pods[0].namespace, "ip link del eth0")
    assert len(entries()) == 4
    plane.detach(pods[0].attachment)
    assert reaper.wait(stretched(5))
    assert len(entries()) == 1


def test_a_detached_pod_leaves_no_connections(pods: list[PodHandle], plane: Transparent, reaper: Reaper) -> None:
    plane.detach(pods[0].attachment)
    assert reaper.wait(stretched(5))
    assert not any("10.240.0.5" in entry for entry in entries())
    assert len(entries()) == 1
