"""Events are aggregated: one object per Node and reason, whatever happens how often."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tests.operator.worlds import World
from vnetpods_api import Reason
from vnetpods_kit.events import NOTE_BYTES
from vnetpods_operator.events import MOST, Recorder
from vnetpods_operator.planning.model import Problem
from vnetpods_operator.planning.node import Node, node_from

pytestmark = pytest.mark.apiserver


@contextlib.asynccontextmanager
async def writing(recorder: Recorder) -> AsyncIterator[None]:
    task = asyncio.create_task(recorder.write())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def node(world: World, name: str) -> Node:
    return node_from(world.api.get("node", await world.node(name)))


async def test_a_thousand_times_the_same_is_one_event(world: World) -> None:
    one, recorder = await node(world, "one"), Recorder(world.kube, "test")
    async with writing(recorder):
        for number in range(1000):
            recorder.tell(one, Problem(Reason.FORBIDDEN, f"attempt {number}"))
            await asyncio.sleep(0)
        await world.until("the Event", lambda: world.events(one.name))
        await asyncio.sleep(0.2)
    (event,) = await world.events(one.name)
    assert event["reason"] == "Forbidden"
    assert event["regarding"]["uid"] == one.uid
    assert event["reportingController"] == "vnetpods.io/operator"
    assert event["type"] == "Warning"


async def test_later_repeats_are_counted_in_it(world: World) -> None:
    one, recorder = await node(world, "one"), Recorder(world.kube, "test", quiet=0.0)

    async def counted() -> bool:
        found = await world.events(one.name)
        return len(found) == 1 and found[0].get("series", {}).get("count") == 3

    async with writing(recorder):
        for _ in range(3):
            recorder.tell(one, Problem(Reason.SUBNET_FULL, "no address left"))
            await asyncio.sleep(0.2)
        await world.until("the count", counted)


async def test_other_words_about_the_same_are_another_event(world: World) -> None:
    """The API server refuses to change the note of one that is there."""
    one, recorder = await node(world, "one"), Recorder(world.kube, "test", quiet=0.0)

    async def notes() -> bool:
        return {event["note"] for event in await world.events(one.name)} == {"first", "second"}

    async with writing(recorder):
        for words in ("first", "second"):
            recorder.tell(one, Problem(Reason.ADDRESS_LOST, words))
            await asyncio.sleep(0.2)
        await world.until("both", notes)


async def test_an_event_whose_time_to_live_is_over_is_made_anew(world: World) -> None:
    one, recorder = await node(world, "one"), Recorder(world.kube, "test", quiet=0.0)
    async with writing(recorder):
        recorder.tell(one, Problem(Reason.SUBNET_FULL, "no address left"))
        await world.until("the Event", lambda: world.events(one.name))
        (first,) = await world.events(one.name)
        await asyncio.to_thread(world.api.kubectl, "delete", "event", first["metadata"]["name"])
        recorder.tell(one, Problem(Reason.SUBNET_FULL, "é" * 1000))  # and a note has at most so many bytes
        await world.until("another one", lambda: world.events(one.name))
    (second,) = await world.events(one.name)
    assert second["note"] == "é" * (NOTE_BYTES // 2)


async def test_other_reasons_and_nodes_have_their_own(world: World) -> None:
    one, two, recorder = await node(world, "one"), await node(world, "two"), Recorder(world.kube, "test")
    async with writing(recorder):
        recorder.tell(one, Problem(Reason.FORBIDDEN, "a"))
        recorder.tell(one, Problem(Reason.SUBNET_FULL, "b"))
        recorder.tell(two, Problem(Reason.FORBIDDEN, "c"))
        await world.until("the second Node's Event", lambda: world.events(two.name))
    assert {event["reason"] for event in await world.events(one.name)} == {"Forbidden", "SubnetFull"}


def test_what_is_remembered_is_bounded() -> None:
    recorder = Recorder(None, "test")  # type: ignore[arg-type] # nothing is written
    for number in range(MOST + 50):
        recorder.tell(Node(f"n{number}", f"u{number}", "", 1, {}), Problem(Reason.FORBIDDEN, ""))
    assert len(recorder._matters) == MOST
