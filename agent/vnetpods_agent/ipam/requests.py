"""What is asked of the attachments, and what they answer when they can't."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from vnetpods_agent.attachment import Address, AttachmentKey, Limits, Moment, Pod
from vnetpods_agent.ipam.pool import ANY, Wish


class AttachError(Exception):
    """├── NoAddress       none became free in time; says why
    ├── AddressRefused  the one that was named can't be had, however long one waits; says why
    └── Abandoned       the call lost its purpose while it was under way
    """


class NoAddress(AttachError): ...  # noqa: N818 - its name is the finding


class AddressRefused(AttachError): ...  # noqa: N818


class Abandoned(AttachError): ...  # noqa: N818


@dataclass(frozen=True, slots=True)
class AttachRequest:
    """An attachment to be. `claims`: the reservation whose address it takes, if that is still there; else it gets what
    it wishes.
    """

    key: AttachmentKey
    netns: str
    pod: Pod | None
    wish: Wish = ANY
    claims: AttachmentKey | None = None
    snat: bool = True


@dataclass(slots=True)
class PendingAdd:
    """An attach under way; in the event loop."""

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
    """What attachments need to know of the rest of the agent."""

    clock: Callable[[], float]
    uptime: Callable[[], float]  # CLOCK_BOOTTIME
    boot_id: str
    limits: Callable[[str], Limits]  # of the NIC with that MAC
    cause: Callable[[], str]  # why there are no more addresses
    changed: Callable[[], None]  # counts have changed
    waits_long: Callable[[AttachRequest, str], None]
    barred: Callable[[], str] = str  # why no address may be given out at present, whatever there is
