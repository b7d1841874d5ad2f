"""The reconciler's dependencies, and the result of a pass."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Protocol

from vnetpods_api import NodeIPPool
from vnetpods_operator.config import Config
from vnetpods_operator.planning.machine import Machine, MachineId
from vnetpods_operator.planning.model import Problem
from vnetpods_operator.planning.node import Node
from vnetpods_operator.planning.subnets import Subnets
from vnetpods_operator.reconcile.writing import Usages
from vnetpods_operator.state.cluster import ClusterState
from vnetpods_operator.state.pools import Pools


class Networks(Usages, Protocol):
    """Known facts about virtual networks (see vnetpods_operator.azure.networks). Never raises."""

    async def prefixes(self, subnet: str) -> tuple[str, ...]:
        """Prefixes of a subnet; read if necessary, empty if that fails."""

    def direct(self, subnet: str) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        """Address space of the subnet's VNet and of its peers; None if not read yet."""


@dataclass(frozen=True, slots=True)
class Result:
    """When the next pass is due (event loop's time); None: after the next event."""

    requeue_after: float | None = None


@dataclass(frozen=True, slots=True)
class Parts:
    """The reconciler's dependencies."""

    config: Callable[[], Config]
    cluster: ClusterState
    pools: Pools
    host_pods: Callable[[str], Awaitable[int]]
    """Counts a node's pods in the host's network."""
    subnets: Subnets
    machine: Callable[[MachineId], Machine]
    networks: Networks
    random: Random
    tell: Callable[[Node, Problem], None]
    """Records an Event about a node's problem."""
    wake: Callable[[str], None]
    """Called if addresses of this subnet have become free."""
    silence: Callable[[NodeIPPool], str] = lambda _: ""
    """Why the node's agent is considered silent; empty if it isn't."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def jitter(self, seconds: float) -> float:
        return seconds * self.random.uniform(1.0, 1.2)
