"""Compares ledger and kernel periodically, and releases addresses for which the runtime sent no DEL.

A task in the event loop; the kernel's worker reads the interfaces. A sandbox that is gone shows at the host end of its
veth, which the kernel removes with the namespace. A namespace's path proves nothing: it may be reused, and the agent
can't see it anyway. Attachments with a call in progress are skipped, and every finding is verified again under the
attachment's lock.
    attachment without interface               the sandbox is gone without a DEL: released
    two attachments of one (pod uid, ifname)   the sandbox was recreated without a DEL: the older one is released
    a reservation, or an interface that no sandbox has taken, for UNCLAIMED seconds: released
    interface without attachment               the ledger lost data: adopted, or removed if another pod has the address
Interfaces without our alias are foreign (Azure's own CNI also names its interfaces azv…).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog

from vnetpods_agent.attachment import Attachment, AttachmentKey
from vnetpods_agent.dataplane import DataPlane, DataPlaneError, HostInterface
from vnetpods_agent.ipam.attachments import Attachments
from vnetpods_agent.ipam.worker import WorkerThread
from vnetpods_kit.wording import some

SUPERSEDED = 60.0
"""Seconds for which a pod's newer sandbox must exist before the older one counts as left over."""

UNCLAIMED = 600.0
"""Seconds after which a reservation or an interface without a sandbox is released, as seen by one process. The runtime
fetches both within a second or two; the rest is for one that was frozen, or that fifty containers keep busy.
"""

LEAKED = "AddressReclaimed"
"""Reason of the Event."""
_NAMED = 8
_GONE = "sandbox is gone without a DEL"
_REPLACED = "sandbox was replaced without a DEL"
_UNCLAIMED = "no sandbox came for it"

log = structlog.get_logger(component="sweeper")


@dataclass(slots=True)
class Sweep:
    """A sweep's findings."""

    gone: int = 0
    superseded: int = 0
    unclaimed: int = 0
    adopted: int = 0
    removed: int = 0
    unsettled: int = 0
    """Interfaces without attachment, left to the next sweep."""
    leaks: list[str] = field(default_factory=list, compare=False)
    """Addresses that the runtime never released, each with its pod or container and the reason."""

    @property
    def said(self) -> str:
        """The Event's message: a runtime that loses DELs will do so again."""
        named = some(self.leaks, _NAMED)
        return f"addresses were given back that the container runtime never released: {named}" if named else ""


class Sweeper:
    def __init__(
        self, attachments: Attachments, kernel: WorkerThread, plane: DataPlane, uptime: Callable[[], float]
    ) -> None:
        self._attachments = attachments
        self._kernel = kernel
        self._plane = plane
        self._uptime = uptime
        self._unclaimed: dict[AttachmentKey, float] = {}  # first seen in that state

    async def run(self, period: float, observe: Callable[[Sweep], None]) -> None:
        while True:
            await asyncio.sleep(period)
            try:
                observe(await self.sweep())
            except DataPlaneError as error:
                log.warning("sweep failed, tried again later", error=str(error))

    async def sweep(self) -> Sweep:
        """Raises DataPlaneError."""
        attachments, found = self._attachments, Sweep()
        quiet = [a for key, a in attachments.by_key.items() if not attachments.busy(key)]
        interfaces = await self._kernel.submit(self._plane.interfaces)
        there = {interface.key for interface in interfaces}
        older = _superseded(quiet, self._uptime() - SUPERSEDED)
        unclaimed = self._left_alone(interfaces)
        for attachment in quiet:
            key = attachment.key
            if attachments.busy(key) or attachments.by_key.get(key) is not attachment:
                continue
            if key in unclaimed:
                why = _UNCLAIMED
            elif not (key.reserves or key in there or await self._kernel.submit(self._plane.present, attachment)):
                why = _GONE
            elif attachment in older:
                why = _REPLACED
            else:
                continue
            await self._reclaim(attachment, why, found)
        await self._settle(interfaces, found)
        return found

    async def _reclaim(self, attachment: Attachment, why: str, found: Sweep) -> None:
        key = attachment.key
        log.info(why, attachment=str(key), address=attachment.address)
        try:
            await self._attachments.detach(key, before=attachment.attached)
        except DataPlaneError as error:  # must not block the others
            log.warning("cannot give it back yet", attachment=str(key), error=str(error))
            return
        found.leaks.append(f"{attachment.address} of {_whose(attachment)}: {why}")
        found.gone += why == _GONE
        found.superseded += why == _REPLACED
        found.unclaimed += why == _UNCLAIMED

    async def _settle(self, interfaces: Sequence[HostInterface], found: Sweep) -> None:
        """Adopts or removes interfaces without attachment."""
        attachments = self._attachments
        for interface in sorted(interfaces, key=lambda each: each.index):  # the kernel's order of creation
            if interface.key is None or interface.key in attachments.by_key:
                continue
            if attachments.busy(interface.key):
                found.unsettled += 1
                continue
            try:
                done = await attachments.adopt(interface)
            except DataPlaneError as error:
                log.warning("cannot see to it yet", name=interface.name, error=str(error))
                found.unsettled += 1
                continue
            if done:
                log.warning("interface without attachment", name=interface.name, address=interface.address, done=done)
            found.adopted += done == "adopted"
            found.removed += done == "removed"

    def _left_alone(self, interfaces: Sequence[HostInterface]) -> set[AttachmentKey]:
        """Keys that have waited too long for their sandbox."""
        now = self._uptime()
        waiting = [key for key in self._attachments.by_key if key.reserves]
        waiting += [interface.key for interface in interfaces if interface.key and interface.untaken]
        self._unclaimed = {key: self._unclaimed.get(key, now) for key in waiting}
        return {key for key, since in self._unclaimed.items() if now - since >= UNCLAIMED}


def _whose(attachment: Attachment) -> str:
    pod = attachment.pod
    return f"pod {pod.namespace}/{pod.name}" if pod and pod.name else f"container {attachment.key}"


def _superseded(attachments: list[Attachment], settled: float) -> set[Attachment]:
    """All but the newest attachment of each pod's interface, if the newest was attached before `settled`. Ordered by
    arrival: by wall clock, setting the clock back would make the live one the older.
    """
    last: dict[tuple[str, str], Attachment] = {}
    in_order = sorted((a for a in attachments if a.pod and a.pod.uid), key=lambda a: (a.arrival, a.created))
    for attachment in in_order:
        assert attachment.pod
        last[attachment.pod.uid, attachment.key.ifname] = attachment
    return {
        a
        for a in in_order
        if a.pod and (newest := last[a.pod.uid, a.key.ifname]) is not a and newest.attached_boottime < settled
    }
