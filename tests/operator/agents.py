"""A node's agent as far as the operator can tell: it keeps to the handshakes of docs/architecture.md through the API.

It holds addresses for pods, cools nothing, hands out the address that was unused longest, acknowledges releases of what
no pod holds, and remembers what it acknowledged (its "ledger") over its own restarts. `must_have` is what the operator
must never take from it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from vnetpods_api import (
    Condition,
    ConditionStatus,
    ConditionType,
    Interface,
    NodeIPPool,
    Reason,
    Status,
    Usage,
    apply_body,
    condition,
    from_object,
)
from vnetpods_api.names import AGENT_MANAGER
from vnetpods_operator.kube import APPLY, Kube, Outdated
from vnetpods_operator.pools import PATH, Pools


class Agent:
    """One node's agent. `pods` maps a pod to its address, None while it waits."""

    def __init__(self, kube: Kube, node: str) -> None:
        self._kube = kube
        self._pools = Pools(kube)
        self.node = node
        self.pods: dict[str, str | None] = {}
        self.withdrawn: set[str] = set()
        self.tells_kept = True
        """Agents before `status.kept` didn't."""
        self.known: dict[str, int] = {}
        """Addresses that may be handed out, and when each was given back last."""
        self._interfaces: tuple[Interface, ...] = ()
        """As listed last: a pool that lists no interface says nothing."""
        self._turns = itertools.count(1)
        self._names = itertools.count(1)
        self._last: Any = None

    @property
    def held(self) -> set[str]:
        return {address for address in self.pods.values() if address is not None}

    @property
    def waiting(self) -> int:
        return sum(1 for address in self.pods.values() if address is None)

    def start(self, number: int) -> None:
        """So many pods come."""
        for _ in range(number):
            self.pods[f"pod-{next(self._names)}"] = None

    def end(self, number: int, *, newest: bool = False) -> None:
        """So many pods go, the oldest first."""
        for name in list(self.pods)[-number:] if newest else list(self.pods)[:number]:
            address = self.pods.pop(name)
            if address is not None:
                self.known[address] = next(self._turns)

    async def sync(self) -> NodeIPPool:
        """Reads the pool, gives pods their addresses, and says how things are if that is news."""
        for _ in range(10):
            pool = await self._pools.get(self.node)
            status = self._take_in(pool)
            if status == self._last and pool.status.usage == status.usage and pool.status.released == status.released:
                return pool
            body = apply_body(self.node, status=status, resource_version=pool.metadata.resource_version)
            query = {"fieldManager": AGENT_MANAGER, "force": "true"}
            try:
                written = await self._kube.request(
                    "PATCH", f"{PATH}/{self.node}/status", query=query, body=body, content_type=APPLY
                )
            except Outdated:
                continue
            self._last = status
            return from_object(json.loads(written))
        raise AssertionError("the pool changes all the time")

    def _take_in(self, pool: NodeIPPool) -> Status:
        interfaces = self._interfaces = pool.status.interfaces or self._interfaces
        listed = single(a for i in interfaces for a in i.addresses)
        releasing = single(a for i in interfaces for a in i.releasing)
        confirmed = single(pool.status.released)
        # gone from the NIC: forget; no longer releasing: first take back the acknowledgement, then (next time) use it
        self.withdrawn &= releasing & listed
        usable = listed - releasing - self.withdrawn - confirmed
        self.known = {address: self.known.get(address, 0) for address in listed}
        free = sorted(usable - self.held, key=lambda address: (self.known[address], IPv4Address(address)))
        for name, address in self.pods.items():
            if address is None and free:
                self.pods[name] = free.pop(0)
        self.withdrawn |= (releasing & listed) - self.held
        usage = Usage(assigned=len(self.held), cooling=0, free=len(free), waiting=self.waiting, known=len(listed))
        released = tuple(entry for i in interfaces for entry in i.releasing if single([entry]) <= self.withdrawn)
        return Status(
            usage=usage,
            released=released,
            kept=tuple(e for i in interfaces for e in i.releasing if single([e]) & self.held)
            if self.tells_kept
            else (),
            missing=tuple(sorted(self.held - listed)),
            conditions=(_ready(pool),),
        )


def single(entries: Iterable[str]) -> set[str]:
    """Blocks taken apart."""
    return {str(address) for entry in entries for address in (IPv4Network(entry) if "/" in entry else [entry])}


def _ready(pool: NodeIPPool) -> Condition:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    return condition(ConditionType.AGENT_READY, ConditionStatus.TRUE, Reason.AGENT_SERVING, "serving", now)
