"""Decides whether the source's list may be used: docs/architecture.md, "When the list is trusted".

Pure: no I/O, no clock. The listener checks every list here; the reporter sends the `view` to the source. A new view is
generated whenever this node's own state can't vouch for the list: another boot, a ledger that is not intact, a pool
that lacks our last acknowledged report. The list is trusted again once the source repeats the view, or when `patience`
runs out, since a node must be able to start without an operator. View and last report are saved in pool.json, so that a
restarted agent continues where it was.
"""

from __future__ import annotations

import secrets

from vnetpods_api import AgentReport, Status


class Trust:
    """`instance` identifies this process in its reports. `always`: the source is authoritative, such as a file."""

    def __init__(self, patience: float, now: float, *, always: bool = False) -> None:
        self.instance = secrets.token_hex(8)
        self.view = secrets.token_hex(8)
        self.why = "this agent has just begun"
        self.current = always  # whether the newest list is trusted
        self.always = always
        self._patience = patience
        self._since = now
        self._acknowledged: AgentReport | None = None

    def resume(self, saved: AgentReport | None) -> None:
        """Takes over the view and the last acknowledged report of an earlier agent of this boot."""
        if saved is not None and saved.view:
            self.view = saved.view
            self._acknowledged = saved

    def renew(self, why: str, now: float) -> None:
        """Starts a new view: the node's own state no longer vouches for the list."""
        self.view, self.why = secrets.token_hex(8), why
        self._since, self._acknowledged = now, None

    def hear(self, status: Status, acknowledged: AgentReport | None, now: float) -> bool:
        """Whether the list may be used at once. `acknowledged` is our last report that the source had accepted before
        this list was read.
        """
        if acknowledged is not None and acknowledged.view == self.view:
            self._acknowledged = acknowledged
        if not self.always and self._acknowledged is not None and self._lacks(status.agent, self._acknowledged):
            self.renew("the NodeIPPool lacks this agent's last report (restored, or made anew?)", now)
        self.current = self.always or status.confirmed_view == self.view or self.waived(now)
        return self.current

    def waived(self, now: float) -> bool:
        """Whether the list may be used unconfirmed, since no confirmation has arrived for `patience`."""
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
        """The state that a restarted agent needs."""
        known = self._acknowledged or AgentReport(instance=self.instance, report=0)
        return AgentReport(instance=known.instance, report=known.report, view=self.view)

    def _lacks(self, found: AgentReport | None, ours: AgentReport) -> bool:
        """Whether a status is older than that report, or another agent's. It may already contain a later report of
        ours, which counts as acknowledged only once its answer has arrived.
        """
        if found is None:
            return True
        if found.instance == self.instance != ours.instance:
            return False
        return (found.instance, found.view) != (ours.instance, ours.view) or found.report < ours.report
