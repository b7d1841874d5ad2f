"""Detects two agents that report for one node: a replaced one keeps reporting. Pure.

Causes: a force-deleted pod whose process still runs, a second agent started by hand, a copy of the machine's disk. Each
considers the other's addresses free, so no release may be requested meanwhile. An API server restored from a backup is
not mistaken for a second agent: an old report's number has been observed before.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vnetpods_api import AgentReport

QUIET = 600.0
"""Seconds without another alternation after which one agent is assumed gone."""
REMEMBERED = 16


@dataclass(slots=True)
class Doubles:
    """The agents of one node, by their reports."""

    _numbers: dict[str, int] = field(default_factory=dict)
    """The highest report number of each instance, the most recent instance last."""
    _both: tuple[str, str] = ("", "")
    _until: float = float("-inf")

    def heard(self, agent: AgentReport, now: float) -> None:
        last = next(reversed(self._numbers), None)
        known = self._numbers.get(agent.instance)
        if known is not None and agent.report <= known:
            return
        if known is not None and last is not None and last != agent.instance:
            self._both, self._until = (last, agent.instance), now + QUIET
        self._numbers.pop(agent.instance, None)
        self._numbers[agent.instance] = agent.report
        for instance in list(self._numbers)[:-REMEMBERED]:
            del self._numbers[instance]

    def said(self, now: float) -> str:
        """Names the two agents; "" if only one reports."""
        if now >= self._until:
            return ""
        return f"two agents report for this node, instances {self._both[0]} and {self._both[1]}"
