"""Leader election by a Lease.

The rules are client-go's. A Lease is acquired if it has no holder, or if its holder has not renewed it for its duration
by *our* clock since *we* observed its last renewal: clocks of machines are never compared. A leader that could not
renew within the renew deadline exits at once, whatever it is doing, before another may take over: a request may hang,
but `os._exit` from the watchdog's own thread does not. Each request's timeout is well below that deadline, and the
elector has its own connections, so that a thousand other requests don't delay it. A stopped leader releases the Lease
only after its work has ended.

Before each write, to Azure or to the API server, the leader calls `check`, which only reads a clock: a process that was
stopped past its Lease's expiry (SIGSTOP, a paused machine) and resumes finds out before it writes, not when its
watchdog thread is scheduled. The clock is CLOCK_BOOTTIME, which includes suspend. A Lease once lost or released is
never held again by this process.

This bounds the overlap of two leaders to requests in flight; ETags on NICs and resource versions on pools make that
overlap harmless.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog

from vnetpods_kit.clock import boottime
from vnetpods_operator.config import Election
from vnetpods_operator.kube import Kube, KubeError, NotFound, Outdated

log = structlog.get_logger()

LOST = 3
"""Exit code of a process that lost its Lease."""
RELEASE_ATTEMPTS = 3
"""Attempts to release the Lease; if all fail, a follower waits for its duration."""


class _Spec(msgspec.Struct, rename="camel", omit_defaults=True):
    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class _Metadata(msgspec.Struct, rename="camel", omit_defaults=True):
    name: str
    namespace: str
    resource_version: str | None = None


class _Lease(msgspec.Struct, rename="camel", omit_defaults=True):
    metadata: _Metadata
    spec: _Spec = msgspec.field(default_factory=_Spec)


class NotLeading(Exception):  # noqa: N818 - named after what happened
    """The Lease is no longer ours: writes are forbidden."""


def _version(lease: _Lease) -> int:
    version = lease.metadata.resource_version or "0"
    return int(version) if version.isdigit() else 0


def exit_now() -> None:
    """Exits without cleanup and without waiting."""
    os._exit(LOST)


class Elector:
    """Acquires, renews and releases one Lease."""

    def __init__(self, kube: Kube, config: Election, identity: str, lost: Callable[[], None] = exit_now) -> None:
        self._kube = kube
        self._config = config
        self._identity = identity
        self._lost = lost
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{config.namespace}/leases"
        self._seen: tuple[str | None, str | None] | None = None
        self._seen_at = 0.0
        self._lease: _Lease | None = None
        self._renewed = 0.0
        self._stop = threading.Event()
        self._over = False
        """Lost or released: a later renewal doesn't count."""
        self.leads = False
        self.restored: Callable[[], None] = lambda: None
        """Called when the API server's data has gone back in time."""

    async def acquire(self) -> None:
        """Returns once the Lease is ours."""
        while True:
            asked = boottime()
            try:
                if await self._try(asked):
                    self._renewed = asked
                    self.leads = True
                    threading.Thread(target=self._watch, name="lease watchdog", daemon=True).start()
                    log.info("leading", lease=self._config.name, identity=self._identity)
                    return
            except KubeError as error:
                log.warning("Lease not taken", lease=self._config.name, error=str(error))
            await asyncio.sleep(float(self._config.retry))

    async def keep(self) -> None:
        """Renews until cancelled; the watchdog ends the process if that fails for too long."""
        while True:
            await asyncio.sleep(float(self._config.retry))
            asked = boottime()
            try:
                if await self._try(asked):
                    self._renewed = asked
                elif self._lease is not None and self._lease.spec.holder_identity != self._identity:
                    self._over = True
                    log.error("Lease taken by somebody else", holder=self._lease.spec.holder_identity)
                    self._lost()
            except KubeError as error:
                log.warning("Lease not renewed", lease=self._config.name, error=str(error))

    def check(self) -> None:
        """Raises NotLeading unless the Lease is certainly ours; call it right before each write."""
        if self.leads and not self._over and boottime() - self._renewed > self._config.renew:
            self._over = True
            log.error("Lease lost, nothing is written any more", lease=self._config.name)
            self._lost()
        if not self.leads or self._over:
            raise NotLeading(f"the Lease {self._config.name} is not held any more")

    async def release(self) -> None:
        """Releases the Lease, after the work has ended: writes are forbidden from now on."""
        self._stop.set()
        self._over = True
        if not self.leads:
            return
        self.leads = False
        trouble = ""
        for _ in range(RELEASE_ATTEMPTS):
            try:
                if await self._give_back():
                    return
            except KubeError as error:
                trouble = str(error)
        log.warning("Lease not given back", lease=self._config.name, error=trouble or "it changes all the time")

    async def _give_back(self) -> bool:
        """One attempt to release; returns whether the Lease is no longer ours. Reads it first: a cancelled renewal may
        have been written nevertheless.
        """
        lease = msgspec.json.decode(await self._request("GET", f"{self._path}/{self._config.name}"), type=_Lease)
        if lease.spec.holder_identity != self._identity:
            return True
        lease.spec.holder_identity = ""
        lease.spec.lease_duration_seconds = 1
        return await self._write("PUT", lease)

    async def _try(self, moment: float) -> bool:
        """One attempt to acquire or renew; returns whether the Lease is ours now."""
        try:
            data = await self._request("GET", f"{self._path}/{self._config.name}")
        except NotFound:
            return await self._write("POST", self._ours(_Metadata(self._config.name, self._config.namespace), None))
        found, before = msgspec.json.decode(data, type=_Lease), self._lease
        self._lease = found
        if before is not None and _version(found) < _version(before):
            self.restored()
        holder, mark = found.spec.holder_identity, (found.spec.holder_identity, found.spec.renew_time)
        if mark != self._seen:
            self._seen, self._seen_at = mark, moment
        duration = found.spec.lease_duration_seconds or self._config.duration
        if holder and holder != self._identity and moment < self._seen_at + duration:
            return False
        return await self._write("PUT", self._ours(found.metadata, found.spec))

    def _ours(self, metadata: _Metadata, before: _Spec | None) -> _Lease:
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        same = before is not None and before.holder_identity == self._identity
        transitions = (before.lease_transitions or 0) if before else 0
        spec = _Spec(
            holder_identity=self._identity,
            lease_duration_seconds=max(1, round(self._config.duration)),
            acquire_time=before.acquire_time if same and before else stamp,
            renew_time=stamp,
            lease_transitions=transitions if same or before is None else transitions + 1,
        )
        return _Lease(metadata, spec)

    async def _write(self, method: str, lease: _Lease) -> bool:
        body: dict[str, Any] = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"} | msgspec.to_builtins(lease)
        path = self._path if method == "POST" else f"{self._path}/{self._config.name}"
        try:
            data = await self._request(method, path, body)
        except Outdated:
            return False
        self._lease = msgspec.json.decode(data, type=_Lease)
        return True

    async def _request(self, method: str, path: str, body: Any = None) -> bytes:
        return await self._kube.request(method, path, body=body, timeout=max(0.1, float(self._config.renew) / 3))

    def _watch(self) -> None:
        """The watchdog, in its own thread: a stuck event loop must not keep a leader alive that lost its Lease."""
        while not self._stop.wait(0.1 * float(self._config.retry)):
            if boottime() - self._renewed > self._config.renew:
                self._over = True
                log.error("Lease lost, ending at once", lease=self._config.name, renew=float(self._config.renew))
                self._lost()
                return
