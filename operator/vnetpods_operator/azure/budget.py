"""Client-side rate limiting of ARM requests, by priority.

One token bucket per subscription and kind (read or write): Azure counts per subscription and principal, and
Microsoft.Network's limits are shared by the whole subscription, so the operator stays below them on its own. The bucket
is pure arithmetic over the caller's clock. `Budget` lets tasks of the event loop wait for a token, served by priority,
then first come, first served. Priority is read when a token is granted, not when the wait began, so a node whose pods
start to wait overtakes while its request is already queued.

A 429 closes its bucket until Retry-After has passed; Azure answers an earlier request with a longer wait. `acquire()`
waits for a bucket that reopens within MOMENT seconds, else raises `Throttled` at once: a blocked worker would be
missing for nodes of other subscriptions, and the node's condition would not tell the cause. A limit of one service
(Microsoft.Compute counts on its own) refuses only requests to that service.

A request that waits for the ordinary rate holds a worker. When a more urgent node finds no free worker, the least
urgent waiter yields: it raises `GaveWay` and its node is requeued unchanged. So does a waiter whose work is outdated
when its turn comes (the pool was paused meanwhile). Only waiters for the end of a write that Azure has accepted never
yield. Nothing survives a restart; a bucket starts full.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from vnetpods_operator import config
from vnetpods_operator.caller import Caller, GaveWay, Priority, caller
from vnetpods_operator.errors import Throttled

MOMENT = 5.0
"""Longest wait, in seconds, for a closed bucket to open."""


class Kind(StrEnum):
    """Azure counts reads and writes separately."""

    READ = "read"
    WRITE = "write"


def rates(configured: config.Budget, kind: Kind) -> tuple[float, float]:
    """Requests per second, and burst."""
    allowance = configured.reads if kind is Kind.READ else configured.writes
    return allowance.per_second, float(allowance.burst)


@dataclass(slots=True)
class Bucket:
    """Holds up to `burst` tokens, refilled at `rate` per second. Times are seconds on the caller's clock."""

    rate: float
    burst: float
    level: float
    at: float
    closed_until: float = 0.0

    def take(self, now: float) -> float:
        """Takes a token and returns 0, or returns the seconds to wait before the next attempt."""
        if now < self.closed_until:
            return self.closed_until - now
        self._refill(now)
        if self.level >= 1 - 1e-9:
            self.level -= 1
            return 0.0
        return (1 - self.level) / self.rate

    def close(self, until: float, now: float) -> None:
        """Grants no token before `until`, and leaves one at most, so that no burst follows."""
        self._refill(now)
        self.closed_until = max(self.closed_until, until)
        self.level = min(self.level, 1.0)
        self.at = max(self.at, self.closed_until)

    def lower(self, remaining: float, now: float) -> None:
        """Caps the tokens at the `remaining` requests that Azure reports."""
        self._refill(now)
        self.level = min(self.level, remaining)

    def _refill(self, now: float) -> None:
        if now > self.at:
            self.level = min(self.burst, self.level + (now - self.at) * self.rate)
            self.at = now


@dataclass(slots=True)
class _Line:
    bucket: Bucket
    waiters: list[tuple[Caller, asyncio.Future[bool]]] = field(default_factory=list)
    """Each future resolves to whether the request proceeds."""
    timer: asyncio.TimerHandle | None = None

    def closed_for(self, now: float) -> float:
        return self.bucket.closed_until - now


