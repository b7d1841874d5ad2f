"""Shim and agent are replaced while pods come and go: no ADD or DEL fails for good, no address moves."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.agent import truths
from tests.agent.machine import Machine, machine, until
from tests.agent.shim import PATIENT, Outcome, program
from vnetpods_agent.installer import install_shim

ADDRESSES = [f"10.240.{third}.{last}" for third in (0, 1) for last in range(5, 105)]
CALLERS = 12


@dataclass
class Load:
    """Pods that come and go until told to stop. `failed`: calls that a runtime would have to repeat."""

    node: Machine
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    done: int = 0
    failed: list[Outcome] = field(default_factory=list)

    async def caller(self, number: int) -> None:
        netns = self.node.sandbox(f"p-{number}")
        turn = 0
        while not self.stop.is_set():
            container = f"c{number}-{turn}"
            turn += 1
            for verb in ("ADD", "DEL"):
                outcome = await self.node.call(verb, container, netns)
                self.done += 1
                if outcome.exit_code:
                    self.failed.append(outcome)
                    break


@asynccontextmanager
async def load(node: Machine) -> AsyncIterator[Load]:
    running = Load(node)
    callers = [asyncio.create_task(running.caller(number)) for number in range(CALLERS)]
    try:
        yield running
    finally:
        running.stop.set()
        await asyncio.gather(*callers)


async def test_agent_replaced_under_load(tmp_path: Path) -> None:
    """As a DaemonSet does it: SIGTERM, and only when the old one is gone the next one. Three times."""
    async with machine(tmp_path) as node:
        node.pool(ADDRESSES)
        await node.start()
        stays = await node.add("stays", node.sandbox("p-stays"))
        async with load(node) as running:
            for _ in range(3):
                before = running.done
                await until(lambda seen=before: running.done > seen + 40)  # type: ignore[misc]
                await node.stop()
                assert node.process
                assert node.process.returncode == 0
                await node.start()
        assert running.failed == []
        await until(lambda: truths.read(node).ledger == {"stays/eth0": stays})
        await until(lambda: truths.read(node).agreed)


async def test_agent_killed_under_load(tmp_path: Path) -> None:
    """Nor does a crash cost a call, as long as the next agent is there within seconds."""
    async with machine(tmp_path) as node:
        node.pool(ADDRESSES)
        await node.start()
        async with load(node) as running:
            for _ in range(3):
                before = running.done
                await until(lambda seen=before: running.done > seen + 40)  # type: ignore[misc]
                await node.kill()
                await node.start()
        assert running.failed == []
        await until(lambda: truths.read(node) == truths.Truths({}, {}, frozenset()))


async def test_shim_replaced_under_load(tmp_path: Path) -> None:
    builds = [program(*PATIENT), program(*PATIENT, "STATUS_DEADLINE_MS=9000")]
    install_shim(builds[0], tmp_path / "opt")
    async with machine(tmp_path) as node:
        node.shim = tmp_path / "opt" / "vnetpods"
        node.pool(ADDRESSES)
        await node.start()
        async with load(node) as running:
            for turn in range(100):
                await asyncio.to_thread(install_shim, builds[turn % 2], tmp_path / "opt")
                await asyncio.sleep(0.01)
        assert running.done > 40
        assert running.failed == []
        await until(lambda: truths.read(node) == truths.Truths({}, {}, frozenset()))


def waiting_in(node: Machine) -> int:
    usage = node.report().usage
    return usage.waiting if usage else 0


async def test_add_that_waits_for_an_address_survives_the_upgrade(tmp_path: Path) -> None:
    async with machine(tmp_path) as node:
        node.pool(ADDRESSES[:1])
        await node.start()
        await node.add("first", node.sandbox("p-first"))
        waiting = asyncio.create_task(node.add("second", node.sandbox("p-second")))
        await until(lambda: waiting_in(node) == 1)
        await node.stop()
        await node.start()
        await until(lambda: waiting_in(node) == 1)
        node.pool(ADDRESSES[:2])
        assert await waiting == ADDRESSES[1]


async def test_spooled_del_leaves_a_later_add_of_the_same_container_alone(tmp_path: Path) -> None:
    """cnitool and Docker reuse container ids. The agent hangs, so the DEL is spooled; then it serves an ADD."""
    async with machine(tmp_path) as node:
        node.shim = program("DEL_DEADLINE_MS=300", *PATIENT)
        node.pool(ADDRESSES)
        await node.start()
        netns = node.sandbox("p-1")
        await node.add("c1", netns)
        assert node.process
        agent = node.process.pid  # nsenter executes the agent in its own place
        os.kill(agent, signal.SIGSTOP)
        await node.delete("c1", netns)
        [spooled] = (node.state / "spool").iterdir()
        kept = spooled.read_bytes()
        os.kill(agent, signal.SIGCONT)
        await until(lambda: truths.read(node) == truths.Truths({}, {}, frozenset()))
        address = await node.add("c1", netns)
        spooled.write_bytes(kept)  # as if the replay had come this late
        await until(lambda: not spooled.exists())
        assert truths.read(node).ledger == {"c1/eth0": address}
        assert node.addresses_of(netns) == [address]
