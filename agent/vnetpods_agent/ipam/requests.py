"""The requests to the attachments, and the errors that they raise."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from vnetpods_agent.attachment import Address, AttachmentKey, Limits, Moment, Pod
from vnetpods_agent.ipam.pool import ANY, Wish


class AttachError(Exception):
    """├── NoAddress       none became free in time; the message says why
    ├── AddressRefused  the requested one is not available, and waiting won't help; the message says why
    └── Abandoned       the call became pointless while in progress
    """


class NoAddress(AttachError): ...  # noqa: N818 - its name is the finding


class AddressRefused(AttachError): ...  # noqa: N818


class Abandoned(AttachError): ...  # noqa: N818


@dataclass(frozen=True, slots=True)
class AttachRequest:
    """An attachment to make. `claims`: the reservation whose address it takes over, if that still exists; otherwise
    `wish` applies.
    """

    key: AttachmentKey
    netns: str
    pod: Pod | None
    wish: Wish = ANY
    claims: AttachmentKey | None = None
    snat: bool = True


@dataclass(slots=True)
class PendingAdd:
    """An attach in progress; event loop only."""

    began: Moment
    abandoned: str = ""
    waiting: asyncio.Future[Address] | None = None

    def abandon(self, why: str) -> None:
        self.abandoned = why
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_exception(Abandoned(why))

    def check(self) -> None:
        if self.abandoned:
            raise Abandoned(self.abandoned)


@dataclass(slots=True)
class Surroundings:
    """What attachments need from the rest of the agent."""

    clock: Callable[[], float]
    uptime: Callable[[], float]  # CLOCK_BOOTTIME
    boot_id: str
    limits: Callable[[str], Limits]  # of the NIC with that MAC
    cause: Callable[[], str]  # why there are no more addresses
    changed: Callable[[], None]  # counts have changed
    waits_long: Callable[[AttachRequest, str], None]
    barred: Callable[[], str] = str  # why no address may be assigned at present, even a free one
