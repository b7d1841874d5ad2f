"""The operator's memory: Nodes and NodeIPPools as last observed, and per node what is stored nowhere else.

Fed by the watch, the periodic list and the responses to our own writes; read by the workers; all on one event loop.
Harmless to lose at a restart: Nodes and pools are listed again, and `NodeState` only makes the operator wait longer (a
surplus must last again, a back-off starts short). So NodeState, except for the trail of what can't come back, is
dropped when the Node is recreated or rebooted: what was learned of the former machine must not delay the first pass
over the present one.
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
    """Memory of one node between two passes. Times are the event loop's."""

    trail: Trail = field(default_factory=Trail)
    caller: Caller = field(default_factory=Caller)
    audit_at: float = 0.0
    """Latest time of the next read of the NICs."""
    not_before: float = 0.0
    """No request goes to Azure before then."""
    doubles: Doubles = field(default_factory=Doubles)
    failures: int = 0
    refusals: int = 0
    """Consecutive passes that ended because the API server rejected the write to the pool."""
    unwritable_until: float = 0.0
    """No pass starts before then: its result could not be written."""
    overtaken: int = 0
    """Consecutive passes that ended because the pool had changed."""
    problem: Problem | None = None
    limit: Reason | None = None
    """The last plan's limit."""
    surplus_since: float | None = None
    releasing_since: float | None = None
    request: Request | None = None
    """The release request as last written."""
    refused: dict[str, float] = field(default_factory=dict)
    """Addresses whose release was cancelled because pods kept them, and when."""
    contested: dict[str, float] = field(default_factory=dict)
    """Lost addresses that Azure refused to restore, and when to ask again."""
    repairs: int = 0
    repair_after: float = 0.0
    unreadable: str | None = None
    """Which NICs can't be read, and why; None: not read yet."""
    full_until: float = 0.0
    """No ipConfiguration is added before then: the machine takes no more."""
    barred: dict[str, tuple[object, int]] = field(default_factory=dict)
    """By NIC: the `exclude` then in force, and the number of barred addresses (see model.Nic)."""
    lost: dict[str, float] = field(default_factory=dict)
    """Addresses that the pool listed and the NICs lost, and when that was observed."""
    taken: int = 0
    """Consecutive refusals by Azure to restore lost addresses."""
    seen_at: float = 0.0
    waiting_since: float | None = None
    host_pods: int = 0
    """Host-network pods, as last counted."""
    host_pods_until: float = 0.0
    vigil: Vigil = field(default_factory=Vigil)


class ClusterState:
    """Nodes, pools and records by node name."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` is the event loop's."""
        self._clock = clock
        self.nodes: dict[str, Node] = {}
        self.pools: dict[str, NodeIPPool] = {}
        self.doubted: set[str] = set()
        """Names of pools that may be stale although nothing newer was observed."""
        self.restored: Callable[[], None] = lambda: None
        """Called when the API server's data has gone back in time."""
        self._records: dict[str, NodeState] = {}
        self._control_plane: dict[str, str] = {}
        """`subscription/resource group` of control-plane Nodes' machines, by Node."""
        self._machines: dict[str, set[str]] = {}
        """Node names by providerID in lower case."""

    def record(self, name: str) -> NodeState:
        return self._records.setdefault(name, NodeState())

    def upsert_node(self, node: Node) -> bool:
        """Stores the Node; returns whether it is new or has changed."""
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
        """Other Nodes with the same providerID."""
        node = self.nodes.get(name)
        return self._machines.get(node.provider_id.lower(), set()) - {name} if node is not None else set()

    @property
    def trusted_places(self) -> set[str]:
        """`subscription/resource group` of all control-plane machines."""
        return set(self._control_plane.values())

    def _anew(self, before: Node | None, node: Node) -> bool:
        """Whether the Node may stand for a machine other than the remembered one: then its NICs are read at once.

        At the operator's start the former Node is unknown, but the pool's managedFields tell its last write.
        """
        if before is None:
            pool = self.pools.get(node.name)
            return pool is not None and node.since >= _written(pool)
        returned = node.ready and not before.ready
        problem = self.record(node.name).problem
        gone = problem is not None and problem.reason is Reason.MACHINE_NOT_FOUND
        return node.registration != before.registration or (returned and gone)

    def upsert_pool(self, pool: NodeIPPool, known: int = 0) -> bool:
        """Stores the pool unless a newer one is known; returns whether it did.

        `known`: the version known when this newest one was requested. If this one is older, the API server's data has
        been restored from a backup: it replaces what is known, and the NICs are read again.
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
        """The stored pool's version, 0 if there is none."""
        pool = self.pools.get(name)
        return version_of(pool) if pool is not None else 0

    def doubt(self, name: str, version: int) -> bool:
        """Compares a listed version with the stored one; returns whether the pool must be read again."""
        if not 0 < version < self.version(name):
            return False
        self.doubted.add(name)
        return True

    def delete_node(self, name: str) -> None:
        """Removes a deleted Node. The garbage collector deletes its pool."""
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
        """The addresses and blocks that another node's pool lists, or that its agent reports as held by pods."""
        if not units:
            return frozenset()
        others = (pool.status for other, pool in self.pools.items() if other != name)
        spoken = (a for s in others for a in chain(s.kept, s.missing, *(i.addresses for i in s.interfaces)))
        heard = {part for unit in units for part in _overlapping(unit)}.intersection(spoken)
        return frozenset(unit for unit in units if heard & _overlapping(unit))

    def wants_else(self, name: str, spec: Spec) -> bool:
        """Whether the node's desired state is no longer this: its pool was paused, for instance."""
        pool = self.pools.get(name)
        return name not in self.nodes or (pool is not None and pool.spec != spec)

    def priority(self, name: str) -> Priority:
        """The node's priority as far as its pool tells."""
        pool = self.pools.get(name)
        if pool is None:
            return Priority.EMPTY
        if pool.status.usage is not None and pool.status.usage.waiting:
            return Priority.WAITING
        if not any(interface.addresses for interface in pool.status.interfaces):
            return Priority.EMPTY
        return Priority.AUDIT


def _overlapping(unit: str) -> set[str]:
    """Forms in which another pool may list addresses of the unit: itself, its /28, a block's single addresses."""
    block = IPv4Network(unit if "/" in unit else f"{unit}/28", strict=False)
    return {unit, str(block), *(map(str, block) if "/" in unit else ())}


def _written(pool: NodeIPPool) -> str:
    """Time of the last change to the operator's status fields."""
    mine = [m for m in pool.metadata.managed_fields if m.manager == OPERATOR_MANAGER and m.subresource == "status"]
    return max((m.time for m in mine), default="")


def version_of(pool: NodeIPPool) -> int:
    """Resource versions of one kind increase (KEP-5504 makes this long-standing fact official)."""
    version = pool.metadata.resource_version or "0"
    return int(version) if version.isdigit() else 0
