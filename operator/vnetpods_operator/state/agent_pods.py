"""Watches the agents' Pods: one list, then a watch from its version, and a new list whenever the watch fails.

One task of the leader. kopf would watch every Pod of the namespace and keep it whole; this keeps a few fields of each.
Events are rare: a Pod's status changes when its readiness does. While the watch is broken, earlier observations count
for nothing (`Judge.followed`).
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import structlog

from vnetpods_operator.config import Agents, Selector
from vnetpods_operator.kube import Kube, KubeError, Unreachable
from vnetpods_operator.state.cluster import ClusterState
from vnetpods_operator.state.queue import Queue
from vnetpods_operator.state.silence import AgentPod, Judge

WATCH_SECONDS = 240
PAUSE_SECONDS = (2.0, 60.0)
"""Back-off before the next list: first and longest."""
_PAGE = 250

log = structlog.get_logger()


class _Metadata(msgspec.Struct, rename="camel"):
    name: str = ""
    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class _Spec(msgspec.Struct, rename="camel"):
    node_name: str = ""


class _Condition(msgspec.Struct, rename="camel"):
    type: str
    status: str
    last_transition_time: str | None = None


class _Container(msgspec.Struct, rename="camel"):
    state: dict[str, Any] = {}


class _Status(msgspec.Struct, rename="camel"):
    conditions: list[_Condition] = []
    container_statuses: list[_Container] = []


class _Pod(msgspec.Struct):
    metadata: _Metadata
    spec: _Spec = msgspec.field(default_factory=_Spec)
    status: _Status = msgspec.field(default_factory=_Status)


class _List(msgspec.Struct):
    metadata: _Metadata
    items: list[_Pod] | None = None


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


async def follow(kube: Kube, agents: Agents, judge: Judge, cluster: ClusterState, queue: Queue) -> None:
    """Runs until cancelled; idle if no namespace is configured."""
    if not agents.namespace:
        await asyncio.Event().wait()
    path = f"/api/v1/namespaces/{agents.namespace}/pods"
    query = {"labelSelector": labels(agents.selector)}

    def news(node: str) -> None:
        if node in cluster.nodes:
            queue.add(node, cluster.priority(node))

    loop, pause, said = asyncio.get_running_loop(), PAUSE_SECONDS[0], ""
    while True:
        began = loop.time()
        try:
            pods, version = await _listed(kube, path, query)
            first = not judge.followed  # then a node without a Pod is news, too
            changed = judge.replace(pods)
            for node in set(cluster.nodes) if first else changed:
                news(node)
            await _watched(kube, path, query | {"resourceVersion": version}, judge, news)
        except (KubeError, msgspec.MsgspecError) as error:
            judge.followed = False
            if str(error) != said:
                said = str(error)
                log.warning("the agents' Pods can't be followed", namespace=agents.namespace, error=said)
        pause = PAUSE_SECONDS[0] if loop.time() - began > PAUSE_SECONDS[1] else min(PAUSE_SECONDS[1], 2 * pause)
        await asyncio.sleep(pause)


def labels(selector: Selector) -> str:
    """The selector in the form of the API server's `labelSelector` parameter."""
    forms = {
        "In": "{key} in ({values})",
        "NotIn": "{key} notin ({values})",
        "Exists": "{key}",
        "DoesNotExist": "!{key}",
    }
    parts = [f"{key}={value}" for key, value in selector.match_labels.items()]
    parts += [forms[e.operator].format(key=e.key, values=",".join(e.values)) for e in selector.match_expressions]
    return ",".join(parts)


async def _listed(kube: Kube, path: str, query: dict[str, str]) -> tuple[list[AgentPod], str]:
    pods: list[AgentPod] = []
    following = ""
    while True:
        asked = query | {"limit": str(_PAGE)} | ({"continue": following} if following else {})
        found = msgspec.json.decode(await kube.request("GET", path, query=asked), type=_List)
        pods += map(_agent_pod, found.items or ())
        following = found.metadata.continue_
        if not following:
            return pods, found.metadata.resource_version


async def _watched(kube: Kube, path: str, query: dict[str, str], judge: Judge, news: Any) -> None:
    """Raises KubeError when the watch can't be resumed from its version."""
    while True:
        async for line in kube.watch(path, query, WATCH_SECONDS):
            event = msgspec.json.decode(line, type=_Event)
            if event.type == "ERROR":
                raise Unreachable(f"watch {path}: {bytes(event.object).decode(errors='replace')[:300]}")
            found = msgspec.json.decode(event.object, type=_Pod)
            query = query | {"resourceVersion": found.metadata.resource_version}
            pod = _agent_pod(found)
            if event.type == "DELETED":
                judge.drop(pod)
                news(pod.node)
            elif event.type in ("ADDED", "MODIFIED") and judge.hold(pod):
                news(pod.node)


def _agent_pod(pod: _Pod) -> AgentPod:
    ready = next((c for c in pod.status.conditions if c.type == "Ready"), None)
    return AgentPod(
        name=pod.metadata.name,
        node=pod.spec.node_name,
        ready=ready is not None and ready.status == "True",
        running=any("running" in container.state for container in pod.status.container_statuses),
        since=(ready.last_transition_time or "") if ready else "",
    )
