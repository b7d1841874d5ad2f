"""Hours of a bad day in minutes: `python -m tests.agent.soak [--calls 10000] [--minutes 8] [--seed N]`.

The agent as a process with its real data plane and a NodeIPPool on a real API server; fifty callers start the real
shim. Meanwhile the agent is killed (at random, or at one of its fault points), replaced or doubled, shims are killed,
the machine boots, its state folder goes back to an earlier copy (with a boot and without), its wall clock steps, the
API server is away for a third of the time and etcd is restored from a backup, and the operator grows the pool, takes
addresses back, changes its mind and is dead for a while. `model` judges every answer. At the end ledger, kernel,
NodeIPPool and model must say the same, with pods and again without any.

The seed decides what is done; when it meets what is the scheduler's choice, so a finding may need several runs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import subprocess
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.agent import truths
from tests.agent.machine import Machine, until
from tests.agent.shim import ROOT
from tests.agent.soak.misfortunes import NodeLife, ServerLife, step_clock
from tests.agent.soak.model import Model, Violation
from tests.agent.soak.operator import AdminApi, Operator
from tests.agent.soak.runtime import Caller, Load, namespaces_gone
from tests.clock import SteppingClock
from tests.isolation import isolate
from tests.kube import apiserver
from vnetpods_agent.kube import from_kubeconfig

NODE = "worker-1"
COOLDOWN = 1.0
SETTLED = 60.0


@dataclass
class Soak:
    node: Machine
    server: apiserver.ApiServer
    operator: Operator
    load: Load
    chance: random.Random
    node_life: NodeLife
    server_life: ServerLife
    clock: SteppingClock
    began: float = field(default_factory=time.monotonic)
    done: Counter[str] = field(default_factory=Counter)

    async def run(self, callers: int, minutes: float) -> None:
        """Raises Violation, or AssertionError when the truths don't come to agree."""
        self.operator.grow(80)
        await self.operator.step()
        async with asyncio.TaskGroup() as group:
            endless = [self.operator.run(), self._audit(), self._say(), step_clock(self.clock, self.chance, self.done)]
            endless.append(self._end(minutes))
            tasks = [group.create_task(player) for player in endless]
            lives = [group.create_task(life.run()) for life in (self.node_life, self.server_life)]
            async with asyncio.TaskGroup() as work:
                for number in range(callers):
                    work.create_task(Caller(self.load, number).run())
            self.node_life.over = self.server_life.over = True
            await asyncio.gather(*lives)
            for task in tasks:
                task.cancel()
        await self._settle()

    # meanwhile

    async def _end(self, minutes: float) -> None:
        """On a slow machine: fewer calls, and not half a day."""
        await asyncio.sleep(minutes * 60)
        self.load.calls_left = 0

    async def _audit(self) -> None:
        """Whatever is under way, the ledger names addresses of the NIC, each once, and so do the living host ends."""
        while True:
            await asyncio.sleep(1.0)
            if not self.load.up.is_set():
                continue
            on_nic = self.load.model.addresses()
            for name, held in self._held().items():
                if strange := set(held.values()) - on_nic - {truths.NAMELESS}:
                    raise Violation(f"{name}: {strange} are not on the NIC")
                if twice := [address for address, count in Counter(held.values()).items() if count > 1 < len(address)]:
                    raise Violation(f"{name}: {twice} are held twice: {held}")

    def _held(self) -> dict[str, truths.Holders]:
        path = self.node.state / "ledger.db"
        kernel = {"kernel": truths.kernel(self.node.name)}
        return kernel if self.node_life.forgetful or not path.exists() else kernel | {"ledger": truths.ledger(path)}

    async def _say(self) -> None:
        while True:
            await asyncio.sleep(10)
            self.say("…")

    def say(self, what: str) -> None:
        elapsed = time.monotonic() - self.began
        made = sum(self.load.outcomes.values())
        print(
            f"{elapsed:5.0f} s  {made} calls, {len(self.load.model.holders)} pods, "
            f"{sum(self.node_life.done.values())} misfortunes of the node, API server away "
            f"{self.server_life.away / elapsed:.0%}  {what}",
            flush=True,
        )

    # the end

    async def _settle(self) -> None:
        """Everybody is healthy again: the truths must come to agree, with the pods that are left and then without."""
        self.operator.calm = True
        if self.node.process and self.node.process.returncode is None:
            await self.node.kill()
        await self.node.start(serving=False)
        self.say("all callers are done; comparing")
        await self._agree()
        for container, netns in self.load.live.items():
            found = self.node.addresses_of(netns)
            if found != [self.load.model.holders[container]]:
                raise Violation(f"{container} holds {self.load.model.holders[container]} and has {found}")
        pods = len(self.load.live)
        for container, netns in self.load.live.items():
            self.load.model.leaving(container, self.load.now())
            await self.node.delete(container, netns)
            self.node.end_sandbox(netns)
        await self._agree()
        self.say(f"ledger, kernel, NodeIPPool and model agree: {pods} pods, and then none")

    async def _agree(self) -> None:
        expected = {f"{container}/eth0": address for container, address in self.load.model.holders.items()}
        seen = truths.read(self.node)

        def ledger_and_kernel() -> bool:
            nonlocal seen
            seen = truths.read(self.node)
            return seen.agreed and seen.ledger == expected and namespaces_gone(self.node)

        try:
            await until(ledger_and_kernel, SETTLED)
        except AssertionError:
            raise Violation(f"at the end: model {expected}\nledger {seen.ledger}\nkernel {seen.kernel}") from None
        await self._pool_agrees(len(expected))

    async def _pool_agrees(self, assigned: int) -> None:
        """The NodeIPPool counts the same pods, and of the other addresses none is lost."""
        end = time.monotonic() + SETTLED
        while True:
            await self.operator.try_step()
            pool = await self.operator.look()
            usage = pool.status.usage if pool else None
            releasing = sum(len(interface.releasing) for interface in pool.status.interfaces) if pool else 1
            total = len(self.load.model.addresses())
            if usage and not releasing and (usage.assigned, usage.free) == (assigned, total - assigned):
                return
            if time.monotonic() > end:
                raise Violation(f"at the end: NodeIPPool says {usage} of {total}, the model {assigned} assigned")
            await asyncio.sleep(0.3)


