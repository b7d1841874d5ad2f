"""Whether two agents report for one node: one that was replaced goes on reporting. Pure.

A force-deleted pod whose process still runs, a second one started by hand, a copy of the machine's disk. Each takes the
other's addresses for free, so nothing may be asked back meanwhile. What an API server tells that was restored from a
backup is no such thing: an old report has a number that was heard before.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vnetpods_api import AgentReport

QUIET = 600.0
"""Seconds without a word of the other one after which one is taken to be gone."""
REMEMBERED = 16


@dataclass(slots=True)
class Doubles:
    """The agents of one node, by what they say."""

    _numbers: dict[str, int] = field(default_factory=dict)
    """The highest report of each instance; the one heard last is last."""
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
        """What is the matter; "" if nothing is."""
        if now >= self._until:
            return ""
        return f"two agents report for this node, instances {self._both[0]} and {self._both[1]}"
