"""The whole cloud as one function: `Cloud.handle(request, now) -> Reply`.

Nothing here does I/O or looks at a clock; `server.py` runs it in its event loop, tests may call it directly. One
request passes: settle operations → token → faults → budget → permission → resource → ledger. A refusal is an ArmError;
every other exception is a bug of the emulator. Nothing survives the process.
"""

from __future__ import annotations

import msgspec

from tests.azure.arm import mishaps, nics, parts, plain, reads, routes, scalesets, writes
from tests.azure.arm.addresses import SubnetSpace
from tests.azure.arm.budgets import Budgets
from tests.azure.arm.errors import ArmError
from tests.azure.arm.faults import Fault, Faults
from tests.azure.arm.ids import ResourceId, key
from tests.azure.arm.kinds import BY_TYPE
from tests.azure.arm.lags import Lags
from tests.azure.arm.operations import Operations
from tests.azure.arm.requests import Entry, Ledger, Reply, Request
from tests.azure.arm.roles import Roles
from tests.azure.arm.settings import Settings
from tests.azure.arm.store import Resource, Store, guid
from tests.azure.arm.writes import OWNER

ARM_CODES = ("ResourceGroupNotFound", "ResourceNotFound", "InvalidResourceType", "SubscriptionRequestsThrottled")
"""Errors that ARM returns without calling the service."""
HISTORY = 16
"""How many earlier states of a NIC are kept for instance metadata."""


