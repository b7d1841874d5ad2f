"""Ledger against kernel, now and then: what the runtime never told us.

A task in the event loop; the look at the kernel is a job of its worker. A pod's sandbox that is gone shows at the host
end of its veth, which the kernel removes with the namespace. The path of a namespace proves nothing: it may be reused,
and the agent couldn't see it anyway. What a call is busy with is left alone, and every finding is looked at again in
that attachment's turn.
    attachment without interface               the sandbox is gone without a DEL: given back
    two attachments of one (pod uid, ifname)   the sandbox was made again without a DEL: the older one is given back
    an address reserved, or an interface that no sandbox has taken, for long: given back; nobody will come
    interface without attachment               a ledger that forgot: adopted, or removed if the address is another pod's
Interfaces without our alias are somebody else's (Azure's own CNI calls its interfaces azv… too).
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
"""Seconds that a pod's newer sandbox exists before the older one counts as left behind."""

UNCLAIMED = 600.0
"""Seconds for which nobody has to come for what waits for its sandbox, as seen by one process. The runtime fetches both
within a second or two; this is for one that was frozen, or that fifty containers keep busy.
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
    """How much a sweep found."""

    gone: int = 0
    superseded: int = 0
    unclaimed: int = 0
    adopted: int = 0
    removed: int = 0
    unsettled: int = 0
    """Interfaces without attachment that have to wait for the next sweep."""
    leaks: list[str] = field(default_factory=list, compare=False)
    """Addresses that the runtime never gave back, and whose they were."""

    @property
    def said(self) -> str:
        """What people should hear of it: a runtime that loses DELs will do so again."""
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
        self._unclaimed: dict[AttachmentKey, float] = {}  # since when it has been seen like that

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
        except DataPlaneError as error:  # the others needn't wait for it
            log.warning("cannot give it back yet", attachment=str(key), error=str(error))
            return
        found.leaks.append(f"{attachment.address} of {_whose(attachment)}: {why}")
        found.gone += why == _GONE
        found.superseded += why == _REPLACED
        found.unclaimed += why == _UNCLAIMED

    async def _settle(self, interfaces: Sequence[HostInterface], found: Sweep) -> None:
        """Interfaces without attachment."""
        attachments = self._attachments
        for interface in sorted(interfaces, key=lambda each: each.index):  # the kernel counts them as they come
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
        """What has been waiting for its sandbox for too long."""
        now = self._uptime()
        waiting = [key for key in self._attachments.by_key if key.reserves]
        waiting += [interface.key for interface in interfaces if interface.key and interface.untaken]
        self._unclaimed = {key: self._unclaimed.get(key, now) for key in waiting}
        return {key for key, since in self._unclaimed.items() if now - since >= UNCLAIMED}


def _whose(attachment: Attachment) -> str:
    pod = attachment.pod
    return f"pod {pod.namespace}/{pod.name}" if pod and pod.name else f"container {attachment.key}"


def _superseded(attachments: list[Attachment], settled: float) -> set[Attachment]:
    """All but the last of each pod's interface, once that has been there since before `settled`. By the order in which
    they came: a clock that was set back would make the live one the older.
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
