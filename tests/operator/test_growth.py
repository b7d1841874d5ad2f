"""Growth never stalls: whatever happens in whatever order, pods that wait are followed by a request or by a reason.

Hypothesis draws what happens to one node: pods come and go, the agent hears, speaks and is late, the operator's watch
tells it, ARM and the API server fail, the operator dies between any two of its steps, time passes. Then nothing goes
wrong any more, and the operator goes on for as long as it says by itself that it will look again before the next
audit. The parts are the real ones (SDK, API server, reconciler, queue, what kopf calls), on a clock that runs faster
and can be put forward. The audit, which would hide a stall for half an hour, never comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import selectors
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.kube.apiserver import ApiServer
from tests.operator import worlds
from tests.operator.agents import Agent
from tests.operator.benches import Bench, bench
from vnetpods_api import ConditionType, Reason, find
from vnetpods_kit import faultpoints
from vnetpods_kit.faultpoints import OperatorPoint
from vnetpods_operator.kube import Kube, NotFound, Unreachable
from vnetpods_operator.state.handlers import pool_seen
from vnetpods_operator.state.pools import PATH, Pools
from vnetpods_operator.state.queue import Queue

pytestmark = [pytest.mark.apiserver, pytest.mark.timeout(900)]  # hundreds of looks, beside other tests on two cores

SPEED = 10
"""Seconds of the operator's clock in one of ours."""
SOON = 200.0
"""The longest that an operator may leave a node alone whose pods wait."""
NIC = "*/networkInterfaces/*"
ARM: dict[str, dict[str, Any]] = {
    "no answer": {"effect": "reset"},
    "no answer to a write": {"effect": "reset", "method": "PUT", "after": True},
    "503": {"effect": "status", "status": 503, "code": "ServiceUnavailable"},
    "503 to a write": {"effect": "status", "method": "PUT", "status": 503, "code": "ServiceUnavailable"},
    "503 to a poll": {"effect": "status", "status": 503, "code": "ServiceUnavailable", "resource": "*/operations/*"},
    "429": {"effect": "status", "method": "PUT", "status": 429, "code": "TooManyRequests", "retry_after": 1},
    "409": {"effect": "status", "method": "PUT", "status": 409, "code": "AnotherOperationInProgress"},
    "somebody else writes": {"effect": "writer", "method": "PUT", "change": "tag", "resource": NIC},
    "an old answer": {"effect": "stale", "method": "GET", "resource": NIC},
    "the operation fails": {"effect": "fail", "method": "PUT", "resource": NIC},
}


class Clock(asyncio.SelectorEventLoop):
    """An event loop whose time runs faster, and can be put forward."""

    def __init__(self) -> None:
        self.ahead = 0.0
        super().__init__(_Selector())

    def time(self) -> float:
        return super().time() * SPEED + self.ahead


class _Selector(selectors.DefaultSelector):
    def select(self, timeout: float | None = None) -> Any:
        return super().select(timeout if timeout is None else timeout / SPEED)


class Flaky(Kube):
    """The operator's way to the API server, on which requests (`GET`) or their answers (`-PATCH`) get lost."""

    def __init__(self, real: Kube) -> None:
        super().__init__(real._client)
        self.losses: list[str] = []
        self.before_writing: list[Callable[[], Awaitable[None]]] = []

    async def request(self, method: str, path: str, **more: Any) -> bytes:
        if method == "PATCH" and self.before_writing:
            await self.before_writing.pop()()
        if method in self.losses:
            self.losses.remove(method)
            raise Unreachable(f"{method} {path}: lost")
        answer = await super().request(method, path, **more)
        if f"-{method}" in self.losses:
            self.losses.remove(f"-{method}")
            raise Unreachable(f"{method} {path}: the answer is lost")
        return answer


class Killed(BaseException):
    """The operator's process is no more."""


