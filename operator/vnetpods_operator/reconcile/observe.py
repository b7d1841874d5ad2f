"""Gathering: what is the case for one node, from the pool alone or from what Azure just said, as the planner wants it.

A `Look` is one pass of the reconciler over one node and belongs to its worker. Nothing here writes anything, but for
what the node's `NodeState` remembers of a plan that came to be (since when there is a surplus, and the like).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Network
from typing import Protocol

import structlog

from vnetpods_api import ConditionType, Interface, NodeIPPool, find
from vnetpods_api.names import IP_CONFIGURATION_PREFIX
from vnetpods_operator.config import Interfaces
from vnetpods_operator.errors import Busy
from vnetpods_operator.planning import model, planner
from vnetpods_operator.planning.machine import Machine, Naming, Nic, usable_by_pods
from vnetpods_operator.planning.model import Observed, Plan, Problem, Wanted
from vnetpods_operator.planning.nic_choice import chosen
from vnetpods_operator.planning.node import Node
from vnetpods_operator.planning.release_request import acknowledged
from vnetpods_operator.planning.subnets import Subnets
from vnetpods_operator.planning.trail import Trail
from vnetpods_operator.reconcile.status import PREFIXES_MOST
from vnetpods_operator.reconcile.writing import Usages
from vnetpods_operator.state.cluster import ClusterState, NodeState

log = structlog.get_logger()

SURPRISED_SECONDS = 0.5
"""How long to wait before something surprising is read again."""


class Networks(Usages, Protocol):
    """What is known of virtual networks (see vnetpods_operator.azure.networks). None of it fails: it knows or it
    doesn't.
    """

    async def prefixes(self, subnet: str) -> tuple[str, ...]:
        """Of a subnet; read if need be, empty if that is not possible."""

    def direct(self, subnet: str) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        """Address space of the subnet's VNet, and of its peers, as far as it was read."""


@dataclass(slots=True)
class Look:
    """One pass over one node: first the givens, then what was found."""

    node: Node
    pool: NodeIPPool
    record: NodeState
    machine: Machine
    wanted: Wanted
    naming: Naming
    problem: Problem | None = None
    nics: tuple[Nic, ...] = ()
    view: str | None = None
    """What the agent asked to have confirmed before `nics` were read."""
    views: tuple[model.Nic, ...] = ()
    plan: Plan | None = None


