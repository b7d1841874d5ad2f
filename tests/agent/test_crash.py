"""kill -9 at every fault point the agent lists, alone and among other calls: nothing is given twice, nothing is lost.

The process that dies is the real agent. The shims that wait for it are real too: an ADD finds the next agent by itself,
a DEL is spooled.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.agent import truths
from tests.agent.machine import Machine, machine, until
from vnetpods_kit.faultpoints import AgentPoint

ADDRESSES = tuple(f"10.240.0.{number}" for number in range(5, 30))
TRY_AGAIN_LATER = "10.240.0.200"
OTHERS = 20


Act = Callable[[Machine], Coroutine[None, None, None]]


@dataclass(frozen=True)
class Scene:
    """The act during which the agent is killed, what a healthy agent has to do before, and what can be had after it."""

    act: Act
    before: Act | None = None
    usable: tuple[str, ...] = ADDRESSES


async def a_pod(node: Machine) -> None:
    await node.add("before", node.sandbox("p-before"))


async def add(node: Machine) -> None:
    await node.add("c1", node.sandbox("p-c1"))


async def failing_add(node: Machine) -> None:
    """The pod has an eth0 of somebody else's: the ADD must be undone."""
    netns = node.sandbox("p-c1", link="eth0")
    outcome = await node.call("ADD", "c1", netns)
    assert outcome.code == 102, outcome


async def delete(node: Machine) -> None:
    await node.delete("before", "/run/netns/p-before")


async def release(node: Machine) -> None:
    node.pool(ADDRESSES, releasing=ADDRESSES[-3:])
    await until(lambda: set(node.report().released) == set(ADDRESSES[-3:]))


async def grow(node: Machine) -> None:
    node.pool([*ADDRESSES, TRY_AGAIN_LATER])
    saved = node.state / "pool.json"
    await until(lambda: saved.exists() and TRY_AGAIN_LATER.encode() in saved.read_bytes())


ADD, DELETE = Scene(add), Scene(delete, before=a_pod)
SCENES = {
    "add.chosen": ADD,
    "ledger.written": ADD,
    "ledger.committed": ADD,
    "add.durable": ADD,
    "add.attached": ADD,
    "add.rolling-back": Scene(failing_add),
    "del.begun": DELETE,
    "del.detached": DELETE,
    "del.released": DELETE,
    "release.withdrawn": Scene(release, usable=ADDRESSES[:-3]),
    "release.reported": Scene(release, usable=ADDRESSES[:-3]),
    "pool.saving": Scene(grow, usable=(*ADDRESSES, TRY_AGAIN_LATER)),
}


def test_every_fault_point_is_visited() -> None:
    assert set(SCENES) == set(AgentPoint)


async def other(node: Machine, number: int) -> None:
    """A pod that comes, or comes and goes."""
    container = f"o{number}"
    netns = node.sandbox(f"p-{container}")
    await node.add(container, netns)
    if number % 2:
        await node.delete(container, netns)


@pytest.mark.parametrize("others", [0, OTHERS], ids=["alone", "busy"])
@pytest.mark.parametrize("point", list(AgentPoint))
async def test_killed_at(tmp_path: Path, point: str, others: int) -> None:
    scene = SCENES[point]
    async with machine(tmp_path) as node:
        node.pool(ADDRESSES)
        if scene.before:
            await node.start()
            await scene.before(node)
            await node.stop()

        await node.start(fault=point, serving=False)
        calls = [asyncio.create_task(other(node, number)) for number in range(others)]
        calls.append(asyncio.create_task(scene.act(node)))
        assert node.process
        assert await node.process.wait() == -signal.SIGKILL
        await node.start()
        await asyncio.gather(*calls)

        await until(lambda: not list((node.state / "spool").glob("*.req")) and truths.read(node).agreed)
        left = {f"o{number}/eth0" for number in range(0, others, 2)} | {"c1/eth0"} & set(truths.read(node).ledger)
        assert set(truths.read(node).ledger) == left
        if scene is ADD:
            assert "c1/eth0" in left
        for key, address in truths.read(node).ledger.items():
            assert node.addresses_of(f"/run/netns/p-{key.removesuffix('/eth0')}") == [address]
        await everything_can_be_had(node, scene.usable)
        assert list(node.state.glob(".*")) == []


async def everything_can_be_had(node: Machine, usable: Sequence[str]) -> None:
    """No address is lost: what isn't held can all be given out, each once."""
    held = truths.read(node).ledger
    free = len(usable) - len(held)
    names = [f"new{number}" for number in range(free)]
    added = await asyncio.gather(*(node.add(name, node.sandbox(f"p-{name}")) for name in names))
    assert sorted([*added, *held.values()]) == sorted(usable)
    await until(lambda: truths.read(node).agreed)