class Budget:
    """Buckets of every subscription, created on demand; used from one event loop."""

    def __init__(
        self, rates: Callable[[Kind], tuple[float, float]], waited: Callable[[Kind, float], None] | None = None
    ) -> None:
        """`rates(kind)`: rate and burst of a new bucket; `waited`: called with each request's wait in seconds."""
        self._rates = rates
        self._waited = waited
        self._lines: dict[tuple[str, Kind], _Line] = {}
        self._services: dict[tuple[str, str, Kind], float] = {}
        """Loop time until which a service is closed, by subscription, service (both in lower case) and kind."""

    async def acquire(self, subscription: str, kind: Kind, service: str = "") -> None:
        """Returns when the request may be sent. Raises Throttled if the bucket or service is closed for more than
        MOMENT seconds, GaveWay if the request yields or is outdated.
        """
        line = self._line(subscription, kind)
        loop = asyncio.get_running_loop()
        began = loop.time()
        _refuse(max(line.closed_for(began), self._service_closed_for(subscription, service, kind)), subscription, kind)
        if line.waiters or line.bucket.take(began) > 0:
            turn: asyncio.Future[bool] = loop.create_future()
            mine = caller.get(Caller(firm=True))  # without a node there is nothing to requeue
            waiter = (mine, turn)
            line.waiters.append(waiter)
            self._serve(line)
            try:
                goes_on = await turn
            finally:
                if waiter in line.waiters:
                    line.waiters.remove(waiter)
            _refuse(line.closed_for(loop.time()), subscription, kind)
            if not goes_on or (not mine.firm and mine.outdated()):
                raise GaveWay
        if self._waited is not None:
            self._waited(kind, loop.time() - began)

    def close(self, subscription: str, kind: Kind, seconds: float) -> None:
        """Closes the bucket for the `seconds` of a Retry-After."""
        line, now = self._line(subscription, kind), asyncio.get_running_loop().time()
        line.bucket.close(now + seconds, now)
        if line.closed_for(now) > MOMENT:
            for _, turn in line.waiters:
                if not turn.done():
                    turn.set_result(True)  # no token: acquire() raises Throttled
        self._serve(line)

    def close_service(self, subscription: str, kind: Kind, service: str, seconds: float) -> None:
        """Closes one service for `seconds`; others continue."""
        until = asyncio.get_running_loop().time() + seconds
        key = (subscription.lower(), service.lower(), kind)
        self._services[key] = max(until, self._services.get(key, 0.0))

    def give_way(self, to: Priority) -> None:
        """Makes the least urgent waiter below this priority yield; among equals, the last to arrive."""
        waiters = [
            (mine.priority, number, turn)
            for line in self._lines.values()
            for number, (mine, turn) in enumerate(line.waiters)
            if mine.priority > to and not mine.firm and not turn.done()
        ]
        if waiters:
            max(waiters, key=lambda waiter: waiter[:2])[2].set_result(False)

    def lower(self, subscription: str, kind: Kind, remaining: float) -> None:
        """Applies the remaining-requests header."""
        line = self._line(subscription, kind)
        line.bucket.lower(remaining, asyncio.get_running_loop().time())

    def adjust(self) -> None:
        """Applies changed rates from the configuration, to waiters as well."""
        for (_, kind), line in self._lines.items():
            line.bucket.rate, line.bucket.burst = self._rates(kind)
            line.bucket.level = min(line.bucket.level, line.bucket.burst)
            self._serve(line)

    @property
    def waiting(self) -> int:
        """Number of requests that wait for a token."""
        return sum(len(line.waiters) for line in self._lines.values())

    def _service_closed_for(self, subscription: str, service: str, kind: Kind) -> float:
        until = self._services.get((subscription.lower(), service.lower(), kind), 0.0)
        return until - asyncio.get_running_loop().time()

    def _line(self, subscription: str, kind: Kind) -> _Line:
        key = (subscription.lower(), kind)
        if key not in self._lines:
            rate, burst = self._rates(kind)
            self._lines[key] = _Line(Bucket(rate, burst, burst, asyncio.get_running_loop().time()))
        return self._lines[key]

    def _serve(self, line: _Line) -> None:
        """Grants tokens to waiters while the bucket has any, and schedules itself for the next one."""
        loop = asyncio.get_running_loop()
        if line.timer is not None:
            line.timer.cancel()
            line.timer = None
        line.waiters = [waiter for waiter in line.waiters if not waiter[1].done()]
        while line.waiters:
            wait = line.bucket.take(loop.time())
            if wait > 0:
                line.timer = loop.call_later(wait, self._serve, line)
                return
            first = min(line.waiters, key=lambda waiter: waiter[0].priority)  # the earliest of the most urgent
            line.waiters.remove(first)
            first[1].set_result(True)


def _refuse(seconds: float, subscription: str, kind: Kind) -> None:
    """Raises Throttled if the bucket or service stays closed for more than MOMENT seconds."""
    if seconds > MOMENT:
        again = datetime.now(UTC) + timedelta(seconds=seconds)
        text = f"Azure takes no {kind.value}s in subscription {subscription} at present; again at {again:%H:%M:%S} UTC"
        raise Throttled(text, "Closed", seconds)
