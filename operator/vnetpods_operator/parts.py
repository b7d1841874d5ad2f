"""What the reconciler is made of, and what a look of it gives."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random

from vnetpods_api import NodeIPPool
from vnetpods_operator.configuration import Config
from vnetpods_operator.machine import Machine, MachineId
from vnetpods_operator.nodes import Node
from vnetpods_operator.observing import Networks
from vnetpods_operator.pools import Pools
from vnetpods_operator.roster import Problem, Roster
from vnetpods_operator.subnets import Subnets


@dataclass(frozen=True, slots=True)
class Outcome:
    """When to look again (event loop's time), if not only when something happens."""

    again: float | None = None


@dataclass(frozen=True, slots=True)
class Parts:
    """What the reconciler works with."""

    config: Callable[[], Config]
    roster: Roster
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
