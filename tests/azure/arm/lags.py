"""Lagging reads: ARM returns a resource's earlier state to a GET, for minutes, and may alternate.

Pure. A test keeps a *mark* (the state of all resources that match a pattern at that moment), and then or later makes
reads return it: for some seconds of cloud time, or until it is released. Body and etag are the earlier ones; a resource
deleted since still exists, one created since does not yet. Writes see the present state: only reads are late. The
owner's reads never lag. Only resources covered by a mark lag; a later rule precedes an earlier one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from tests.azure.arm.errors import not_found
from tests.azure.arm.ids import ResourceId, key
from tests.azure.arm.requests import Reply
from tests.azure.arm.store import Body, Resource


@dataclass(frozen=True, slots=True)
class Mark:
    """An earlier state: bodies as a GET returned them, by key."""

    pattern: str
    bodies: dict[str, bytes]

    def covers(self, wanted: str) -> bool:
        return fnmatchcase(wanted, self.pattern)


@dataclass(slots=True)
class Lag:
    """Reads return the mark until `until`; if `alternating`, every second read of a resource does, starting with the
    first."""

    name: str
    mark: Mark
    until: float | None
    alternating: bool
    reads: dict[str, int] = field(default_factory=dict)

    def due(self, wanted: str, now: float) -> bool:
        if not self.mark.covers(wanted) or (self.until is not None and now >= self.until):
            return False
        self.reads[wanted] = self.reads.get(wanted, 0) + 1
        return not self.alternating or self.reads[wanted] % 2 == 1


class Lags:
    """Marks kept and rules in force."""

    def __init__(self) -> None:
        self._marks: dict[str, Mark] = {}
        self._rules: list[Lag] = []

    def keep(self, pattern: str, found: Iterable[Resource], shown: Callable[[Resource], Body]) -> str:
        """Remembers the present state of resources whose id matches; returns the mark's name."""
        wanted = pattern.lower()
        bodies = {r.id.key: msgspec.json.encode(shown(r)) for r in found if fnmatchcase(r.id.key, wanted)}
        name = f"mark-{len(self._marks)}"
        self._marks[name] = Mark(wanted, bodies)
        return name

    def start(self, name: str, until: float | None, *, alternating: bool) -> None:
        """Makes reads return the mark from now on."""
        self._rules.insert(0, Lag(name, self._marks[name], until, alternating))

    def release(self, name: str | None) -> None:
        """Ends the lag of reads by this mark, or by all."""
        self._rules = [rule for rule in self._rules if name is not None and rule.name != name]

    def answer(self, wanted: ResourceId, now: float) -> Reply | None:
        """The reply to a GET of the resource, if it lags. Raises the 404 of a resource that doesn't exist yet."""
        rule = self._rule(wanted.key, now)
        if rule is None:
            return None
        body = rule.mark.bodies.get(wanted.key)
        if body is None:
            raise not_found(str(wanted), wanted.group)
        former = msgspec.json.decode(body)
        return Reply(200, former, {"ETag": former["etag"]})

    def listed(self, reply: Reply, now: float) -> None:
        """The same for the members of a list; deleted resources aren't listed again."""
        if not self._rules or not isinstance(reply.body, dict) or "value" not in reply.body:
            return
        members: list[Any] = []
        for member in reply.body["value"]:
            wanted = key(member.get("id") or "")
            rule = self._rule(wanted, now)
            former = rule.mark.bodies.get(wanted) if rule is not None else None
            if rule is None or former is not None:
                members.append(member if former is None else msgspec.json.decode(former))
        reply.body = {**reply.body, "value": members}

    def _rule(self, wanted: str, now: float) -> Lag | None:
        return next((rule for rule in self._rules if rule.due(wanted, now)), None)
