"""kopf's part: it watches Nodes and NodeIPPools and tells the roster and the queue. It decides and writes nothing.

Only `on.event` handlers: create/update/resume handlers would annotate every object, timers and deletion handlers would
add finalizers that outlive the operator. The settings are measured ones: an idle per-object worker of kopf holds the
whole body, so it goes after 0.05 s. Deletions that happened while the watch was down are never reported; the periodic
list in vnetpods_operator.watching finds them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import kopf
import msgspec
import structlog

from vnetpods_api import from_object
from vnetpods_api.names import GROUP, OPERATOR_MANAGER, PLURAL, VERSION
from vnetpods_operator.nodes import node_from
from vnetpods_operator.queueing import Queue
from vnetpods_operator.roster import Roster, version_of

log = structlog.get_logger()


def registry(
    roster: Roster, queue: Queue, login: Callable[[], Awaitable[kopf.ConnectionInfo]]
) -> kopf.OperatorRegistry:
    """The handlers, bound to this roster and queue."""
    found = kopf.OperatorRegistry()

    @kopf.on.login(registry=found)
    async def log_in(**_: Any) -> kopf.ConnectionInfo:
        return await login()

    @kopf.on.event("", "v1", "nodes", registry=found)
    async def node_event(event: Any, **_: Any) -> None:
        seen(roster, queue, event)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=found)
    async def pool_event(event: Any, **_: Any) -> None:
        pool_seen(roster, queue, event)

    return found


def seen(roster: Roster, queue: Queue, event: Any) -> None:
    """A Node was listed, added, changed or deleted."""
    body = event["object"]
    name = body["metadata"]["name"]
    sharers = roster.sharers(name)
    if event["type"] == "DELETED":
        roster.drop_node(name)
        queue.forget(name)
    elif roster.hold_node(node_from(body)):
        queue.add(name, roster.urgency(name))
        sharers |= roster.sharers(name)
    else:
        return
    for other in sharers:
        queue.add(other, roster.urgency(other))


def pool_seen(roster: Roster, queue: Queue, event: Any) -> None:
    """A NodeIPPool was listed, added, changed or deleted. What we wrote ourselves is known already and no news."""
    body = event["object"]
    name = body["metadata"]["name"]
    if event["type"] == "DELETED":
        roster.drop_pool(name)
    else:
        try:
            pool = from_object(body)
            if not roster.hold_pool(pool) and not (event["type"] is None and roster.doubt(name, version_of(pool))):
                return
        except msgspec.ValidationError as error:
            log.warning("NodeIPPool can't be decoded", node=name, error=str(error))
            return
    if name in roster.nodes:
        urgency = roster.urgency(name)
        ticket = roster.record(name).ticket
        ticket.urgency = min(ticket.urgency, urgency)
        queue.add(name, urgency)
    elif event["type"] == "ADDED":
        queue.add(name)  # to be told that it has no Node; if that was deleted a moment ago, the pool goes, too


def settings() -> kopf.OperatorSettings:
    """See the module's text."""
    found = kopf.OperatorSettings()
    found.queueing.idle_timeout = 0.05
    found.queueing.exit_timeout = 0.5
    found.watching.chunk_size = 250
    found.watching.server_timeout = 300
    found.watching.reconnect_backoff = 0.5
    found.scanning.disabled = True
    found.peering.standalone = True
    found.posting.enabled = False
    found.persistence.finalizer = f"{GROUP}/operator"
    found.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=GROUP)
    found.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=GROUP)
    found.networking.request_timeout = 60
    found.networking.connect_timeout = 10
    return found


async def run(handlers: kopf.OperatorRegistry, stop: asyncio.Event, again: asyncio.Event) -> None:
    """Watches until `stop` is set; lists and watches anew whenever `again` is.

    A watch goes on from the version that it saw last. If that is of a time that the API server has forgotten (its data
    was restored from a backup), it hears nothing until the versions have grown beyond it.
    """
    watches = asyncio.create_task(_forever(handlers, again))
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([watches, stopped], return_when=asyncio.FIRST_COMPLETED)
        if watches.done():
            watches.result()
    finally:
        for task in (watches, stopped):
            task.cancel()
        await asyncio.gather(watches, stopped, return_exceptions=True)


async def _forever(handlers: kopf.OperatorRegistry, again: asyncio.Event) -> None:
    """Until a watch ends that nobody has asked to begin anew."""
    while True:
        await kopf.operator(
            registry=handlers,
            settings=settings(),
            clusterwide=True,
            standalone=True,
            stop_flag=again,
            identity=OPERATOR_MANAGER,  # type: ignore[arg-type]
        )
        if not again.is_set():
            return
        again.clear()
