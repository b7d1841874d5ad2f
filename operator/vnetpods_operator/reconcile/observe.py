"""Observing: what is the case for one node, from the pool alone or from what Azure just said, as the planner wants it.

An `Observation` is a value that nothing changes; another pool or other NICs make another one. Nothing here writes
anything, but for what the node's `NodeState` learns from the NICs (what has gone, what was lost, what is barred).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv4Network

import structlog

from vnetpods_api import ConditionType, Interface, NodeIPPool, find
from vnetpods_api.names import IP_CONFIGURATION_PREFIX
from vnetpods_operator.errors import Busy
from vnetpods_operator.planning import model, planner
from vnetpods_operator.planning.desired import wanted_for
from vnetpods_operator.planning.machine import Machine, Naming, Nic, usable_by_pods
from vnetpods_operator.planning.model import Observed, Problem, Wanted
from vnetpods_operator.planning.nic_choice import chosen
from vnetpods_operator.planning.node import Node
from vnetpods_operator.planning.release_request import acknowledged
from vnetpods_operator.planning.trail import Trail
from vnetpods_operator.reconcile.parts import Parts
from vnetpods_operator.reconcile.status import PREFIXES_MOST
from vnetpods_operator.state.cluster import NodeState

log = structlog.get_logger()

SURPRISED_SECONDS = 0.5
"""How long to wait before something surprising is read again."""


@dataclass(frozen=True, slots=True)
class Target:
    """Which node a pass is about. `record` is its memory, which outlives the pass."""

    node: Node
    machine: Machine
    record: NodeState


@dataclass(frozen=True, slots=True)
class Observation:
    """What is the case for a node at one moment."""

    target: Target
    pool: NodeIPPool
    nics: tuple[Nic, ...]
    """As Azure had them; none: by the pool alone."""
    view: str | None
    """What the agent asked to have confirmed before `nics` were read."""
    observed: Observed
    """The same for the planner."""
    wanted: Wanted
    at: float
    problem: Problem | None
    """What stands in the way, or contradicts itself in what is wanted."""
    lost: tuple[str, ...] | None
    """Addresses that vanished from the NICs without having been released, if the NICs were read."""


async def read(parts: Parts, seen: Observation) -> Observation:
    """By the machine's NICs, read now; twice if they surprise. Raises `Busy` if Azure says only how they were."""
    agent, trail = seen.pool.status.agent, seen.target.record.trail
    nics = await _read(parts, seen)
    if trail.older(nics, _now()) or _surprising(seen.pool, nics, trail):
        await asyncio.sleep(SURPRISED_SECONDS)
        nics = await _read(parts, seen)
    if name := trail.older(nics, _now()):
        text = f"Azure answers with an earlier state of NIC {name} than was read or written before"
        raise Busy(text, "OutdatedRead")
    trail.saw(nics)
    return await again(parts, replace(seen, view=agent.view if agent else None), seen.pool, nics)


async def _read(parts: Parts, seen: Observation) -> tuple[Nic, ...]:
    nics = await seen.target.machine.nics()
    listed = {interface.name.lower() for interface in seen.pool.status.interfaces}
    for one in nics.unreadable:
        log.warning("NIC left out, it can't be read", node=seen.target.node.name, nic=one.id, error=str(one.error))
    needed = chosen(nics, parts.config().interfaces, listed)
    left_out = (f"NIC {one.name} is left out: {one.error}" for one in nics.unreadable)
    seen.target.record.unreadable = "; ".join(left_out)
    return needed


async def again(parts: Parts, seen: Observation, pool: NodeIPPool, nics: tuple[Nic, ...]) -> Observation:
    """By this pool and these NICs, and by what was learned meanwhile."""
    return replace(await observe(parts, seen.target, pool, nics, seen.view), problem=seen.problem)


