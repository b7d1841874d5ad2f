"""Worlds for the data plane's tests; see world.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.agent.dataplane.keeper import HURRY, STATE, Keeper
from tests.agent.dataplane.world import PodHandle, World, inside, run
from vnetpods_agent.dataplane.host.reconciler import HostReconciler
from vnetpods_agent.dataplane.pod.reaper import Reaper
from vnetpods_agent.dataplane.pod.transparent import Transparent


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    try:
        world.build()
        with inside(world.host):
            yield world
    finally:
        world.close()


@pytest.fixture
def reaper(world: World) -> Iterator[Reaper]:
    reaper = Reaper()
    reaper.start()
    yield reaper
    reaper.close()


@pytest.fixture
def plane(world: World, reaper: Reaper) -> Iterator[Transparent]:
    plane = Transparent(reaper)
    yield plane
    plane.close()


@pytest.fixture
def forwarding(world: World) -> None:
    """What the host reconciler sees to, for tests without one."""
    run("sysctl -qw net.ipv4.ip_forward=1")


@pytest.fixture
def keeper(world: World) -> Iterator[Keeper]:
    events: list[tuple[str, str]] = []
    reconciler = HostReconciler(lambda kind, message: events.append((kind, message)), HURRY)
    reconciler.start()
    yield Keeper(reconciler, events)
    reconciler.close()


@pytest.fixture
def pod(world: World, plane: Transparent, keeper: Keeper) -> PodHandle:
    """One on a host that is kept as it should be."""
    keeper.declare(STATE)
    pod = world.pod("10.240.0.5")
    plane.attach(pod.attachment, pod.handles)
    return pod
