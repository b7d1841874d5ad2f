"""The NodeIPPool of this node as a source of addresses: one object, listed and watched; the status applied server-side.

Runs in the event loop; one task iterates `watch`, another calls `publish`. The list sets no resourceVersion, so that it
returns the API server's newest state and not a cache's. A watch continues from there; after its end or an error
(410, a lost connection) the source lists again, with a growing pause after a failure. Every report names the version of
the pool that it answers, and the API server rejects it if there is a newer one: so a delayed report can't arrive after
a later one. A rejection (409) leads to a new list, whose result counts even if it is older: an API server restored
from a backup goes back in time, and would otherwise reject our reports forever. For the same reason an ended watch is
not simply restarted: from a version in the future it delivers nothing. A deleted pool yields nothing until it exists
again: its absence changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network
from typing import Any, TypeVar

import msgspec
import structlog

from vnetpods_agent.kube import ApiError, KubeApi, KubeError
from vnetpods_agent.sync.source import Report, SourceChanged, SourceUnavailable, Supply
from vnetpods_api import (
    AgentReport,
    Condition,
    ConditionStatus,
    ConditionType,
    Interface,
    NodeIPPool,
    Reason,
    apply_body,
    condition,
    from_object,
    merge,
)
from vnetpods_api.names import AGENT_MANAGER, GROUP, PLURAL, VERSION

T = TypeVar("T")
_PATH = f"/apis/{GROUP}/{VERSION}/{PLURAL}"
_WATCH_SECONDS = 240
_RETRY = (0.2, 8.0)
_GONE = 410
_CONFLICT = 409

log = structlog.get_logger(component="nodeippool")


class NodeIPPoolSource:
    """An AddressSource. It owns the API session it is given."""

    truth = False
    lasting = False

    def __init__(self, api: KubeApi, node: str) -> None:
        self._api = api
        self._node = node
        self._query = {"fieldSelector": f"metadata.name={node}"}
        self._trouble = "the API server has not answered yet"
        self._conditions: tuple[Condition, ...] = ()
        self._interfaces: tuple[Interface, ...] = ()
        self._version = ""
        self._acknowledged: AgentReport | None = None
        self._refused = asyncio.Event()

    @property
    def trouble(self) -> str:
        return self._trouble

    async def close(self) -> None:
        await self._api.close()

    async def watch(self) -> AsyncGenerator[Supply]:
        retry = _RETRY[0]
        while True:
            try:
                self._refused.clear()
                acknowledged = self._acknowledged
                listed = await self._api.get(_PATH, self._query)
                retry = _RETRY[0]
                self._trouble = (
                    "" if listed["items"] else f"there is no NodeIPPool {self._node} yet; does the operator run?"
                )
                for item in listed["items"]:
                    if (supply := self._supply(item, acknowledged)) is not None:
                        yield supply
                async for supply in self._events(listed["metadata"]["resourceVersion"]):
                    yield supply
                if self._refused.is_set():
                    continue
            except KubeError as error:
                if not (isinstance(error, ApiError) and error.status == _GONE):
                    self._trouble = str(error)
                    log.warning("NodeIPPool can't be watched", error=str(error))
            await asyncio.sleep(retry * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
            retry = min(retry * 2, _RETRY[1])

    async def _events(self, version: str) -> AsyncGenerator[Supply]:
        """Yields until the watch ends or a report is rejected. Raises KubeError."""
        query = {**self._query, "resourceVersion": version}
        async for event in until_set(self._refused, self._api.watch(_PATH, query, _WATCH_SECONDS)):
            kind, item = event.get("type"), event.get("object") or {}
            if kind == "ERROR":
                raise ApiError(int(item.get("code") or 0), f"watch {_PATH}", str(item.get("message")))
            if kind in ("ADDED", "MODIFIED") and not self._is_past(item["metadata"]["resourceVersion"]):
                self._trouble = ""
                if (supply := self._supply(item, self._acknowledged)) is not None:
                    yield supply
            elif kind == "DELETED":
                self._trouble = f"the NodeIPPool {self._node} was deleted"
                log.warning("NodeIPPool deleted; going on with what is known", node=self._node)

    def _is_past(self, version: str) -> bool:
        """Whether it precedes our last accepted report: we had observed everything written before that."""
        return version.isdigit() and self._version.isdigit() and int(version) < int(self._version)

    def _supply(self, item: Any, acknowledged: AgentReport | None) -> Supply | None:
        try:
            pool: NodeIPPool = from_object(item)
        except msgspec.ValidationError as error:
            self._trouble = f"the NodeIPPool {self._node} can't be read: {error}"
            log.error("NodeIPPool can't be read", error=str(error))  # noqa: TRY400 - a trace adds nothing
            return None
        self._conditions, self._interfaces = pool.status.conditions, pool.status.interfaces
        self._version = pool.metadata.resource_version or ""
        return Supply(pool.status, acknowledged=acknowledged)

    async def publish(self, report: Report) -> None:
        conditions = tuple(merge(self._conditions, [_agent_ready(report, datetime.now(UTC))]))
        missing = _of_subnets(report.status.missing, self._interfaces)
        status = msgspec.structs.replace(report.status, missing=missing, conditions=conditions)
        query = {"fieldManager": AGENT_MANAGER, "force": "true"}
        body = apply_body(self._node, status=status, resource_version=self._version)
        try:
            answer = await self._api.apply(f"{_PATH}/{self._node}/status", query, body)
        except ApiError as error:
            if error.status != _CONFLICT:
                raise SourceUnavailable(f"NodeIPPool {self._node}: {error}") from error
            self._refused.set()
            raise SourceChanged(f"NodeIPPool {self._node}: {error}") from error
        except KubeError as error:
            raise SourceUnavailable(f"NodeIPPool {self._node}: {error}") from error
        # the watch may still deliver older versions
        self._version = answer["metadata"]["resourceVersion"]
        self._acknowledged = report.agent


async def until_set(end: asyncio.Event, stream: AsyncGenerator[T]) -> AsyncGenerator[T]:
    """Yields from the stream until the event is set, then closes it."""
    ended = asyncio.ensure_future(end.wait())
    try:
        while True:
            coming = asyncio.ensure_future(anext(stream))
            try:
                await asyncio.wait((ended, coming), return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not coming.done():
                    coming.cancel()
                    await asyncio.gather(coming, return_exceptions=True)
            if ended.done():
                return
            try:
                yield coming.result()
            except StopAsyncIteration:
                return
    finally:
        ended.cancel()
        with contextlib.suppress(Exception):
            await stream.aclose()


def _of_subnets(missing: Sequence[str], interfaces: Sequence[Interface]) -> tuple[str, ...]:
    """The missing addresses that can be requested on one of the interfaces. A NIC that no longer carries pods may leave
    others; the chart's admission policy rejects a report with them.
    """
    if not missing or not interfaces or not all(interface.prefixes for interface in interfaces):
        return tuple(missing)
    prefixes = [IPv4Network(prefix, strict=False) for interface in interfaces for prefix in interface.prefixes]
    return tuple(a for a in missing if any(IPv4Address(a) in prefix for prefix in prefixes))


def _agent_ready(report: Report, now: datetime) -> Condition:
    if report.serving:
        message = "the agent answers the container runtime"
        reason = Reason.OPERATOR_SILENT if report.message else Reason.AGENT_SERVING
        return condition(ConditionType.AGENT_READY, ConditionStatus.TRUE, reason, report.message or message, now)
    reason = Reason.AGENT_STOPPED if report.stopping else Reason.AGENT_STARTING
    message = "the agent was stopped" if report.stopping else report.message
    return condition(ConditionType.AGENT_READY, ConditionStatus.FALSE, reason, message, now)