@dataclass
class Life:
    """One node, and what happens to it."""

    world: worlds.World
    bench: Bench
    agent: Agent
    kube: Flaky
    clock: Clock
    queue: Queue = field(init=False)
    again: float | None = None

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """A new operator: it knows what the API server lists, and looks at every node once."""
        self.queue = Queue(self.clock.time, self.bench.cluster.priority)
        self.queue.add(self.agent.node)

    async def hear(self) -> None:
        """The operator's watch is up to date."""
        try:
            body = json.loads(await self.world.kube.request("GET", f"{PATH}/{self.agent.node}"))
        except NotFound:
            body = {"metadata": {"name": self.agent.node}}
            if self.agent.node in self.bench.cluster.pools:
                pool_seen(self.bench.cluster, self.queue, {"type": "DELETED", "object": body})
        else:
            pool_seen(self.bench.cluster, self.queue, {"type": "MODIFIED", "object": body})

    async def look(self) -> None:
        """The operator's worker does what is in line."""
        if not self.queue.depth:
            return
        name, self.again = await self.queue.take(), None
        try:
            self.again = (await self.bench.look()).requeue_after
        except Killed:
            await self.die()
        else:
            self.queue.done(name, self.again)

    async def die(self) -> None:
        faultpoints.install(None)
        self.kube.losses.clear()
        cluster = self.bench.cluster
        node = cluster.nodes[self.agent.node]
        cluster.delete_node(node.name)
        cluster.delete_pool(node.name)
        self.start()
        await self.hear()
        cluster.upsert_node(node)
        cluster.record(node.name).audit_at = float("inf")

    async def kill_at(self, point: OperatorPoint) -> None:
        def hook(reached: faultpoints.Point) -> None:
            if reached is point:
                raise Killed

        faultpoints.install(hook)

    async def speak(self, *, late: bool = False) -> None:
        """The agent says how things are, as far as it has heard."""
        self.agent.lagging = late
        with contextlib.suppress(NotFound):  # it says it when there is a pool again
            await self.agent.sync()
        self.agent.lagging = False

    async def pods(self, number: int) -> None:
        self.agent.start(number) if number > 0 else self.agent.end(-number)
        await self.speak()

    async def pods_meanwhile(self) -> None:
        """Pods come while Azure is at work."""

        async def come() -> None:
            self.bench.meanwhile.clear()
            await self.pods(9)

        self.bench.meanwhile.append(come)

    async def pods_before_a_write(self) -> None:
        """Pods come right before the operator writes what it has thought out without them."""
        self.kube.before_writing.append(lambda: self.pods(9))

    async def delete_pool(self) -> None:
        try:
            await self.world.kube.request("DELETE", f"{PATH}/{self.agent.node}")
        except NotFound:
            return
        await self.hear()

    async def fail(self, what: str) -> None:
        self.world.azure.build.fault(times=1, principal="operator", **ARM[what])

    async def lose(self, what: str) -> None:
        self.kube.losses.append(what)

    async def wait(self, seconds: float) -> None:
        self.clock.ahead += seconds
        await asyncio.sleep(0)

    async def come_to_rest(self) -> None:
        """Nothing goes wrong any more; ends when nothing is left to do."""
        faultpoints.install(None)
        self.world.azure.build.clear_faults()
        self.kube.losses.clear()
        self.kube.before_writing.clear()
        self.bench.meanwhile.clear()
        for number in itertools.count():
            assert number < 300, "it does not come to rest"
            await self.speak()
            await self.hear()
            if not self.queue.depth:
                if self.again is None or self.again - self.clock.time() > SOON:
                    return
                await self.wait(max(0.0, self.again - self.clock.time()))
                await asyncio.sleep(0.2)
            await self.look()

    async def judge(self) -> None:
        ready = find((await self.world.pool(self.agent.node)).status.conditions, ConditionType.READY)
        assert ready is not None
        told = ready.reason in (Reason.AT_CAPACITY, Reason.SUBNET_FULL)
        assert self.agent.waiting == 0 or told, f"{self.agent.waiting} pods wait, and nothing follows: {ready}"


