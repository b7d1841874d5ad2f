"""Whether what the source lists may be used: docs/architecture.md, "When the list is trusted".

Pure: no I/O, no clock. The listener asks about all that it hears; the reporter tells the source the `view`. A view is
made anew whenever what is on this node can't vouch for the list: another boot, a ledger that isn't whole, a pool that
lacks our last acknowledged report. Only the source can end that, by repeating the view; or `patience` runs out, since a
node must be able to start without an operator. View and last report are kept in pool.json, so that an agent that is
merely restarted goes on where it was.
"""

from __future__ import annotations

import secrets

from vnetpods_api import AgentReport, Status


class Trust:
    """`instance` names this process in its reports. `always`: the source is the truth itself, such as a file."""

    def __init__(self, patience: float, now: float, *, always: bool = False) -> None:
        self.instance = secrets.token_hex(8)
        self.view = secrets.token_hex(8)
        self.why = "this agent has just begun"
        self.current = always  # whether the newest list that was heard is trusted
        self.always = always
        self._patience = patience
        self._since = now
        self._acknowledged: AgentReport | None = None

    def resume(self, saved: AgentReport | None) -> None:
        """An earlier agent of this boot has left its view and its last acknowledged report."""
        if saved is not None and saved.view:
            self.view = saved.view
            self._acknowledged = saved

    def renew(self, why: str, now: float) -> None:
        """What is known vouches for nothing any more."""
        self.view, self.why = secrets.token_hex(8), why
        self._since, self._acknowledged = now, None

    def hear(self, status: Status, acknowledged: AgentReport | None, now: float) -> bool:
        """Whether the list may be used at once. `acknowledged` is our last report of which the source, when this was
        read, had said that it has it.
        """
        if acknowledged is not None and acknowledged.view == self.view:
            self._acknowledged = acknowledged
        if not self.always and self._acknowledged is not None and self._lacks(status.agent, self._acknowledged):
            self.renew("the NodeIPPool lacks this agent's last report (restored, or made anew?)", now)
        self.current = self.always or status.confirmed_view == self.view or self.waived(now)
        return self.current

    def waived(self, now: float) -> bool:
        """Nobody has confirmed for so long that the list is used all the same."""
        return now - self._since >= self._patience

    def cause(self, now: float) -> str:
        """Why there are no addresses although some are listed."""
        left = max(0, round(self._patience - (now - self._since)))
        return (
            f"the operator has not confirmed yet what the NIC holds ({self.why}); "
            f"what was listed before is used in {left} s if it doesn't"
        )

    @property
    def kept(self) -> AgentReport:
        """What an agent that is restarted has to know."""
        known = self._acknowledged or AgentReport(instance=self.instance, report=0)
        return AgentReport(instance=known.instance, report=known.report, view=self.view)

    def _lacks(self, found: AgentReport | None, ours: AgentReport) -> bool:
        """Whether a status is older than that report, or another agent's. A later report of ours may be in it already:
        it counts as acknowledged only once its answer has arrived.
        """
        if found is None:
            return True
        if found.instance == self.instance != ours.instance:
            return False
        return (found.instance, found.view) != (ours.instance, ours.view) or found.report < ours.report
