"""Throttling: the published request limits of ARM, of Microsoft.Network and of Microsoft.Compute.

Pure token buckets and one fixed window. An early request after a 429 is refused again with a longer wait. Every
response has the remaining requests in `x-ms-ratelimit-remaining-*` headers. Figures are from public documentation, per
subscription and, for ARM's own, per principal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from tests.azure.arm.errors import ArmError
from tests.azure.arm.settings import Settings

LONGEST_WAIT = 300.0
CLASSES = {"GET": "reads", "HEAD": "reads", "DELETE": "deletes"}
INSTANCE_WRITE = "microsoft.compute/virtualmachinescalesets/virtualmachines/write"


@dataclass(slots=True)
class Bucket:
    """Holds up to `size` tokens, refilled at `rate` per second."""

    size: float
    rate: float
    left: float = field(init=False)
    at: float = 0.0
    penalty: int = 0

    def __post_init__(self) -> None:
        self.left = self.size

    def take(self, now: float) -> float:
        """Takes a token and returns 0, or returns the seconds to wait; an earlier attempt makes the wait longer."""
        self.left = min(self.size, self.left + (now - self.at) * self.rate)
        self.at = now
        if self.left >= 1:
            self.left -= 1
            self.penalty = 0
            return 0.0
        self.penalty += 1
        return min(LONGEST_WAIT, (1 - self.left) / self.rate * self.penalty)


@dataclass(slots=True)
class Window:
    """A number of requests per fixed window, as Microsoft.Network counts."""

    size: float
    span: float
    used: int = 0
    start: float = 0.0
    penalty: int = 0

    @property
    def left(self) -> float:
        return self.size - self.used

    def take(self, now: float) -> float:
        if now - self.start >= self.span:
            self.start, self.used, self.penalty = now, 0, 0
        if self.used < self.size:
            self.used += 1
            return 0.0
        self.penalty += 1
        return min(LONGEST_WAIT, self.start + self.span - now + self.penalty - 1)


class Budgets:
    """All counters of the cloud."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._counters: dict[tuple[str, ...], Bucket | Window] = {}

    def spend(
        self, principal: str, subscription: str, method: str, permission: str, scope: str, now: float
    ) -> dict[str, str]:
        """Returns the response's headers. Raises the 429 of the first exceeded limit."""
        if not self._settings.throttling:
            return {}
        limits = self._settings.limits
        kind = CLASSES.get(method, "writes")
        size, rate = getattr(limits, kind)
        bucket = self._counter(("arm", subscription, principal, kind), Bucket(size, rate))
        wait = bucket.take(now)
        if wait:
            words = f"Number of requests for subscription '{subscription}' exceeded the limit."
            raise _refusal("SubscriptionRequestsThrottled", words, wait)
        headers = {
            f"x-ms-ratelimit-remaining-subscription-{kind}": str(int(bucket.left)),
            # of all principals together: fifteen times as much
            f"x-ms-ratelimit-remaining-subscription-global-{kind}": str(int(14 * size + bucket.left)),
        }
        if permission.lower().startswith("microsoft.network/"):
            self._network(subscription, "reads" if kind == "reads" else "writes", now)
        if permission.lower() == INSTANCE_WRITE and method == "PUT":
            headers["x-ms-ratelimit-remaining-resource"] = self._instance(subscription, scope, now)
        return headers

    def forget(self) -> None:
        """Resets all counters."""
        self._counters.clear()

    def _network(self, subscription: str, kind: str, now: float) -> None:
        size, span = getattr(self._settings.limits, f"network_{kind}")
        wait = self._counter(("network", subscription, kind), Window(size, span)).take(now)
        if wait:
            words = f"The request was throttled: more than {size} {kind} of Microsoft.Network in {span} seconds."
            raise _refusal(self._settings.guesses.throttle_code, words, wait)

    def _instance(self, subscription: str, scope: str, now: float) -> str:
        limits = self._settings.limits
        one = self._counter(("instance", scope.lower()), Bucket(*limits.instance_writes))
        all_of_them = self._counter(("instances", subscription), Bucket(*limits.instances_writes))
        for counter, whose in ((one, f"for {scope}"), (all_of_them, "for this subscription")):
            wait = counter.take(now)
            if wait:
                words = f"The server rejected the request because too many requests have been received {whose}."
                raise _refusal("OperationNotAllowed", words, wait)
        return f"Microsoft.Compute/UpdateVMScaleSetVM;{int(one.left)}"

    def _counter(self, name: tuple[str, ...], new: Bucket | Window) -> Bucket | Window:
        return self._counters.setdefault(name, new)


def _refusal(code: str, words: str, wait: float) -> ArmError:
    seconds = max(1, math.ceil(wait))
    return ArmError(
        429, code, f"{words} Please try again after '{seconds}' seconds.", headers={"Retry-After": str(seconds)}
    )
