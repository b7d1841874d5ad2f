"""Writes the operator's part of a pool's status, and Events.

A status is written only if it differs, on condition that the pool is as it was observed; otherwise `Outdated` is
raised.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import msgspec
import structlog

from vnetpods_api import ConditionType, NodeIPPool, Reason, find
from vnetpods_kit.faultpoints import OperatorPoint, reach
from vnetpods_operator.planning.model import Plan, Problem
from vnetpods_operator.planning.node import Node
from vnetpods_operator.planning.release_request import renewed
from vnetpods_operator.reconcile import status as report
from vnetpods_operator.reconcile.observe import Observation
from vnetpods_operator.reconcile.parts import Parts
from vnetpods_operator.reconcile.status import Findings
from vnetpods_operator.state.cluster import NodeState

_TOLD = (Reason.SUBNET_FULL, Reason.ADDRESS_LOST, Reason.AGENT_SILENT, Reason.NIC_FAILED)
"""Limits that get an Event."""

log = structlog.get_logger()


async def publish(parts: Parts, seen: Observation, plan: Plan | None) -> NodeIPPool:
    """Writes observation and plan into the status; returns the pool as written."""
    record, interfaces = seen.target.record, seen.nics or seen.pool.status.interfaces
    known = parts.networks.direct(interfaces[0].subnet) if interfaces else None
    direct = report.direct(*known, parts.config().direct_cidrs) if known else None
    findings = Findings(plan, seen.nics, seen.observed.nics, direct, seen.problem, seen.lost, view=seen.view)
    pool = await write(parts, seen.pool, findings, record)
    record.overtaken = 0
    limit = plan.limit if plan is not None else None
    if plan is not None and limit in _TOLD and record.limit is not limit and seen.problem is None:
        assert limit is not None
        parts.tell(seen.target.node, Problem(limit, plan.detail))
    record.limit = limit
    return pool


async def write(parts: Parts, pool: NodeIPPool, findings: Findings, record: NodeState) -> NodeIPPool:
    """Writes the findings into the status; returns the pool as written."""
    node = parts.cluster.nodes.get(pool.metadata.name)
    barred = report.leftover(node, pool) if node is not None else ""
    silence, unreadable = parts.silence(pool), _unreadable(parts, node, pool, record)
    findings = replace(findings, silence=silence, barred=barred, unreadable=unreadable)
    status = report.status(pool, findings, datetime.now(UTC))
    request = renewed(record.request, status.interfaces)
    status = msgspec.structs.replace(status, release_request=request.token if request else None)
    if not report.differs(pool, status):
        return pool
    known = parts.cluster.version(pool.metadata.name)
    written = await parts.pools.report(pool, status)
    reach(OperatorPoint.STATUS_WRITTEN)
    record.request = request
    parts.cluster.upsert_pool(written, known)
    return written


def notice(parts: Parts, node: Node, record: NodeState, problem: Problem) -> None:
    """Records an Event about a problem, once per reason, not once per attempt."""
    if record.problem is None or record.problem.reason is not problem.reason:
        parts.tell(node, problem)
        log.warning("people are told", node=node.name, reason=problem.reason, text=problem.message)
    record.problem = problem


def _unreadable(parts: Parts, node: Node | None, pool: NodeIPPool, record: NodeState) -> str:
    """Unreadable NICs, with an Event if that is new; the pool's own message until the NICs were read."""
    said = find(pool.status.conditions, ConditionType.READY)
    before = said.message if said is not None and said.reason == Reason.NIC_UNREADABLE else ""
    if record.unreadable is None:
        return before
    if node is not None and record.unreadable and record.unreadable != before:
        parts.tell(node, Problem(Reason.NIC_UNREADABLE, record.unreadable))
    return record.unreadable
