"""The callers of the soak: each is a runtime's worker with one pod name, whose pods come and go as kubelets have them.

A failed ADD is followed by DEL, and the next attempt has a new sandbox; a DEL is repeated until it succeeds. Now and
then a shim is killed, a sandbox dies without DEL, a DEL comes late (when the pod's next sandbox is there already),
comes without a namespace, or comes twice.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.agent.machine import Machine
from tests.agent.shim import Outcome
from tests.agent.soak.model import Model, Violation

ENDINGS = {"del": 70, "late": 8, "twice": 6, "no namespace": 8, "no del": 8}
KILLED = 0.02
LOOKED_AT = 0.05
EXPECTED = {0, 11}
"""Codes that an ADD may end with: nothing else is wrong with it than that it must be tried again."""


@dataclass
class Load:
    """What all callers share."""

    node: Machine
    model: Model
    chance: random.Random
    calls_left: int
    outcomes: Counter[str] = field(default_factory=Counter)
    live: dict[str, str] = field(default_factory=dict)  # container -> namespace, of pods that stay to the end

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def call(self, verb: str, container: str, netns: str, args: str) -> Outcome:
        self.calls_left -= 1
        killed_after = self.chance.uniform(0, 0.02) if self.chance.random() < KILLED else None
        outcome = await self.node.call(verb, container, netns, args=args, killed_after=killed_after)
        how = "killed" if outcome.exit_code < 0 else str(outcome.code)
        self.outcomes[f"{verb} {how}"] += 1
        return outcome


@dataclass
class Caller:
    load: Load
    number: int
    turn: int = 0

    async def run(self) -> None:
        chance = self.load.chance
        late: list[tuple[str, str]] = []
        while self.load.calls_left > 0:
            container, netns = await self._pod()
            if not container:
                continue
            for old, its_netns in late:
                await self._delete(old, its_netns)
                await asyncio.to_thread(self.load.node.end_sandbox, its_netns)
            late = []
            await asyncio.sleep(chance.choice((0, 0, 0.01, 0.3, 1.0)))
            ending = chance.choices(list(ENDINGS), list(ENDINGS.values()))[0]
            if ending == "late":
                late.append((container, netns))
            else:
                await self._end(ending, container, netns)
        for old, its_netns in late:
            await self._end("del", old, its_netns)
        while self.number % 2:  # every other one leaves a pod
            container, netns = await self._pod()
            if container:
                self.load.live[container] = netns
                return

    async def _pod(self) -> tuple[str, str]:
        """A pod that works, or ("", "") after a failure that was cleaned up."""
        load = self.load
        self.turn += 1
        container = f"c{self.number}-{self.turn}"
        netns = await asyncio.to_thread(load.node.sandbox, f"p{self.number}-{self.turn}")
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
        await asyncio.to_thread(load.node.end_sandbox, netns)
        await asyncio.sleep(load.chance.uniform(0.05, 0.5))
        return "", ""

    async def _end(self, ending: str, container: str, netns: str) -> None:
        load = self.load
        if ending in ("no del", "no namespace"):
            load.model.leaving(container, load.now())
            await asyncio.to_thread(load.node.end_sandbox, netns)
            if ending == "no namespace":
                await self._delete(container, "")
            return
        await self._delete(container, netns)
        if ending == "twice":
            await self._delete(container, netns)
        await asyncio.to_thread(load.node.end_sandbox, netns)

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
