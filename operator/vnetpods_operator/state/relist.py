"""Lists all Nodes and NodeIPPools: once before the watch starts, then on a schedule to find what the watch missed.

The first lists precede kopf's watch, so that no Node is mistaken for one without a pool, or for the only Node of its
machine. The periodic lists fetch metadata only; they find objects whose deletion was missed, and a pool deleted that
way is recreated.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import msgspec
import structlog

from vnetpods_api.names import GROUP, VERSION
from vnetpods_operator.kube import Kube, KubeError, NotFound
from vnetpods_operator.planning.node import node_from
from vnetpods_operator.state.cluster import ClusterState
from vnetpods_operator.state.pools import PATH, Pools
from vnetpods_operator.state.queue import Queue

log = structlog.get_logger()

T = TypeVar("T")

_NODES = "/api/v1/nodes"
_METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_PAGE = 500


class _Metadata(msgspec.Struct):
    name: str
    namespace: str = ""
    resource_version: str = msgspec.field(default="0", name="resourceVersion")


class _Item(msgspec.Struct):
    metadata: _Metadata


async def served(kube: Kube) -> None:
    """Returns once the API server serves NodeIPPools: kopf ignores kinds that are unknown when it starts."""
    said = False
    while True:
        try:
            await kube.request("GET", f"/apis/{GROUP}/{VERSION}")
        except NotFound:
            if not said:
                log.warning("waiting for the NodeIPPool CRD", group=GROUP, version=VERSION)
                said = True
        except KubeError as error:
            log.warning("waiting for the API server", error=str(error))
        else:
            return
        await asyncio.sleep(2)


async def first_list(pools: Pools, cluster: ClusterState) -> None:
    """Stores all pools, before any Node is reconciled."""
    await _each("NodeIPPools not listed", pools.all, cluster.upsert_pool)


async def first_nodes(kube: Kube, cluster: ClusterState, queue: Queue) -> None:
    """Stores all Nodes, before any is reconciled; after the pools, whose last writes tell which Nodes may stand for
    another machine by now.
    """
    await _each(
        "Nodes not listed",
        lambda: kube.listed(_NODES, _PAGE),
        lambda raw: cluster.upsert_node(node_from(msgspec.json.decode(raw))),
    )
    for name in cluster.nodes:
        queue.add(name, cluster.priority(name))
    _orphans(cluster, queue)


async def _each(failure: str, listed: Callable[[], AsyncIterator[T]], hold: Callable[[T], object]) -> None:
    """Passes each object of a list to `hold`; starts over until the list succeeds."""
    while True:
        try:
            async for one in listed():
                hold(one)
        except KubeError as error:
            log.warning(failure, error=str(error))
            await asyncio.sleep(2)
        else:
            return


async def compare(kube: Kube, cluster: ClusterState, queue: Queue) -> None:
    """Drops objects that are gone from the API server; queues Nodes whose pool is gone, and pools that are listed at an
    older version than the stored one.
    """
    nodes_before, pools_before = set(cluster.nodes), set(cluster.pools)
    known = {name: cluster.version(name) for name in pools_before}
    nodes, pools = await _names(kube, _NODES), await _names(kube, PATH)
    for name in nodes_before - nodes.keys():  # those added since are newer than the list
        log.info("Node vanished unseen", node=name)
        for other in cluster.sharers(name):
            queue.add(other, cluster.priority(other))
        cluster.delete_node(name)
        queue.forget(name)
    for name, version in pools.items():
        if version < known.get(name, 0) and cluster.doubt(name, version):
            queue.add(name)
    for name in pools_before - pools.keys():
        cluster.delete_pool(name)
        if name in cluster.nodes:
            log.info("NodeIPPool vanished unseen", node=name)
            queue.add(name)
    _orphans(cluster, queue)


def _orphans(cluster: ClusterState, queue: Queue) -> None:
    """Queues pools without a Node, so that their status reports it."""
    for name in cluster.pools.keys() - cluster.nodes.keys():
        queue.add(name)


async def host_pods(kube: Kube, node: str) -> int:
    """Number of the node's host-network pods: they count against the kubelet's limit but need no address."""
    selector = f"spec.nodeName={node},spec.hostNetwork=true,status.phase!=Succeeded,status.phase!=Failed"
    return len(await _names(kube, "/api/v1/pods", {"fieldSelector": selector}))


async def _names(kube: Kube, path: str, selection: dict[str, str] | None = None) -> dict[str, int]:
    """Names (with namespace) and resource versions of the listed objects."""
    found = {}
    async for raw in kube.listed(path, _PAGE, query=selection, accept=_METADATA_ONLY):
        metadata = msgspec.json.decode(raw, type=_Item).metadata
        version = metadata.resource_version
        found[f"{metadata.namespace}/{metadata.name}".lstrip("/")] = int(version) if version.isdigit() else 0
    return found
