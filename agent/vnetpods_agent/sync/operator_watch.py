"""Detects an operator that does not run, by its Lease; reads it only while pods wait for addresses.

One task, `OperatorWatch.run`, sleeps until a pod has waited long. From a third of `patience` on it reads the operator's
Lease, four times per `patience`. The Lease's timestamps are ignored, since machines' clocks are never compared: only a
change counts, by this process's monotonic clock. A Lease that is unchanged or missing for `patience` (and four of its
own durations) means that the operator is silent; the pool's conditions are then stale. While the API server can't be
read, nothing is concluded, and `patience` restarts afterwards: the operator couldn't renew either. `Pulse` decides and
is pure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog

from vnetpods_agent.attachment import Pod
from vnetpods_agent.config import Operator
from vnetpods_agent.kube import ApiError, KubeApi, KubeError

MOST = 64
"""Maximum number of waiting pods that get an Event about a silent operator."""
_DURATIONS = 4
_NOT_FOUND = 404

log = structlog.get_logger(component="operator")


@dataclass(slots=True)
class Pulse:
    """The operator's liveness as seen in its Lease. Times are the caller's monotonic clock."""

    patience: float
    name: str
    _mark: object = None
    _since: float | None = None
    """When the Lease was first observed in its present state; None: unknown."""
    _limit: float = 0.0

    def told(self, lease: dict[str, Any] | None, now: float) -> None:
        """Records the Lease as read; None: it does not exist."""
        spec = (lease or {}).get("spec") or {}
        mark = (lease is None, spec.get("holderIdentity"), spec.get("renewTime"))
        if self._since is None or mark != self._mark:
            self._mark, self._since = mark, now
        self._limit = max(self.patience, _DURATIONS * float(spec.get("leaseDurationSeconds") or 0))

    def unknown(self) -> None:
        """Records that the Lease could not be read."""
        self._since = None

    def age(self, now: float) -> float:
        """Seconds since the last observed change."""
        return 0.0 if self._since is None else now - self._since

    def silent(self, now: float) -> bool:
        return self._since is not None and self.age(now) >= self._limit

    def words(self, since: str) -> str:
        """The message for a silent operator: the finding, and what to do."""
        missing, holder, _ = self._mark if isinstance(self._mark, tuple) else (True, "", "")
        if missing:
            found = f"there is no Lease {self.name}, so none has run in this cluster yet, or under another name"
        elif holder:
            found = f"its Lease {self.name} is not renewed since {since} (held by {holder})"
        else:
            found = f"it was stopped: nobody holds its Lease {self.name} since {since}"
        return f"the operator does not run, and nobody adds addresses: {found}; look at its Pods and their logs"


@dataclass(slots=True)
class OperatorWatch:
    """`silent`: the message while the operator does not run; else empty. `tell` receives it once, with the pods that
    wait then.
    """

    api: KubeApi | None
    settings: Operator
    waiting: Callable[[], int]
    clock: Callable[[], float]
    tell: Callable[[str, list[Pod]], None]
    silent: str = ""
    _pods: dict[Pod, None] = field(default_factory=dict)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _needed: float | None = None
    """When a pod last waited; None: not for a while."""
    _began: float = 0.0
    _said: str = ""
    pulse: Pulse = field(init=False)

    def __post_init__(self) -> None:
        self.pulse = Pulse(self.settings.patience, f"{self.settings.namespace}/{self.settings.lease}")

    def waits(self, pod: Pod | None) -> None:
        """A pod has waited for a while."""
        if pod is not None and len(self._pods) < MOST:
            self._pods[pod] = None
        self._wake.set()

    @property
    def age(self) -> float:
        """Seconds since the operator's last sign of life, while pods wait; else 0."""
        return self.pulse.age(self.clock()) if self._needed is not None else 0.0

    @property
    def unanswered(self) -> str:
        """The message for an operator that runs but does not explain the shortage; else empty."""
        if self._needed is None or self.silent or self.clock() - self._began < self.settings.patience:
            return ""
        if not self.age and self.settings.lease:
            return ""
        return (
            "all are in use, and the operator, which runs, has not answered for long that more are needed: see its log"
        )

    async def run(self) -> None:
        if self.api is None or not self.settings.lease:
            await asyncio.Event().wait()
        while True:
            await self._wake.wait()
            self._began = self._needed = self.clock()
            await asyncio.sleep(self.settings.patience / 3)
            while self._is_needed():
                await self._look()
                await asyncio.sleep(self.settings.patience / 4)
            self._needed, self.silent = None, ""
            self._wake.clear()

    def _is_needed(self) -> bool:
        """Whether pods wait or waited within `patience`: a runtime retries a failed ADD within a minute, and both count
        as one wait.
        """
        now = self.clock()
        if self.waiting():
            self._needed = now
        return self._needed is not None and now - self._needed < self.settings.patience

    async def _look(self) -> None:
        assert self.api is not None
        path = f"/apis/coordination.k8s.io/v1/namespaces/{self.settings.namespace}/leases/{self.settings.lease}"
        try:
            self.pulse.told(await self.api.get(path, {}), self.clock())
        except KubeError as error:
            if isinstance(error, ApiError) and error.status == _NOT_FOUND:
                self.pulse.told(None, self.clock())
            else:
                self.pulse.unknown()
                if str(error) != self._said:
                    self._said = str(error)
                    log.warning("the operator's Lease can't be read", error=self._said)
        now = self.clock()
        if not self.pulse.silent(now):
            self.silent = ""
        elif not self.silent:
            at = datetime.now(UTC) - timedelta(seconds=self.pulse.age(now))
            self.silent = self.pulse.words(at.strftime("%Y-%m-%dT%H:%M:%SZ"))
            self.tell(self.silent, list(self._pods))
            self._pods.clear()
