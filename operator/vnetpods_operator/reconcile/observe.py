"""Observes one node, from its pool alone or from a fresh read of its NICs, and prepares that for the planner.

An `Observation` is immutable; a newer pool or newer NICs give a new one. Nothing is written here, but the node's
`NodeState` learns from the NICs: released entries that are gone, lost addresses, excluded ones.
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
"""Delay before a surprising read is repeated."""


@dataclass(frozen=True, slots=True)
class Target:
    """The node of a pass. `record` is its memory, which outlives the pass."""

    node: Node
    machine: Machine
    record: NodeState


@dataclass(frozen=True, slots=True)
class Observation:
    """The state of a node at one moment."""

    target: Target
    pool: NodeIPPool
    nics: tuple[Nic, ...]
    """As read from Azure; empty if only the pool was observed."""
    view: str | None
    """The agent's `view` before `nics` were read."""
    observed: Observed
    """The planner's input."""
    wanted: Wanted
    at: float
    problem: Problem | None
    """What prevents progress, or why the wanted sizes are ignored."""
    lost: tuple[str, ...] | None
    """Addresses that vanished from the NICs without a release; None if the NICs were not read."""


async def read(parts: Parts, seen: Observation) -> Observation:
    """Reads the NICs, twice if they are surprising. Raises `Busy` if Azure returns only an earlier state."""
    agent, trail = seen.pool.status.agent, seen.target.record.trail
    nics = await _read(parts, seen)
    if trail.older(nics, parts.now()) or _surprising(seen.pool, nics, trail):
        await asyncio.sleep(SURPRISED_SECONDS)
        nics = await _read(parts, seen)
    if name := trail.older(nics, parts.now()):
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
    """The same node with this pool and these NICs; `problem` is kept."""
    return replace(await observe(parts, seen.target, pool, nics, seen.view), problem=seen.problem)


async def observe(
    parts: Parts, target: Target, pool: NodeIPPool, nics: tuple[Nic, ...] = (), view: str | None = None
) -> Observation:
    """Without NICs, the pool alone is observed: enough to decide whether Azure must be asked."""
    config, record, status = parts.config(), target.record, pool.status
    naming = Naming(adopt=config.adopt, exclude=tuple(r.bounds for r in config.exclude))
    prefixes = await _prefixes(parts, target.node.name, pool, nics)
    now = parts.now()
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
    """Prefixes of the NICs' subnets, by lower-case id."""
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
    """Applies the known limits of subnet and machine."""
    exclude, barred = record.barred.get(view.name, (None, 0))
    slots = 0 if parts.now() < record.full_until else view.slots
    limited = parts.subnets.limits(subnet).on(view)
    return replace(limited, slots=slots, barred=barred if exclude == naming.exclude else 0)


def _of_nics(
    record: NodeState, pool: NodeIPPool, nics: tuple[Nic, ...], naming: Naming, prefixes: dict[str, tuple[str, ...]]
) -> tuple[model.Nic, ...]:
    status, request, trail = pool.status, record.request, record.trail
    if request is not None:  # released entries that are gone stay gone, whatever a later read says
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
    """Remembers addresses that the pool lists and the NICs lack, unless they are released.

    An address is forgotten once it is back, or if it was lost before `late` and the agent doesn't miss it: no pod holds
    it. Until then the pool lists it in `lost`, for an operator that starts meanwhile.
    """
    status = pool.status
    there = singles(entry.address for nic in nics for entry in nic.entries if entry.address)
    listed = singles(a for i in status.interfaces for a in i.addresses) - singles(status.released)
    for address in (*status.lost, *sorted(listed - there)):
        record.lost.setdefault(address, now)
    missing = set(status.missing)
    record.lost = {a: t for a, t in record.lost.items() if a not in there and (a in missing or t > late)}


def _surprising(pool: NodeIPPool, nics: tuple[Nic, ...], trail: Trail) -> bool:
    """Whether the NICs differ from the pool for a reason other than our own last write.

    A read of ARM may predate the last write, which no restarted operator remembers. Trusting such a read would list
    released addresses again, which may be another machine's by now; so a surprising read is repeated.
    """
    if all(trail.current(nic) for nic in nics):
        return False
    listed = {address for interface in pool.status.interfaces for address in interface.addresses}
    there = {entry.address: entry.ours for nic in nics for entry in nic.entries if entry.address}
    unknown = {address for address, ours in there.items() if ours} - listed
    return bool(unknown or listed - there.keys())


def singles(units: Iterable[str]) -> set[str]:
    """Single addresses and the addresses of blocks."""
    return {str(a) for unit in units for a in (IPv4Network(unit) if "/" in unit else (unit,))}


def _serves(pool: NodeIPPool) -> bool:
    found = find(pool.status.conditions, ConditionType.AGENT_READY)
    return found is not None and found.status == "True"


def unconfirmed(pool: NodeIPPool) -> bool:
    """Whether the agent waits for the confirmation of its `view`."""
    agent = pool.status.agent
    return agent is not None and agent.view is not None and agent.view != pool.status.confirmed_view


def releasing(pool: NodeIPPool) -> frozenset[str]:
    """Every address that the pool lists in `releasing`."""
    return frozenset(address for interface in pool.status.interfaces for address in interface.releasing)
