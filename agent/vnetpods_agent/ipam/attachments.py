"""Assigns pod addresses and takes them back, in the one order that survives a crash; the only way to do either.

Everything runs in the event loop; the ledger's and the kernel's workers do what blocks.
    attach   pool (memory) -> ledger (durable) -> kernel -> answer
             The kernel never has what the ledger lacks; a crash leaves a row, which a repeated ADD or a sweep finds.
    detach   kernel -> ledger (durable) -> pool -> answer
             A crash leaves a row without interface, which a repeated DEL or a sweep finds.
A reservation is an attachment without an interface: the address first, whoever it is for later (Docker's IPAM).
    reserve  pool (memory) -> ledger (durable) -> answer; `detach` gives it back, or `attach` claims it for its own
Calls for one attachment take turns, calls for different ones overlap. A detach that finds an attach under way abandons
it: that ADD fails and undoes what it did before the detach has its turn (ACN#4829: DEL overtakes ADD). A caller that
goes away while it waits for an address gives back its place in the queue; one that goes away later is abandoned in the
same way.
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
"""Seconds after which a waiting pod is told by an Event."""
_LEAVING = (0.25, 0.02)
"""Seconds until former pods' interfaces are looked at again: when nobody waits, and when somebody does."""

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

    # what others ask

    def busy(self, key: AttachmentKey) -> bool:
        """Whether a call for it is under way."""
        return self._locks.busy(key)

    def of(self, container_id: str, ifname: str) -> list[AttachmentKey]:
        """What is attached there, or about to be, whatever the network is called."""
        known = {**self.by_key, **self._pending}
        return [key for key in known if (key.container_id, key.ifname) == (container_id, ifname)]

    def holder(self, address: Address) -> AttachmentKey | None:
        return self._pool.holder(address)

    async def reserve(self, key: AttachmentKey, wish: Wish, deadline: float) -> Attachment:
        """An address that nobody else gets, durable. Waits and raises as `attach` does."""
        async with self._locks.of(key):
            pending = self._pending[key] = PendingAdd(self.now())
            try:
                attachment = await self._assigned(AttachRequest(key, "", None, wish), deadline, pending)
            finally:
                del self._pending[key]
            self._around.changed()
            return attachment

    async def attach(self, wanted: AttachRequest, handles: SandboxHandles | None, deadline: float) -> Attachment:
        """The attachment, durable and working. For one that exists already everything is made sure of again. Without
        handles the runtime takes the pod's end itself.

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
        """Everything made sure of again of what is attached; None when nothing is. Raises DataPlaneError."""
        async with self._locks.of(key):
            if (found := self.by_key.get(key)) is not None:
                await self._kernel.submit(self._plane.attach, found, handles)
            return found

    def now(self) -> Moment:
        return Moment(self._around.clock(), self._around.uptime(), self._around.boot_id)

    async def detach(self, key: AttachmentKey, *, before: Moment | None = None) -> Attachment | None:
        """Nobody holds the address any more when this returns; None when nobody did. Once begun it is carried through.

        `before` leaves alone what was attached after that moment. Raises DataPlaneError: the address stays held then.
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
        """What the ledger holds, before any address is given out. What has been recognised meanwhile stays; but of it
        the ledger knows more.
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
        """On this boot's clock. After another boot it counts from the moment at which this one began, and by a former
        version from when its wall clock says, if that can be.
        """
        now = self.now()
        if since.boot_id:
            return since.boottime if since.boot_id == now.boot_id else 0.0
        return now.boottime - max(0.0, now.wall - since.wall)

    async def void(self, attachment: Attachment) -> None:
        """The attachment has come to an end without us, when this boot began; nothing of it is in the kernel."""
        now = self.now()
        since = replace(now, wall=now.wall - now.boottime, boottime=0.0)
        async with self._locks.of(attachment.key):
            if self.by_key.get(attachment.key) is attachment:
                await self._through(self._record_release(attachment, since))

    async def adopt(self, interface: HostInterface) -> str:
        """A pod's interface without attachment becomes one, unless its address is another pod's; says what was done.

        Since an ADD is durable before the kernel is touched, such a pod is proof of a ledger that forgot, not of a pod
        that is gone.
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
        # by the boot's clock it is not known when it was attached: before we met it
        attachment = replace(self._attachment(AttachRequest(key, "", pod), address), attached_boottime=0.0)
        if interface.created is not None:
            attachment = replace(attachment, created=interface.created)
        return attachment if attachment.host_ifname == interface.name else replace(attachment, host_name=interface.name)

    async def name_nics(self) -> None:
        """Adopted pods whose NIC wasn't known then."""
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
        """Gives addresses to whoever waits, as far as there are any; called whenever there may be."""
        now = self._around.uptime()
        leaving = bool(self._plane.leaving())
        for key, address in self._pool.serve(now):
            future = self._pending[key].waiting
            assert future is not None
            if future.done():  # abandoned in this very round
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
        """The agent ends: whoever waits for an address is cancelled, so that the next agent is asked instead."""
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
        """Chosen and durable."""
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
            # memory and disk disagree, which must not happen: at least don't choose it again at once
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
        """Durable, in place of the reservation, which stays when the ledger refuses."""
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
        """The caller no longer wants an address, of which it may have been given one in the same instant."""
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
        """What the kernel refused to make needs no undoing, and costs nobody a cool-down."""
        if await self._kernel.submit(self._plane.present, attachment):
            reach(AgentPoint.ADD_ROLLING_BACK)
            await self._give_back(attachment)
        else:
            await self._unused(attachment)

    async def _unused(self, attachment: Attachment) -> None:
        """The kernel has nothing of it: nothing to undo there, and nothing to cool down."""
        reach(AgentPoint.ADD_ROLLING_BACK)
        await self._release_row(attachment, None)
        self._pool.untake(attachment.address)
        self.serve()

    async def _updated(self, found: Attachment, wanted: AttachRequest) -> Attachment:
        """The row as the repeated ADD tells it: a path or a pod's name that we didn't know."""
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
            # the ledger makes up for it with its next write; a pod's deletion is never held up by a full disk
            log.warning("release not on disk yet", attachment=str(attachment.key), error=str(error))
        del self.by_key[attachment.key]

    async def _through(self, work: Coroutine[Any, Any, None]) -> None:
        """Carries `work` through to its end, even when the caller is cancelled meanwhile."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            if error := task.exception():  # nobody else will hear of it
                log.warning("a call whose caller is gone failed", error=str(error))
            raise

    # within

    def _next_chance(self, now: float, leaving: bool) -> float | None:
        """Seconds until an address may come free by itself; None when nobody has to know.

        Asked with what was the case before the pool decided: what has cooled down or left since then has no other
        reason to be looked at again.
        """
        waiting = bool(self._pool.waiting())
        if leaving:
            return _LEAVING[waiting]
        change = self._pool.next_change(now) if waiting else None
        return None if change is None else max(change - now, 0.001)
