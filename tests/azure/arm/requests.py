"""The cloud's input and output without HTTP: Request, Reply, and the ledger of both.

Pure data. `server.py` makes Requests from HTTP and HTTP from Replies; tests may call `Cloud.handle` directly. The
ledger keeps one Entry per request for the life of the cloud, so that a test can count writes; it keeps no bodies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Request:
    """`path` without the query; `principal` is the token's, empty without a token."""

    method: str
    path: str
    query: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    """Names in lower case."""
    body: Any = None
    principal: str = ""
    base: str = ""
    """The URL by which the caller reaches the emulator; poll and next links start with it."""


@dataclass(slots=True)
class Reply:
    """A fault makes the server misbehave on the wire by `delay`, `cut` and `raw`."""

    status: int
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: bool = False
    """The connection is reset instead of answered."""
    raw: bytes | None = None
    """Sent instead of the body."""
    due: float | None = None
    """When the polled operation ends; a virtual clock may leap there."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One request in the ledger. `operation` is the permission it needs:
    `Microsoft.Network/networkInterfaces/write`."""

    at: float
    principal: str
    method: str
    resource: str
    operation: str
    status: int
    code: str = ""
    fault: str = ""


class Ledger:
    """All requests, oldest first."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def select(
        self,
        operation: str | None = None,
        *,
        principal: str | None = None,
        resource: str | None = None,
        since: float | None = None,
    ) -> list[Entry]:
        """The matching requests; `resource` is a part of the id, compared without regard to case."""
        tests: list[Callable[[Entry], bool]] = []
        if operation is not None:
            tests.append(lambda entry: entry.operation.lower() == operation.lower())
        if principal is not None:
            tests.append(lambda entry: entry.principal == principal)
        if resource is not None:
            tests.append(lambda entry: resource.lower() in entry.resource.lower())
        if since is not None:
            tests.append(lambda entry: entry.at >= since)
        return [entry for entry in self.entries if all(test(entry) for test in tests)]

    def counts(self, since: float | None = None) -> dict[str, int]:
        """Requests by operation, most frequent first."""
        return dict(Counter(entry.operation for entry in self.select(since=since)).most_common())
