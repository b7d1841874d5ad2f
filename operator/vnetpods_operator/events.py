"""Kubernetes Events about Nodes, aggregated: one series per Node and reason; repeats only raise the Event's count.

`tell` only records the problem in a bounded table; a task writes the Events. So a loop that fails a thousand times
costs one API write per Node, reason and `quiet` seconds, and an unavailable API server costs nothing. Events are a
courtesy to people: everything important is in conditions, too. Harmless to lose at a restart.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog

from vnetpods_api.names import GROUP
from vnetpods_kit.events import EventWriter, note, stamp
from vnetpods_operator.kube import MERGE, Kube, KubeError, NotFound
from vnetpods_operator.planning.model import Problem
from vnetpods_operator.planning.node import Node

QUIET_SECONDS = 300.0
"""Least time between two writes of one series."""
MOST = 2000
"""Most series remembered; beyond that the oldest are forgotten."""
NAMESPACE = "default"
"""Where Events about cluster-scoped objects live."""

log = structlog.get_logger()


@dataclass(slots=True)
class _EventSeries:
    node: Node
    problem: Problem
    name: str = ""
    note: str = ""
    count: int = 0
    written: int = 0
    written_at: float = 0.0


@dataclass(slots=True)
class Recorder:
    """Collects and writes Events."""

    kube: Kube
    instance: str
    quiet: float = QUIET_SECONDS
    _matters: dict[tuple[str, str], _EventSeries] = field(default_factory=dict)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self, node: Node, problem: Problem) -> None:
        """Records a problem of the Node for an Event."""
        key = (node.uid, problem.reason.value)
        matter = self._matters.get(key)
        if matter is None:
            if len(self._matters) >= MOST:
                del self._matters[next(iter(self._matters))]
            matter = self._matters[key] = _EventSeries(node, problem)
        matter.problem = problem
        matter.count += 1
        self._news.set()

    async def write(self) -> None:
        """Writes recorded problems as Events, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._news.wait()
            self._news.clear()
            for matter in list(self._matters.values()):
                quiet = matter.written and loop.time() - matter.written_at < self.quiet
                if matter.count == matter.written or quiet:
                    continue
                matter.written, matter.written_at = matter.count, loop.time()
                try:
                    await self._put(matter)
                except KubeError as error:
                    log.warning("Event not written", node=matter.node.name, error=str(error))

    async def _put(self, matter: _EventSeries) -> None:
        now = datetime.now(UTC)
        path = f"/apis/events.k8s.io/v1/namespaces/{NAMESPACE}/events"
        text = note(matter.problem.message)
        if matter.name and matter.note == text:  # only the series of an existing Event is mutable
            series = {"count": matter.count, "lastObservedTime": stamp(now)}
            body = {"series": series}
            try:
                await self.kube.request("PATCH", f"{path}/{matter.name}", body=body, content_type=MERGE)
            except NotFound:
                matter.name = ""  # its TTL (an hour by default) has expired, the problem has not
            else:
                return
        reason = matter.problem.reason.value
        digest = hashlib.sha256(f"{matter.node.uid} {reason} {stamp(now)}".encode()).hexdigest()[:16]
        name = f"{matter.node.name[:200].rstrip('.-')}.{digest}"
        node = {"apiVersion": "v1", "kind": "Node", "name": matter.node.name, "uid": matter.node.uid}
        writer = EventWriter(f"{GROUP}/operator", self.instance, "Reconcile")
        body = writer.warning((NAMESPACE, name), node, reason, text, now)
        await self.kube.request("POST", path, body=body)
        matter.name, matter.note = name, text
