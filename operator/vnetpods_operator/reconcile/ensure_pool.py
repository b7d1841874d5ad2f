"""Creates a Node's pool, moves it to the present Node and machine, or reads it again.

Called by the reconciler at the beginning of each pass. Another machine's addresses must not be handed out on this one,
so the list is emptied before `spec.machine` changes: after a crash in between, the pool is empty and names the former
machine, and the next pass continues. An agent that has read the former list ignores an empty one; it recognises another
machine's NIC by its MAC.
"""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from vnetpods_api import NodeIPPool
from vnetpods_kit.faultpoints import OperatorPoint, reach
from vnetpods_operator.planning.machine import MachineId
from vnetpods_operator.planning.node import Node
from vnetpods_operator.reconcile import status
from vnetpods_operator.reconcile.parts import Parts


async def adopted(parts: Parts, node: Node, machine: MachineId | None) -> NodeIPPool:
    """The node's pool, owned by the present Node and naming the present machine."""
    pool, said = parts.cluster.pools.get(node.name), machine.id if machine else None
    if pool is not None and (pool.spec.machine or "").lower() != (said or "").lower():
        if pool.status.interfaces:
            await _emptied(parts, pool)
    elif pool is not None:
        owners = [owner for owner in pool.metadata.owner_references if owner.kind == "Node"]
        if owners == [node.owner]:
            return pool
    known = parts.cluster.version(node.name)
    found = await parts.pools.adopt(node.name, node.owner, said)
    reach(OperatorPoint.POOL_ADOPTED)
    parts.cluster.upsert_pool(found, known)
    return found


async def fresh(parts: Parts, name: str) -> NodeIPPool:
    """The pool, read from the API server."""
    known = parts.cluster.version(name)
    found = await parts.pools.get(name)
    parts.cluster.doubted.discard(name)
    parts.cluster.upsert_pool(found, known)
    return found


async def _emptied(parts: Parts, pool: NodeIPPool) -> None:
    emptied = msgspec.structs.replace(pool, status=msgspec.structs.replace(pool.status, interfaces=(), lost=()))
    parts.cluster.upsert_pool(
        await parts.pools.report(pool, status.status(emptied, status.Findings(), datetime.now(UTC)))
    )
    reach(OperatorPoint.POOL_EMPTIED)
