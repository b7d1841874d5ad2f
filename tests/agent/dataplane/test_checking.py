"""CHECK finds each single deviation, and tolerates what plugins after ours may add."""

from __future__ import annotations

import pytest

from tests.agent.dataplane.world import World, run_in
from vnetpods_agent.dataplane.pod.transparent import Transparent

DEVIATIONS = [
    ("ip link set {azv} down", "the host's {azv} is down"),
    ("ip link set {azv} address 02:aa:aa:aa:aa:aa", "the host's {azv} has MAC 02:aa:aa:aa:aa:aa instead of {host_mac}"),
    ("ip link set {azv} alias other", "doesn't name {key} with 10.240.0.5 as its owner"),
    ("ip link set {azv} name azvother", "is called azvother instead of {azv}"),
    ("ip link set {azv} mtu 1400", "eth0 has MTU 1500, more than the host's end with 1400"),
    ("ip link set {azv} arp on", "the host's {azv} answers ARP"),
    ("sysctl -qw net.ipv4.conf.{azv}.forwarding=0", "net.ipv4.conf.{azv} has other settings than pods need"),
    ("ip route del 10.240.0.5", "the host has no route to 10.240.0.5"),
    ("ip neigh del 10.240.0.5 dev {azv}", "the host's {azv} has no permanent neighbour 10.240.0.5 with {pod_mac}"),
    ("ip link del {azv}", "the host has no interface of {key}"),
    ("pod ip link set lo down", "the pod's lo is down"),
    ("pod ip link set eth0 down", "the pod's eth0 is down"),
    ("pod ip link set eth0 address 02:aa:aa:aa:aa:aa", "the pod's eth0 has MAC 02:aa:aa:aa:aa:aa instead of {pod_mac}"),
    ("pod ip link del eth0", "the pod has no eth0"),
    ("pod ip addr del 10.240.0.5/32 dev eth0", "the pod's eth0 doesn't have 10.240.0.5/32"),
    ("pod ip route del 169.254.1.1", "the pod has no route to 169.254.1.1"),
    ("pod ip route del default", "the pod has no default route"),
    ("pod ip neigh del 169.254.1.1 dev eth0", "the pod's eth0 has no permanent neighbour 169.254.1.1 with {host_mac}"),
]


@pytest.mark.parametrize(("change", "sentence"), DEVIATIONS, ids=[change for change, _ in DEVIATIONS])
def test_check_finds_each_deviation(world: World, plane: Transparent, change: str, sentence: str) -> None:
    pod = world.pod("10.240.0.5")
    attachment = pod.attachment
    plane.attach(attachment, pod.handles)
    words = {
        "azv": pod.host_ifname,
        "host_mac": attachment.host_mac,
        "pod_mac": attachment.pod_mac,
        "key": str(attachment.key),
    }
    where, _, command = change.partition(" ") if change.startswith("pod ") else ("", "", change)
    run_in(pod.namespace if where else world.host, command.format(**words))
    found = plane.check(attachment, pod.handles)
    assert any(sentence.format(**words) in line for line in found), found


@pytest.mark.parametrize(
    "change",
    [
        "ip addr add 10.99.0.1/32 dev eth0",
        "ip route add 10.98.0.0/16 via 169.254.1.1 dev eth0",
        "ip link set eth0 mtu 1300",
        "ip link add extra type veth peer name extra1",
    ],
)
def test_check_tolerates_what_chained_plugins_add(world: World, plane: Transparent, change: str) -> None:
    pod = world.pod("10.240.0.5")
    plane.attach(pod.attachment, pod.handles)
    run_in(pod.namespace, change)
    assert plane.check(pod.attachment, pod.handles) == []