class Observer:
    """Fills in looks."""

    def __init__(self, subnets: Subnets, networks: Networks, cluster: ClusterState, clock: Callable[[], float]) -> None:
        self._subnets = subnets
        self._networks = networks
        self._cluster = cluster
        self._clock = clock

    async def read(self, look: Look, rule: Interfaces) -> None:
        """Reads the machine's NICs; twice if they surprise. Raises `Busy` if Azure says only how they were before."""
        view, trail = look.pool.status.agent.view if look.pool.status.agent else None, look.record.trail
        nics = await self._read(look, rule)
        if trail.older(nics, self._clock()) or _surprising(look.pool, nics, trail):
            await asyncio.sleep(SURPRISED_SECONDS)
            nics = await self._read(look, rule)
        if name := trail.older(nics, self._clock()):
            text = f"Azure answers with an earlier state of NIC {name} than was read or written before"
            raise Busy(text, "OutdatedRead")
        trail.saw(nics)
        look.nics, look.view = nics, view

    async def _read(self, look: Look, rule: Interfaces) -> tuple[Nic, ...]:
        nics = await look.machine.nics()
        listed = {interface.name.lower() for interface in look.pool.status.interfaces}
        for one in nics.unreadable:
            log.warning("NIC left out, it can't be read", node=look.node.name, nic=one.id, error=str(one.error))
        needed = chosen(nics, rule, listed)
        look.record.unreadable = "; ".join(f"NIC {one.name} is left out: {one.error}" for one in nics.unreadable)
        return needed

    def from_pool(self, look: Look) -> None:
        """Plans by what the pool says: enough to see whether Azure has to be asked."""
        look.views = tuple(self._remembered(look, interface) for interface in look.pool.status.interfaces)
        self._plan(look)

    async def from_azure(self, look: Look) -> None:
        """Plans by `look.nics`, read a moment ago."""
        status = look.pool.status
        published = {a for interface in status.interfaces for a in interface.addresses} | set(status.missing)
        before = {interface.subnet.lower(): interface.prefixes for interface in status.interfaces}
        prefixes = {}
        for nic in look.nics:
            key = nic.subnet.lower()
            prefixes[key] = await self._networks.prefixes(nic.subnet) or before.get(key, ())
            if len(prefixes[key]) > PREFIXES_MOST:
                many = {"has": len(prefixes[key]), "listed": PREFIXES_MOST}
                log.warning("a subnet has more prefixes than a pool can list", node=look.node.name, subnet=key, **many)
        hopeful = look.record.repairs < planner.HOPELESS
        gone = self._gone(look)
        doubted = look.record.trail.doubted(look.nics, look.pool)
        views = usable_by_pods(look.nics, published, look.naming, prefixes, gone, doubted, hopeful=hopeful)
        look.record.barred = {view.name: (look.naming.exclude, view.barred) for view in views}
        self._lost(look)
        pairs = zip(views, look.nics, strict=True)
        look.views = tuple(self._limited(view, nic.subnet, look) for view, nic in pairs)
        self._plan(look)

    def _gone(self, look: Look) -> Collection[str]:
        """Names of entries that were released and are gone, whatever is read."""
        request, trail = look.record.request, look.record.trail
        if request is not None:
            there = {entry.name for nic in look.nics for entry in nic.entries}
            ended = acknowledged(request, look.pool.status, request.names)
            trail.gone(request.names[a] for a in ended if request.names[a] not in there)
        return trail.removed

    def _lost(self, look: Look) -> None:
        """What the pool lists and the NICs don't have, though the node still wants it.

        That is forgotten when it is back, or when the agent doesn't miss it for long: no pod held it. Until then the
        pool says it, too, for an operator that starts meanwhile.
        """
        status, record, now = look.pool.status, look.record, self._clock()
        there = singles(entry.address for nic in look.nics for entry in nic.entries if entry.address)
        listed = singles(a for i in status.interfaces for a in i.addresses) - singles(status.released)
        for address in (*status.lost, *sorted(listed - there)):
            record.lost.setdefault(address, now)
        late, missing = now - look.wanted.release_patience, set(status.missing)
        record.lost = {a: t for a, t in record.lost.items() if a not in there and (a in missing or t > late)}

    def remember(self, look: Look) -> None:
        """The plan is written into the pool: from now on its times count."""
        made, record, now = look.plan, look.record, self._clock()
        if made is None:
            return
        # what was planned is not always what was written; what pods keep is not waited for
        names = {a: n for interface in look.pool.status.interfaces for a, n in interface.names.items()}
        asked = releasing(look.pool) - acknowledged(record.request, look.pool.status, names) - {*look.pool.status.kept}
        record.surplus_since = (now if record.surplus_since is None else record.surplus_since) if made.surplus else None
        record.releasing_since = (now if record.releasing_since is None else record.releasing_since) if asked else None
        if made.overdue:
            record.refused |= dict.fromkeys(made.overdue, now)
        elif not made.surplus:
            record.refused.clear()

    def _plan(self, look: Look) -> None:
        found = self._planned(look)
        claimed = self._cluster.claimed(look.node.name, found.releasing)
        if claimed:  # whatever the reason, what another node counts on does not leave the NIC
            look.views = tuple(replace(view, claimed=claimed) for view in look.views)
            found = self._planned(look)
        look.plan = found

    def _planned(self, look: Look) -> Plan:
        status, record, now = look.pool.status, look.record, self._clock()
        contested = {address for address, until in record.contested.items() if until > now}
        observed = Observed(
            nics=look.views,
            releasing=releasing(look.pool),
            released=frozenset(status.released),
            acknowledged=acknowledged(record.request, status, {a: n for v in look.views for a, n in v.names.items()}),
            answers=status.agent is not None and not record.doubles.said(now),
            kept=frozenset(status.kept),
            missing=status.missing,
            usage=status.usage,
            agent_ready=look.node.ready and _serves(look.pool),
            surplus_since=record.surplus_since,
            releasing_since=record.releasing_since,
            refused=record.refused,
            lost=frozenset(a for a in (*record.lost, *status.lost) if not look.naming.excluded(a)),
            contested=frozenset(contested),
            repairs=record.repairs,
            repair_after=record.repair_after,
        )
        return planner.plan(observed, look.wanted, now)

    def _remembered(self, look: Look, interface: Interface) -> model.Nic:
        addresses, names = interface.addresses, interface.names
        view = model.Nic(
            name=interface.name,
            addresses=addresses,
            names=names,
            removable=frozenset(a for a, n in names.items() if n.lower().startswith(IP_CONFIGURATION_PREFIX)),
            excluded=frozenset(filter(look.naming.excluded, addresses)),
            slots=max(0, (interface.capacity or 0) - model.count(addresses)),
            prefixes=interface.prefixes,
        )
        return self._limited(view, interface.subnet, look)

    def _limited(self, view: model.Nic, subnet: str, look: Look) -> model.Nic:
        """With what was learned about the subnet and the machine."""
        exclude, barred = look.record.barred.get(view.name, (None, 0))
        slots = 0 if self._clock() < look.record.full_until else view.slots
        limited = self._subnets.limits(subnet).on(view)
        return replace(limited, slots=slots, barred=barred if exclude == look.naming.exclude else 0)


def _surprising(pool: NodeIPPool, nics: tuple[Nic, ...], trail: Trail) -> bool:
    """Whether the NICs differ from the pool in a way that we did not bring about ourselves just now.

    A read of ARM may answer with what was before the last write, and after a restart nobody remembers that. Believing
    it once would list addresses again that were given back, and may be another machine's by now; so what surprises is
    read twice.
    """
    if all(trail.current(nic) for nic in nics):
        return False
    listed = {address for interface in pool.status.interfaces for address in interface.addresses}
    there = {entry.address: entry.ours for nic in nics for entry in nic.entries if entry.address}
    unknown = {address for address, ours in there.items() if ours} - listed
    return bool(unknown or listed - there.keys())


def singles(units: Iterable[str]) -> set[str]:
    """The addresses of these units."""
    return {str(a) for unit in units for a in (IPv4Network(unit) if "/" in unit else (unit,))}


def _serves(pool: NodeIPPool) -> bool:
    found = find(pool.status.conditions, ConditionType.AGENT_READY)
    return found is not None and found.status == "True"


def unconfirmed(pool: NodeIPPool) -> bool:
    """Whether the agent waits to hear that what is listed was read from Azure since it asked."""
    agent = pool.status.agent
    return agent is not None and agent.view is not None and agent.view != pool.status.confirmed_view


def releasing(pool: NodeIPPool) -> frozenset[str]:
    """All that the pool lists as releasing."""
    return frozenset(address for interface in pool.status.interfaces for address in interface.releasing)