@dataclass(frozen=True)
class Step:
    """Says in a falsifying example what happens."""

    text: str
    act: Callable[[Life], Awaitable[None]]

    def __repr__(self) -> str:
        return self.text


PODS = Step("12 pods come", lambda life: life.pods(12))
RACE = Step("9 pods come before the operator's next write", Life.pods_before_a_write)
SPEAK = Step("the agent speaks", Life.speak)
HEAR = Step("the operator hears", Life.hear)
LOOK = Step("the operator looks", Life.look)
END = Step("all pods end", lambda life: life.pods(-100))
MINUTE = Step("a minute passes", lambda life: life.wait(60))
REFUSAL = Step("ARM: 503 to a write", partial(Life.fail, what="503 to a write"))
LOSS = Step("API server: PATCH is lost", partial(Life.lose, what="PATCH"))
BEGIN = (LOOK, LOOK, SPEAK)
USUAL = [LOOK, LOOK, LOOK, LOOK, PODS, PODS, RACE, RACE, SPEAK, SPEAK, HEAR]
SELDOM = [
    Step("5 pods end", lambda life: life.pods(-5)),
    Step("pods come during the write of the NIC", Life.pods_meanwhile),
    Step("the agent speaks late", lambda life: life.speak(late=True)),
    Step("a second passes", lambda life: life.wait(1)),
    MINUTE,
    END,
    Step("the pool is deleted", Life.delete_pool),
    Step("the operator dies", Life.die),
    *(Step(f"ARM: {what}", partial(Life.fail, what=what)) for what in ARM),
    *(Step(f"API server: {what} is lost", partial(Life.lose, what=what)) for what in ("PATCH", "-PATCH", "GET")),
    *(Step(f"the operator will die at {point}", partial(Life.kill_at, point=point)) for point in OperatorPoint),
]
DRAWN = st.one_of(*(st.sampled_from(steps) for steps in (USUAL, USUAL, USUAL, SELDOM)))
TROUBLE = st.sampled_from([RACE, *SELDOM])


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@example(begun=True, steps=[PODS, HEAR, REFUSAL, LOOK, END, HEAR, MINUTE], need=[], trouble=[RACE], maximum=250)
@example(begun=True, steps=[], need=[PODS, HEAR], trouble=[REFUSAL], maximum=250)
@example(begun=True, steps=[], need=[PODS, HEAR], trouble=[LOSS], maximum=250)
@given(
    begun=st.sampled_from([True, True, True, False]),
    steps=st.lists(DRAWN, max_size=12),
    need=st.sampled_from([[PODS, HEAR], [PODS, HEAR], []]),
    trouble=st.lists(TROUBLE, min_size=1, max_size=2),
    maximum=st.sampled_from([250, 20]),
)
def test_pods_that_wait_are_followed_by_a_request_or_a_reason(
    apiserver: ApiServer,
    operator_kubeconfig: Path,
    tmp_path: Path,
    *,
    begun: bool,
    steps: list[Step],
    need: list[Step],
    trouble: list[Step],
    maximum: int,
) -> None:
    async def live() -> None:
        async with worlds.made(apiserver, operator_kubeconfig, tmp_path) as world:
            world.settings["groups"] = [{"minimum": 4, "warm": 4, "batch": 4, "maximum": maximum}]
            world.settings["audit"] = "1000h"
            _, agent = await world.worker("one")
            kube = Flaky(world.kube)
            world.pools = Pools(kube)
            async with bench(world, agent) as found:
                clock = asyncio.get_running_loop()
                assert isinstance(clock, Clock)
                life = Life(world, found, agent, kube, clock)
                # what happens last is what nothing comes after that could make good for it
                for step in (*(BEGIN if begun else ()), *steps, *need, *trouble, LOOK):
                    await step.act(life)
                await life.come_to_rest()
                await life.judge()

    try:
        with asyncio.Runner(loop_factory=Clock) as runner:
            runner.run(live())
    finally:
        faultpoints.install(None)
