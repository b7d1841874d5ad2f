"""What the operator remembers: the Nodes and NodeIPPools as last seen, and per node what it can't read anywhere.

Fed by the watch, by the periodic list and by the answers to our own writes; read by the workers; all on one event loop.
Lost at a restart without harm: Nodes and pools are listed again, and what `NodeState` holds only makes the operator
wait longer (a surplus must last anew, a back-off starts short). For the same reason it is dropped when the Node is made
or booted anew (but for the trail of what can't come back): what was learned of the former machine must not delay the
first look at the present one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from itertools import chain

from vnetpods_api import NodeIPPool, Reason, Spec
from vnetpods_api.names import OPERATOR_MANAGER
from vnetpods_operator.caller import Caller, Priority
from vnetpods_operator.planning.machine import MachineId, UnsupportedProvider
from vnetpods_operator.planning.model import Problem
from vnetpods_operator.planning.node import Node
from vnetpods_operator.planning.release_request import Request
from vnetpods_operator.planning.trail import Trail
from vnetpods_operator.state.doubles import Doubles
from vnetpods_operator.state.silence import Vigil


@dataclass(slots=True)
class NodeState:
    """What is remembered of one node between two looks at it. Times are the event loop's."""

    trail: Trail = field(default_factory=Trail)
    caller: Caller = field(default_factory=Caller)
    audit_at: float = 0.0
    """The NICs are read again at this time at the latest."""
    not_before: float = 0.0
    """Azure is left in peace until then."""
    doubles: Doubles = field(default_factory=Doubles)
    failures: int = 0
    refusals: int = 0
    """How many looks in a row ended because the API server refused what was to be written to the pool."""
    unwritable_until: float = 0.0
    """Nothing is looked at until then: it could not be said."""
    overtaken: int = 0
    """How many looks in a row ended because the pool had changed."""
    problem: Problem | None = None
    limit: Reason | None = None
    """What stood in the way of the last plan."""
    surplus_since: float | None = None
    releasing_since: float | None = None
    request: Request | None = None
    """What the agent is asked to give back, as last written."""
    refused: dict[str, float] = field(default_factory=dict)
    """Addresses that pods kept when they were to be given back, and when that was."""
    contested: dict[str, float] = field(default_factory=dict)
    """Lost addresses that Azure would not give back, and when to ask again."""
    repairs: int = 0
    repair_after: float = 0.0
    unreadable: str | None = None
    """Which NICs can't be read, and why; None: not looked at yet."""
    full_until: float = 0.0
    """The machine takes no further ipConfiguration."""
    barred: dict[str, tuple[object, int]] = field(default_factory=dict)
    """By NIC: under which `exclude`, and how many (see model.Nic)."""
    lost: dict[str, float] = field(default_factory=dict)
    """Addresses that the pool listed and the NICs lost, and when that was seen."""
    taken: int = 0
    """How many times in a row Azure refused to give lost addresses back."""
    seen_at: float = 0.0
    waiting_since: float | None = None
    host_pods: int = 0
    """Pods in the host's network, as counted when that mattered last."""
    host_pods_until: float = 0.0
    vigil: Vigil = field(default_factory=Vigil)


