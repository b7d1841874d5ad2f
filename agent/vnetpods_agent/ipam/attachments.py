"""Assigns and releases pod addresses in the one crash-safe order; no other code does either.

Everything runs in the event loop; blocking work is done by the ledger's and the kernel's worker threads.
    attach   pool (memory) -> ledger (durable) -> kernel -> answer
             The kernel never has what the ledger lacks; a crash leaves a row for a repeated ADD or a sweep.
    detach   kernel -> ledger (durable) -> pool -> answer
             A crash leaves a row without interface for a repeated DEL or a sweep.
A reservation is an attachment without an interface: the address comes before its user (Docker's IPAM).
    reserve  pool (memory) -> ledger (durable) -> answer; `detach` releases it, or `attach` claims it
Calls for one attachment are serialised, calls for different ones overlap. A detach that finds an attach in progress
abandons it: the ADD fails and undoes its work before the detach proceeds (ACN#4829: DEL overtakes ADD). A caller that
disconnects while it waits for an address leaves the queue; one that disconnects later is abandoned in the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import structlog

from vnetpods_agent.attachment import Address, Attachment, AttachmentKey, Moment, Pod, SandboxHandles
from vnetpods_agent.dataplane import DataPlane, DataPlaneError, HostInterface
from vnetpods_agent.ipam.keyed_lock import KeyedLock
from vnetpods_agent.ipam.ledger.schema import Adopt, Assign, Claim, Content, Release
from vnetpods_agent.ipam.ledger.store import AddressTaken, Ledger, LedgerUnavailable
from vnetpods_agent.ipam.pool import Pool, Wish
from vnetpods_agent.ipam.requests import AddressRefused, AttachRequest, NoAddress, PendingAdd, Surroundings
from vnetpods_agent.ipam.worker import WorkerThread
from vnetpods_kit.faultpoints import AgentPoint, reach

LONG_WAIT = 5.0
"""Seconds after which a waiting pod gets an Event."""
_LEAVING = (0.25, 0.02)
"""Seconds until former pods' interfaces are checked again: while no ADD waits, and while one does."""

log = structlog.get_logger(component="attachments")


