"""What the reconciler is made of, and what a pass of it gives."""

from __future__ import annotations

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
    """What is known of virtual networks (see vnetpods_operator.azure.networks). None of it fails: it knows or it
    doesn't.
    """

    async def prefixes(self, subnet: str) -> tuple[str, ...]:
        """Of a subnet; read if need be, empty if that is not possible."""

    def direct(self, subnet: str) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        """Address space of the subnet's VNet, and of its peers, as far as it was read."""


@dataclass(frozen=True, slots=True)
class Result:
    """When to look again (event loop's time), if not only when something happens."""

    requeue_after: float | None = None


@dataclass(frozen=True, slots=True)
class Parts:
    """What the reconciler works with."""

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
    """Tells people about a problem of a node."""
    wake: Callable[[str], None]
    """Addresses of this subnet have become free."""
    silence: Callable[[NodeIPPool], str] = lambda _: ""
    """Why the agent of the pool's node is taken to be silent; empty when it isn't."""
