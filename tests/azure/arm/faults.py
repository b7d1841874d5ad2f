"""Fault rules: which requests fail, and how.

Pure. A test adds Faults; for every request (except the owner's) the first rule that matches and is due gives its
effect, which `cloud.py` applies. Counting is per rule: `nth` is the first matching request that is hit, `times` how
many are (None: all from there on), `probability` with `seed` thins them out reproducibly.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from tests.azure.arm.requests import Request

Effect = Literal[
    "reset",  # the connection is reset; the write has happened if `after`
    "timeout",  # no answer for `seconds`, then a reset; the write has happened if `after`
    "status",  # `status`, `code`, `message`, and Retry-After if `retry_after`
    "slow",  # the right answer, `seconds` late
    "garbage",  # status 200 and a body that is no JSON, or none that makes sense
    "fail",  # accepted, and the operation ends Failed with `code`; the write has happened if `after`
    "preempt",  # the same with OperationPreempted
    "half",  # the operation fails and leaves half-made entries in the model of a scale-set instance
    "writer",  # another writer changes the NIC first: `change`
    "stale",  # a GET answers what was there before the last write
    "vanish",  # the machine and its NICs are deleted; after accepting the write if `after`
]
Change = Literal["tag", "pool", "configuration", "remove", "remove_all"]


@dataclass(slots=True)
class Fault:
    """One rule. Patterns are shell-like and compare without regard to case; `resource` is matched with the path."""

    effect: Effect
    method: str = "*"
    resource: str = "*"
    operation: str = "*"
    principal: str = "*"
    nth: int = 1
    times: int | None = 1
    probability: float = 1.0
    seed: int = 0
    after: bool = False
    seconds: float = 30.0
    status: int = 500
    code: str = "InternalServerError"
    message: str = "An error occurred."
    retry_after: int | None = None
    change: Change = "tag"
    argument: str = ""
    """What a writer uses: the id of a pool, the name of a configuration. Of garbage, the body."""
    seen: int = 0
    hit: int = 0
    _random: random.Random = field(default_factory=random.Random, repr=False)

    def __post_init__(self) -> None:
        self._random.seed(self.seed)

    def fits(self, request: Request, permission: str) -> bool:
        pairs = (
            (request.method, self.method),
            (request.path, self.resource),
            (permission, self.operation),
            (request.principal, self.principal),
        )
        return all(fnmatchcase(value.lower(), pattern.lower()) for value, pattern in pairs)

    def due(self) -> bool:
        """Counts one matching request; returns whether it is hit."""
        self.seen += 1
        if self.seen < self.nth or (self.times is not None and self.hit >= self.times):
            return False
        if self._random.random() >= self.probability:
            return False
        self.hit += 1
        return True


class Faults:
    """The rules in force."""

    def __init__(self) -> None:
        self.rules: list[Fault] = []

    def add(self, **values: Any) -> Fault:
        fault = Fault(**values)
        self.rules.append(fault)
        return fault

    def clear(self) -> None:
        self.rules.clear()

    def match(self, request: Request, permission: str) -> Fault | None:
        """The fault for this request. Every matching rule counts it, only the first due one acts."""
        due = [fault for fault in self.rules if fault.fits(request, permission) and fault.due()]
        return due[0] if due else None