class Attachments:
    """All attachments of this node. `by_key` mirrors the ledger."""

    def __init__(
        self, pool: Pool, ledger: Ledger, kernel: WorkerThread, plane: DataPlane, surroundings: Surroundings
    ) -> None:
        self.by_key: dict[AttachmentKey, Attachment] = {}
        self._pool = pool
        self._ledger = ledger
        self._kernel = kernel
        self._plane = plane
        self._around = surroundings
        self._loop = asyncio.get_running_loop()
        self._locks = KeyedLock()
        self._pending: dict[AttachmentKey, PendingAdd] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False
        self._arrivals = 0

    # for callers

    def busy(self, key: AttachmentKey) -> bool:
        """Whether a call for it is in progress."""
        return self._locks.busy(key)

    def of(self, container_id: str, ifname: str) -> list[AttachmentKey]:
        """Keys attached or being attached there, in any network."""
        known = {**self.by_key, **self._pending}
        return [key for key in known if (key.container_id, key.ifname) == (container_id, ifname)]

    def holder(self, address: Address) -> AttachmentKey | None:
        return self._pool.holder(address)

    async def reserve(self, key: AttachmentKey, wish: Wish, deadline: float) -> Attachment:
        """Reserves an address durably. Waits and raises as `attach` does."""
        async with self._locks.of(key):
            pending = self._pending[key] = PendingAdd(self.now())
            try:
                attachment = await self._assigned(AttachRequest(key, "", None, wish), deadline, pending)
            finally:
                del self._pending[key]
            self._around.changed()
            return attachment

    async def attach(self, wanted: AttachRequest, handles: SandboxHandles | None, deadline: float) -> Attachment:
        """Returns the attachment, durable and working. An existing one is set up again where something is missing.
        Without handles the runtime moves the pod's end itself.

        Waits for an address until `deadline` (loop time). Raises AttachError, LedgerError, DataPlaneError.
        """
        key = wanted.key
        async with self._locks.of(key):
            if (found := self.by_key.get(key)) is not None:
                found = await self._updated(found, wanted)
                await self._kernel.submit(self._plane.attach, found, handles)
                return found
            pending = self._pending[key] = PendingAdd(self.now())
            try:
                if wanted.claims is None:
                    return await self._establish(wanted, handles, deadline, pending)
                async with self._locks.of(wanted.claims):
                    return await self._establish(wanted, handles, deadline, pending)
            finally:
                del self._pending[key]

    async def renew(self, key: AttachmentKey, handles: SandboxHandles | None) -> Attachment | None:
        """Sets up again whatever an existing attachment lacks; None without one. Raises DataPlaneError."""
        async with self._locks.of(key):
            if (found := self.by_key.get(key)) is not None and not key.reserves:
                await self._kernel.submit(self._plane.attach, found, handles)
            return found

    def now(self) -> Moment:
        return Moment(self._around.clock(), self._around.uptime(), self._around.boot_id)

    async def detach(self, key: AttachmentKey, *, before: Moment | None = None) -> Attachment | None:
        """The address is free when this returns; None when it was not held. Once begun, it runs to its end.

        With `before`, later attachments are left alone. On DataPlaneError the address stays held.
        """
        pending = self._pending.get(key)
        if pending is not None and not self._after(pending.began, before):
            pending.abandon("the pod was deleted while its address was being set up")
        async with self._locks.of(key):
            attachment = self.by_key.get(key)
            if attachment is None or self._after(attachment.attached, before):
                return None
            await self._through(self._give_back(attachment))
            return attachment

    def _after(self, moment: Moment, other: Moment | None) -> bool:
        return other is not None and moment.after(other, self._around.boot_id)

    def remember(self, content: Content) -> None:
        """Takes over the ledger's content, before any address is assigned. Attachments recognised meanwhile stay, with
        the ledger's fuller record where it has one.
        """
        self._arrivals = max(self._arrivals, *(a.arrival for a in content.attachments.values()), 0)
        for key, attachment in content.attachments.items():
            known = self.by_key.get(key)
            if known is None and self._pool.holder(attachment.address) is None:
                self.by_key[key] = attachment
                self._pool.adopt(attachment.address, key)
            elif known and known.address == attachment.address and not self.busy(key):
                self.by_key[key] = attachment
        rests = {address: self._rested(since) for address, since in content.rests.items()}
        self._pool.restore({}, rests, content.withdrawn, content.retired)

    def _rested(self, since: Moment) -> float:
        """The release time on this boot's clock. A release of another boot counts as of this boot's start; one written
        by an earlier version (without a boot id) counts by its wall clock, but never as of the future.
        """
        now = self.now()
        if since.boot_id:
            return since.boottime if since.boot_id == now.boot_id else 0.0
        return now.boottime - max(0.0, now.wall - since.wall)

    async def void(self, attachment: Attachment) -> None:
        """Releases an attachment that ended with the previous boot; the kernel has nothing of it."""
        now = self.now()
        since = replace(now, wall=now.wall - now.boottime, boottime=0.0)
        async with self._locks.of(attachment.key):
            if self.by_key.get(attachment.key) is attachment:
                await self._through(self._record_release(attachment, since))

    async def adopt(self, interface: HostInterface) -> str:
        """Makes an attachment of a pod's interface that has none, or removes the interface if another pod holds its
        address; returns "adopted", "removed", or "" for nothing.

        An ADD is durable before it touches the kernel, so such a pod proves a ledger that lost data, not a deleted pod.
        """
        key, address = interface.key, interface.address
        if key is None or address is None:
            return ""
        async with self._locks.of(key):
            if key in self.by_key or interface not in await self._kernel.submit(self._plane.interfaces):
                return ""
            if self._pool.holder(address) is not None:
                await self._kernel.submit(self._plane.remove, interface)
                return "removed"
            attachment = self._recognised(interface, key, address)
            self._pool.adopt(address, key)
            self.by_key[key] = attachment
            with contextlib.suppress(LedgerUnavailable):
                await self._ledger.commit(Adopt(attachment))
            return "adopted"

    def _recognised(self, interface: HostInterface, key: AttachmentKey, address: Address) -> Attachment:
        pod = Pod("", "", interface.uid) if interface.uid else None
        # its time of attachment on the boot's clock is unknown: some time before now
        attachment = replace(self._attachment(AttachRequest(key, "", pod), address), attached_boottime=0.0)
        if interface.created is not None:
            attachment = replace(attachment, created=interface.created)
        return attachment if attachment.host_ifname == interface.name else replace(attachment, host_name=interface.name)

    async def name_nics(self) -> None:
        """Records the NIC of pods that were adopted before it was known."""
        for attachment in [a for a in self.by_key.values() if not a.nic_mac and self._pool.mac(a.address)]:
            async with self._locks.of(attachment.key):
                if self.by_key.get(attachment.key) is attachment:
                    mac = self._pool.mac(attachment.address)
                    limits = self._around.limits(mac)
                    known = replace(attachment, nic_mac=mac, mtu=limits.mtu, gso_max_size=limits.gso_max_size)
                    self.by_key[attachment.key] = known
                    with contextlib.suppress(LedgerUnavailable):
                        await self._ledger.commit(Adopt(known))

    def serve(self) -> None:
        """Assigns free addresses to waiting ADDs; called whenever one may have become free."""
        now = self._around.uptime()
        leaving = bool(self._plane.leaving())
        for key, address in self._pool.serve(now):
            future = self._pending[key].waiting
            assert future is not None
            if future.done():  # abandoned in this iteration of the loop
                self._pool.untake(address)
            else:
                future.set_result(address)
        self._around.changed()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (delay := self._next_chance(now, leaving)) is not None:
            self._timer = self._loop.call_later(delay, self.serve)

    def close(self) -> None:
        """At the agent's end: cancels waiting ADDs, so that the shim asks the next agent instead."""
        self._closing = True
        for pending in self._pending.values():
            if pending.waiting is not None:
                pending.waiting.cancel()

    # attach

    async def _establish(
        self, wanted: AttachRequest, handles: SandboxHandles | None, deadline: float, pending: PendingAdd
    ) -> Attachment:
        reservation = self.by_key.get(wanted.claims) if wanted.claims else None
        if reservation is None:
            attachment = await self._assigned(wanted, deadline, pending)
        else:
            attachment = await self._claimed(wanted, reservation, pending)
        try:
            await self._kernel.submit(self._plane.attach, attachment, handles)
            reach(AgentPoint.ADD_ATTACHED)
            pending.check()
        except BaseException:
            await self._undo(attachment)
            raise
        self._around.changed()
        return attachment

    async def _assigned(self, wanted: AttachRequest, deadline: float, pending: PendingAdd) -> Attachment:
        """Chooses an address and makes it durable."""
        address = await self._address(wanted, deadline, pending)
        reach(AgentPoint.ADD_CHOSEN)
        attachment = self._attachment(wanted, address)
        try:
            await self._ledger.commit(Assign(attachment))
        except LedgerUnavailable:
            self._pool.untake(address)
            self.serve()
            raise
        except AddressTaken:
            # memory and disk disagree, a defect: a cool-down at least keeps the address from being chosen again at once
            self._pool.release(address, attachment.attached_boottime)
            raise
        except asyncio.CancelledError:
            self.by_key[attachment.key] = attachment
            await self._through(self._unused(attachment))
            raise
        self.by_key[attachment.key] = attachment
        await self._still_wanted(attachment, pending)
        return attachment

    async def _claimed(self, wanted: AttachRequest, reservation: Attachment, pending: PendingAdd) -> Attachment:
        """Replaces the reservation durably; it stays if the ledger refuses."""
        attachment = self._attachment(wanted, reservation.address)
        outcome, cancelled = self._ledger.commit(Claim(reservation.key, attachment)), False
        try:
            await outcome
        except asyncio.CancelledError:
            if outcome.exception():
                raise
            cancelled = True
        del self.by_key[reservation.key]
        self.by_key[attachment.key] = attachment
        self._pool.adopt(attachment.address, attachment.key)
        if cancelled:
            await self._through(self._unused(attachment))
            raise asyncio.CancelledError
        await self._still_wanted(attachment, pending)
        return attachment

    async def _still_wanted(self, attachment: Attachment, pending: PendingAdd) -> None:
        reach(AgentPoint.ADD_DURABLE)
        if pending.abandoned:
            await self._through(self._unused(attachment))
            pending.check()

    def _attachment(self, wanted: AttachRequest, address: Address) -> Attachment:
        mac = self._pool.mac(address)
        limits = self._around.limits(mac)
        self._arrivals += 1
        return Attachment(
            wanted.key,
            address,
            wanted.netns,
            mac,
            limits.mtu,
            self._around.boot_id,
            self._around.clock(),
            wanted.pod,
            limits.gso_max_size,
            attached_boottime=self._around.uptime(),
            arrival=self._arrivals,
            snat=wanted.snat,
        )

    async def _address(self, wanted: AttachRequest, deadline: float, pending: PendingAdd) -> Address:
        if why := self._around.barred():
            raise NoAddress(why)
        if why := self._pool.hopeless(wanted.wish):
            raise AddressRefused(why)
        address = self._pool.take(wanted.key, self._around.uptime(), wanted.wish)
        if address is not None:
            return address
        waiting: asyncio.Future[Address] = self._loop.create_future()
        pending.waiting = waiting
        if self._closing:
            waiting.cancel()
        reminder = self._loop.call_later(LONG_WAIT, lambda: self._around.waits_long(wanted, self._around.cause()))
        self.serve()  # also publishes the need
        try:
            async with asyncio.timeout_at(deadline):
                return await waiting
        except TimeoutError:
            self._withdraw_claim(wanted.key, waiting)
            raise NoAddress(self._around.cause()) from None
        except BaseException:
            self._withdraw_claim(wanted.key, waiting)
            raise
        finally:
            pending.waiting = None
            reminder.cancel()

    def _withdraw_claim(self, key: AttachmentKey, waiting: asyncio.Future[Address]) -> None:
        """Leaves the queue, and gives back an address that was assigned in the same instant."""
        self._pool.leave(key)
        if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
            self._pool.untake(waiting.result())
        self.serve()

    async def _undo(self, attachment: Attachment) -> None:
        try:
            await self._through(self._take_back(attachment))
        except DataPlaneError as error:
            log.warning(
                "an ADD can't be undone now, left to the sweeper", attachment=str(attachment.key), error=str(error)
            )

    async def _take_back(self, attachment: Attachment) -> None:
        """If the kernel made nothing, nothing is undone and the address needs no cool-down."""
        if await self._kernel.submit(self._plane.present, attachment):
            reach(AgentPoint.ADD_ROLLING_BACK)
            await self._give_back(attachment)
        else:
            await self._unused(attachment)

    async def _unused(self, attachment: Attachment) -> None:
        """Releases an attachment that never reached the kernel: nothing to undo there, no cool-down."""
        reach(AgentPoint.ADD_ROLLING_BACK)
        await self._release_row(attachment, None)
        self._pool.untake(attachment.address)
        self.serve()

    async def _updated(self, found: Attachment, wanted: AttachRequest) -> Attachment:
        """Updates the row from a repeated ADD: its path, its SNAT wish and, if the call names it, its pod."""
        updated = replace(found, netns=wanted.netns, pod=wanted.pod or found.pod, snat=wanted.snat)
        if updated != found:
            await self._ledger.commit(Assign(updated))
            self.by_key[found.key] = updated
        return updated

    # detach

    async def _give_back(self, attachment: Attachment) -> None:
        reach(AgentPoint.DEL_BEGUN)
        if not attachment.key.reserves:
            await self._kernel.submit(self._plane.detach, attachment)
        reach(AgentPoint.DEL_DETACHED)
        await self._record_release(attachment, self.now())
        reach(AgentPoint.DEL_RELEASED)

    async def _record_release(self, attachment: Attachment, since: Moment) -> None:
        await self._release_row(attachment, since)
        self._pool.release(attachment.address, since.boottime)
        self.serve()

    async def _release_row(self, attachment: Attachment, since: Moment | None) -> None:
        try:
            await self._ledger.commit(Release(attachment.key, since))
        except LedgerUnavailable as error:
            # the ledger's next write includes it; a full disk must not block a pod's deletion
            log.warning("release not on disk yet", attachment=str(attachment.key), error=str(error))
        del self.by_key[attachment.key]

    async def _through(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs `work` to its end, even if the caller is cancelled meanwhile."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            if error := task.exception():  # nothing else reports it
                log.warning("a call whose caller is gone failed", error=str(error))
            raise

    # internal

    def _next_chance(self, now: float, leaving: bool) -> float | None:
        """Seconds until an address may become free by itself; None if no timer is needed.

        `now` and `leaving` predate the pool's decision: nothing else would trigger another look at an address that has
        cooled down or left the kernel since.
        """
        waiting = bool(self._pool.waiting())
        if leaving:
            return _LEAVING[waiting]
        change = self._pool.next_change(now) if waiting else None
        return None if change is None else max(change - now, 0.001)
