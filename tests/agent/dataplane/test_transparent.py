"""Real namespaces, real packets: what attach, detach and check do, also again and after every failure."""

from __future__ import annotations

import pytest

from tests.agent.dataplane.world import World, caller_seen, run
from vnetpods_agent.attachment import Address
from vnetpods_agent.dataplane.reaper import Reaper
from vnetpods_agent.dataplane.transparent import Transparent


@pytest.fixture(autouse=True)
def forwarding(world: World) -> None:
    run("sysctl -qw net.ipv4.ip_forward=1")


def test_pods_reach_each_other_and_are_reached_under_their_own_addresses(world: World, plane: Transparent) -> None:
    first, second = world.pod("10.240.0.5", "a"), world.pod("10.240.0.6", "b")
    for pod in (first, second):
        plane.attach(pod.attachment, pod.doors)
        assert plane.check(pod.attachment, pod.doors) == []
    assert caller_seen(first.namespace, second.namespace, second.address) == first.address
    assert caller_seen(first.namespace, world.outside, "10.9.0.9") == first.address
    assert caller_seen(world.outside, first.namespace, first.address) == "10.240.0.1"
    assert caller_seen(first.namespace, world.host, "10.240.0.4") == first.address
    assert caller_seen(world.host, first.namespace, first.address) == "10.240.0.4"


def test_detach_makes_the_address_unreachable_at_once_and_the_interface_goes_soon(
    world: World, plane: Transparent, reaper: Reaper
) -> None:
    pod = world.pod("10.240.0.5")
    plane.attach(pod.attachment, pod.doors)
    plane.detach(pod.attachment)
    assert plane.interfaces() == []
    assert reaper.wait(5)
    assert plane.leaving() == frozenset()
    assert pod.host_ifname not in run("ip link")
    assert Address("10.240.0.5") not in run("ip route")
