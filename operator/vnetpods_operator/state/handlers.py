"""kopf's part: watches Nodes and NodeIPPools and updates the cluster state and the queue. Decides and writes nothing.

Only `on.event` handlers: create/update/resume handlers would annotate every object, timers and deletion handlers would
add finalizers that outlive the operator. The settings come from measurements: an idle per-object worker of kopf keeps
the whole body in memory, so it ends after 0.05 s. Deletions during a watch's outage are never delivered; the periodic
list in vnetpods_operator.state.relist finds them.
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
from vnetpods_operator.planning.node import node_from
from vnetpods_operator.state.cluster import ClusterState, version_of
from vnetpods_operator.state.queue import Queue

log = structlog.get_logger()


def registry(
    cluster: ClusterState, queue: Queue, login: Callable[[], Awaitable[kopf.ConnectionInfo]]
) -> kopf.OperatorRegistry:
    """The handlers, bound to this cluster and queue."""
    found = kopf.OperatorRegistry()

    @kopf.on.login(registry=found)
    async def log_in(**_: Any) -> kopf.ConnectionInfo:
        return await login()

    @kopf.on.event("", "v1", "nodes", registry=found)
    async def node_event(event: Any, **_: Any) -> None:
        seen(cluster, queue, event)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=found)
    async def pool_event(event: Any, **_: Any) -> None:
        pool_seen(cluster, queue, event)

    return found


def seen(cluster: ClusterState, queue: Queue, event: Any) -> None:
    """A Node was listed, added, changed or deleted."""
    body = event["object"]
    name = body["metadata"]["name"]
    sharers = cluster.sharers(name)
    if event["type"] == "DELETED":
        cluster.delete_node(name)
        queue.forget(name)
    elif cluster.upsert_node(node_from(body)):
        queue.add(name, cluster.priority(name))
        sharers |= cluster.sharers(name)
    else:
        return
    for other in sharers:
        queue.add(other, cluster.priority(other))


def pool_seen(cluster: ClusterState, queue: Queue, event: Any) -> None:
    """A NodeIPPool was listed, added, changed or deleted. The echo of our own write is already known and ignored."""
    body = event["object"]
    name = body["metadata"]["name"]
    if event["type"] == "DELETED":
        cluster.delete_pool(name)
    else:
        try:
            pool = from_object(body)
            if not cluster.upsert_pool(pool) and not (event["type"] is None and cluster.doubt(name, version_of(pool))):
                return
        except msgspec.ValidationError as error:
            log.warning("NodeIPPool can't be decoded", node=name, error=str(error))
            return
    if name in cluster.nodes:
        priority = cluster.priority(name)
        caller = cluster.record(name).caller
        caller.priority = min(caller.priority, priority)
        queue.add(name, priority)
    elif event["type"] == "ADDED":
        queue.add(name)  # to report the missing Node on it; if that was just deleted, the pool is garbage-collected


def settings() -> kopf.OperatorSettings:
    """See the module docstring."""
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
    """Watches until `stop` is set; lists and watches again whenever `again` is set.

    A watch resumes from the last version that it delivered. If the API server's data was restored from a backup older
    than that version, the watch delivers nothing until the versions exceed it.
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
    """Runs until a watch ends without `again` being set."""
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
