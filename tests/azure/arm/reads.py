"""Read requests: one resource, a part of one, a list, an operation.

Pure; called from `cloud.Cloud`.
"""

from __future__ import annotations

from typing import Protocol

from tests.azure.arm import machines, networks, power, routes, scalesets
from tests.azure.arm.errors import ArmError, not_found, unknown_group
from tests.azure.arm.ids import ResourceId
from tests.azure.arm.kinds import BY_TYPE
from tests.azure.arm.model import Kind, Model
from tests.azure.arm.operations import Operations
from tests.azure.arm.requests import Reply, Request
from tests.azure.arm.store import Body, Resource


class Readable(Model, Protocol):
    """A model with operations."""

    operations: Operations


def existing(model: Model, wanted: ResourceId) -> Resource:
    """Raises the 404 that names the missing resource or parent."""
    found = model.store.get(wanted)
    if found is not None:
        return found
    if not model.store.has_group(wanted):
        raise unknown_group(wanted.group)
    if len(wanted.types) > 1 and model.store.get(wanted.parent) is not None:
        raise ArmError(404, "NotFound", f"Resource {wanted} not found.")
    raise not_found(str(wanted.parent if len(wanted.types) > 1 else wanted), wanted.group)


def get(model: Readable, request: Request, kind: Kind, wanted: ResourceId) -> Reply:
    found = existing(model, wanted)
    followed = found.operation and model.settings.operation_style == "body"
    running = model.operations.get(found.operation) if followed else None
    body = kind.shown(model, found)
    if wanted.kind in MACHINES and request.query.get("$expand", "").lower() == "instanceview":
        body = {**body, "properties": {**body["properties"], "instanceView": power.instance_view(found)}}
    return Reply(200, body, {"ETag": found.etag}, due=running.due if running else None)


def part(model: Model, request: Request, wanted: ResourceId) -> Reply:
    """Things inside a resource that can be read on their own (`…/networkInterfaces/N/ipConfigurations/C`)."""
    if request.method != "GET" or len(wanted.types) < 2 or wanted.parent.kind not in BY_TYPE:
        raise ArmError(404, "InvalidResourceType", f"The resource type {wanted.type} could not be found.")
    body = BY_TYPE[wanted.parent.kind].shown(model, existing(model, wanted.parent))
    for found in body["properties"].get(wanted.types[-1]) or ():
        if found["name"].lower() == wanted.name.lower():
            return Reply(200, found)
    raise ArmError(404, "NotFound", f"Resource {wanted} not found.")


def listed(model: Model, request: Request, wanted: routes.Target) -> Reply:
    """Resources of a type below a subscription, a group or a parent, in pages."""
    if wanted.action == "usages" and wanted.id is not None:
        return Reply(200, {"value": networks.usages(model, existing(model, wanted.id))})
    if wanted.kind.lower() in SET_NICS and wanted.id is not None:
        return _scale_set_nics(model, request, wanted.id)
    kind = BY_TYPE.get(wanted.kind.lower())
    if kind is None and wanted.id is not None and wanted.id.kind in BY_TYPE:
        shown = BY_TYPE[wanted.id.kind].shown(model, existing(model, wanted.id))
        return Reply(200, {"value": shown["properties"].get(wanted.action) or []})
    if kind is None:
        raise ArmError(404, "InvalidResourceType", f"The resource type {wanted.kind} could not be found.")
    if wanted.id is not None:
        existing(model, wanted.id)
    return _page(model, request, kind, list(model.store.below(wanted.prefix, wanted.kind)))


MACHINES = (machines.TYPE.lower(), scalesets.INSTANCE.lower())
SET_NICS = (f"{scalesets.TYPE}/networkInterfaces".lower(), scalesets.NIC.lower())


def _scale_set_nics(model: Model, request: Request, wanted: ResourceId) -> Reply:
    """NICs of a whole set or of one instance; they are shown nowhere else."""
    existing(model, wanted)
    found = list(model.store.below(str(wanted), scalesets.NIC))
    if not found and model.settings.guesses.empty_set_has_no_nics:
        raise ArmError(404, "NotFound", f"No network interfaces were found in {wanted}.")
    return _page(model, request, BY_TYPE[scalesets.NIC.lower()], found)


def _page(model: Model, request: Request, kind: Kind, found: list[Resource]) -> Reply:
    token = request.query.get("$skipToken", "0")
    if not token.isdecimal():
        raise ArmError(400, "InvalidSkipToken", f"The skip token {token!r} is not one of ours.")
    start = int(token)
    end = start + model.settings.page
    body: Body = {"value": [kind.shown(model, resource) for resource in found[start:end]]}
    if end < len(found):
        version = request.query["api-version"]
        body["nextLink"] = f"{request.base}{request.path}?api-version={version}&$skipToken={end}"
    return Reply(200, body)


def operation(model: Readable, wanted: routes.Target) -> Reply:
    """A poll."""
    found = model.operations.get(wanted.name)
    if found is None:
        raise ArmError(404, "OperationNotFound", f"The operation {wanted.name} was not found.")
    running = found.status == "InProgress"
    headers = {"Retry-After": model.settings.next_retry_after()} if running else {}
    due = found.due if running else None
    if wanted.action == "operationresults":
        return Reply(202 if running else 204, None, headers, due=due)
    return Reply(200, found.body(timed="microsoft.compute" in found.target.lower()), headers, due=due)