async def observe(
    parts: Parts, target: Target, pool: NodeIPPool, nics: tuple[Nic, ...] = (), view: str | None = None
) -> Observation:
    """Without NICs by what the pool says: enough to see whether Azure has to be asked."""
    config, record, status = parts.config(), target.record, pool.status
    naming = Naming(adopt=config.adopt, exclude=tuple(r.bounds for r in config.exclude))
    prefixes = await _prefixes(parts, target.node.name, pool, nics)
    now = _now()
    wanted, problem = wanted_for(target.node, pool, config, record.host_pods, record.doubles.said(now))
    if nics:
        views = _of_nics(record, pool, nics, naming, prefixes)
        _lost(record, pool, nics, late=now - wanted.release_patience, now=now)
    else:
        views = tuple(_of_interface(interface, naming) for interface in status.interfaces)
    subnets = (each.subnet for each in nics or status.interfaces)
    views = tuple(_limited(parts, *each, record, naming) for each in zip(views, subnets, strict=True))
    observed = Observed(
        nics=views,
        releasing=releasing(pool),
        released=frozenset(status.released),
        acknowledged=acknowledged(record.request, status, {a: n for v in views for a, n in v.names.items()}),
        answers=status.agent is not None and not record.doubles.said(now),
        kept=frozenset(status.kept),
        missing=status.missing,
        usage=status.usage,
        agent_ready=target.node.ready and _serves(pool),
        surplus_since=record.surplus_since,
        releasing_since=record.releasing_since,
        refused=dict(record.refused),
        lost=frozenset(a for a in (*record.lost, *status.lost) if not naming.excluded(a)),
        contested=frozenset(address for address, until in record.contested.items() if until > now),
        repairs=record.repairs,
        repair_after=record.repair_after,
    )
    lost = tuple(sorted(record.lost)) if nics else None
    return Observation(target, pool, nics, view, observed, wanted, now, problem, lost)


async def _prefixes(parts: Parts, node: str, pool: NodeIPPool, nics: Iterable[Nic]) -> dict[str, tuple[str, ...]]:
    """Of the NICs' subnets, by lower-case id."""
    before = {interface.subnet.lower(): interface.prefixes for interface in pool.status.interfaces}
    found = {}
    for nic in nics:
        key = nic.subnet.lower()
        found[key] = await parts.networks.prefixes(nic.subnet) or before.get(key, ())
        if len(found[key]) > PREFIXES_MOST:
            many = {"has": len(found[key]), "listed": PREFIXES_MOST}
            log.warning("a subnet has more prefixes than a pool can list", node=node, subnet=key, **many)
    return found


def _limited(parts: Parts, view: model.Nic, subnet: str, record: NodeState, naming: Naming) -> model.Nic:
    """With what was learned about the subnet and the machine."""
    exclude, barred = record.barred.get(view.name, (None, 0))
    slots = 0 if _now() < record.full_until else view.slots
    limited = parts.subnets.limits(subnet).on(view)
    return replace(limited, slots=slots, barred=barred if exclude == naming.exclude else 0)


def _of_nics(
    record: NodeState, pool: NodeIPPool, nics: tuple[Nic, ...], naming: Naming, prefixes: dict[str, tuple[str, ...]]
) -> tuple[model.Nic, ...]:
    status, request, trail = pool.status, record.request, record.trail
    if request is not None:  # entries that were released and are gone, whatever is read
        there = {entry.name for nic in nics for entry in nic.entries}
        ended = acknowledged(request, status, request.names)
        trail.gone(request.names[a] for a in ended if request.names[a] not in there)
    published = {a for interface in status.interfaces for a in interface.addresses} | set(status.missing)
    hopeful, doubted = record.repairs < planner.HOPELESS, trail.doubted(nics, pool)
    views = usable_by_pods(nics, published, naming, prefixes, trail.removed, doubted, hopeful=hopeful)
    record.barred = {view.name: (naming.exclude, view.barred) for view in views}
    return views


def _of_interface(interface: Interface, naming: Naming) -> model.Nic:
    addresses, names = interface.addresses, interface.names
    return model.Nic(
        name=interface.name,
        addresses=addresses,
        names=names,
        removable=frozenset(a for a, n in names.items() if n.lower().startswith(IP_CONFIGURATION_PREFIX)),
        excluded=frozenset(filter(naming.excluded, addresses)),
        slots=max(0, (interface.capacity or 0) - model.count(addresses)),
        prefixes=interface.prefixes,
    )


def _lost(record: NodeState, pool: NodeIPPool, nics: Iterable[Nic], *, late: float, now: float) -> None:
    """Remembers what the pool lists and the NICs don't have, though the node still wants it.

    That is forgotten when it is back, or when the agent doesn't miss it for long (since before `late`): no pod held it.
    Until then the pool says it, too, for an operator that starts meanwhile.
    """
    status = pool.status
    there = singles(entry.address for nic in nics for entry in nic.entries if entry.address)
    listed = singles(a for i in status.interfaces for a in i.addresses) - singles(status.released)
    for address in (*status.lost, *sorted(listed - there)):
        record.lost.setdefault(address, now)
    missing = set(status.missing)
    record.lost = {a: t for a, t in record.lost.items() if a not in there and (a in missing or t > late)}


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


def _now() -> float:
    return asyncio.get_running_loop().time()
