"""The planner's vocabulary: what is the case for a node, what is wanted, and what a plan consists of. Plain data.

Made by `reconcile.observe` and `planning.desired`, read by the planner, and what it decides by the reconciler and
vnetpods_operator.azure. Counts are in addresses; a /28 block counts 16 and takes one slot. Times are seconds on the
caller's clock. Nothing survives a crash: all is observed anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

from vnetpods_api import Reason, Usage

BLOCK = 16
"""Addresses of a /28, the only block size Azure knows."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why the last attempt for a node did not succeed; `stalled` when a person must act."""

    reason: Reason
    message: str
    stalled: bool = False


def count(addresses: Iterable[str]) -> int:
    """How many addresses these are, blocks included."""
    return sum(BLOCK if "/" in address else 1 for address in addresses)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """One NIC as far as pods are concerned."""

    name: str
    addresses: tuple[str, ...] = ()
    """Usable by pods: ours and adopted ones."""
    names: Mapping[str, str] = field(default_factory=dict)
    """The ipConfiguration of each of them."""
    removable: frozenset[str] = frozenset()
    """Those of them that are ours."""
    claimed: frozenset[str] = frozenset()
    """What another node counts on, whatever the reason: it does not leave the NIC."""
    excluded: frozenset[str] = frozenset()
    """Those of them that the configuration excludes by now."""
    barred: int = 0
    """Addresses that were given last and that no pod will have, because they are excluded: one after the other, up to
    the last one of ours that is not.
    """
    unusable: frozenset[str] = frozenset()
    """On the NIC, but in no state to be used."""
    slots: int = 0
    """ipConfigurations that can still be added."""
    prefixes: tuple[str, ...] = ()
    pending: int = 0
    """Addresses that Azure is still configuring for us."""
    broken: frozenset[str] = frozenset()
    """Names of entries of ours that a failed operation left half-made."""
    failed: bool = False
    busy: bool = False
    doubted: bool = False
    """It has entries that may be of the past, unless a write of what was read succeeds."""
    grow_after: float = 0.0
    """The subnet was full: not to be asked before."""
    grow_most: int = 256
    """The subnet was nearly full: not to be asked for more at once."""
    blocks_after: float = 0.0
    """The subnet had no aligned block: not to be asked for one before."""

    def covers(self, address: str) -> bool:
        """Whether the address is of this NIC's subnet."""
        value = IPv4Address(address)
        return any(value in IPv4Network(prefix) for prefix in self.prefixes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What is the case: the NICs, what pool and agent say, and what the operator remembers of earlier looks."""

    nics: tuple[Nic, ...]
    releasing: frozenset[str] = frozenset()
    released: frozenset[str] = frozenset()
    """What the agent will never use again, as it says."""
    acknowledged: frozenset[str] = frozenset()
    """Those of them that it says in answer to what it was asked for by this process: they may be removed."""
    answers: bool = False
    """Whether the agent says what it answers; one of an earlier version doesn't."""
    kept: frozenset[str] = frozenset()
    """Releasing ones that pods hold, says the agent."""
    missing: tuple[str, ...] = ()
    usage: Usage | None = None
    agent_ready: bool = False
    surplus_since: float | None = None
    releasing_since: float | None = None
    refused: Mapping[str, float] = field(default_factory=dict)
    """Addresses that pods kept when they were to be given back, and when that was."""
    lost: frozenset[str] = frozenset()
    """What this pool listed and the NICs lost, however it came about: of `missing`, only these are asked for."""
    contested: frozenset[str] = frozenset()
    """Lost addresses that Azure did not give back when asked a moment ago."""
    repairs: int = 0
    """How often a Failed NIC was written again in vain."""
    repair_after: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What configuration, pool and Node ask for."""

    minimum: int
    warm: int
    batch: int
    maximum: int
    """The least of what was configured, what the pod limit leaves and what Azure allows."""
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
    """Addresses by value."""
    remove: frozenset[str] = frozenset()
    """Names of entries whose release the agent has acknowledged."""
    sweep: frozenset[str] = frozenset()
    """Names of half-made entries."""
    rewrite: bool = False
    """Write it even if nothing changes, to clear a Failed state."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do and why. Without changes and with `releasing` as it was: nothing."""

    changes: tuple[Change, ...]
    releasing: frozenset[str]
    reason: Reason
    """GROWING, RELEASING, REPAIRING, PAUSED or IDLE."""
    limit: Reason | None
    """What stands in the way of having what is wanted, if anything does."""
    detail: str
    free: int
    surplus: bool
    """Whether more is free than should be; the caller remembers since when."""
    overdue: frozenset[str]
    """Releases that were cancelled because pods kept them: not to be tried again soon."""
    look_again: float | None