class Cloud:
    """All subscriptions of one emulated Azure."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.store = Store()
        self.spaces: dict[str, SubnetSpace] = {}
        self.operations = Operations()
        self.ledger = Ledger()
        self.faults = Faults()
        self.lags = Lags()
        self.roles = Roles()
        self.budgets = Budgets(self.settings)
        self.generation = 0
        """Changes with every write; a mirror of the cloud (the fabric) compares it."""
        self.gateways: set[str] = set()
        """Keys of VNets that have a gateway to the network on-premises; the gateway itself is not emulated."""
        self._links: dict[str, dict[str, str]] = {}
        self._requests = 0

    # -- Model

    def delete(self, resource: Resource, now: float) -> None:
        """Removes a resource, with the effects that its type defines."""
        BY_TYPE[resource.id.kind].remove(self, resource, now)
        if self.store.get(resource.id) is not None:
            self.store.remove(resource)
        self.generation += 1

    def links(self, target: str) -> list[str]:
        return list(self._links.get(key(target), {}).values())

    def link(self, target: str, user: str) -> None:
        self._links.setdefault(key(target), {})[key(user)] = user
        found = self.store.get(target)
        if found is not None and found.id.kind == plain.PUBLIC_IP.lower():
            plain.used(self, found)

    def unlink(self, target: str, user: str) -> None:
        self._links.get(key(target), {}).pop(key(user), None)

    def remember(self, resource: Resource, now: float, done: float) -> None:
        """The body before a write, for stale reads; NICs by the time their change is done, for slow instance
        metadata."""
        if resource.body and any(fault.effect == "stale" for fault in self.faults.rules):
            resource.memory["previous"] = msgspec.json.encode(BY_TYPE[resource.id.kind].shown(self, resource))
        if resource.body and self.settings.metadata_lag is not None and nics.is_nic(resource):
            earlier = resource.memory.setdefault("history", [])
            earlier.append((done, nics.configurations(resource)))
            del earlier[:-HISTORY]

    # -- requests

    def handle(self, request: Request, now: float) -> Reply:
        """Handles one request."""
        self.operations.settle(now)
        self._requests += 1
        wanted: routes.Target | None = None
        fault: Fault | None = None
        try:
            wanted = routes.target(request.method, request.path)
            if request.principal != OWNER:
                _check_request(request)
                fault = self.faults.match(request, wanted.permission)
            reply = self._faulty(request, wanted, now, fault) if fault else self._admitted(request, wanted, now)
        except ArmError as error:
            reply = Reply(error.status, error.body(), {"x-ms-failure-cause": _cause(error), **error.headers})
        # reply with a copy: the store's own body would change under a slow response or in a caller's hands
        reply.body = msgspec.json.decode(msgspec.json.encode(reply.body))
        if fault is not None:
            mishaps.spoil(fault, reply)
        reply.headers.setdefault("x-ms-request-id", guid("request", self._requests))
        self._record(request, wanted, reply, now, fault)
        return reply

    def _record(
        self, request: Request, wanted: routes.Target | None, reply: Reply, now: float, fault: Fault | None
    ) -> None:
        if request.principal == OWNER:
            return
        permission = wanted.permission if wanted else "unknown"
        failed = reply.status >= 400 and isinstance(reply.body, dict) and "error" in reply.body
        code = reply.body["error"]["code"] if failed else ""
        effect = fault.effect if fault else ""
        self.ledger.entries.append(
            Entry(now, request.principal, request.method, request.path, permission, reply.status, code, effect)
        )

    def _faulty(self, request: Request, wanted: routes.Target, now: float, fault: Fault) -> Reply:
        """Applies a fault to the model or instead of it; `mishaps.spoil` does the rest to the reply."""
        if fault.effect == "status":
            headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            raise ArmError(fault.status, fault.code, fault.message, headers=headers)
        if fault.effect in ("reset", "timeout") and not fault.after:
            return Reply(503)
        if fault.effect == "writer":
            mishaps.other_writer(self, wanted, fault, now)
        if fault.effect == "vanish" and not fault.after:
            mishaps.vanish(self, wanted, now)
        outcome = mishaps.outcome(fault)
        found = self.store.get(wanted.id) if wanted.id is not None else None
        if fault.effect == "stale" and found is not None and "previous" in found.memory:
            return Reply(200, raw=found.memory["previous"])
        reply = self._admitted(request, wanted, now, outcome)
        if fault.effect == "vanish" and fault.after and reply.status < 300:
            mishaps.vanish(self, wanted, now)
        if fault.effect == "half" and found is not None and reply.status < 300:
            scalesets.half_make(found, request.body)
        return reply

    def _admitted(
        self, request: Request, wanted: routes.Target, now: float, outcome: writes.Outcome | None = None
    ) -> Reply:
        """Handles the request as a healthy service does."""
        remaining: dict[str, str] = {}
        if request.principal != OWNER:
            subscription, scope = wanted.subscription, wanted.scope
            remaining = self.budgets.spend(
                request.principal, subscription, request.method, wanted.permission, scope, now
            )
            self._permit(request, wanted)
        reply = self._lagging(request, wanted, now) or self._served(request, wanted, now, outcome)
        if wanted.asked == "list" and request.principal != OWNER:
            self.lags.listed(reply, now)
        reply.headers.update(remaining)
        return reply

    def _lagging(self, request: Request, wanted: routes.Target, now: float) -> Reply | None:
        """The reply to a lagging read."""
        if request.method != "GET" or request.principal == OWNER or wanted.asked != "resource" or wanted.id is None:
            return None
        return self.lags.answer(wanted.id, now)

    def _permit(self, request: Request, wanted: routes.Target) -> None:
        """Least privilege: the action itself, and joining what the body refers to."""
        self.roles.check(request.principal, wanted.permission, wanted.scope)
        if request.method == "PUT" and wanted.id is not None:
            current = self.store.get(wanted.id)
            known = current.body if current and self.settings.guesses.joins_checked == "changed" else None
            self.roles.check_joins(request.principal, wanted.permission, wanted.id, request.body, known)

    def _served(self, request: Request, wanted: routes.Target, now: float, outcome: writes.Outcome | None) -> Reply:
        if wanted.asked == "operation":
            return reads.operation(self, wanted)
        if wanted.asked == "list":
            return reads.listed(self, request, wanted)
        if wanted.asked == "action" and wanted.id is not None:
            return writes.action(self, request, wanted.id, wanted.action, now)
        if wanted.id is None:
            raise ArmError(404, "InvalidResourceType", f"Nothing is known at {request.path}.")
        return self._resource(request, wanted.id, now, outcome)

    def _resource(self, request: Request, wanted: ResourceId, now: float, outcome: writes.Outcome | None) -> Reply:
        scalesets.check_instance_id(wanted)
        kind = BY_TYPE.get(wanted.kind)
        if kind is None and request.method != "GET":
            return parts.write(self, request, wanted, now)
        if kind is None:
            return reads.part(self, request, wanted)
        if request.method == "PUT":
            return writes.put(self, request, kind, wanted, now, outcome)
        if request.method == "PATCH":
            return writes.patch(self, request, kind, wanted)
        if request.method == "DELETE":
            return writes.delete(self, request, wanted, now)
        return reads.get(self, request, kind, wanted)


def _cause(error: ArmError) -> str:
    """The origin of a refusal: ARM itself, or the service behind it."""
    return "gateway" if error.status in (401, 403) or error.code in ARM_CODES else "service"


def _check_request(request: Request) -> None:
    if not request.principal:
        raise ArmError(401, "AuthenticationFailed", "Authentication failed. The 'Authorization' header is missing.")
    if "api-version" not in request.query:
        raise ArmError(
            400,
            "MissingApiVersionParameter",
            "The api-version query parameter (?api-version=) is required for all requests.",
        )
