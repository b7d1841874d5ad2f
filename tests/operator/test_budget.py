"""Token buckets as arithmetic, and who is served first."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import pace
from vnetpods_operator.azure.budget import Bucket, Budget, Kind
from vnetpods_operator.caller import Caller, GaveWay, Priority, caller
from vnetpods_operator.errors import Throttled
from vnetpods_operator.state.queue import Queue, work


def test_burst_then_rate() -> None:
    bucket = Bucket(rate=2, burst=3, level=3, at=0)
    assert [bucket.take(0) for _ in range(3)] == [0, 0, 0]
    assert bucket.take(0) == pytest.approx(0.5)
    assert bucket.take(0.5) == 0


def test_nothing_before_retry_after_and_no_rush_afterwards() -> None:
    bucket = Bucket(rate=10, burst=100, level=100, at=0)
    bucket.close(until=60, now=0)
    assert bucket.take(59.9) == pytest.approx(0.1)
    assert bucket.take(60) == 0
    assert bucket.take(60) > 0  # one, not a hundred


def test_azures_count_lowers_ours() -> None:
    bucket = Bucket(rate=1, burst=100, level=100, at=0)
    bucket.lower(2, now=0)
    assert [bucket.take(0) > 0 for _ in range(3)] == [False, False, True]


@settings(deadline=None)
@given(
    rate=st.floats(0.5, 50),
    burst=st.integers(1, 100),
    gaps=st.lists(st.floats(0, 3), min_size=1, max_size=200),
)
def test_c25_never_more_than_the_rate_allows_and_not_less(rate: float, burst: int, gaps: list[float]) -> None:
    """cilium PR#21387: the real rate was half of the configured one."""
    bucket, now, taken = Bucket(rate, burst, burst, 0), 0.0, 0
    for gap in gaps:
        now += gap
        while (wait := bucket.take(now)) == 0:
            taken += 1
        assert taken <= burst + rate * now + 1e-6
        assert wait <= 1 / rate + 1e-6
    greedy, now = 0, 0.0
    bucket = Bucket(rate, burst, burst, 0)
    while greedy < burst + 50:
        wait = bucket.take(now)
        greedy += wait == 0
        now += wait
    assert now == pytest.approx(50 / rate, rel=0.05, abs=0.01)


def budget(rate: float = 50.0, burst: float = 1.0) -> Budget:
    return Budget(lambda _: (rate, burst))


async def ask(of: Budget, name: str, priority: Priority, served: list[str]) -> None:
    caller.set(Caller(priority))
    await of.acquire("s", Kind.WRITE)
    served.append(name)


class Gate:
    """A budget that serves nobody until it is opened: all who ask are in line by then, however slow they were."""

    def __init__(self) -> None:
        self._rate = 0.001
        self.budget = Budget(lambda _: (self._rate, 1.0))

    async def open(self, waiting: int) -> None:
        await asyncio.sleep(0)
        assert self.budget.waiting == waiting
        self._rate = 50.0
        self.budget.adjust()


async def test_the_most_urgent_first_then_the_earliest() -> None:
    served: list[str] = []
    gate = Gate()
    await gate.budget.acquire("s", Kind.WRITE)
    wishes = [
        ("audit", Priority.AUDIT),
        ("warm-1", Priority.WARM),
        ("empty", Priority.EMPTY),
        ("warm-2", Priority.WARM),
        ("waiting", Priority.WAITING),
    ]
    async with asyncio.TaskGroup() as group:
        for name, priority in wishes:
            group.create_task(ask(gate.budget, name, priority, served))
        await gate.open(len(wishes))
    assert served == ["waiting", "empty", "warm-1", "warm-2", "audit"]


async def test_a_node_may_become_urgent_while_it_waits() -> None:
    served: list[str] = []
    gate, mine = Gate(), Caller(Priority.AUDIT)
    await gate.budget.acquire("s", Kind.WRITE)

    async def late() -> None:
        caller.set(mine)
        await gate.budget.acquire("s", Kind.WRITE)
        served.append("late")

    async with asyncio.TaskGroup() as group:
        group.create_task(ask(gate.budget, "warm", Priority.WARM, served))
        group.create_task(late())
        await asyncio.sleep(0)
        mine.priority = Priority.WAITING
        await gate.open(2)
    assert served == ["late", "warm"]


async def test_subscriptions_and_kinds_are_apart() -> None:
    of = budget(0.001)
    async with asyncio.timeout(pace.stretched(1)):
        await of.acquire("one", Kind.WRITE)
        await of.acquire("ONE", Kind.READ)
        await of.acquire("two", Kind.WRITE)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await of.acquire("One", Kind.WRITE)
    assert of.waiting == 0


