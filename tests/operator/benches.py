"""The reconciler by itself, one pass at a time: real SDK and API server, but no watch; the test delivers the pools."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from random import Random

from tests.azure.arm.sdk import StaticCredential
from tests.operator.agents import Agent
from tests.operator.worlds import World
from vnetpods_api import NodeIPPool, Reason
from vnetpods_operator import azure
from vnetpods_operator.azure.budget import Budget, Kind
from vnetpods_operator.config import Config
from vnetpods_operator.planning.machine import Machine, MachineId, Nic, Nics
from vnetpods_operator.planning.model import Change, Problem
from vnetpods_operator.planning.node import Node, node_from
from vnetpods_operator.planning.subnets import Subnets
from vnetpods_operator.reconcile.parts import Parts, Result
from vnetpods_operator.reconcile.reconciler import Reconciler
from vnetpods_operator.state.cluster import ClusterState


class Nobody:
    """A watcher of ARM's responses that does nothing."""

    def answered(self, operation: str, outcome: str, seconds: float) -> None: ...
    def remaining(self, subscription: str, kind: Kind, requests: int) -> None: ...


@dataclass
class Interrupted:
    """A machine that runs actions after each write, before the write returns."""

    machine: Machine
    what: list[object]

    async def nics(self) -> Nics:
        return await self.machine.nics()

    async def write(self, nic: Nic, change: Change) -> Nic:
        after = await self.machine.write(nic, change)
        for action in self.what:
            assert callable(action)
            await action()
        return after


@dataclass
class Bench:
    """A reconciler and its memory."""

    world: World
    agent: Agent
    cluster: ClusterState
    reconciler: Reconciler
    config: list[Config]
    told: list[Reason] = field(default_factory=list)
    meanwhile: list[object] = field(default_factory=list)

    def reconfigure(self) -> None:
        """Applies the world's settings."""
        self.config[0] = self.world.config()

    def forget(self) -> None:
        """Starts over like a new operator process, but one that need not read the NICs at once."""
        node, pool = self.cluster.nodes[self.agent.node], self.cluster.pools[self.agent.node]
        self.cluster.delete_node(node.name)
        self.cluster.delete_pool(node.name)
        self.cluster.upsert_node(node)
        self.cluster.upsert_pool(pool)
        self.cluster.record(node.name).audit_at = float("inf")

    async def look(self) -> Result:
        return await self.reconciler.reconcile(self.agent.node)

    async def see(self) -> NodeIPPool:
        """Delivers the pool as a watch would."""
        pool = await self.world.pool(self.agent.node)
        self.cluster.upsert_pool(pool)
        return pool

    async def round(self) -> Result:
        """One pass, the agent's report on it, and the delivery of that to the operator."""
        outcome = await self.look()
        await self.agent.sync()
        await self.see()
        return outcome


@contextlib.asynccontextmanager
async def bench(world: World, agent: Agent) -> AsyncIterator[Bench]:
    config, cluster, told, meanwhile = [world.config()], ClusterState(), list[Reason](), list[object]()
    body = world.api.get("node", agent.node)
    cluster.upsert_node(node_from(body))
    budget = Budget(lambda _: (1000.0, 1000.0))

    def tell(_: Node, problem: Problem) -> None:
        told.append(problem.reason)

    async def no_host_pods(_: str) -> int:
        return 0

    async with azure.opened(config[0].azure, budget, Nobody(), lambda: StaticCredential("operator")) as arm:

        def machine(id_: MachineId) -> Machine:
            return Interrupted(azure.machine(arm, id_), meanwhile)

        parts = Parts(
            config=lambda: config[0],
            cluster=cluster,
            pools=world.pools,
            host_pods=no_host_pods,
            subnets=Subnets(),
            machine=machine,
            networks=azure.Networks(arm),
            random=Random(1),
            tell=tell,
            wake=lambda _: None,
        )
        yield Bench(world, agent, cluster, Reconciler(parts), config, told, meanwhile)


async def full(found: Bench, agent: Agent) -> None:
    """34 addresses, 30 of them held."""
    await found.look()
    await found.look()
    await agent.sync()
    agent.start(30)
    await agent.sync()
    await found.see()
    await found.round()
    assert agent.waiting == 0


async def release(found: Bench, agent: Agent) -> NodeIPPool:
    """Ends all pods; a release is started and acknowledged, but nothing is removed yet."""
    agent.end(30)
    await agent.sync()
    await found.see()
    await found.look()
    await asyncio.sleep(0.35)
    await found.look()
    await agent.sync()
    pool = await found.see()
    assert len(pool.status.released) == 26
    return pool
