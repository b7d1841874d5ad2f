"""Kubernetes Events about a pod or the node, in addition to the log.

A queue in memory and one task that posts; best effort, bounded, and the same Event about the same object at most once
in ten minutes. Without Kubernetes there is only the log.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog

from vnetpods_agent.attachment import Pod
from vnetpods_agent.kube import KubeApi, KubeError
from vnetpods_api.names import GROUP
from vnetpods_kit.events import EventWriter

QUIET = 600.0
_QUEUE = 256
_NODE_NAMESPACE = "default"  # Events about Nodes live there

log = structlog.get_logger(component="events")


@dataclass(frozen=True, slots=True)
class Event:
    """`pod` None: about the node."""

    reason: str
    message: str
    pod: Pod | None = None


class Events:
    def __init__(self, api: KubeApi | None, node: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._node = node
        self._clock = clock
        self._queue: asyncio.Queue[Event] = asyncio.Queue(_QUEUE)
        self._said: dict[tuple[str, Pod | None, str], float] = {}

    def say(self, event: Event) -> None:
        """Queues the Event; called from the loop, never blocks."""
        now = self._clock()
        self._said = {key: at for key, at in self._said.items() if now - at < QUIET}
        # the cause of a pod's wait may change from minute to minute; it is posted once
        key = (event.reason, event.pod, "" if event.pod else event.message)
        if key in self._said:
            return
        self._said[key] = now
        log.warning("event reported", reason=event.reason, message=event.message, pod=_named(event.pod))
        if self._api is not None and not self._queue.full():
            self._queue.put_nowait(event)

    async def run(self) -> None:
        while True:
            event = await self._queue.get()
            assert self._api is not None
            body = _body(event, self._node, datetime.now(UTC))
            try:
                await self._api.post(f"/apis/events.k8s.io/v1/namespaces/{body['metadata']['namespace']}/events", body)
            except KubeError as error:
                log.info("event not posted", reason=event.reason, error=str(error))


def _named(pod: Pod | None) -> str:
    return f"{pod.namespace}/{pod.name}" if pod else ""


def _body(event: Event, node: str, now: datetime) -> dict[str, Any]:
    regarding: dict[str, str] = {"kind": "Node", "name": node, "uid": node}  # as the kubelet names a Node
    namespace = _NODE_NAMESPACE
    if event.pod is not None:
        namespace = event.pod.namespace
        regarding = {"apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": event.pod.name}
        regarding |= {"uid": event.pod.uid} if event.pod.uid else {}
    writer = EventWriter(f"{GROUP}/agent", node, "Networking")
    name = (namespace, f"vnetpods-{secrets.token_hex(8)}")
    return writer.warning(name, regarding, event.reason, event.message, now)
