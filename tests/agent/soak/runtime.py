"""The callers of the soak: each is a runtime's worker with one pod name, whose pods come and go as kubelets have them.

A failed ADD is followed by DEL, and the next attempt has a new sandbox; a DEL is repeated until it succeeds. Now and
then a shim is killed, a sandbox dies without DEL, a DEL comes late (when the pod's next sandbox is there already),
comes without a namespace, or comes twice. When the power is lost, whatever runs ends where it is, and every caller
begins anew on the next boot.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.agent.machine import Machine, until
from tests.agent.shim import Outcome
from tests.agent.soak.model import Model, Violation

ENDINGS = {"del": 70, "late": 8, "twice": 6, "no namespace": 8, "no del": 8}
KILLED = 0.02
LOOKED_AT = 0.05
EXPECTED = {0, 11}
"""Codes that an ADD may end with: nothing else is wrong with it than that it must be tried again."""


class PowerLost(Exception):  # noqa: N818 - its name is the finding
    """What was under way is so no more."""


@dataclass
class Load:
    """What all callers share."""

    node: Machine
    model: Model
    chance: random.Random
    calls_left: int
    outcomes: Counter[str] = field(default_factory=Counter)
    live: dict[str, str] = field(default_factory=dict)  # container -> namespace, of pods that stay to the end
    up: asyncio.Event = field(default_factory=asyncio.Event)  # the machine is
    busy: int = 0  # callers in the middle of something
    _calls: set[asyncio.Task[Outcome]] = field(default_factory=set)

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def call(self, verb: str, container: str, netns: str, args: str) -> Outcome:
        self._check()
        self.calls_left -= 1
        killed_after = self.chance.uniform(0, 0.02) if self.chance.random() < KILLED else None
        calling = self.node.call(verb, container, netns, args=args, killed_after=killed_after)
        task = asyncio.create_task(calling)
        self._calls.add(task)
        try:
            outcome = await task
        except asyncio.CancelledError:
            self._check()
            raise
        finally:
            self._calls.discard(task)
        self._check()
        how = "killed" if outcome.exit_code < 0 else str(outcome.code)
        self.outcomes[f"{verb} {how}"] += 1
        return outcome

    async def begin_sandbox(self, name: str) -> str:
        self._check()
        return await asyncio.to_thread(self.node.sandbox, name)

    async def end_sandbox(self, netns: str) -> None:
        self._check()
        await asyncio.to_thread(self.node.end_sandbox, netns)

    def _check(self) -> None:
        if not self.up.is_set():
            raise PowerLost

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        self.busy += 1
        try:
            yield
        finally:
            self.busy -= 1

    async def boot(self, meanwhile: Callable[[], None]) -> None:
        """The machine loses its power, and comes up again."""
        self.up.clear()
        for task in self._calls:
            task.cancel()
        await until(lambda: not self.busy)
        self.model.power_lost(self.now())
        self.live.clear()
        await asyncio.to_thread(meanwhile)


@dataclass
class Caller:
    load: Load
    number: int
    turn: int = 0

    async def run(self) -> None:
        stays = self.number % 2  # every other one leaves a pod
        while self.load.calls_left > 0 or stays:
            await self.load.up.wait()
            with self.load.working(), contextlib.suppress(PowerLost):
                if self.load.calls_left > 0:
                    await self._work()
                elif await self._stay():
                    return

    async def _work(self) -> None:
        chance = self.load.chance
        late: list[tuple[str, str]] = []
        while self.load.calls_left > 0:
            container, netns = await self._pod()
            if not container:
                continue
            for old, its_netns in late:
                await self._end("del", old, its_netns)
            late = []
            await asyncio.sleep(chance.choice((0, 0, 0.01, 0.3, 1.0)))
            ending = chance.choices(list(ENDINGS), list(ENDINGS.values()))[0]
            if ending == "late":
                late.append((container, netns))
            else:
                await self._end(ending, container, netns)
        for old, its_netns in late:
            await self._end("del", old, its_netns)

    async def _stay(self) -> bool:
        container, netns = await self._pod()
        if container:
            self.load.live[container] = netns
        return bool(container)

    async def _pod(self) -> tuple[str, str]:
        """A pod that works, or ("", "") after a failure that was cleaned up."""
        load = self.load
        self.turn += 1
        container = f"c{self.number}-{self.turn}"
        netns = await load.begin_sandbox(f"p{self.number}-{self.turn}")
        outcome = await load.call("ADD", container, netns, self._args())
        if outcome.exit_code == 0:
            address = str(outcome.json["ips"][0]["address"]).removesuffix("/32")
            load.model.added(container, address, load.now())
            if load.chance.random() < LOOKED_AT and load.node.addresses_of(netns) != [address]:
                raise Violation(f"{container} was given {address} and has {load.node.addresses_of(netns)}")
            return container, netns
        if outcome.exit_code > 0 and outcome.code not in EXPECTED:
            raise Violation(f"ADD of {container}: {outcome}")
        await self._delete(container, netns)
        await load.end_sandbox(netns)
        await asyncio.sleep(load.chance.uniform(0.05, 0.5))
        return "", ""

    async def _end(self, ending: str, container: str, netns: str) -> None:
        load = self.load
        if ending in ("no del", "no namespace"):
            load.model.leaving(container, load.now())
            await load.end_sandbox(netns)
            if ending == "no namespace":
                await self._delete(container, "")
            return
        await self._delete(container, netns)
        if ending == "twice":
            await self._delete(container, netns)
        await load.end_sandbox(netns)

    async def _delete(self, container: str, netns: str) -> None:
        """Until it succeeds, which it does at once unless its shim is killed: an agent that is away is no reason."""
        self.load.model.leaving(container, self.load.now())
        while (outcome := await self.load.call("DEL", container, netns, self._args())).exit_code != 0:
            if outcome.exit_code > 0:
                raise Violation(f"DEL of {container}: {outcome}")

    def _args(self) -> str:
        return f"IgnoreUnknown=1;K8S_POD_NAMESPACE=soak;K8S_POD_NAME=web-{self.number};K8S_POD_UID=u{self.number}"


def namespaces_gone(node: Machine) -> bool:
    """Whether the kernel has finished with every sandbox that was ended."""
    shown = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return {line.split()[0] for line in shown.splitlines()} >= {Path(pod).name for pod in node.pods}
