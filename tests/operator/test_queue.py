"""One worker per node, the most urgent first, many wishes become one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from vnetpods_operator.azure.budget import Budget, Kind
from vnetpods_operator.caller import Priority
from vnetpods_operator.errors import Throttled
from vnetpods_operator.state.queue import RESERVED, Queue, work


def queue() -> Queue:
    return Queue(asyncio.get_running_loop().time)


@asynccontextmanager
async def working(of: Queue, look: Callable[[str], object], workers: int = 1) -> AsyncIterator[None]:
    async def wrapped(name: str) -> float | None:
        found = look(name)
        if asyncio.iscoroutine(found):
            found = await found
        assert found is None or isinstance(found, float)
        return found

    task = asyncio.create_task(work(of, wrapped, workers))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_many_wishes_become_one() -> None:
    of, seen = queue(), list[str]()
    for _ in range(100):
        of.add("one")
    async with working(of, seen.append):
        await settle()
    assert seen == ["one"]


async def test_the_most_urgent_first() -> None:
    of, seen = queue(), list[str]()
    of.add("audit")
    of.add("warm", Priority.WARM)
    of.add("later")
    of.add("waiting", Priority.WAITING)
    of.add("later", Priority.EMPTY)
    async with working(of, seen.append):
        await settle()
    assert seen == ["waiting", "later", "warm", "audit"]


async def test_one_worker_per_node_and_once_more_when_added_meanwhile() -> None:
    of, at_work, seen, go = queue(), set[str](), list[str](), asyncio.Event()

    async def look(name: str) -> None:
        assert name not in at_work
        at_work.add(name)
        seen.append(name)
        await go.wait()
        at_work.discard(name)

    of.add("one")
    async with working(of, look, workers=4):
        await settle()
        of.add("one")
        of.add("one", Priority.WAITING)
        await settle()
        assert seen == ["one"]
        go.set()
        await settle()
        assert seen == ["one", "one"]
        assert of.at_work == 0


async def test_later_means_later_and_the_earlier_time_counts() -> None:
    of, looked = queue(), asyncio.Event()
    now = asyncio.get_running_loop().time()
    async with working(of, lambda _: looked.set()):
        of.add_at("one", now + 3600)
        of.add_at("one", now + 0.2)
        of.add_at("one", now + 1800)
        await looked.wait()
        assert asyncio.get_running_loop().time() >= now + 0.2


async def test_what_happens_overrides_the_time() -> None:
    of, seen = queue(), list[str]()
    async with working(of, seen.append):
        of.add_at("one", asyncio.get_running_loop().time() + 60)
        of.add("one")
        await settle()
        assert seen == ["one"]


async def test_a_look_may_ask_to_be_looked_at_again() -> None:
    of, times = queue(), [0.05]

    def look(_: str) -> float | None:
        return asyncio.get_running_loop().time() + times.pop() if times else None

    of.add("one")
    async with working(of, look):
        await settle()
        assert times == []
        assert of.depth == 0
        await asyncio.sleep(0.1)


async def test_pods_that_wait_never_wait_for_a_worker() -> None:
    of, seen, stuck = queue(), list[str](), asyncio.Event()

    async def look(name: str) -> None:
        seen.append(name)
        if name.startswith("slow"):
            await stuck.wait()

    async with working(of, look, workers=2):
        for number in range(10):
            of.add(f"slow-{number}")
        await settle()
        assert len(seen) == 2
        of.add("urgent", Priority.WAITING)
        await settle()
        assert seen[-1] == "urgent"
        of.add("slow-9", Priority.WAITING)
        await settle()
        assert seen[-1] == "slow-9"
    assert RESERVED > 1


async def test_the_age_of_the_line() -> None:
    now = [100.0]
    of = Queue(lambda: now[0])
    assert of.age == 0
    of.add("one")
    now[0] = 107.0
    assert (of.depth, of.age) == (1, 7.0)


async def test_a_forgotten_node_is_not_looked_at_later() -> None:
    of, seen = queue(), list[str]()
    async with working(of, seen.append):
        of.add_at("one", asyncio.get_running_loop().time() + 0.03)
        of.forget("one")
        await asyncio.sleep(0.08)
    assert seen == []


async def test_a_node_whose_pods_wait_is_urgent_when_its_time_comes() -> None:
    """All came back to wait for the same second; those whose pods wait don't come last."""
    urgencies, seen = {"idle": Priority.AUDIT, "waiting": Priority.WAITING}, list[str]()
    of = Queue(asyncio.get_running_loop().time, urgencies.__getitem__)
    for name in urgencies:
        of.add_at(name, asyncio.get_running_loop().time() + 0.02)
    await asyncio.sleep(0.05)
    async with working(of, seen.append, workers=1):
        await settle()
    assert seen == ["waiting", "idle"]


async def test_a_subscription_that_azure_throttles_leaves_the_workers_to_others() -> None:
    of, seen, budget = queue(), list[str](), Budget(lambda _: (1000.0, 1000.0))
    budget.close("throttled", Kind.READ, 3600)

    async def look(name: str) -> float | None:
        subscription, _, _ = name.partition("-")
        try:
            await budget.acquire(subscription, Kind.READ)
        except Throttled as error:
            return asyncio.get_running_loop().time() + error.seconds
        seen.append(name)
        return None

    for number in range(RESERVED + 10):
        of.add(f"throttled-{number}", Priority.WAITING)
    async with working(of, look, workers=4):
        await settle()
        of.add("open-1", Priority.WAITING)
        await settle()
        assert seen == ["open-1"]
        assert of.depth == 0


async def test_the_longest_look_is_known_while_it_lasts() -> None:
    now = [0.0]
    of = Queue(lambda: now[0])
    for name in ("one", "two"):
        of.add(name)
        assert await of.take() == name
        now[0] += 5
    assert of.longest == 10
    of.done("one", None)
    assert of.longest == 5
    of.done("two", None)
    assert of.longest == 0
