"""Chaos test: hundreds of nodes and every known fault at once, for thirty minutes of a faster clock.

    python -m tests.operator.chaos [--seed N] [--nodes 200] [--minutes 30] [--speed 10]

Two operators (processes) compete for the Lease; they are killed, stopped past their Lease and resumed, and both are
down for minutes; their wall clocks step. The API server is restarted, frozen, and restored from a backup. 5 % of the
requests to ARM fail in every way that the emulator supports, and reads of ARM lag. Another writer changes the same
NICs, and now and then removes one of our addresses. Agents' pods come and go at random; agents restart, their machines
boot, their disks are rolled back, and their reports are at times late. The durations in the operator's configuration
are shorter by `--speed`, so that a minute of it is a virtual one. On a slow machine (tests.pace) everything takes that
many times longer, waits and time limits too: else the run would test nothing but time limits.

A model checks each NIC after each write, before the writer gets the response: no address that a pod holds is ever
removed (except by the other writer), and others' configuration stays unchanged. No pod gets an address that is not on
its NIC or that another pod holds. In the end faults stop, and everything must settle: pool = NIC, no pod waits, nothing
is missing, every condition confirms it. A person then does what a pool's condition asks for: restart the pods whose
addresses Azure has given away. The random draws follow the seed; concurrency is up to the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from tests import pace
from tests.azure.arm.ids import parse
from tests.azure.arm.server import Emulator
from tests.clock import SteppingClock
from tests.install.rendering import operator_rights
from tests.isolation import isolate
from tests.kube import apiserver
from tests.kube.apiserver import ApiServer
from tests.operator.agents import Agent
from vnetpods_api import ConditionType, NodeIPPool, find
from vnetpods_operator import kube
from vnetpods_operator.kube import Kube, KubeError

ROOT = Path(__file__).parents[2]
NIC = "Microsoft.Network/networkInterfaces"
console = Console()

FAULTS: list[dict[str, Any]] = [
    {"effect": "reset"},
    {"effect": "reset", "method": "PUT", "after": True},
    {"effect": "timeout", "seconds": 1.0},
    {"effect": "timeout", "method": "PUT", "seconds": 1.0, "after": True},
    {"effect": "status", "status": 500},
    {"effect": "status", "status": 503, "code": "ServiceUnavailable", "retry_after": 1},
    {"effect": "status", "status": 429, "code": "TooManyRequests", "retry_after": 1},
    {"effect": "status", "method": "PUT", "status": 429, "code": "RetryableErrorDueToAnotherOperation"},
    {"effect": "status", "method": "PUT", "status": 409, "code": "AnotherOperationInProgress"},
    {"effect": "status", "method": "PUT", "status": 412, "code": "PreconditionFailed"},
    {"effect": "slow", "seconds": 1.0},
    {"effect": "garbage"},
    {"effect": "fail", "method": "PUT"},
    {"effect": "fail", "method": "PUT", "after": True},
    {"effect": "preempt", "method": "PUT"},
    {"effect": "preempt", "method": "PUT", "after": True},
    {"effect": "stale", "method": "GET"},
    {"effect": "writer", "method": "PUT", "change": "tag"},
    {"effect": "writer", "method": "PUT", "change": "configuration", "argument": "theirs"},
]


class Model:
    """Invariants that hold after every write."""

    def __init__(self, azure: Emulator, agents: dict[str, Agent]) -> None:
        self._azure = azure
        self._agents = agents
        self._etags: dict[str, str] = {}
        self._foreign: dict[str, dict[str, Any]] = {}
        self.robbed: dict[str, set[str]] = {nic: set() for nic in agents}
        """Addresses that the other writer removed, until they are back: a pod may get one before the operator reads."""
        self.taken: set[str] = set()
        """All addresses that the other writer ever removed from a NIC: neither operator nor agent can know in time
        whose they are.
        """
        self.gone: set[str] = set()
        self.checks = 0

    async def check(self) -> None:
        """Called by the emulator after each change, before the response is sent."""
        for nic in self._agents:
            resource = self._azure.cloud.store.get(parse(self._azure.build.id(NIC, nic)))
            if resource is None:
                self.gone.add(nic)
            elif self._etags.get(nic) != resource.body["etag"]:
                self._etags[nic] = resource.body["etag"]
                self._check_nic(nic, resource.body)

    def _check_nic(self, nic: str, body: dict[str, Any]) -> None:
        self.checks += 1
        parts = body["properties"]["ipConfigurations"]
        have = {part["properties"].get("privateIPAddress") for part in parts}
        self.robbed[nic] -= have
        lost = self._agents[nic].held - have - self.robbed[nic]
        assert not lost, f"{nic}: {sorted(lost)} removed while pods hold them"
        theirs = {p["name"]: p["properties"].get("privateIPAddress") for p in parts if "vnetpods-" not in p["name"]}
        theirs |= {f"tag {key}": value for key, value in (body.get("tags") or {}).items()}
        before = self._foreign.get(nic, {})
        vanished = {key: value for key, value in before.items() if theirs.get(key) != value and "changed-by" not in key}
        assert not vanished, f"{nic}: what others configured is gone: {vanished}"
        self._foreign[nic] = theirs

    def given(self, nic: str, addresses: set[str]) -> None:
        """Checks the addresses assigned to pods of the NIC's node."""
        robbed = set().union(*self.robbed.values()) | self.taken
        strange = addresses - self.ours(nic) - robbed
        assert nic in self.gone or not strange, f"{nic}: pods were given {sorted(strange)}, which the NIC doesn't have"
        for other, agent in self._agents.items():
            twice = addresses & agent.held - robbed if other != nic and other not in self.gone else set()
            assert not twice, f"{sorted(twice)} are held by pods of {nic} and of {other}"

    def ours(self, nic: str) -> set[str]:
        found = self._azure.build.addresses(nic)
        return {address for name, address in found.items() if name.startswith("vnetpods-")}


