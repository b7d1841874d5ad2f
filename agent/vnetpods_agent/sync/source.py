"""The protocol between the agent and a source of addresses.

Only types. The event loop iterates `watch` for the agent's lifetime; the reporter calls `publish`. Implementations:
`nodeippool` (the Kubernetes API), and for a machine without Kubernetes `file` and `imds` (instance metadata). All use
the terms of a NodeIPPool's status, since that is the contract with the operator.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

from vnetpods_agent.attachment import Address
from vnetpods_api import AgentReport, ConditionStatus, ConditionType, Interface, Status, Usage, find


class SourceUnavailable(Exception):  # noqa: N818 - its name is the finding
    """The source did not confirm a report; the message names the source, the request and the failure."""


class SourceChanged(SourceUnavailable):
    """The source has changed since it was last observed; `watch` delivers the change, and the report must follow it."""


@dataclass(frozen=True, slots=True)
class Supply:
    """The source's state at one moment.

    `live` is False for a state that an earlier process saved: addresses may be assigned from it (none leaves a NIC
    without this node's consent), but it triggers no step of the release handshake. `acknowledged` is the last report
    that the source was known to have when this state was requested or delivered. `withheld` are listed addresses that
    are uncertain: a pod that holds one keeps it, and no other gets it.
    """

    status: Status
    live: bool = True
    acknowledged: AgentReport | None = None
    withheld: frozenset[Address] = frozenset()

    @property
    def interfaces(self) -> tuple[Interface, ...]:
        return self.status.interfaces

    @property
    def cause(self) -> str:
        """Why there are no more addresses, from the pool's conditions; empty if they give no cause."""
        for type_, worth_telling in (
            (ConditionType.STALLED, ConditionStatus.TRUE),
            (ConditionType.READY, ConditionStatus.FALSE),
            (ConditionType.RECONCILING, ConditionStatus.TRUE),
            (ConditionType.READY, ConditionStatus.UNKNOWN),
        ):
            condition = find(self.status.conditions, type_)
            if condition and condition.status == worth_telling:
                return f"{condition.reason}: {condition.message}"
        return ""


@dataclass(frozen=True, slots=True)
class Report:
    """The agent's report to the source: counts, and addresses on which the source must act. `request`: the
    releaseRequest that `released` and `kept` answer; `view`: see `trust`. `instance` and `number` identify the report;
    a change of these alone is no reason to send one.
    """

    usage: Usage
    released: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    serving: bool = False
    stopping: bool = False
    message: str = ""
    request: str | None = None
    view: str | None = None
    instance: str = field(default="", compare=False)
    number: int = field(default=0, compare=False)

    @property
    def agent(self) -> AgentReport:
        return AgentReport(instance=self.instance, report=self.number, view=self.view, release_request=self.request)

    @property
    def status(self) -> Status:
        """The agent's part of a NodeIPPool's status, except the conditions."""
        return Status(usage=self.usage, agent=self.agent, released=self.released, kept=self.kept, missing=self.missing)


class AddressSource(Protocol):
    """A pool of addresses for this node."""

    def watch(self) -> AsyncIterator[Supply]:
        """Yields the present state of the pool, then every relevant change. Reconnects by itself and never ends."""
        ...

    async def publish(self, report: Report) -> None:
        """Returns once the source has accepted the report. Raises SourceUnavailable, SourceChanged.

        A delayed report must not arrive after a later one: it could release an address that is in use again by then.
        """
        ...

    @property
    def truth(self) -> bool:
        """Whether the source is authoritative, so that its list needs no confirmation (see `trust`)."""
        ...

    @property
    def lasting(self) -> bool:
        """Whether a state saved before a boot, or with another state folder, is used until the source delivers. If not,
        it is used only when the source's own list is not confirmed in time; with an authoritative source, never.
        """
        ...

    @property
    def trouble(self) -> str:
        """Why the source is unreachable now; empty if it is reachable."""
        ...

    async def close(self) -> None: ...
