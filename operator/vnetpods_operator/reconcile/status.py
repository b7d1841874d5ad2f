"""Derives the operator's part of a NodeIPPool's status: interfaces, totals and conditions. Pure.

Conditions follow kstatus: Ready is Unknown until something is known; Reconciling is True while a change is under way;
Stalled only when a person must act. Messages carry nothing that changes with every pod, or each pod would cost a write.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv4Address, IPv4Network

import msgspec

from vnetpods_api import (
    Condition,
    ConditionStatus,
    ConditionType,
    Interface,
    NodeIPPool,
    Reason,
    Status,
    condition,
    find,
    merge,
)
from vnetpods_operator.planning import model
from vnetpods_operator.planning.machine import ENTRIES_PER_NIC, Nic
from vnetpods_operator.planning.model import Plan, Problem
from vnetpods_operator.planning.node import Node

OURS = (ConditionType.READY, ConditionType.RECONCILING, ConditionType.STALLED)
_LOST_MOST = 2048
PREFIXES_MOST = 128
"""The CRD's limit for a subnet's prefixes."""
_TRUE, _FALSE, _UNKNOWN = ConditionStatus.TRUE, ConditionStatus.FALSE, ConditionStatus.UNKNOWN
_UNDER_WAY = (Reason.GROWING, Reason.RELEASING, Reason.REPAIRING)
_SENTENCES = {
    Reason.GROWING: "addresses are being added",
    Reason.RELEASING: "addresses are being given back",
    Reason.REPAIRING: "the NIC is being put right",
    Reason.PAUSED: "spec.paused is set; unset it to let the operator go on",
    Reason.IDLE: "nothing to do",
}


@dataclass(frozen=True, slots=True)
class Findings:
    """The findings of a pass. Without NICs the pool's interfaces stay as they are, but for `releasing`; with a problem,
    no release begins.
    """

    plan: Plan | None = None
    nics: Sequence[Nic] = ()
    views: Sequence[model.Nic] = ()
    direct_cidrs: tuple[str, ...] | None = None
    problem: Problem | None = None
    lost: tuple[str, ...] | None = None
    """Addresses that vanished from the NICs without a release; None if the NICs were not read."""
    silence: str = ""
    """Why the node's agent is considered silent."""
    barred: str = ""
    """Why the Node keeps pods away although its agent serves, and what to do."""
    unreadable: str = ""
    """The machine's unreadable NICs, and why."""
    view: str | None = None
    """The agent's `view` before the NICs were read."""


def status(pool: NodeIPPool, findings: Findings, now: datetime) -> Status:
    """Every status field of the operator's but `releaseRequest`; unchanged where nothing new is known."""
    before = pool.status
    releasing = findings.plan.releasing if findings.plan else None
    if findings.nics:
        views = {view.name: view for view in findings.views}
        interfaces = tuple(_interface(nic, views[nic.name], releasing or frozenset()) for nic in findings.nics)
    else:
        interfaces = before.interfaces
        if releasing is not None:
            begins = findings.problem is None  # Azure may not be able to end it
            interfaces = tuple(_released(interface, releasing, begins=begins) for interface in interfaces)
    said = _conditions(findings, interfaces, pool, now)
    direct = findings.direct_cidrs
    return Status(
        observed_generation=pool.metadata.generation or None,
        interfaces=interfaces,
        subnet=interfaces[0].subnet.rpartition("/")[2][:80] if interfaces else None,
        direct_cidrs=before.direct_cidrs if direct is None else direct,
        capacity=sum(interface.capacity or 0 for interface in interfaces) if interfaces else None,
        allocated=sum(model.count(interface.addresses) for interface in interfaces) if interfaces else None,
        lost=before.lost if findings.lost is None else findings.lost[:_LOST_MOST],
        confirmed_view=findings.view if findings.nics and findings.view else before.confirmed_view,
        conditions=tuple(merge(before.conditions, said)),
    )


def differs(pool: NodeIPPool, wanted: Status) -> bool:
    """Whether writing `wanted` would change anything."""
    return owned(pool.status) != wanted


def owned(found: Status) -> Status:
    """The operator's part of a status."""
    mine = (*(c for t in OURS for c in found.conditions if c.type == t), *_spoken_for_the_agent(found))
    return msgspec.structs.replace(found, usage=None, agent=None, released=(), kept=(), missing=(), conditions=mine)


def direct(own: Sequence[str], peers: Sequence[str], configured: Sequence[str]) -> tuple[str, ...]:
    """Each once, in a stable order."""
    return tuple(dict.fromkeys((*own, *sorted(peers), *configured)))[:512]


def _interface(nic: Nic, view: model.Nic, releasing: frozenset[str]) -> Interface:
    return Interface(
        name=nic.name,
        mac=nic.mac,
        subnet=nic.subnet,
        prefixes=_listed(view.prefixes, (nic.primary_address, *view.addresses)),
        primary_address=nic.primary_address,
        capacity=min(4096, model.count(view.addresses) + view.pending + view.slots),
        addresses=view.addresses[:ENTRIES_PER_NIC],
        ip_configurations=tuple(view.names[address] for address in view.addresses[:ENTRIES_PER_NIC]),
        releasing=tuple(address for address in view.addresses if address in releasing),
    )


def _listed(prefixes: tuple[str, ...], addresses: Iterable[str | None]) -> tuple[str, ...]:
    """At most as many prefixes as a pool can list, those with addresses of the NIC first."""
    if len(prefixes) <= PREFIXES_MOST:
        return prefixes
    have = [IPv4Address(address.partition("/")[0]) for address in addresses if address]
    used = {prefix for prefix in prefixes if any(address in IPv4Network(prefix) for address in have)}
    return tuple(sorted(prefixes, key=lambda prefix: prefix not in used)[:PREFIXES_MOST])