async def test_a_pause_holds_everybody() -> None:
    of = budget(1000, 100)
    of.close("s", Kind.WRITE, 0.2)
    began = asyncio.get_running_loop().time()
    await of.acquire("s", Kind.WRITE)
    assert asyncio.get_running_loop().time() - began >= 0.2


async def test_nobody_sits_before_a_bucket_that_azure_closed_for_long() -> None:
    """The workers that sat there would be missing to nodes of other subscriptions."""
    of = budget(0.001)
    await of.acquire("s", Kind.WRITE)
    async with asyncio.timeout(pace.stretched(1)):
        early = asyncio.create_task(of.acquire("s", Kind.WRITE))
        await asyncio.sleep(0)
        of.close("s", Kind.WRITE, 3600)
        for waiter in (early, of.acquire("S", Kind.WRITE)):
            with pytest.raises(
                Throttled, match=r"no writes in subscription [sS] at present; again at [0-9:]{8} UTC"
            ) as found:
                await waiter
            assert 1800 < found.value.seconds <= 3600  # a test never lasts as long as the rest
        await of.acquire("s", Kind.READ)
        await of.acquire("other", Kind.WRITE)
    assert of.waiting == 0


async def test_new_rates_apply_at_once() -> None:
    rates = [0.001]
    of = Budget(lambda _: (rates[0], 1.0))
    await of.acquire("s", Kind.READ)
    rates[0] = 1000.0
    of.adjust()
    async with asyncio.timeout(pace.stretched(1)):
        await of.acquire("s", Kind.READ)


async def until_waiting(of: Budget, number: int) -> None:
    while of.waiting != number:  # noqa: ASYNC110 - a budget tells nobody who waits
        await asyncio.sleep(0)


async def asked(of: Budget, mine: Caller, service: str = "") -> None:
    caller.set(mine)
    await of.acquire("s", Kind.WRITE, service)


async def test_the_least_urgent_waiter_gives_way_and_the_others_stay() -> None:
    of = budget(rate=0.001)
    await of.acquire("s", Kind.WRITE)
    urgencies = (Priority.RELEASE, Priority.AUDIT, Priority.AUDIT, Priority.EMPTY)
    tasks = [asyncio.create_task(asked(of, Caller(priority))) for priority in urgencies]
    await until_waiting(of, 4)
    of.give_way(Priority.WARM)
    with pytest.raises(GaveWay):
        await tasks[2]
    of.give_way(Priority.WARM)
    of.give_way(Priority.WARM)
    of.give_way(Priority.WARM)
    await until_waiting(of, 1)
    assert [task.done() for task in tasks] == [True, True, True, False]
    tasks[3].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_who_must_know_how_a_write_ended_gives_way_to_nobody() -> None:
    of = budget(rate=0.001)
    await of.acquire("s", Kind.WRITE)
    polls = asyncio.create_task(asked(of, Caller(Priority.AUDIT, firm=True)))
    await until_waiting(of, 1)
    of.give_way(Priority.WAITING)
    await asyncio.sleep(0)
    assert of.waiting == 1
    polls.cancel()
    await asyncio.gather(polls, return_exceptions=True)


async def test_what_is_outdated_when_its_turn_comes_is_not_sent() -> None:
    of, paused = budget(rate=50), False
    await of.acquire("s", Kind.WRITE)
    waiting = asyncio.create_task(asked(of, Caller(Priority.WARM, outdated=lambda: paused)))
    await until_waiting(of, 1)
    paused = True
    with pytest.raises(GaveWay):
        await waiting


async def test_a_service_that_is_closed_closes_no_other() -> None:
    of = budget(burst=100)
    of.close_service("S", Kind.WRITE, "Microsoft.Compute", 60)
    with pytest.raises(Throttled):
        await of.acquire("s", Kind.WRITE, "microsoft.compute")
    await of.acquire("s", Kind.WRITE, "Microsoft.Network")
    await of.acquire("s", Kind.READ, "Microsoft.Compute")


async def test_a_node_without_addresses_gets_a_worker_from_one_that_waits_for_the_rate() -> None:
    """All workers sat before the bucket, and a new Node waited behind them in the queue for minutes."""
    of, order = budget(rate=0.001), list[str]()
    await of.acquire("s", Kind.WRITE)
    queue = Queue(asyncio.get_running_loop().time, crowded=of.give_way)
    came = asyncio.Event()

    async def look(name: str) -> float | None:
        caller.set(Caller(Priority.EMPTY if name == "new" else Priority.AUDIT))
        order.append(name)
        if name == "new":
            came.set()
        with contextlib.suppress(GaveWay):
            await of.acquire("s", Kind.WRITE)
        return None

    working = asyncio.create_task(work(queue, look, workers=2))
    for name in ("one", "two"):
        queue.add(name)
    await until_waiting(of, 2)
    queue.add("new", Priority.EMPTY)
    await came.wait()
    assert order == ["one", "two", "new"]
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
