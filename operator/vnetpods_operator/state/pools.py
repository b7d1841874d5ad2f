"""NodeIPPools on the API server: reads one or all, applies the fields that the operator owns.

Server-side apply, field manager vnetpods-operator: spec.machine and the owner on the object, the operator's status
fields on the status subresource. A status write carries the resourceVersion of the pool that it was derived from, so
that no decision rests on a report that the agent has since replaced; a stale write raises `Outdated`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec

from vnetpods_api import NodeIPPool, OwnerReference, Spec, Status, apply_body
from vnetpods_api.names import GROUP, OPERATOR_MANAGER, PLURAL, VERSION
from vnetpods_operator.kube import APPLY, Kube

PATH = f"/apis/{GROUP}/{VERSION}/{PLURAL}"
PAGE = 250
_FORCE = {"fieldManager": OPERATOR_MANAGER, "force": "true"}


class Pools:
    """All NodeIPPools of one API server."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube

    async def get(self, name: str) -> NodeIPPool:
        return _decode(await self._kube.request("GET", f"{PATH}/{name}"))

    async def all(self) -> AsyncIterator[NodeIPPool]:
        """Every pool, page by page. Skips a pool that can't be decoded: it was stored before it was validated."""
        async for raw in self._kube.listed(PATH, PAGE):
            try:
                yield _decode(bytes(raw))
            except msgspec.ValidationError:
                continue

    async def adopt(self, name: str, owner: OwnerReference, machine: str | None) -> NodeIPPool:
        """Creates the pool, or sets its owner and machine to the present ones."""
        body = apply_body(name, spec=Spec(machine=machine), owner=owner)
        return _decode(await self._kube.request("PATCH", f"{PATH}/{name}", query=_FORCE, body=body, content_type=APPLY))

    async def report(self, pool: NodeIPPool, status: Status) -> NodeIPPool:
        """Writes the operator's status fields if the pool is unchanged since it was read."""
        name = pool.metadata.name
        body = apply_body(name, status=status, resource_version=pool.metadata.resource_version)
        return _decode(
            await self._kube.request("PATCH", f"{PATH}/{name}/status", query=_FORCE, body=body, content_type=APPLY)
        )


def _decode(data: bytes) -> NodeIPPool:
    return msgspec.json.decode(data, type=NodeIPPool)