def _released(interface: Interface, releasing: frozenset[str], *, begins: bool) -> Interface:
    among = interface.addresses if begins else interface.releasing
    wanted = tuple(address for address in among if address in releasing)
    return msgspec.structs.replace(interface, releasing=wanted)


def _conditions(
    findings: Findings, interfaces: Sequence[Interface], pool: NodeIPPool, now: datetime
) -> list[Condition]:
    generation = pool.metadata.generation
    found = [
        _ready(findings, interfaces, pool, now),
        _reconciling(findings, now),
        _stalled(findings, now),
        *_agent_silent(findings, pool, now),
    ]
    return [msgspec.structs.replace(c, observed_generation=generation) for c in found]


def leftover(node: Node, pool: NodeIPPool) -> str:
    """Advice about a NetworkUnavailable of a former network plugin, or of a route controller that waits for routes. The
    operator has no right to change Nodes, and needs it for nothing else.
    """
    own = find(pool.status.conditions, ConditionType.AGENT_READY)
    if not node.barred or own is None or own.status != _TRUE:
        return ""
    body = '{"status":{"conditions":[{"type":"NetworkUnavailable","status":"False","reason":"VnetpodsServes"}]}}'
    return (
        f"Node {node.name} says NetworkUnavailable ({node.barred}), which keeps pods away, though its agent serves: a "
        "former network plugin left it, or the cloud provider waits for routes (--configure-cloud-routes=false). "
        f"To clear it: kubectl patch node {node.name} --subresource=status -p '{body}'"
    )


def _agent_silent(findings: Findings, pool: NodeIPPool, now: datetime) -> list[Condition]:
    """AgentReady is the agent's. The operator writes it for a silent agent, and keeps writing it until the agent
    reports: a condition that nobody owns any more would vanish.
    """
    if findings.silence:
        return [condition(ConditionType.AGENT_READY, _UNKNOWN, Reason.AGENT_SILENT, findings.silence, now)]
    return _spoken_for_the_agent(pool.status)


def _spoken_for_the_agent(found: Status) -> list[Condition]:
    said = find(found.conditions, ConditionType.AGENT_READY)
    return [said] if said is not None and said.reason == Reason.AGENT_SILENT else []


def _ready(findings: Findings, interfaces: Sequence[Interface], pool: NodeIPPool, now: datetime) -> Condition:
    plan, problem, usage = findings.plan, findings.problem, pool.status.usage
    total = sum(model.count(interface.addresses) for interface in interfaces)
    if problem is not None:
        reason, message = problem.reason, problem.message
    elif plan is not None and plan.limit is not None:
        reason, message = plan.limit, plan.detail
    elif plan is not None and plan.reason is Reason.PAUSED and total:
        reason, message = Reason.PAUSED, f"pods get what is free, no more is added; {_SENTENCES[Reason.PAUSED]}"
    elif findings.barred:
        reason, message = Reason.NETWORK_UNAVAILABLE, findings.barred
    elif findings.unreadable:
        reason, message = Reason.NIC_UNREADABLE, findings.unreadable
    else:
        reason, message = Reason.POOL_READY, _ready_text(pool)
    free = plan.free if plan is not None else usage.free if usage is not None else total
    if total and (free > 0 or not (usage and usage.waiting)):
        return condition(ConditionType.READY, _TRUE, reason, message, now)
    if plan is None and problem is None:
        return condition(ConditionType.READY, _UNKNOWN, Reason.PENDING, "the NIC has not been read yet", now)
    if reason in (Reason.POOL_READY, Reason.NIC_UNREADABLE):
        reason = plan.reason if plan and plan.reason in (Reason.GROWING, Reason.PAUSED) else Reason.PENDING
        message = "no address is free" if total else "there is no address yet"
        if reason is Reason.PAUSED:
            message = f"{message}, and {_SENTENCES[reason]}"
    return condition(ConditionType.READY, _FALSE, reason, message, now)


def _ready_text(pool: NodeIPPool) -> str:
    """An agent that never reported can't be claimed to serve pods."""
    if pool.status.usage is None and pool.status.agent is None:
        return (
            "addresses are there, and pods can be given them once the node's agent reports, which none has yet: is its "
            f"Pod on Node {pool.metadata.name}, and Ready?"
        )
    return "pods can be given addresses"


def _reconciling(findings: Findings, now: datetime) -> Condition:
    plan = findings.plan
    if plan is None:
        waits = findings.problem is None
        text = "the machine is looked up" if waits else "waiting, see Ready"
        return condition(ConditionType.RECONCILING, _TRUE if waits else _FALSE, Reason.PENDING, text, now)
    if findings.problem is not None and plan.reason is not Reason.PAUSED:
        reason, text = findings.problem.reason, findings.problem.message
        return condition(ConditionType.RECONCILING, _FALSE, reason, text, now)
    under_way = plan.reason in _UNDER_WAY
    return condition(
        ConditionType.RECONCILING, _TRUE if under_way else _FALSE, plan.reason, _SENTENCES[plan.reason], now
    )


def _stalled(findings: Findings, now: datetime) -> Condition:
    plan, problem = findings.plan, findings.problem
    if problem is not None and problem.stalled:
        return condition(ConditionType.STALLED, _TRUE, problem.reason, problem.message, now)
    if problem is None and plan is not None and plan.limit is Reason.NIC_FAILED:
        return condition(ConditionType.STALLED, _TRUE, plan.limit, plan.detail, now)
    if problem is None and findings.barred:
        return condition(ConditionType.STALLED, _TRUE, Reason.NETWORK_UNAVAILABLE, findings.barred, now)
    return condition(ConditionType.STALLED, _FALSE, Reason.IDLE, "nobody needs to act", now)