class Chaos:
    """One run."""

    def __init__(self, server: ApiServer, azure: Emulator, api: Kube, folder: Path, seed: int) -> None:
        self._server = server
        self._azure = azure
        self._api = api
        self._folder = folder
        self._random = random.Random(seed)
        self._agents: dict[str, Agent] = {}
        self.model = Model(azure, self._agents)
        self.events: Counter[str] = Counter()
        self._demand = 60
        self._dead = asyncio.Event()
        self._dead.set()
        self._backups: list[Path] = []
        self._ledgers: dict[str, set[str]] = {}
        self._clock = SteppingClock(folder)
        self._operators: list[asyncio.subprocess.Process | None] = [None, None]

    async def build(self, nodes: int) -> None:
        self._azure.build.create_vnet("net", "10.0.0.0/8")
        self._azure.build.create_subnet("net", "pods", "10.0.0.0/19")  # 8187: too few when all want many
        for machine in self._azure.build.create_vms(nodes, "net/pods"):
            name = machine.rpartition("/")[2]
            node = {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": name},
                "spec": {"providerID": f"azure://{machine}"},
            }
            await self._api.request("POST", "/api/v1/nodes", body=node)
            self._agents[f"{name}-nic"] = Agent(self._api, name)
            self.model.robbed[f"{name}-nic"] = set()
        self._azure.changed = self.model.check
        self._azure.build.set_duration(NIC, pace.stretched(0.5))

    async def run(self, seconds: float, settings: dict[str, Any]) -> None:
        path = self._folder / "operator.yaml"
        path.write_text(yaml.safe_dump(settings))
        for number, fault in enumerate(FAULTS):
            share = 0.05 / len(FAULTS) * (2 if "method" in fault else 1)  # about half of the requests are writes
            self._azure.build.fault(
                principal="operator",
                times=None,
                probability=share,
                seed=self._random.randrange(1 << 30) + number,
                **fault,
            )
        tasks = [asyncio.create_task(self._live(nic, agent)) for nic, agent in self._agents.items()]
        tasks += [asyncio.create_task(self._operator(place, path)) for place in (0, 1)]
        tasks += [asyncio.create_task(self._misfortune()), asyncio.create_task(self._progress(seconds))]
        try:
            done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
            console.print("\nfaults end; everything must come to rest")
            tasks.pop(-2).cancel()
            self._azure.build.clear_faults()
            self._azure.build.release()
            self._demand = 10
            await self._rest()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for process in self._operators:
                if process is not None and process.returncode is None:
                    process.terminate()
                    await process.wait()

    async def _live(self, nic: str, agent: Agent) -> None:
        """Runs one node's agent and its pods."""
        while True:
            await self._pass(2, 10)
            if self._demand == 10:
                if len(agent.pods) > 10:
                    agent.end(len(agent.pods) - 10)
            elif self._random.random() < 0.5:
                wanted = self._random.randrange(self._demand)
                if wanted > len(agent.pods):
                    agent.start(wanted - len(agent.pods))
                else:
                    agent.end(len(agent.pods) - wanted, newest=self._random.random() < 0.5)
            before = agent.held
            with contextlib.suppress(KubeError):
                self._obey(agent, await agent.sync())
            self.model.given(nic, agent.held - before)

    async def _pass(self, least: float, most: float) -> None:
        """Waits for a random number of seconds, as counted on an unloaded machine."""
        await asyncio.sleep(pace.stretched(self._random.uniform(least, most)))

    def _obey(self, agent: Agent, pool: NodeIPPool) -> None:
        """Acts as the person who does, in the end, what the pool's condition asks for."""
        ready = find(pool.status.conditions, ConditionType.READY)
        if self._demand == 10 and ready is not None and ready.message.endswith("restart those pods"):
            self.events["restart pods"] += 1
            agent.replace_pods(pool.status.missing)

    async def _operator(self, place: int, path: Path) -> None:
        """Runs an operator and restarts it whenever it ends."""
        arguments = ["-m", "vnetpods_operator", "--config", str(path), "--kubeconfig", str(self._kubeconfig)]
        while True:
            await self._dead.wait()
            with (self._folder / f"operator-{place}.log").open("a") as log:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, *arguments, stderr=log, env=os.environ | self._clock.environment
                )
            self._operators[place] = process
            code = await process.wait()
            self.events[f"operator ended with {code}"] += 1
            assert code in (0, 3, -9), f"operator {place} ended with {code}, see {self._folder}"
            await asyncio.sleep(0.5)

    @property
    def _kubeconfig(self) -> Path:
        return self._server.kubeconfig_for("vnetpods-operator", "kube-system")

    async def _misfortune(self) -> None:
        """Injects faults of the surroundings, one after the other."""
        misfortunes = {
            self._kill: 3,
            self._restart: 1,
            self._freeze: 2,
            self._rob: 6,
            self._lose_machine: 1,
            self._delete_pool: 4,
            self._keep_backup: 3,
            self._go_back: 1,
            self._boot: 4,
            self._roll_back: 4,
            self._hush: 1,
            self._stop_leader: 1,
            self._step_clocks: 3,
            self._lag: 4,
            self._speak_late: 4,
        }
        while True:
            await self._pass(1, 4)
            misfortune = self._random.choices(list(misfortunes), list(misfortunes.values()))[0]
            self.events[misfortune.__name__.strip("_")] += 1
            if (under_way := misfortune()) is not None:
                await under_way

    def _kill(self) -> None:
        process = self._operators[self._random.randrange(2)]
        if process is not None and process.returncode is None:
            process.kill()

    def _restart(self) -> None:
        self._server.restart()

    async def _freeze(self) -> None:
        self._server.pause()
        try:
            await self._pass(0.5, 3)
        finally:
            self._server.resume()

    def _lose_machine(self) -> None:
        if self.events["lose_machine"] <= 2:
            nic = self._machine()
            self.model.gone.add(nic)
            self._azure.build.delete("Microsoft.Compute/virtualMachines", nic.removesuffix("-nic"))

    async def _delete_pool(self) -> None:
        name = self._random.choice(sorted(self._agents)).removesuffix("-nic")
        with contextlib.suppress(KubeError):
            await self._api.request("DELETE", f"/apis/vnetpods.io/v1alpha1/nodeippools/{name}")

    def _keep_backup(self) -> None:
        self._backups = [*self._backups[-4:], self._server.backup()]

    def _go_back(self) -> None:
        """Restores etcd from an older backup."""
        if self._backups:
            self._server.restore(self._random.choice(self._backups))

    def _boot(self) -> None:
        """Boots a machine: its pods are gone, its disk is not."""
        agent = self._agents[self._machine()]
        agent.end(len(agent.pods))
        agent.restart(boot=True)

    def _roll_back(self) -> None:
        """Rolls a disk back to its state at the last visit, or replaces it by a new one."""
        nic = self._machine()
        agent = self._agents[nic]
        agent.end(len(agent.pods))
        agent.restart(boot=True)
        agent.retired, self._ledgers[nic] = self._ledgers.get(nic, set()), set(agent.retired)

    async def _hush(self) -> None:
        """Keeps both operators down for two virtual minutes."""
        self._dead.clear()
        try:
            for process in self._operators:
                if process is not None and process.returncode is None:
                    process.kill()
            await self._pass(12, 12)
        finally:
            self._dead.set()

    async def _stop_leader(self) -> None:
        """Stops a process until another holds its Lease, then resumes it."""
        process = self._operators[self._random.randrange(2)]
        if process is not None and process.returncode is None:
            process.send_signal(signal.SIGSTOP)
            try:
                await self._pass(12, 12)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGCONT)

    def _step_clocks(self) -> None:
        self._clock.step_to(self._random.choice([0.0, -3600.0, -90.0, 90.0, 3600.0]))

    def _lag(self) -> None:
        """Makes reads of a few machines return an old state, for one to three virtual minutes."""
        for nic in self._random.sample(sorted(self._agents), 5):
            seconds, alternating = pace.stretched(self._random.uniform(6, 18)), self._random.random() < 0.5
            self._azure.build.lag(f"*/{nic}", seconds=seconds, alternating=alternating)

    async def _speak_late(self) -> None:
        """Makes an agent's watch lag for a while, so that it reports on an outdated pool."""
        agent = self._agents[self._machine()]
        agent.lagging = True
        await self._pass(0.5, 3)
        agent.lagging = False

    def _machine(self) -> str:
        return self._random.choice(sorted(set(self._agents) - self.model.gone))

    def _rob(self) -> None:
        """Removes one of our entries, as another writer."""
        nic = self._machine()
        found = self._azure.build.addresses(nic)
        ours = sorted(name for name in found if name.startswith("vnetpods-"))
        if ours and self._azure.build.nic(nic)["properties"]["provisioningState"] == "Succeeded":
            name = self._random.choice(ours)
            self.model.robbed[nic].add(found[name])
            self.model.taken.add(found[name])
            self._azure.build.remove_address(nic, name)

    async def _progress(self, seconds: float) -> None:
        began = time.monotonic()
        while True:
            pods = sum(len(agent.held) for agent in self._agents.values())
            waiting = sum(agent.waiting for agent in self._agents.values())
            writes = len(self._azure.build.requests(f"{NIC}/write"))
            console.print(
                f"  {time.monotonic() - began:4.0f} of {seconds:.0f} s: {pods} pods run, {waiting} wait, {writes} NIC "
                f"writes, {self.model.checks} checks, {dict(self.events)}"
            )
            await asyncio.sleep(15)

    async def _rest(self) -> None:
        """Waits until nothing is left to do; fails with what is left if that takes too long."""
        end = time.monotonic() + pace.stretched(300)
        while True:
            left = [text for nic in self._agents if (text := await self._unrest(nic)) is not None]
            if not left:
                return
            assert time.monotonic() < end, "not at rest:\n" + "\n".join(left[:20])
            console.print(f"  {len(left)} not at rest, such as {left[0][:300]}")
            await asyncio.sleep(5)

    async def _unrest(self, nic: str) -> str | None:
        agent = self._agents[nic]
        try:
            pool = await agent._pools.get(agent.node)
        except KubeError as error:
            return f"{nic}: {error}"
        conditions = {t: find(pool.status.conditions, t) for t in ConditionType}
        ready, moving = conditions[ConditionType.READY], conditions[ConditionType.RECONCILING]
        if nic in self.model.gone:
            return None if ready is not None and ready.reason == "MachineNotFound" else f"{nic}: gone, but {ready}"
        listed = {a for interface in pool.status.interfaces for a in interface.addresses}
        problems = {
            f"the pool lists {len(listed)}, the NIC has {len(self.model.ours(nic))}": listed != self.model.ours(nic),
            f"{agent.waiting} pods wait": agent.waiting > 0,
            f"missing {pool.status.missing}": bool(pool.status.missing),
            f"{ready}": ready is None or (ready.status, ready.reason) != ("True", "PoolReady"),
            f"{moving}": moving is None or moving.status != "False",
            "pods hold what the NIC lacks": not agent.held <= self.model.ours(nic),
        }
        found = [text for text, bad in problems.items() if bad]
        asked = sorted(a for interface in pool.status.interfaces for a in interface.releasing)
        state = (
            f"{pool.status.usage}, asked for {asked}, acknowledged {pool.status.released}, held {sorted(agent.held)}"
        )
        return f"{nic}: {'; '.join(found)}; {state}" if found else None


