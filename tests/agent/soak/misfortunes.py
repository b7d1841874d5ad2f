"""What befalls a node and its API server in the soak. Each player lives until `over`, and leaves nothing half done."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.agent.machine import Machine
from tests.agent.soak.model import Violation
from tests.agent.soak.runtime import Load
from tests.clock import SteppingClock
from tests.kube import apiserver
from tests.zygote import Process
from vnetpods_kit.faultpoints import AgentPoint

ENDS = {"kill": 3, "stop": 2, "fault": 4, "double": 2}
BETWEEN = {"nothing": 5, "copy of the state": 3, "boot": 1, "state rolled back": 1, "disk rolled back": 1}
STEPS = (-6000.0, -600.0, -30.0, 0.0, 30.0, 600.0, 86_400.0, 40 * 86_400.0)
"""Where the wall clock goes; further back the API server's certificate isn't valid yet."""


@dataclass
class NodeLife:
    """The agent's lives, each with an end of its own, and what happens to the machine in between."""

    node: Machine
    server: apiserver.ApiServer
    load: Load
    chance: random.Random
    done: Counter[str] = field(default_factory=Counter)
    over: bool = False
    forgetful: bool = False  # the ledger is one of the past, and no agent has looked at the pods since

    async def run(self) -> None:
        while not self.over:
            await self._live(self.chance.choices(list(ENDS), list(ENDS.values()))[0])
            if self.load.calls_left > 0:
                await self._befall(self.chance.choices(list(BETWEEN), list(BETWEEN.values()))[0])
            await asyncio.sleep(self.chance.choice((0, 0, 0.3, 2.0, 7.0)))

    async def _live(self, how: str) -> None:
        """Ends by SIGKILL, by SIGTERM, or at a fault point in its nth visit; or a second agent starts beside it."""
        point = f"{self.chance.choice(list(AgentPoint))}:{self.chance.randrange(1, 60)}" if how == "fault" else ""
        serving = self.forgetful or self.chance.random() < 0.7  # some die before they have begun
        await self.node.start(fault="" if self.forgetful else point, serving=serving)
        self.forgetful = False
        assert self.node.process
        if how == "double":
            await self._double(self.node.process)
            return
        try:
            async with asyncio.timeout(self.chance.uniform(2, 15)):
                code = await self.node.process.wait()
        except TimeoutError:
            await (self.node.stop() if how == "stop" else self.node.kill())
            code = self.node.process.returncode or 0
        # SIGTERM ends a process that hasn't got as far as to listen to it
        expected = {0, -signal.SIGTERM} if how == "stop" else {-signal.SIGKILL}
        if code not in expected:
            raise Violation(f"the agent ended with {code} instead of {expected}")
        self.done[f"agent ended by {point.partition(':')[0] or how}"] += 1

    async def _double(self, first: Process) -> None:
        """Either may end first; now and then somebody has taken the state folder away from under the first."""
        await asyncio.sleep(self.chance.uniform(0, 3))
        if self.node.state.exists() and self.chance.random() < 0.3:
            self.load.model.rolled_back()
            self.node.state.rename(self.node.folder / f"taken-{self.done['state taken away']}")
            self.done["state taken away"] += 1
        await self.node.start(serving=False)
        assert self.node.process
        both = [first, self.node.process]
        try:
            for process in self.chance.sample(both, 2):
                await asyncio.sleep(self.chance.uniform(1, 6))
                if process.returncode is not None:
                    raise Violation(f"one of two agents ended by itself with {process.returncode}")
                process.kill()
                await process.wait()
        finally:
            for process in both:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
        self.done["second agent"] += 1

    async def _befall(self, what: str) -> None:
        copy = self.node.folder / "copy"
        if not self.node.state.exists():  # killed before it had made it
            return
        if what == "copy of the state":
            shutil.rmtree(copy, ignore_errors=True)
            await asyncio.to_thread(shutil.copytree, self.node.state, copy, ignore=shutil.ignore_patterns(".*"))
        elif what == "boot":
            await self.load.boot(self.node.reboot)
        elif not copy.exists():
            return
        elif what == "state rolled back":
            self.forgetful = True
            self._roll_back(copy)
        elif what == "disk rolled back":
            self.forgetful = True
            await self.load.boot(lambda: self._reboot_from(copy))
        if not self.load.up.is_set():
            await self.node.reach(self.server)
            self.load.up.set()
        self.done[what] += 1

    def _reboot_from(self, copy: Path) -> None:
        self._roll_back(copy)
        self.node.reboot()

    def _roll_back(self, copy: Path) -> None:
        self.load.model.rolled_back()
        fresh = self.node.folder / "state.new"
        shutil.copytree(copy, fresh)
        self.node.state.rename(self.node.folder / "state.old")
        fresh.rename(self.node.state)
        shutil.rmtree(self.node.folder / "state.old")


@dataclass
class ServerLife:
    """A third of the time gone or frozen; now and then etcd comes back as it was a while ago."""

    server: apiserver.ApiServer
    chance: random.Random
    done: Counter[str] = field(default_factory=Counter)
    over: bool = False
    away: float = 0.0
    began: float = field(default_factory=time.monotonic)
    _backup: Path | None = None

    async def run(self) -> None:
        while not self.over:
            await asyncio.sleep(self.chance.uniform(2, 8))
            if self.away > (time.monotonic() - self.began) / 3:
                continue
            began = time.monotonic()
            what = self.chance.choice(("frozen", "away", "backup", "restored"))
            if what == "frozen":
                self.server.pause()
                await asyncio.sleep(self.chance.uniform(2, 6))
                self.server.resume()
            elif what == "backup":
                if self._backup:
                    shutil.rmtree(self._backup)
                self._backup = self.server.backup()
            elif what == "away":
                self.server.stop()
                await asyncio.sleep(self.chance.uniform(1, 3))
                # the process belongs to this thread, which the kernel ties its life to
                self.server.server.start()
            elif self._backup:
                self.server.begin_restore(self._backup)
            else:
                continue
            await asyncio.to_thread(self.ready)
            self.done[f"API server: {what}"] += 1
            if what != "backup":
                self.away += time.monotonic() - began

    def ready(self) -> None:
        apiserver.await_ready(self.server.url, self.server.authority, [self.server.server])


async def step_clock(clock: SteppingClock, chance: random.Random, done: Counter[str]) -> None:
    """The agent's wall clock, while it runs."""
    while True:
        await asyncio.sleep(chance.uniform(3, 12))
        clock.step_to(chance.choice(STEPS))
        done["clock stepped"] += 1
