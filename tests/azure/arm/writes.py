"""Write requests: conditions, the type's own rules, the operation that follows.

Pure; called from `cloud.Cloud`. A write takes effect when it is accepted; its operation only determines when the
service reports it as done. An Outcome (from a fault) makes the operation fail, with or without the effect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from tests.azure.arm import networks, nics, power, scalesets
from tests.azure.arm.errors import ArmError, unknown_group
from tests.azure.arm.ids import ResourceId
from tests.azure.arm.model import Kind, Model
from tests.azure.arm.operations import Operation, Operations
from tests.azure.arm.reads import existing
from tests.azure.arm.requests import Reply, Request
from tests.azure.arm.store import Body, Resource

LOCATION = "westeurope"
OWNER = "owner"
"""The principal of tests and builders: faults, budgets and permissions don't apply to it, its writes are done at once,
and the ledger doesn't count it."""


class Writable(Model, Protocol):
    """A model with operations and a generation."""

    operations: Operations
    generation: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of an operation: its error, and whether the write has happened nevertheless."""

    error: ArmError
    applied: bool


def put(
    model: Writable, request: Request, kind: Kind, wanted: ResourceId, now: float, outcome: Outcome | None
) -> Reply:
    """A whole-body write."""
    if not isinstance(request.body, dict):
        raise ArmError(400, "InvalidRequestContent", "The request content was invalid and could not be deserialized.")
    current = model.store.get(wanted)
    if request.principal != OWNER and not model.store.has_group(wanted):
        raise unknown_group(wanted.group)
    if current is None and len(wanted.types) > 1 and model.store.get(wanted.parent) is None:
        raise ArmError(
            404, "ParentResourceNotFound", f"Failed to perform 'write' on resource {wanted}: its parent was not found."
        )
    _check_etag(model, request, wanted, current)
    if request.principal != OWNER:
        _check_running(model, wanted, current)
    if len(wanted.types) == 1 and current is None and not request.body.get("location"):
        raise ArmError(400, "LocationRequired", f"The location property is required for the definition of {wanted}.")
    broken = scalesets.still_half_made(current, request.body)
    if broken is not None:
        outcome = Outcome(broken, applied=False)
    if outcome is not None and not outcome.applied:
        return _failing(model, request, kind, wanted, now, outcome)
    body = kind.write(model, wanted, copy(request.body), current, now)
    return _store(model, request, kind, wanted, body, now, outcome)


def patch(model: Writable, request: Request, kind: Kind, wanted: ResourceId) -> Reply:
    """Tags only, as `UpdateTags` of every network resource."""
    found = existing(model, wanted)
    _check_etag(model, request, wanted, found)
    tags = request.body.get("tags") if isinstance(request.body, dict) else None
    if not isinstance(tags, dict):
        raise ArmError(400, "InvalidRequestContent", "Only tags can be patched, and the request has none.")
    found.body["tags"] = dict(tags)
    found.changed()
    model.generation += 1
    return Reply(200, kind.shown(model, found))


def delete(model: Writable, request: Request, wanted: ResourceId, now: float) -> Reply:
    found = model.store.get(wanted)
    if found is None:
        return Reply(204)
    _check_etag(model, request, wanted, found)
    model.delete(found, now)
    return accepted(model, request, wanted, now)


def accepted(model: Writable, request: Request, wanted: ResourceId, now: float) -> Reply:
    """The reply to a deletion, which can be polled in two ways."""
    duration = _duration(model, request, wanted)
    operation = model.operations.start(str(wanted), now, now + duration, lambda operation: None)
    headers = _headers(model, request, wanted, operation, always=True)
    result = headers["Azure-AsyncOperation"].replace("/operations/", "/operationResults/")
    return Reply(202, None, {**headers, "Location": result})


def action(model: Writable, request: Request, wanted: ResourceId, name: str, now: float) -> Reply:
    """POST: power of a machine, or deleting instances of a scale set."""
    found = existing(model, wanted)
    if wanted.kind == scalesets.TYPE.lower() and name.lower() == "delete":
        for number in (request.body or {}).get("instanceIds") or ():
            instance = model.store.get(wanted.child("virtualMachines", number))
            if instance is not None:
                model.delete(instance, now)
    else:
        power.act(found, name)
    model.generation += 1
    duration = _duration(model, request, wanted)
    operation = model.operations.start(str(wanted), now, now + duration, lambda operation: None)
    return Reply(202, None, _headers(model, request, wanted, operation, always=True))


def _store(
    model: Writable, request: Request, kind: Kind, wanted: ResourceId, body: Body, now: float, outcome: Outcome | None
) -> Reply:
    current = model.store.get(wanted)
    previous = current.body if current else None
    resource = current or Resource(wanted, {})
    duration = _duration(model, request, wanted)
    model.remember(resource, now, now + duration)
    body.pop("etag", None)
    resource.body = {"name": resource.id.name, "id": str(resource.id), "type": resource.id.type} | {
        name: value for name, value in body.items() if name not in ("name", "id", "type")
    }
    model.store.add(resource)
    kind.written(model, resource, previous)
    model.generation += 1
    operation = None
    if duration > 0 or outcome:
        operation = _start(model, resource, now, now + duration, outcome.error if outcome else None)
    resource.changed(_state(model, resource, new=previous is None) if resource.operation else "Succeeded")
    headers = _headers(model, request, wanted, operation, always=outcome is not None)
    if is_compute(wanted):
        headers["ETag"] = resource.etag
    created = previous is None or wanted.kind == networks.TYPE.lower()  # VNets say 201 for an update, too
    return Reply(201 if created else 200, kind.shown(model, resource), headers)


def _state(model: Model, resource: Resource, *, new: bool) -> str:
    """The provisioningState that a write leaves while its operation runs."""
    if is_compute(resource.id):
        return "Creating" if new else "Updating"
    at_once = resource.id.kind == nics.TYPE.lower() and model.settings.operation_style == "recorded"
    return "Succeeded" if at_once else "Updating"


def _failing(model: Writable, request: Request, kind: Kind, wanted: ResourceId, now: float, outcome: Outcome) -> Reply:
    """An accepted write without effect: the resource stays as it was and is Failed afterwards."""
    current = model.store.get(wanted)
    due = now + _duration(model, request, wanted)
    if current is None:
        operation = model.operations.start(str(wanted), now, due, lambda operation: None, outcome.error)
        body = {**request.body, "id": str(wanted), "name": wanted.name}
    else:
        operation = _start(model, current, now, due, outcome.error)
        current.changed(_state(model, current, new=False))
        body = kind.shown(model, current)
    return Reply(200 if current else 201, body, _headers(model, request, wanted, operation, always=True))


def _start(model: Writable, resource: Resource, now: float, due: float, error: ArmError | None = None) -> Operation:
    def finish(operation: Operation) -> None:
        if resource.operation != operation.id:
            return
        resource.operation = ""
        state = "Failed" if operation.error else "Succeeded"
        if is_compute(resource.id):  # etags there are those of writes
            resource.state = state
            resource.stamp()
        elif state != resource.state:
            resource.changed(state)

    operation = model.operations.start(str(resource.id), now, due, finish, error)
    resource.operation = operation.id
    return operation


def _duration(model: Model, request: Request, wanted: ResourceId) -> float:
    done = request.principal == OWNER or model.settings.operation_style == "none"
    return 0.0 if done else model.settings.duration(wanted.kind)


def _headers(
    model: Model, request: Request, wanted: ResourceId, operation: Operation | None, *, always: bool = False
) -> dict[str, str]:
    if operation is None or not (model.settings.operation_style in ("recorded", "header") or always):
        return {}
    provider = f"/subscriptions/{wanted.subscription}/providers/{wanted.provider}"
    version = request.query["api-version"]
    url = f"{request.base}{provider}/locations/{LOCATION}/operations/{operation.id}?api-version={version}"
    return {"Azure-AsyncOperation": url, "Retry-After": model.settings.next_retry_after()}


def is_compute(wanted: ResourceId) -> bool:
    return wanted.provider.lower() == "microsoft.compute"


def _check_etag(model: Model, request: Request, wanted: ResourceId, current: Resource | None) -> None:
    given = request.headers.get("if-match")
    if not given or given == "*" or not model.settings.guesses.etags_enforced:
        return
    if current is None or given != current.etag:
        have = current.etag if current else "none"
        detail = f"Etag provided in if-match header {given} does not match etag {have} of resource {wanted}."
        details = [] if is_compute(wanted) else [("PreconditionFailedEtagMismatch", detail)]
        raise ArmError(412, "PreconditionFailed", f"Precondition failed. {detail}", details)


def _check_running(model: Writable, wanted: ResourceId, current: Resource | None) -> None:
    """Another operation on this resource is still running."""
    operation = model.operations.get(current.operation) if current and current.operation else None
    if operation is None:
        return
    rule = model.settings.guesses.parallel_writes
    other = f"operation {operation.id} on resource {wanted} is in progress"
    if rule == "accept":
        words = "Operation execution has been preempted by a more recent operation."
        model.operations.cancel(operation, ArmError(200, "OperationPreempted", words))
        return
    if rule == "conflict":
        raise ArmError(
            409,
            "AnotherOperationInProgress",
            f"Another operation on this or dependent resource is in progress: {other}.",
        )
    raise ArmError(
        429,
        "RetryableErrorDueToAnotherOperation",
        f"Operation on resource {wanted} was canceled because another {other}.",
        headers={"Retry-After": model.settings.next_retry_after()},
    )


def copy(value: Any) -> Any:
    """A copy without nulls: to the service they equal missing properties."""
    if isinstance(value, dict):
        return {name: copy(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [copy(inner) for inner in value]
    return value
