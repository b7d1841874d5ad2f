"""Updates the node's `NodeState` by the outcome of a pass, and schedules the next pass.

Kept in memory only: after a restart a surplus must last anew, and back-off starts short.
"""

from __future__ import annotations

import structlog

from vnetpods_operator import errors
from vnetpods_operator.election import NotLeading
from vnetpods_operator.kube import Invalid, KubeError, NotFound, Outdated
from vnetpods_operator.planning.model import Plan, Problem
from vnetpods_operator.planning.release_request import acknowledged
from vnetpods_operator.reconcile.backoff import given_up, problem_of, unwritable, wait_after
from vnetpods_operator.reconcile.observe import Observation, releasing, unconfirmed
from vnetpods_operator.reconcile.parts import Parts
from vnetpods_operator.state.cluster import NodeState

OVERTAKEN_MOST = 10.0
"""Longest delay in seconds between passes over a pool that changes each time."""

log = structlog.get_logger()


def published(parts: Parts, seen: Observation, plan: Plan) -> None:
    """The plan was written into the pool: its times count from now on."""
    record, status, now = seen.target.record, seen.pool.status, parts.now()
    # not everything planned is written; kept addresses are not waited for
    names = {a: n for interface in status.interfaces for a, n in interface.names.items()}
    asked = releasing(seen.pool) - acknowledged(record.request, status, names) - {*status.kept}
    record.surplus_since = (now if record.surplus_since is None else record.surplus_since) if plan.surplus else None
    record.releasing_since = (now if record.releasing_since is None else record.releasing_since) if asked else None
    if plan.overdue:
        record.refused |= dict.fromkeys(plan.overdue, now)
        held, unanswered = sorted(plan.overdue & {*status.kept}), sorted(plan.overdue - {*status.kept})
        refused = len(record.refused)
        log.info("release given up", node=seen.target.node.name, held=held, unanswered=unanswered, refused=refused)
    elif not plan.surplus:
        record.refused.clear()


def succeeded(parts: Parts, seen: Observation, *, wrote: bool) -> None:
    """The pass ended without a failure of Azure's; `wrote`: a NIC was written."""
    record, now = seen.target.record, parts.now()
    record.failures, record.not_before, record.problem = 0, 0.0, seen.problem
    record.contested = {address: until for address, until in record.contested.items() if until > now}
    record.audit_at = now + float(parts.config().audit) * parts.random.uniform(0.8, 1.0)
    if not any(view.failed for view in seen.observed.nics):
        record.repairs, record.repair_after = 0, 0.0
    elif wrote:
        _repaired_in_vain(parts, record)


def failed(parts: Parts, seen: Observation, plan: Plan | None, error: errors.AzureError) -> tuple[Problem, float]:
    """Azure refused or failed, and backs off: returns the problem to publish, and when the next pass is due."""
    record, now, problem = seen.target.record, parts.now(), problem_of(error)
    record.failures += 1
    wait = parts.jitter(wait_after(error, record.failures))
    record.not_before = now + wait
    if isinstance(error, errors.AddressTaken):  # the node's other needs don't wait for it
        asked = [address for change in plan.changes for address in change.restore] if plan else []
        record.contested |= dict.fromkeys(given_up(asked, str(error), record.taken), now + wait)
        record.taken += 1
        record.not_before = now
    elif any(view.failed for view in seen.observed.nics):
        _repaired_in_vain(parts, record)
    if isinstance(error, errors.NicFull):
        record.full_until = now + float(parts.config().audit)
    told = {"reason": problem.reason, "again_in": round(wait, 1), "error": str(error)}
    log.warning("Azure did not do as asked", node=seen.target.node.name, **told)
    return problem, max(record.not_before, now + 0.1)


def cut_short(parts: Parts, name: str, record: NodeState, error: KubeError | NotLeading) -> float:
    """The API server refused or failed: returns when the next pass is due."""
    cluster, now = parts.cluster, parts.now()
    record.unwritable_until = 0.0
    match error:
        case NotFound():  # the pool was deleted during the pass
            cluster.delete_pool(name)
            return now + 0.1
        case Outdated():
            record.overtaken += 1
            wait = parts.jitter(min(OVERTAKEN_MOST, 0.05 * 2.0 ** min(record.overtaken, 20)))
            log.debug("pool changed meanwhile", node=name, error=str(error), again_in=wait)
            cluster.doubted.add(name)
        case Invalid():
            record.refusals += 1
            problem, least = unwritable(name, str(error), record.refusals)
            node, wait = cluster.nodes.get(name), parts.jitter(least)
            if node is not None and record.refusals == 1:
                parts.tell(node, problem)
            log.warning("the pool can't be written", node=name, again_in=round(wait), error=str(error))
            record.unwritable_until = now + wait
        case _:
            log.warning("the look came to no end", node=name, error=str(error))
            wait = parts.jitter(5.0)
    return now + wait


def next_look(parts: Parts, seen: Observation, plan: Plan | None) -> float:
    """When the next pass is due: now if changes remain, as our own write of the pool causes no event."""
    now, record = parts.now(), seen.target.record
    if unconfirmed(seen.pool) or (plan is not None and plan.changes):
        return now
    times = [record.audit_at, *(t for t in record.contested.values() if t > now)]
    if plan is not None and plan.look_again is not None:
        times.append(plan.look_again)
    return min(times)


def _repaired_in_vain(parts: Parts, record: NodeState) -> None:
    record.repairs += 1
    record.repair_after = parts.now() + parts.jitter(min(1800.0, 15.0 * 2.0 ** min(record.repairs, 10)))
