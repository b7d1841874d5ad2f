"""A node's agent as the operator sees it: follows the handshakes of docs/architecture.md through the API.

It holds addresses for pods, cools nothing, hands out the address that was unused longest, retires releasing addresses
that no pod holds, and remembers the retired names (its "ledger") across its own restarts. It knows only what its watch
has delivered (`hear`) and reports on that basis (`say`): the API server rejects outdated reports. `sync` is what an
up-to-date watch does, unless the agent is `lagging`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network

from msgspec.structs import replace

from vnetpods_api import (
    AgentReport,
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
from vnetpods_api.names import AGENT_MANAGER, IP_CONFIGURATION_PREFIX
from vnetpods_operator.kube import APPLY, Kube, Outdated
from vnetpods_operator.state.pools import PATH, Pools


class Agent:
    """One node's agent. `pods` maps a pod to its address, None while it waits."""

    def __init__(self, kube: Kube, node: str) -> None:
        self._kube = kube
        self._pools = Pools(kube)
        self.node = node
        self.pods: dict[str, str | None] = {}
        self.retired: set[str] = set()
        """Names of ipConfigurations that are never used again: in the ledger."""
        self.tells_kept = True
        """False for agents older than `status.kept`."""
        self.tells_agent = True
        """False for agents older than `status.agent`."""
        self.lagging = False
        """Whether the watch delivers nothing at present."""
        self.instance = secrets.token_hex(4)
        self.view: str | None = None
        """Until it is confirmed, no address is handed out."""
        self.known: dict[str, int] = {}
        """Addresses that may be handed out, and when each was last freed."""
        self._interfaces: tuple[Interface, ...] = ()
        """As last listed: a pool without interfaces is ignored."""
        self._turns = itertools.count(1)
        self._names = itertools.count(1)
        self._reports = itertools.count(1)
        self._heard: NodeIPPool | None = None
        self._last: Status | None = None
        self._said: AgentReport | None = None

    @property
    def held(self) -> set[str]:
        return {address for address in self.pods.values() if address is not None}

    @property
    def waiting(self) -> int:
        return sum(1 for address in self.pods.values() if address is None)

    def start(self, number: int) -> None:
        """Starts this number of pods."""
        for _ in range(number):
            self.pods[f"pod-{next(self._names)}"] = None

    def end(self, number: int, *, newest: bool = False) -> None:
        """Ends this number of pods, the oldest (or newest) ones."""
        for name in list(self.pods)[-number:] if newest else list(self.pods)[:number]:
            address = self.pods.pop(name)
            if address is not None:
                self.known[address] = next(self._turns)

    def replace_pods(self, addresses: Iterable[str]) -> None:
        """Replaces the pods that hold these addresses by new ones."""
        restarted = [name for name, address in self.pods.items() if address in {*addresses}]
        for name in restarted:
            del self.pods[name]
        self.start(len(restarted))

    def restart(self, *, boot: bool = False) -> None:
        """Restarts the agent's process; after a boot it can't trust its list."""
        self.instance, self._reports, self._said = secrets.token_hex(4), itertools.count(1), None
        if boot:
            self.view = secrets.token_hex(4)

    async def sync(self) -> NodeIPPool:
        """Observes the pool, gives pods their addresses, and reports if anything has changed."""
        for _ in range(10):
            if not self.lagging or self._heard is None:
                await self.hear()
            with contextlib.suppress(Outdated):
                return await self.say()
            if self.lagging:
                break
        assert self.lagging, "the pool changes all the time"
        assert self._heard is not None
        return self._heard

    async def hear(self) -> None:
        """Receives the pool from the watch."""
        self._heard = await self._pools.get(self.node)
        agent = self._heard.status.agent
        if self._said is not None and self.tells_agent and agent != self._said:
            self.view = secrets.token_hex(4)  # the API server has lost our report, or another agent reports
            self._said = None

    async def say(self) -> NodeIPPool:
        """Acts on the pool as last observed, and reports; raises `Outdated` if the pool has changed since."""
        pool = self._heard
        assert pool is not None
        status, request = self._take_in(pool), pool.status.release_request
        said = self._said
        heard = pool.status.usage is not None and pool.status.agent == said
        if (
            heard
            and status == self._last
            and (said is None or (said.release_request, said.view) == (request, self.view))
        ):
            return pool
        if self.tells_agent:
            number = next(self._reports)
            said = AgentReport(instance=self.instance, report=number, view=self.view, release_request=request)
        version = pool.metadata.resource_version
        body = apply_body(self.node, status=replace(status, agent=said), resource_version=version)
        query = {"fieldManager": AGENT_MANAGER, "force": "true"}
        path = f"{PATH}/{self.node}/status"
        self._heard = from_object(
            json.loads(await self._kube.request("PATCH", path, query=query, body=body, content_type=APPLY))
        )
        self._last, self._said = status, said
        return self._heard

    def _take_in(self, pool: NodeIPPool) -> Status:
        interfaces = self._interfaces = pool.status.interfaces or self._interfaces
        names = {unit: name for i in interfaces for unit, name in i.names.items()}
        releasing = [unit for i in interfaces for unit in i.releasing]
        retired = [unit for unit, name in names.items() if name in self.retired]
        listed = single(unit for i in interfaces for unit in i.addresses)
        confirmed = self.view is None or pool.status.confirmed_view == self.view
        self.known = {address: self.known.get(address, 0) for address in listed}
        usable = listed - single(releasing) - single(retired) if confirmed else set()
        free = sorted(usable - self.held, key=lambda address: (self.known[address], IPv4Address(address)))
        for name, address in self.pods.items():
            if address is None and free:
                self.pods[name] = free.pop(0)
        self.retired |= {
            names[unit]
            for unit in releasing
            if names.get(unit, "").startswith(IP_CONFIGURATION_PREFIX) and not single([unit]) & self.held
        }
        usage = Usage(assigned=len(self.held), cooling=0, free=len(free), waiting=self.waiting, known=len(listed))
        kept = tuple(unit for unit in releasing if single([unit]) & self.held) if self.tells_kept else ()
        return Status(
            usage=usage,
            released=tuple(unit for unit, name in names.items() if name in self.retired),
            kept=kept,
            missing=tuple(sorted(self.held - listed)),
            conditions=(_ready(pool),),
        )


def single(entries: Iterable[str]) -> set[str]:
    """Single addresses, blocks expanded."""
    return {str(address) for entry in entries for address in (IPv4Network(entry) if "/" in entry else [entry])}


def _ready(pool: NodeIPPool) -> Condition:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    return condition(ConditionType.AGENT_READY, ConditionStatus.TRUE, Reason.AGENT_SERVING, "serving", now)
