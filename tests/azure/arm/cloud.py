"""The whole cloud as one function: `Cloud.handle(request, now) -> Reply`.

Nothing here does I/O or looks at a clock; `server.py` runs it in its event loop, tests may call it directly. One
request passes: settle operations → token → faults → budget → permission → resource → ledger. A refusal is an ArmError;
every other exception is a bug of the emulator. Nothing survives the process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.azure.arm import networks, routes
from tests.azure.arm.addresses import SubnetSpace
from tests.azure.arm.errors import ArmError, not_found
from tests.azure.arm.ids import ResourceId, key
from tests.azure.arm.kinds import BY_TYPE
from tests.azure.arm.model import Kind
from tests.azure.arm.operations import Operation, Operations
from tests.azure.arm.requests import Entry, Ledger, Reply, Request
from tests.azure.arm.settings import Settings
from tests.azure.arm.store import Body, Resource, Store, guid

ACCEPTED = {"PUT", "PATCH", "DELETE", "POST"}
LOCATION = "westeurope"
OWNER = "owner"
"""The principal of tests and builders: faults, budgets and permissions don't apply to it, and the ledger doesn't count
it."""


class Cloud:
    """All subscriptions of one emulated Azure."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.store = Store()
        self.spaces: dict[str, SubnetSpace] = {}
        self.operations = Operations()
        self.ledger = Ledger()
        self.generation = 0
        """Changes with every write; whoever mirrors the cloud (the fabric) compares it."""
        self._links: dict[str, dict[str, str]] = {}
        self._requests = 0

    # -- Model

    def delete(self, resource: Resource, now: float) -> None:
        """Takes a resource away with all that its type says about it."""
        BY_TYPE[resource.id.kind].remove(self, resource, now)
        if self.store.get(resource.id) is not None:
            self.store.remove(resource)
        self.generation += 1

    def links(self, target: str) -> list[str]:
        return list(self._links.get(key(target), {}).values())

    def link(self, target: str, user: str) -> None:
        self._links.setdefault(key(target), {})[key(user)] = user

    def unlink(self, target: str, user: str) -> None:
        self._links.get(key(target), {}).pop(key(user), None)

    # -- requests

    def handle(self, request: Request, now: float) -> Reply:
        """One request, answered."""
        self.operations.settle(now)
        self._requests += 1
        wanted: routes.Target | None = None
        try:
            wanted = routes.target(request.method, request.path)
            reply = self._admitted(request, wanted, now)
        except ArmError as error:
            reply = Reply(error.status, error.body(), error.headers)
        reply.headers.setdefault("x-ms-request-id", guid("request", self._requests))
        self._record(request, wanted, reply, now)
        return reply

    def _record(self, request: Request, wanted: routes.Target | None, reply: Reply, now: float) -> None:
        if request.principal == OWNER:
            return
        permission = wanted.permission if wanted else "unknown"
        code = (
            reply.body["error"]["code"]
            if reply.status >= 400 and isinstance(reply.body, dict) and "error" in reply.body
            else ""
        )
        self.ledger.entries.append(
            Entry(now, request.principal, request.method, request.path, permission, reply.status, code)
        )

    def _admitted(self, request: Request, wanted: routes.Target, now: float) -> Reply:
        if not request.principal:
            raise ArmError(401, "AuthenticationFailed", "Authentication failed. The 'Authorization' header is missing.")
        if "api-version" not in request.query:
            raise ArmError(
                400,
                "MissingApiVersionParameter",
                "The api-version query parameter (?api-version=) is required for all requests.",
            )
        return self._answer(request, wanted, now)

    def _answer(self, request: Request, wanted: routes.Target, now: float) -> Reply:
        if wanted.asked == "operation":
            return self._operation(wanted)
        if wanted.asked == "list":
            return self._list(request, wanted)
        if wanted.asked == "action" or wanted.id is None:
            raise ArmError(404, "InvalidResourceType", f"The action {wanted.action} is not known on {request.path}.")
        kind = BY_TYPE.get(wanted.id.kind)
        if kind is None:
            return self._part(request, wanted.id)
        methods: dict[str, Callable[[Request, Kind, ResourceId, float], Reply]] = {
            "GET": self._get,
            "PUT": self._put,
            "PATCH": self._patch,
            "DELETE": self._delete,
        }
        return methods[request.method](request, kind, wanted.id, now)

    # -- reading

    def existing(self, wanted: ResourceId) -> Resource:
        """Raises the 404 that names what is missing: the resource, or the parent above it."""
        found = self.store.get(wanted)
        if found is not None:
            return found
        if len(wanted.types) > 1 and self.store.get(wanted.parent) is not None:
            raise ArmError(404, "NotFound", f"Resource {wanted} not found.")
        raise not_found(str(wanted.parent if len(wanted.types) > 1 else wanted), wanted.group)

    def _get(self, request: Request, kind: Kind, wanted: ResourceId, now: float) -> Reply:
        found = self.existing(wanted)
        return Reply(200, kind.shown(self, found), {"ETag": found.etag})

    def _part(self, request: Request, wanted: ResourceId) -> Reply:
        """Things inside a resource that can be read on their own (`…/networkInterfaces/N/ipConfigurations/C`)."""
        if request.method != "GET" or len(wanted.types) < 2:
            raise ArmError(404, "InvalidResourceType", f"The resource type {wanted.type} could not be found.")
        body = (
            BY_TYPE[wanted.parent.kind].shown(self, self.existing(wanted.parent))
            if wanted.parent.kind in BY_TYPE
            else {}
        )
        for part in body.get("properties", {}).get(wanted.types[-1]) or ():
            if part["name"].lower() == wanted.name.lower():
                return Reply(200, part)
        raise ArmError(404, "NotFound", f"Resource {wanted} not found.")

    def _list(self, request: Request, wanted: routes.Target) -> Reply:
        if wanted.action == "usages" and wanted.id is not None:
            return Reply(200, {"value": networks.usages(self, self.existing(wanted.id))})
        kind = BY_TYPE.get(wanted.kind.lower())
        if kind is None and wanted.id is not None:
            parent = self.existing(wanted.id)
            return Reply(
                200, {"value": BY_TYPE[wanted.id.kind].shown(self, parent)["properties"].get(wanted.action) or []}
            )
        if kind is None:
            raise ArmError(404, "InvalidResourceType", f"The resource type {wanted.kind} could not be found.")
        if wanted.id is not None:
            self.existing(wanted.id)
        found = list(self.store.below(wanted.prefix, wanted.kind))
        start = int(request.query.get("$skipToken", "0"))
        body: Body = {"value": [kind.shown(self, resource) for resource in found[start : start + self.settings.page]]}
        if start + self.settings.page < len(found):
            version = request.query["api-version"]
            body["nextLink"] = (
                f"{request.base}{request.path}?api-version={version}&$skipToken={start + self.settings.page}"
            )
        return Reply(200, body)

    def _operation(self, wanted: routes.Target) -> Reply:
        operation = self.operations.get(wanted.name)
        if operation is None:
            raise ArmError(404, "OperationNotFound", f"The operation {wanted.name} was not found.")
        headers = {} if operation.status != "InProgress" else {"Retry-After": str(self.settings.retry_after)}
        if wanted.action == "operationresults":
            return Reply(202 if operation.status == "InProgress" else 204, None, headers)
        return Reply(200, operation.body(), headers)

    # -- writing

    def _put(self, request: Request, kind: Kind, wanted: ResourceId, now: float) -> Reply:
        if not isinstance(request.body, dict):
            raise ArmError(
                400, "InvalidRequestContent", "The request content was invalid and could not be deserialized."
            )
        current = self.store.get(wanted)
        if current is None and len(wanted.types) > 1 and self.store.get(wanted.parent) is None:
            raise ArmError(
                404,
                "ParentResourceNotFound",
                f"Failed to perform 'write' on resource {wanted}: its parent was not found.",
            )
        self._check_etag(request, wanted, current)
        if request.principal != OWNER:
            self._check_running(wanted, current)
        if len(wanted.types) == 1 and current is None and not request.body.get("location"):
            raise ArmError(
                400, "LocationRequired", f"The location property is required for the definition of {wanted}."
            )
        body = kind.write(self, wanted, _copy(request.body), current, now)
        return self._store(request, kind, wanted, body, now)

    def _patch(self, request: Request, kind: Kind, wanted: ResourceId, now: float) -> Reply:
        """Tags only, as `UpdateTags` of every network resource."""
        found = self.existing(wanted)
        self._check_etag(request, wanted, found)
        found.body["tags"] = dict((request.body or {}).get("tags") or {})
        found.changed()
        self.generation += 1
        return Reply(200, kind.shown(self, found))

    def _store(self, request: Request, kind: Kind, wanted: ResourceId, body: Body, now: float) -> Reply:
        current = self.store.get(wanted)
        previous = current.body if current else None
        resource = current or Resource(wanted, {})
        body.pop("etag", None)
        resource.body = {"name": resource.id.name, "id": str(resource.id), "type": resource.id.type} | {
            name: value for name, value in body.items() if name not in ("name", "id", "type")
        }
        self.store.add(resource)
        kind.written(self, resource, previous)
        self.generation += 1
        duration = 0.0 if request.principal == OWNER else self.settings.duration(wanted.kind)
        operation = self._start(resource, now + duration) if duration > 0 else None
        resource.changed("Updating" if resource.operation else "Succeeded")
        headers = self._operation_headers(request, wanted, operation)
        return Reply(200 if previous else 201, kind.shown(self, resource), headers)

    def _start(self, resource: Resource, due: float, error: ArmError | None = None) -> Operation:
        def finish(operation: Operation) -> None:
            if resource.operation == operation.id:
                resource.operation = ""
                resource.changed("Failed" if operation.error else "Succeeded")

        operation = self.operations.start(str(resource.id), due, finish, error)
        resource.operation = operation.id
        return operation

    def _operation_headers(self, request: Request, wanted: ResourceId, operation: Operation | None) -> dict[str, str]:
        if operation is None or not self.settings.operation_header:
            return {}
        provider = f"/subscriptions/{wanted.subscription}/providers/{wanted.provider}"
        version = request.query["api-version"]
        url = f"{request.base}{provider}/locations/{LOCATION}/operations/{operation.id}?api-version={version}"
        return {"Azure-AsyncOperation": url, "Retry-After": str(self.settings.retry_after)}

    def _delete(self, request: Request, kind: Kind, wanted: ResourceId, now: float) -> Reply:
        found = self.store.get(wanted)
        if found is None:
            return Reply(204)
        self._check_etag(request, wanted, found)
        self.delete(found, now)
        duration = 0.0 if request.principal == OWNER else self.settings.duration(wanted.kind)
        if duration <= 0:
            return Reply(200)
        operation = self.operations.start(str(wanted), now + duration, lambda operation: None)
        headers = self._operation_headers(request, wanted, operation)
        return Reply(202, None, headers) if headers else Reply(200)

    def _check_etag(self, request: Request, wanted: ResourceId, current: Resource | None) -> None:
        given = request.headers.get("if-match")
        if not given or given == "*" or not self.settings.guesses.etags_enforced:
            return
        if current is None or given != current.etag:
            have = current.etag if current else "none"
            detail = f"Etag provided in if-match header {given} does not match etag {have} of resource {wanted}."
            details = [("PreconditionFailedEtagMismatch", detail)]
            raise ArmError(412, "PreconditionFailed", f"Precondition failed. {detail}", details)

    def _check_running(self, wanted: ResourceId, current: Resource | None) -> None:
        """Another operation on this resource is still running."""
        operation = self.operations.get(current.operation) if current and current.operation else None
        if operation is None:
            return
        rule = self.settings.guesses.parallel_writes
        other = f"operation {operation.id} on resource {wanted} is in progress"
        if rule == "accept":
            self.operations.cancel(
                operation,
                ArmError(200, "OperationPreempted", "Operation execution has been preempted by a more recent one."),
            )
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
            headers={"Retry-After": str(self.settings.retry_after)},
        )


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _copy(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_copy(inner) for inner in value]
    return value
