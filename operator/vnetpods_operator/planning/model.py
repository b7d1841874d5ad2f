"""The planner's types: a node's observed state, its desired state, and the plan. Plain data.

`reconcile.observe` and `planning.desired` build the planner's input; the reconciler and vnetpods_operator.azure consume
its plan. Counts are in addresses; a /28 block counts 16 and takes one slot. Times are seconds on the caller's clock.
Nothing survives a crash: everything is observed again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

from vnetpods_api import Reason, Usage

BLOCK = 16
"""Addresses of a /28, the only block size that Azure offers."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why the last pass over a node did not succeed; `stalled` if a person must act."""

    reason: Reason
    message: str
    stalled: bool = False


def count(addresses: Iterable[str]) -> int:
    """Number of addresses in these units; a block counts 16."""
    return sum(BLOCK if "/" in address else 1 for address in addresses)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """One NIC as seen by the planner."""

    name: str
    addresses: tuple[str, ...] = ()
    """Usable by pods: ours and adopted ones."""
    names: Mapping[str, str] = field(default_factory=dict)
    """The ipConfiguration of each of `addresses`."""
    removable: frozenset[str] = frozenset()
    """Those of `addresses` that are ours."""
    claimed: frozenset[str] = frozenset()
    """Addresses that another node counts on, for whatever reason: they stay on the NIC."""
    excluded: frozenset[str] = frozenset()
    """Those of `addresses` that the configuration now excludes."""
    barred: int = 0
    """Most recently added addresses that are excluded, so that no pod gets them: those after our last usable entry."""
    unusable: frozenset[str] = frozenset()
    """On the NIC, but not usable."""
    slots: int = 0
    """Number of ipConfigurations that can still be added."""
    prefixes: tuple[str, ...] = ()
    pending: int = 0
    """Addresses that Azure is still configuring for us."""
    broken: frozenset[str] = frozenset()
    """Names of our entries to be swept: half-made by a failed operation, or back after their removal."""
    failed: bool = False
    busy: bool = False
    doubted: bool = False
    """Whether it has entries that may be outdated until a write of the NIC as read has succeeded."""
    grow_after: float = 0.0
    """The subnet was full: no request before this time."""
    grow_most: int = 256
    """The subnet was nearly full: most addresses in one request."""
    blocks_after: float = 0.0
    """The subnet had no aligned block: no request for one before this time."""

    def covers(self, address: str) -> bool:
        """Whether the address is in this NIC's subnet."""
        value = IPv4Address(address)
        return any(value in IPv4Network(prefix) for prefix in self.prefixes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """Observed state: the NICs, the pool, the agent's report, and the operator's memory of earlier passes."""

    nics: tuple[Nic, ...]
    releasing: frozenset[str] = frozenset()
    released: frozenset[str] = frozenset()
    """Addresses that the agent reports it will never use again."""
    acknowledged: frozenset[str] = frozenset()
    """Those of `released` that acknowledge this process's own request: they may be removed."""
    answers: bool = False
    """Whether the agent's reports name the request that they answer; an earlier version's don't."""
    kept: frozenset[str] = frozenset()
    """Releasing addresses that pods hold, as the agent reports."""
    missing: tuple[str, ...] = ()
    usage: Usage | None = None
    agent_ready: bool = False
    surplus_since: float | None = None
    releasing_since: float | None = None
    refused: Mapping[str, float] = field(default_factory=dict)
    """Addresses whose release was cancelled because pods kept them, and when."""
    lost: frozenset[str] = frozenset()
    """Addresses that this pool listed and the NICs lost, for whatever reason: of `missing`, only these are restored."""
    contested: frozenset[str] = frozenset()
    """Lost addresses that Azure recently refused to restore."""
    repairs: int = 0
    """Number of vain rewrites of a Failed NIC."""
    repair_after: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Desired state, from configuration, pool and Node."""

    minimum: int
    warm: int
    batch: int
    maximum: int
    """The lower of the configured maximum and what host-network pods leave of the kubelet's pod limit."""
    blocks: bool = False
    paused: bool = False
    release_after: float = 600.0
    release_batch: int = 64
    release_patience: float = 120.0


@dataclass(frozen=True, slots=True)
class Change:
    """One write of one NIC."""

    nic: str
    add: int = 0
    """Single addresses, whichever Azure picks."""
    blocks: int = 0
    """/28 blocks, whichever Azure picks."""
    restore: tuple[str, ...] = ()
    """Addresses requested by value."""
    remove: frozenset[str] = frozenset()
    """Names of entries whose release the agent has acknowledged."""
    sweep: frozenset[str] = frozenset()
    """Names of half-made or reappeared entries of ours (`Nic.broken`)."""
    rewrite: bool = False
    """Write the NIC even if nothing changes, to clear a Failed state or to prove doubted entries."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do and why. No changes and an unchanged `releasing` mean nothing to do."""

    changes: tuple[Change, ...]
    releasing: frozenset[str]
    reason: Reason
    """GROWING, RELEASING, REPAIRING, PAUSED or IDLE."""
    limit: Reason | None
    """What prevents the desired state, if anything."""
    detail: str
    free: int
    surplus: bool
    """Whether more addresses are free than desired; the caller remembers since when."""
    overdue: frozenset[str]
    """Releases cancelled because pods kept the addresses; not to be requested again soon."""
    look_again: float | None
