"""A look that the API server cut short: what is remembered of it, what is said, and when to look again."""

from __future__ import annotations

import structlog

from vnetpods_operator.election import NotLeading
from vnetpods_operator.kube import Invalid, KubeError, NotFound, Outdated
from vnetpods_operator.reconcile.backoff import unwritable
from vnetpods_operator.reconcile.parts import Parts

OVERTAKEN_MOST = 10.0
"""Seconds between two looks at a pool that is never as it was read."""

log = structlog.get_logger()


def cut_short(parts: Parts, name: str, error: KubeError | NotLeading) -> float:
    """Seconds until the next look."""
    cluster, spread = parts.cluster, parts.random.uniform(1.0, 1.2)
    record = cluster.record(name)
    match error:
        case NotFound():  # the pool was deleted while it was worked on
            cluster.delete_pool(name)
            return 0.1
        case Outdated():
            record.overtaken += 1
            wait = spread * min(OVERTAKEN_MOST, 0.05 * 2.0 ** min(record.overtaken, 20))
            log.debug("pool changed meanwhile", node=name, error=str(error), again_in=wait)
            cluster.doubted.add(name)
            return wait
        case Invalid():
            record.refusals += 1
            problem, least = unwritable(name, str(error), record.refusals)
            node, wait = cluster.nodes.get(name), spread * least
            if node is not None and record.refusals == 1:
                parts.tell(node, problem)
            log.warning("the pool can't be written", node=name, again_in=round(wait), error=str(error))
            return wait
    log.warning("the look came to no end", node=name, error=str(error))
    return 5.0 * spread
