"""Where addresses come from, and what is told back: the protocol between the agent and a pool of addresses.

Decided here: nothing; these are the types. The event loop iterates `watch` for as long as the agent lives and calls
`publish` from the reporter. Implementations: `nodeippool` (the Kubernetes API), and for a machine without
Kubernetes `file` and `imds` (instance metadata). They speak in terms of a NodeIPPool's status, since that is the
contract with whoever fills it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

from vnetpods_agent.attachment import Address
from vnetpods_api import AgentReport, ConditionStatus, ConditionType, Interface, Status, Usage, find


class SourceUnavailable(Exception):  # noqa: N818 - its name is the finding
    """The source did not confirm; the message says which one, what was asked and why it failed."""


class SourceChanged(SourceUnavailable):
    """The source has changed since it was heard last; the news comes by `watch`, and the report has to fit them."""


@dataclass(frozen=True, slots=True)
class Supply:
    """What the source says at one moment.

    `live` is False for what an earlier process saved: good enough to go on giving out addresses (none leaves a NIC
    without this node's consent), but no step of the release handshake is taken on it. `acknowledged` is the last report
    that the source was known to have when this was asked for, or told. `withheld` are listed addresses of which the
    source isn't sure: a pod that holds one keeps it, and no other gets it.
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
        """Why there are no more addresses, in the words of the pool's conditions; empty when it doesn't say."""
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
    """What the agent tells the source: counts, and addresses where the source must act. `request`: the releaseRequest
    that `released` and `kept` answer; `view`: see `trust`. `instance` and `number` say who reports, and are no news by
    themselves.
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
        """The agent's part of a NodeIPPool's status, but for the conditions."""
        return Status(usage=self.usage, agent=self.agent, released=self.released, kept=self.kept, missing=self.missing)


class AddressSource(Protocol):
    """A pool of addresses for this node."""

    def watch(self) -> AsyncIterator[Supply]:
        """Every state of the pool worth knowing, the present one first. Reconnects by itself and never ends."""
        ...

    async def publish(self, report: Report) -> None:
        """Returns when the source has taken it. Raises SourceUnavailable, SourceChanged.

        A report that gets lost on its way must not arrive after a later one: it could promise back an address that is
        in use again by then.
        """
        ...

    @property
    def truth(self) -> bool:
        """Whether what it says is right by definition, and nobody has to confirm it (see `trust`)."""
        ...

    @property
    def lasting(self) -> bool:
        """Whether what was saved of it, before a boot or with another state folder, is used until it speaks. If not, it
        is used when nobody confirms the source's own list in time, and of a source that is the truth never.
        """
        ...

    @property
    def trouble(self) -> str:
        """Why the source can't be reached at present; empty when it can."""
        ...

    async def close(self) -> None: ...