def configuration(azure: Emulator, speed: float) -> dict[str, Any]:
    """The operator's defaults on a clock that runs `speed` times as fast."""

    def virtual(seconds: float) -> str:
        return f"{max(1, round(1000 * pace.stretched(seconds) / speed))}ms"

    def real(seconds: float) -> str:
        return f"{round(1000 * pace.stretched(seconds))}ms"

    return {
        "listen": "127.0.0.1:0",
        "metricsListen": "127.0.0.1:0",
        "groups": [{"minimum": 4, "warm": 4, "batch": 8}],
        "release": {"after": virtual(300), "patience": virtual(120)},
        "audit": virtual(900),
        "relist": virtual(300),
        "election": {"duration": real(8), "renew": real(6), "retry": "500ms"},
        "azure": {
            "endpoint": azure.url,
            "poll": "200ms",
            "requestTimeout": real(5),
            "networks": virtual(600),
            "budget": {"reads": {"perSecond": 150, "burst": 300}, "writes": {"perSecond": 20, "burst": 40}},
        },
    }


async def chaos(server: ApiServer, folder: Path, given: argparse.Namespace) -> None:
    server.apply((ROOT / "crds" / "nodeippool.yaml").read_text())
    server.apply(operator_rights())
    async with Emulator() as azure, kube.opened(server.admin_kubeconfig) as api:
        os.environ |= {
            "AZURE_TOKEN_CREDENTIALS": "ManagedIdentityCredential",
            "AZURE_POD_IDENTITY_AUTHORITY_HOST": azure.url,
        }
        run = Chaos(server, azure, api, folder, given.seed)
        await run.build(given.nodes)
        await run.run(pace.stretched(60 * given.minutes / given.speed), configuration(azure, given.speed))
        requests = Counter(request["fault"] or "none" for request in azure.build.requests(principal="operator"))
        console.print(f"[green]at rest[/]: {run.model.checks} NICs checked, {dict(run.events)}")
        console.print(f"requests to ARM by fault: {dict(requests)}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.operator.chaos")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=30, help="virtual ones")
    parser.add_argument("--speed", type=float, default=10)
    given = parser.parse_args()
    if given.seed is None:
        given.seed = random.SystemRandom().randrange(1 << 32)
    console.print(f"seed {given.seed}, on a machine {pace.factor()} times slower than a quiet one")
    isolate()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    with apiserver.running(folder / "kube") as server:
        asyncio.run(chaos(server, folder, given))
    return 0


if __name__ == "__main__":
    sys.exit(main())
