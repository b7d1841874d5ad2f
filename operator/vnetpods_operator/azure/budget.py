"""How many requests the operator sends to ARM, and whose turn it is.

One token bucket per subscription and kind (read or write): Azure counts per subscription and principal, and everybody
in the subscription shares Microsoft.Network's limits, so the operator stays below them by its own account. The bucket
is pure arithmetic over the caller's clock. `Budget` lets tasks of the event loop wait for a token; the most urgent
waiter is served first, then the one that came first. Priority is read when a token is given, not when the waiting
began, so a node whose pods start to wait overtakes while its request is already in line.

A 429 closes its bucket until Retry-After has passed: a request before that is answered with a longer wait. Who asks for
a token then does not wait for more than a moment but hears `Throttled`: a worker that sat there would be missing to
nodes of other subscriptions, and the node's condition would not say what it waits for. What only a service's own limit
forbids (Microsoft.Compute counts by itself) is refused to requests for that service alone.

Who waits for the ordinary rate holds a worker. When a more urgent node finds none, the least urgent waiter gives way:
it hears `GaveWay`, its node goes back into the line, and nothing has happened to it. So does one whose turn comes when
what it was about to do is outdated (the pool was paused meanwhile). Only who waits for the end of a write that Azure
has accepted is left alone. Nothing is remembered over a restart; a bucket starts full.
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
"""Seconds that a request waits for a closed bucket to open."""


class Kind(StrEnum):
    """Azure counts reads and writes apart."""

    READ = "read"
    WRITE = "write"


def rates(configured: config.Budget, kind: Kind) -> tuple[float, float]:
    """Requests per second, and how many at once."""
    allowance = configured.reads if kind is Kind.READ else configured.writes
    return allowance.per_second, float(allowance.burst)


@dataclass(slots=True)
class Bucket:
    """`burst` tokens at most, refilled at `rate` per second. Times are seconds on the caller's clock."""

    rate: float
    burst: float
    level: float
    at: float
    closed_until: float = 0.0

    def take(self, now: float) -> float:
        """Takes a token and returns 0, or returns how many seconds to wait before asking again."""
        if now < self.closed_until:
            return self.closed_until - now
        self._refill(now)
        if self.level >= 1 - 1e-9:
            self.level -= 1
            return 0.0
        return (1 - self.level) / self.rate

    def close(self, until: float, now: float) -> None:
        """No token before `until`; after that the bucket is as good as empty, so that there is no rush."""
        self._refill(now)
        self.closed_until = max(self.closed_until, until)
        self.level = min(self.level, 1.0)
        self.at = max(self.at, self.closed_until)

    def lower(self, remaining: float, now: float) -> None:
        """Azure says that only `remaining` requests are left: no more tokens than that."""
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
    """Each hears whether to go on."""
    timer: asyncio.TimerHandle | None = None

    def closed_for(self, now: float) -> float:
        return self.bucket.closed_until - now


class Budget:
    """Buckets for every subscription, made as they are needed; used from one event loop."""

    def __init__(
        self, rates: Callable[[Kind], tuple[float, float]], waited: Callable[[Kind, float], None] | None = None
    ) -> None:
        """`rates(kind)` gives rate and burst of a new bucket; `waited` hears how long each request was held back."""
        self._rates = rates
        self._waited = waited
        self._lines: dict[tuple[str, Kind], _Line] = {}
        self._services: dict[tuple[str, str, Kind], float] = {}
        """Until when a service takes no requests of a subscription, by its name in lower case."""

    async def acquire(self, subscription: str, kind: Kind, service: str = "") -> None:
        """Returns when the request may be sent; raises Throttled when Azure has closed the bucket for long."""
        line = self._line(subscription, kind)
        loop = asyncio.get_running_loop()
        began = loop.time()
        _refuse(max(line.closed_for(began), self._service_closed_for(subscription, service, kind)), subscription, kind)
        if line.waiters or line.bucket.take(began) > 0:
            turn: asyncio.Future[bool] = loop.create_future()
            mine = caller.get(Caller(firm=True))  # without a node there is nothing to put back into the line
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
        """Azure asked for a pause of `seconds`."""
        line, now = self._line(subscription, kind), asyncio.get_running_loop().time()
        line.bucket.close(now + seconds, now)
        if line.closed_for(now) > MOMENT:
            for _, turn in line.waiters:
                if not turn.done():
                    turn.set_result(True)  # not a token, but word that there is none
        self._serve(line)

    def close_service(self, subscription: str, kind: Kind, service: str, seconds: float) -> None:
        """One service asked for a pause of `seconds`; others go on."""
        until = asyncio.get_running_loop().time() + seconds
        key = (subscription.lower(), service.lower(), kind)
        self._services[key] = max(until, self._services.get(key, 0.0))

    def give_way(self, to: Priority) -> None:
        """Lets one waiter go that is less urgent than this, the least urgent of them and the last that came."""
        waiters = [
            (mine.priority, number, turn)
            for line in self._lines.values()
            for number, (mine, turn) in enumerate(line.waiters)
            if mine.priority > to and not mine.firm and not turn.done()
        ]
        if waiters:
            max(waiters, key=lambda waiter: waiter[:2])[2].set_result(False)

    def lower(self, subscription: str, kind: Kind, remaining: float) -> None:
        """Azure said how many requests are left."""
        line = self._line(subscription, kind)
        line.bucket.lower(remaining, asyncio.get_running_loop().time())

    def adjust(self) -> None:
        """The configured rates have changed; who waits is served at the new ones."""
        for (_, kind), line in self._lines.items():
            line.bucket.rate, line.bucket.burst = self._rates(kind)
            line.bucket.level = min(line.bucket.level, line.bucket.burst)
            self._serve(line)

    @property
    def waiting(self) -> int:
        """Requests that are held back now."""
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
        """Gives tokens to waiters while there are any, and comes back when the next one is due."""
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
    """Raises Throttled for what is closed for more than a moment."""
    if seconds > MOMENT:
        again = datetime.now(UTC) + timedelta(seconds=seconds)
        text = f"Azure takes no {kind.value}s in subscription {subscription} at present; again at {again:%H:%M:%S} UTC"
        raise Throttled(text, "Closed", seconds)
