"""The tests' control of a cloud beside requests: act as its owner, read the ledger, change settings.

A small set of verbs with plain JSON values, so that it works the same within a process and through a socket. The
owner's ARM requests obey all rules of the service but have no budget, meet no faults and are not in the ledger.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Protocol

from tests.azure.arm.clock import Clock, VirtualClock
from tests.azure.arm.cloud import Cloud
from tests.azure.arm.ids import key
from tests.azure.arm.kinds import BY_TYPE
from tests.azure.arm.requests import Request
from tests.azure.arm.writes import OWNER

API_VERSION = "2024-01-01"


class RefusedError(Exception):
    """The cloud refused a test's request."""


class Call(Protocol):
    """`call("now")`, `call("arm", method="GET", path=…)`."""

    def __call__(self, verb: str, **arguments: Any) -> Any: ...


class Admin:
    """The verbs; each public method is one."""

    def __init__(self, cloud: Cloud, clock: Clock) -> None:
        self._cloud = cloud
        self._clock = clock

    def call(self, verb: str, **arguments: Any) -> Any:
        """Calls a verb. Raises RefusedError if there is no such verb, or if the service refuses."""
        method = getattr(self, verb, None)
        if verb.startswith("_") or verb == "call" or method is None:
            raise RefusedError(f"the emulator has no verb {verb}")
        return method(**arguments)

    def arm(self, method: str, path: str, body: Any = None) -> Any:
        request = Request(method, path, {"api-version": API_VERSION}, body=body, principal=OWNER)
        reply = self._cloud.handle(request, self._clock.now())
        if reply.status >= 400:
            error = reply.body["error"]
            raise RefusedError(f"{method} {path}: {reply.status} {error['code']}: {error['message']}")
        return reply.body or {}

    def requests(
        self, operation: str | None = None, principal: str | None = None, resource: str | None = None
    ) -> list[dict[str, Any]]:
        return [asdict(entry) for entry in self._cloud.ledger.select(operation, principal=principal, resource=resource)]

    def counts(self, since: float | None = None) -> dict[str, int]:
        return self._cloud.ledger.counts(since)

    def now(self) -> float:
        return self._clock.now()

    def advance(self, seconds: float) -> None:
        if not isinstance(self._clock, VirtualClock):
            raise RefusedError("this cloud runs on real time; start it with a VirtualClock to move it")
        self._clock.advance(seconds)

    def set_duration(self, kind: str, seconds: float) -> None:
        self._cloud.settings.durations[kind.lower()] = seconds

    def connect_onpremises(self, vnet: str) -> None:
        self._cloud.gateways.add(key(vnet))
        self._cloud.generation += 1

    def assign_role(self, principal: str, actions: list[str], scope: str = "/") -> None:
        self._cloud.roles.assign(principal, actions, scope)

    def revoke_roles(self, principal: str) -> None:
        self._cloud.roles.revoke(principal)

    def limit(self, **limits: list[float]) -> None:
        for name, values in limits.items():
            if not hasattr(self._cloud.settings.limits, name):
                raise RefusedError(f"no limit is called {name}")
            setattr(self._cloud.settings.limits, name, tuple(values))
        self._cloud.settings.throttling = True
        self._cloud.budgets.forget()

    def fault(self, **rule: Any) -> None:
        self._cloud.faults.add(**rule)

    def fault_hits(self) -> list[int]:
        return [fault.hit for fault in self._cloud.faults.rules]

    def clear_faults(self) -> None:
        self._cloud.faults.clear()

    def keep(self, resource: str) -> str:
        return self._cloud.lags.keep(
            resource, self._cloud.store.all(), lambda found: BY_TYPE[found.id.kind].shown(self._cloud, found)
        )

    def lag(self, mark: str, seconds: float | None, alternating: bool) -> None:
        until = None if seconds is None else self._clock.now() + seconds
        self._cloud.lags.start(mark, until, alternating=alternating)

    def release(self, mark: str | None) -> None:
        self._cloud.lags.release(mark)

    def configure(self, **settings: Any) -> None:
        for name, value in settings.items():
            owner: Any = self._cloud.settings if hasattr(self._cloud.settings, name) else self._cloud.settings.guesses
            if not hasattr(owner, name):
                raise RefusedError(f"no setting is called {name}")
            setattr(owner, name, value)
