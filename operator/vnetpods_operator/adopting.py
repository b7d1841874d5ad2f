"""A Node's pool: made if it is missing, given to the present Node and machine, and read anew.

Called by the reconciler at the beginning of each look. What the pool of another machine lists must not be handed out on
this one, so the list is emptied before the pool names the machine: after a crash in between it is empty and names the
former one, and the next look goes on from there. An agent that has read the former list takes no notice of an empty
one; it knows another machine's NIC by its MAC.
"""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from vnetpods_api import NodeIPPool
from vnetpods_operator import report
from vnetpods_operator.faults import Point, reached
from vnetpods_operator.machine import MachineId
from vnetpods_operator.nodes import Node
from vnetpods_operator.pools import Pools
from vnetpods_operator.roster import Roster


async def adopted(pools: Pools, roster: Roster, node: Node, machine: MachineId | None) -> NodeIPPool:
    """The node's pool, with the present Node as owner and the present machine."""
    pool, said = roster.pools.get(node.name), machine.id if machine else None
    if pool is not None and (pool.spec.machine or "").lower() != (said or "").lower():
        if pool.status.interfaces:
            await _emptied(pools, roster, pool)
    elif pool is not None:
        owners = [owner for owner in pool.metadata.owner_references if owner.kind == "Node"]
        if owners == [node.owner]:
            return pool
    known = roster.version(node.name)
    found = await pools.adopt(node.name, node.owner, said)
    reached(Point.POOL_ADOPTED)
    roster.hold_pool(found, known)
    return found


async def fresh(pools: Pools, roster: Roster, name: str) -> NodeIPPool:
    """The pool as the API server has it now, whatever was known."""
    known = roster.version(name)
    found = await pools.get(name)
    roster.doubted.discard(name)
    roster.hold_pool(found, known)
    return found


async def _emptied(pools: Pools, roster: Roster, pool: NodeIPPool) -> None:
    emptied = msgspec.structs.replace(pool, status=msgspec.structs.replace(pool.status, interfaces=(), lost=()))
    roster.hold_pool(await pools.report(pool, report.status(emptied, report.Findings(), datetime.now(UTC))))
    reached(Point.POOL_EMPTIED)