async def soak(seed: int, calls: int, callers: int, minutes: float, folder: Path, server: apiserver.ApiServer) -> None:
    chance = random.Random(seed)
    settings = {
        "node": NODE,
        "source": {"kubernetes": {"kubeconfig": str(server.admin_kubeconfig)}},
        "cooldown": COOLDOWN,
        "sweepInterval": 1.0,
        "reportInterval": 0.5,
        "stopGrace": 3.0,
    }
    node = Machine(folder, settings)
    node.build()
    await node.reach(server)
    clock = SteppingClock(folder)
    node.environment = clock.environment
    model = Model(COOLDOWN)
    api = AdminApi(from_kubeconfig(server.admin_kubeconfig))
    load = Load(node, model, chance, calls)
    load.up.set()
    lives = NodeLife(node, server, load, chance), ServerLife(server, chance)
    run = Soak(node, server, Operator(api, NODE, model, chance), load, chance, *lives, clock)
    try:
        await run.run(callers, minutes)
    finally:
        if node.process and node.process.returncode is None:
            await node.kill()
        await api.close()
        node.close()
        for title, counts in (
            ("calls", load.outcomes),
            ("misfortunes", run.done + run.node_life.done + run.server_life.done),
            ("pool", run.operator.done),
        ):
            print(f"{title}: {', '.join(f'{name} {count}' for name, count in sorted(counts.items()))}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--callers", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=8.0, help="after which no call is begun, whatever is left")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    options = parser.parse_args()
    isolate()
    print(f"soak: {options.calls} calls by {options.callers} callers, seed {options.seed}", flush=True)
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="vnetpods-soak-"))
        print(f"what agent and API server say is in {folder} until all is well", flush=True)
        (folder / "kube").mkdir()
        server = stack.enter_context(apiserver.running(folder / "kube"))
        server.apply((ROOT / "crds" / "nodeippool.yaml").read_text())
        asyncio.run(soak(options.seed, options.calls, options.callers, options.minutes, folder, server))
    subprocess.run(["rm", "-r", str(folder)], check=True)


if __name__ == "__main__":
    main()
