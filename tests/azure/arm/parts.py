"""Parts of a resource that are resources of their own, too: rules of security groups and balancers, routes.

Pure; called from `cloud.Cloud`. A part lives in its parent's body, so writing one is writing the parent with it, under
the parent's rules; its etag and state are the parent's.
"""

from __future__ import annotations

from tests.azure.arm.errors import ArmError
from tests.azure.arm.ids import ResourceId
from tests.azure.arm.kinds import BY_TYPE
from tests.azure.arm.reads import existing
from tests.azure.arm.requests import Reply, Request
from tests.azure.arm.store import Body
from tests.azure.arm.writes import OWNER, Writable, accepted, copy, put

WRITABLE = (
    "microsoft.network/networksecuritygroups/securityrules",
    "microsoft.network/routetables/routes",
    "microsoft.network/loadbalancers/inboundnatrules",
)


def write(model: Writable, request: Request, wanted: ResourceId, now: float) -> Reply:
    """PUT or DELETE of a part."""
    if wanted.kind not in WRITABLE or request.method not in ("PUT", "DELETE"):
        raise ArmError(404, "InvalidResourceType", f"The resource type {wanted.type} could not be found.")
    parent = existing(model, wanted.parent)
    body: Body = copy(BY_TYPE[parent.id.kind].shown(model, parent))
    before = body["properties"].get(wanted.types[-1]) or []
    others = [one for one in before if one["name"].lower() != wanted.name.lower()]
    new = len(others) == len(before)
    if request.method == "DELETE" and new:
        return Reply(204)
    if request.method == "PUT":
        others.append({**request.body, "name": wanted.name})
    body["properties"][wanted.types[-1]] = others
    whole = Request("PUT", str(parent.id), request.query, body=body, principal=OWNER)
    put(model, whole, BY_TYPE[parent.id.kind], parent.id, now, None)
    if request.method == "DELETE":
        return accepted(model, request, wanted, now)
    stored = existing(model, parent.id)
    part = next(one for one in stored.properties[wanted.types[-1]] if one["name"] == wanted.name)
    return Reply(201 if new else 200, {**part, "etag": stored.etag})
