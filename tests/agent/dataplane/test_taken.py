"""Interfaces whose pod's end the runtime takes itself, as Docker does: offered, taken, given back."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tests.agent.dataplane.keeper import STATE, Keeper
from tests.agent.dataplane.world import PRIMARY, World, caller_seen, eventually, run, run_in
from vnetpods_agent.attachment import Attachment, AttachmentKey
from vnetpods_agent.dataplane.pod.host_veth import GATEWAY
from vnetpods_agent.dataplane.pod.transparent import Transparent

pytestmark = pytest.mark.usefixtures("forwarding")


def offered(world: World, plane: Transparent, name: str = "e1", address: str = "10.240.0.5") -> Attachment:
    key = AttachmentKey("@docker", name, f"vnd{name}")
    attachment = replace(world.pod(address, container=name).attachment, key=key, netns="", pod=None)
    plane.attach(attachment, None)
    return attachment


def take(world: World, attachment: Attachment) -> str:
    """What libnetwork does in the container's namespace; its name."""
    name, there = f"{world.tag}-{attachment.key.container_id}", attachment.key.ifname
    run(f"ip link set {there} netns {name}")
    for command in (
        f"link set {there} down",
        f"link set {there} name eth0",
        f"link set eth0 address {attachment.pod_mac}",
        f"addr add {attachment.address}/32 dev eth0",
        "link set eth0 up",
        f"route add {GATEWAY}/32 dev eth0 scope link",
        f"route add default via {GATEWAY} dev eth0",
    ):
        run_in(name, f"ip {command}")
    # until the kernel's link watch has seen the carrier, the host's end drops what is sent to the container
    eventually(lambda: " state UP " in run(f"ip link show {attachment.host_ifname}"))
    return name


def shown() -> str:
    """All of the host, but for what the kernel's link watch finds out later."""
    whole = run("ip -d link") + run("ip route") + run("ip neigh")
    return re.sub(r"state \w+|NO-CARRIER,|linkdown ", "", whole)


def test_it_speaks_and_is_spoken_to_under_its_own_address(world: World, plane: Transparent) -> None:
    first = take(world, offered(world, plane))
    second = take(world, offered(world, plane, "e2", "10.240.0.6"))
    assert caller_seen(first, second, "10.240.0.6") == "10.240.0.5"
    assert caller_seen(second, world.host, PRIMARY) == "10.240.0.6"
    assert caller_seen(world.outside, first, "10.240.0.5") == "10.240.0.1"


def test_it_asks_nobody_by_arp(world: World, plane: Transparent) -> None:
    """The host's end is deaf, and a neighbour that we gave it would not survive the move."""
    attachment = offered(world, plane)
    assert attachment.pod_mac == attachment.host_mac
    name = take(world, attachment)
    assert "NOARP" in run_in(name, "ip link show eth0")
    assert caller_seen(name, world.host, PRIMARY)
    assert GATEWAY in run_in(name, "ip neigh show nud noarp")


def test_offering_again_changes_nothing_whether_it_was_taken_or_not(world: World, plane: Transparent) -> None:
    attachment = offered(world, plane)
    before = shown()
    plane.attach(attachment, None)
    assert shown() == before
    assert [interface.untaken for interface in plane.interfaces()] == [True]
    name = take(world, attachment)
    assert [interface.untaken for interface in plane.interfaces()] == [False]
    plane.attach(attachment, None)
    assert caller_seen(name, world.host, PRIMARY) == attachment.address


def test_one_that_is_half_made_is_finished(world: World, plane: Transparent) -> None:
    attachment = offered(world, plane)
    run(f"ip link set {attachment.key.ifname} arp on")
    run(f"ip link set {attachment.host_ifname} down")
    plane.attach(attachment, None)
    assert caller_seen(take(world, attachment), world.host, PRIMARY) == attachment.address


def test_detached_it_goes_wherever_its_end_is(world: World, plane: Transparent) -> None:
    for number, taken in enumerate((True, False)):
        attachment = offered(world, plane, f"e{number}")
        if taken:
            take(world, attachment)
        plane.detach(attachment)
        eventually(lambda: not plane.leaving())
        assert not plane.interfaces()
        plane.detach(attachment)


def test_one_that_was_just_detached_is_made_anew(world: World, plane: Transparent) -> None:
    attachment = offered(world, plane)
    plane.detach(attachment)
    plane.attach(attachment, None)
    assert caller_seen(take(world, attachment), world.host, PRIMARY) == attachment.address


def test_the_host_reconciler_leaves_it_as_it_is(world: World, plane: Transparent, keeper: Keeper) -> None:
    keeper.declare(STATE)
    attachment = offered(world, plane)
    name = take(world, attachment)
    run(f"ip link set {attachment.host_ifname} address 02:00:00:00:00:01")
    eventually(lambda: attachment.host_mac in run(f"ip link show {attachment.host_ifname}"))
    assert caller_seen(name, world.host, PRIMARY) == attachment.address