class ClusterState:
    """Nodes, pools and records by node name."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: the event loop's."""
        self._clock = clock
        self.nodes: dict[str, Node] = {}
        self.pools: dict[str, NodeIPPool] = {}
        self.doubted: set[str] = set()
        """Names of pools that may not be what the API server has any more, though nothing newer was seen."""
        self.restored: Callable[[], None] = lambda: None
        """Called when the API server's data turns out to be older than it was."""
        self._records: dict[str, NodeState] = {}
        self._control_plane: dict[str, str] = {}
        """`subscription/resource group` of control-plane Nodes' machines, by Node."""
        self._machines: dict[str, set[str]] = {}
        """Names of the Nodes by their providerID in lower case."""

    def record(self, name: str) -> NodeState:
        return self._records.setdefault(name, NodeState())

    def upsert_node(self, node: Node) -> bool:
        """Remembers it; whether that is news."""
        before = self.nodes.get(node.name)
        if before == node:
            return False
        if self._anew(before, node):
            self._records[node.name] = NodeState(self.record(node.name).trail)
        self._unindex(node.name)
        self.nodes[node.name] = node
        if node.control_plane:
            with contextlib.suppress(UnsupportedProvider):
                self._control_plane[node.name] = MachineId.from_provider_id(node.provider_id).place
        if node.provider_id:
            self._machines.setdefault(node.provider_id.lower(), set()).add(node.name)
        return True

    def sharers(self, name: str) -> set[str]:
        """Other Nodes that name the same machine."""
        node = self.nodes.get(name)
        return self._machines.get(node.provider_id.lower(), set()) - {name} if node is not None else set()

    @property
    def trusted_places(self) -> set[str]:
        """`subscription/resource group` of all machines that the control plane runs on."""
        return set(self._control_plane.values())

    def _anew(self, before: Node | None, node: Node) -> bool:
        """Whether the Node may stand for another machine than what is remembered: then its NICs are read at once.

        At the operator's start nobody knows the former Node, but the API server knows when the pool was written last.
        """
        if before is None:
            pool = self.pools.get(node.name)
            return pool is not None and node.since >= _written(pool)
        returned = node.ready and not before.ready
        problem = self.record(node.name).problem
        gone = problem is not None and problem.reason is Reason.MACHINE_NOT_FOUND
        return node.registration != before.registration or (returned and gone)

    def upsert_pool(self, pool: NodeIPPool, known: int = 0) -> bool:
        """Remembers it unless something newer is known; whether that is news.

        `known`: the version that was known when the API server was asked for this, its newest one. If that is older,
        the API server's data has been restored from a backup: what it says counts, and the NICs are to be read.
        """
        name = pool.metadata.name
        before, version = self.pools.get(name), version_of(pool)
        back = version < known
        if before is not None and version <= version_of(before) and not back:
            return False
        self.pools[name] = pool
        if pool.status.agent is not None:
            self.record(name).doubles.heard(pool.status.agent, self._clock())
        if back:
            self.record(name).audit_at = 0.0
            self.restored()
        return True

    def version(self, name: str) -> int:
        """Of the pool as it is known, 0 if none is."""
        pool = self.pools.get(name)
        return version_of(pool) if pool is not None else 0

    def doubt(self, name: str, version: int) -> bool:
        """A list shows the pool at this version; whether the API server has to be asked for the present one."""
        if not 0 < version < self.version(name):
            return False
        self.doubted.add(name)
        return True

    def delete_node(self, name: str) -> None:
        """The Node is gone. Its pool goes with it, by the API server's garbage collector."""
        self._unindex(name)
        self.nodes.pop(name, None)
        self._records.pop(name, None)

    def _unindex(self, name: str) -> None:
        self._control_plane.pop(name, None)
        node = self.nodes.get(name)
        key = node.provider_id.lower() if node is not None else ""
        names = self._machines.get(key, set())
        names.discard(name)
        if not names:
            self._machines.pop(key, None)

    def delete_pool(self, name: str) -> None:
        self.pools.pop(name, None)

    def claimed(self, name: str, units: Collection[str]) -> frozenset[str]:
        """Those of the addresses and blocks that another node's pool lists, or its agent says that pods hold."""
        if not units:
            return frozenset()
        others = (pool.status for other, pool in self.pools.items() if other != name)
        spoken = (a for s in others for a in chain(s.kept, s.missing, *(i.addresses for i in s.interfaces)))
        heard = {part for unit in units for part in _overlapping(unit)}.intersection(spoken)
        return frozenset(unit for unit in units if heard & _overlapping(unit))

    def wants_else(self, name: str, spec: Spec) -> bool:
        """Whether what people want of a node is no longer this: its pool was paused, for instance."""
        pool = self.pools.get(name)
        return name not in self.nodes or (pool is not None and pool.spec != spec)

    def priority(self, name: str) -> Priority:
        """How much the node needs attention, as far as its pool tells."""
        pool = self.pools.get(name)
        if pool is None:
            return Priority.EMPTY
        if pool.status.usage is not None and pool.status.usage.waiting:
            return Priority.WAITING
        if not any(interface.addresses for interface in pool.status.interfaces):
            return Priority.EMPTY
        return Priority.AUDIT


def _overlapping(unit: str) -> set[str]:
    """How others may write the addresses of the unit."""
    block = IPv4Network(unit if "/" in unit else f"{unit}/28", strict=False)
    return {unit, str(block), *(map(str, block) if "/" in unit else ())}


def _written(pool: NodeIPPool) -> str:
    """When the operator's part of the status changed last."""
    mine = [m for m in pool.metadata.managed_fields if m.manager == OPERATOR_MANAGER and m.subresource == "status"]
    return max((m.time for m in mine), default="")


def version_of(pool: NodeIPPool) -> int:
    """Resource versions of one kind grow (KEP-5504 makes the long-standing fact official)."""
    version = pool.metadata.resource_version or "0"
    return int(version) if version.isdigit() else 0
