"""What attach and detach leave behind when they fail at any step, and that repeating them puts everything right."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Sequence

import pytest

from tests.agent.dataplane.world import World, caller_seen, run, run_in, whole_picture, works
from tests.pace import stretched
from vnetpods_agent.dataplane import DataPlaneError
from vnetpods_agent.dataplane.netlink import messages as rt
from vnetpods_agent.dataplane.netlink.socket import REFUSALS, NetlinkRequest, NetlinkSocket
from vnetpods_agent.dataplane.pod.reaper import Reaper
from vnetpods_agent.dataplane.pod.transparent import Transparent, host_steps, opening, pod_steps

STEPS_OF_ATTACH = 15
STEPS_OF_DETACH = 3


pytestmark = pytest.mark.usefixtures("forwarding")


class Cut(NetlinkSocket):
    """Fails after a number of messages, over all conversations of a data plane."""

    def __init__(self, descriptor: int | None, left: list[int]) -> None:
        super().__init__(descriptor=descriptor)
        self._left = left

    def execute(self, steps: Sequence[NetlinkRequest]) -> None:
        for step in steps:
            if self._left[0] == 0:
                raise DataPlaneError(step.what, step.subject, errno.EIO, "cut")
            self._left[0] -= 1
            super().execute([step])


@contextlib.contextmanager
def failing_after(messages: int, reaper: Reaper) -> Iterator[Transparent]:
    """A data plane whose one call must fail there."""
    left = [messages]
    with (
        contextlib.closing(Transparent(reaper, lambda descriptor: Cut(descriptor, left))) as plane,
        pytest.raises(DataPlaneError, match="cut"),
    ):
        yield plane


@pytest.mark.parametrize("messages", range(STEPS_OF_ATTACH))
def test_attach_after_a_failure_at_every_step(world: World, plane: Transparent, reaper: Reaper, messages: int) -> None:
    pod = world.pod("10.240.0.5")
    with failing_after(messages, reaper) as cut:
        cut.attach(pod.attachment, pod.handles)
    plane.attach(pod.attachment, pod.handles)
    assert plane.check(pod.attachment, pod.handles) == []
    assert works(world, pod)
    assert run("ip link").count("azv") == 1


@pytest.mark.parametrize("messages", range(STEPS_OF_ATTACH))
def test_detach_after_an_attach_that_failed_at_every_step(
    world: World, plane: Transparent, reaper: Reaper, messages: int
) -> None:
    pod = world.pod("10.240.0.5")
    run_in(pod.namespace, "ip link set lo up")  # the one thing that stays
    before = whole_picture(pod)
    with failing_after(messages, reaper) as cut:
        cut.attach(pod.attachment, pod.handles)
    plane.detach(pod.attachment)
    assert reaper.wait(stretched(5))
    assert whole_picture(pod) == before


@pytest.mark.parametrize("messages", range(STEPS_OF_DETACH))
def test_detach_after_a_failure_at_every_step(world: World, plane: Transparent, reaper: Reaper, messages: int) -> None:
    pod = world.pod("10.240.0.5")
    run_in(pod.namespace, "ip link set lo up")
    before = whole_picture(pod)
    plane.attach(pod.attachment, pod.handles)
    with failing_after(messages, reaper) as cut:
        cut.detach(pod.attachment)
    plane.detach(pod.attachment)
    assert caller_seen(world.outside, pod.namespace, pod.address) is None
    assert reaper.wait(stretched(5))
    assert whole_picture(pod) == before


def test_the_steps_are_as_many_as_the_tests_visit(world: World) -> None:
    pod = world.pod("10.240.0.5")
    steps = [*host_steps(pod.attachment, 2), *pod_steps(pod.attachment, 3), opening(pod.attachment, 2)]
    assert 1 + len(steps) == STEPS_OF_ATTACH


def test_a_table_that_never_stands_still_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an interrupted dump lacks may be there: whoever takes it for the truth gives addresses back too early."""
    interrupted = [True] * 3

    def once(self: NetlinkSocket, *_: object) -> tuple[list[object], bool]:
        return [], not (interrupted and interrupted.pop())

    monkeypatch.setattr(NetlinkSocket, "_dump_once", once)
    with NetlinkSocket() as netlink:
        assert netlink.dump(NetlinkRequest("list", "links", rt.links_dump()), rt.read_link) == []
        interrupted.extend([True] * 1000)
        before = REFUSALS.counts().get("EAGAIN", 0)
        with pytest.raises(DataPlaneError, match="the table changed") as caught:
            netlink.dump(NetlinkRequest("list", "links", rt.links_dump()), rt.read_link)
    assert caught.value.errno == errno.EAGAIN
    assert REFUSALS.counts()["EAGAIN"] == before + 1
