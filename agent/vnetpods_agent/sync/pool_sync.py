"""Applies the address source's list to this node.

One task, `PoolSync.run`. For every state of the pool, in this order: retire units that we once reported as released
(once, after the ledger was lost); let `trust` judge whether the list may be used; read which addresses the host itself
holds; update the pool; declare the host state; save the pool as last known; serve waiting ADDs. The next start uses
that file until the source delivers: no address leaves a NIC without this node's consent, and the ledger records its
consents. So the file isn't used without a whole ledger, and in another boot (the disk may have been rolled back) only
if the source's own list isn't confirmed in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from vnetpods_agent.attachment import Address, Limits, expand
from vnetpods_agent.config import Config
from vnetpods_agent.dataplane import DataPlaneError, HostState, Nic
from vnetpods_agent.dataplane.host.reconciler import HostReconciler
from vnetpods_agent.dataplane.kernel_facts import uplink_limits
from vnetpods_agent.events import Event, Events
from vnetpods_agent.ipam.attachments import Attachments
from vnetpods_agent.ipam.ledger.schema import Retire, Withdraw
from vnetpods_agent.ipam.ledger.store import Ledger, LedgerError
from vnetpods_agent.ipam.pool import Pool
from vnetpods_agent.ipam.screening import Screened, screen
from vnetpods_agent.ipam.worker import WorkerThread
from vnetpods_agent.sync.reporter import Reporter
from vnetpods_agent.sync.seal import Seal
from vnetpods_agent.sync.source import AddressSource, Supply
from vnetpods_agent.sync.trust import Trust
from vnetpods_api import Interface, Status
from vnetpods_kit.atomicfile import save
from vnetpods_kit.wording import some

_HOST_STATE = 1.5
"""Seconds to wait for the host state; afterwards pods are served in any case."""
_BREATH = 0.5
"""Minimum seconds between two looks at the NICs, however often the host's interfaces change."""
_AGAIN = 1.0
"""Seconds until a retry after the kernel refused."""

log = structlog.get_logger(component="listening")


class NicLimits:
    """The limits that new pods of each NIC get, tracked at run time; running pods keep theirs.

    `absent`: MACs of NICs that this machine doesn't have; addresses listed for them aren't this machine's. A VM
    recreated under its name has other NICs, and until the operator has seen it the pool lists addresses that may
    already be in use elsewhere.
    """

    def __init__(self, kernel: WorkerThread) -> None:
        self._kernel = kernel
        self._known: dict[str, Limits] = {}
        self.absent: frozenset[str] = frozenset()
        self.seen: set[str] = set()  # MACs present at some time since the machine's boot
        self._wake = asyncio.Event()

    @property
    def foreign(self) -> frozenset[str]:
        """Absent, and never seen here: the NICs of another machine."""
        return self.absent - self.seen

    def of(self, mac: str) -> Limits:
        return self._known.get(mac, Limits())

    async def learn(self, mac: str) -> None:
        if mac not in self._known:
            await self._look(mac)

    def changed(self) -> None:
        """Wakes `follow`: one of the host's own interfaces may have changed."""
        self._wake.set()

    async def follow(self, period: float) -> None:
        """Looks after a possible change, and once per `period`, since not every change is notified."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(period):
                    await self._wake.wait()
            self._wake.clear()
            for mac in list(self._known):
                await self._look(mac)
            await asyncio.sleep(_BREATH)

    async def _look(self, mac: str) -> None:
        try:
            limits = await self._kernel.submit(uplink_limits, mac)
        except DataPlaneError as error:
            log.warning("NIC unknown", mac=mac, error=str(error))
            return
        self._known[mac] = limits or Limits()
        self.absent = self.absent - {mac} if limits else self.absent | {mac}
        if limits:
            self.seen.add(mac)


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts that PoolSync reads and updates."""

    pool: Pool
    ledger: Ledger
    attachments: Attachments
    reporter: Reporter
    host: HostReconciler
    kernel: WorkerThread
    limits: NicLimits
    events: Events
    trust: Trust
    unfit: Callable[[], str]


class Saved(Status, kw_only=True, frozen=True):
    """pool.json: the list as last used; `agent` is our last report that the source has, and the view that it was valid
    for. `boot_id` is empty in files of earlier versions.
    """

    boot_id: str = ""


class PoolSync:
    """`fit` is set once ADDs can be served."""

    def __init__(self, config: Config, source: AddressSource, parts: Parts) -> None:
        self.fit = asyncio.Event()
        self._config = config
        self._source = source
        self._parts = parts
        self._status = Status()
        self.screened = Screened()
        self.withheld: frozenset[Address] = frozenset()
        self.macs: frozenset[str] = frozenset()  # of the NICs in the last list read, trusted or not
        self._pending: Supply | None = None  # read, but not trusted yet
        self._turn = asyncio.Lock()
        self._boot_id = ""
        self._saved: Saved | None = None
        self._seal = Seal(config.paths.socket.with_name("pool.seal"))

    @property
    def interfaces(self) -> tuple[Interface, ...]:
        """The NICs whose addresses are in use."""
        return self._status.interfaces

    @property
    def cause(self) -> str:
        """Why there are no more addresses, from the pool's conditions."""
        said = "; ".join(filter(None, (self.refusals, Supply(self._status).cause)))
        return self._parts.trust.cause(time.monotonic()) if self._pending else said

    @property
    def refusals(self) -> str:
        """Listed addresses that no pod gets, with the reasons."""
        reasons = self.screened.reasons
        return f"not used: {some(reasons, separator='; ')}" if reasons else ""

    def is_another_machines(self) -> bool:
        """Whether this machine has none of the listed NICs, and never had."""
        return bool(self.macs) and self.macs <= self._parts.limits.foreign

    async def recall(self, trouble: str, boot_id: str) -> None:
        """At start: uses the last known pool, unless something is wrong with the ledger. One of an earlier boot, or of
        a restored state folder, may be out of date and must wait for confirmation like the source's own list.
        """
        self._boot_id = boot_id
        self._declare()  # what must hold even without NICs; no pod starts before
        trust, attachments = self._parts.trust, self._parts.attachments
        content, status = (b"", None) if trouble else _read(self._config.paths.pool)
        if status is None:
            trust.why = "the ledger was lost" if trouble not in ("", "new") else trust.why
            return
        self._saved = status
        # earlier versions save no boot id, but then an attachment proves this boot: none outlives it
        here = status.boot_id == boot_id or (not status.boot_id and bool(attachments.by_key))
        fits = self._seal.fits(content)
        if here and fits:
            trust.resume(status.agent)
        elif not self._source.lasting:
            trust.why = "the state folder was put back as it once was" if here else "the machine has booted"
            if not trust.always:  # otherwise the source's own list is used at once
                self._pending = Supply(status, live=False)
            return
        try:
            await self._hear(Supply(status, live=False))
        except DataPlaneError as error:
            log.warning("the last known pool is of no use now", error=str(error))
            return
        if not await asyncio.to_thread(self._parts.host.wait, _HOST_STATE):
            log.warning("host state is not in place yet")

    async def tick(self) -> None:
        """Called periodically: uses an unconfirmed list after the time limit, and restores a missing file."""
        trust = self._parts.trust
        if (pending := self._pending) is not None and trust.waived(time.monotonic()):
            said = f"the operator has not confirmed the list of addresses in {self._config.source.confirmation:g} s"
            self._parts.events.say(Event("ListUnconfirmed", f"{said} ({trust.why}); it is used as it was listed last"))
            with contextlib.suppress(DataPlaneError):
                await self._hear(pending)
        if self._saved is not None and not self._config.paths.pool.exists():
            self._saved = None
            await self._save()

    async def run(self) -> None:
        async for supply in self._source.watch():
            while True:
                try:
                    await self._hear(supply)
                    break
                except DataPlaneError as error:
                    log.warning("new addresses can't be used yet, tried again", error=str(error))
                    await asyncio.sleep(_AGAIN)

    async def _hear(self, supply: Supply) -> None:
        """Raises DataPlaneError, before anything is taken over."""
        async with self._turn:
            for interface in supply.interfaces:
                await self._parts.limits.learn(interface.mac)
            if supply.interfaces:
                self.macs = frozenset(interface.mac for interface in supply.interfaces)
            if supply.live and not await self._trusted(supply):
                return
            await self._take_over(supply)

    async def _trusted(self, supply: Supply) -> bool:
        """Whether the list may be used. Our own promises are believed from any list, and reported in any case."""
        parts, status = self._parts, supply.status
        if not parts.reporter.live:
            await self._remember(parts.pool.believe(status.interfaces, status.released))
        trusted = parts.trust.hear(status, supply.acknowledged, time.monotonic())
        if trusted or not status.interfaces:
            self._pending = None
            return True
        self._pending = supply
        parts.pool.read(status.interfaces)
        parts.reporter.heard(status)
        parts.attachments.serve()
        return False

    async def _take_over(self, supply: Supply) -> None:
        parts, status = self._parts, supply.status
        known = self._status
        if not status.interfaces:  # tells nothing about addresses, but perhaps why there are none
            parts.pool.read(())
            status = msgspec.structs.replace(status, interfaces=known.interfaces, direct_cidrs=known.direct_cidrs)
        new, unknown = status.interfaces != known.interfaces, not known.interfaces
        there = await parts.kernel.submit(parts.host.glance) if new else frozenset()
        # no await from here to `declare`: an ADD in between could get an address that the host holds
        self._status, self.screened = status, screen(status.interfaces)
        if supply.interfaces:
            self.withheld = supply.withheld
            parts.pool.supply(status.interfaces, status.release_request)
        settled = parts.reporter.settle()
        self._declare()
        await settled
        await parts.attachments.name_nics()
        self._tell_missing()
        if self.refusals:
            parts.events.say(Event("AddressRefused", self.refusals))
        if supply.live:
            parts.reporter.heard(status)
        if supply.live and status.interfaces:  # before slow steps: a restart must find what pods were given
            await self._save()
        if unknown and status.interfaces:  # without the NICs the rule set would hide pods' addresses
            await asyncio.to_thread(parts.host.wait, _HOST_STATE)
        parts.attachments.serve()
        if not parts.unfit():
            self.fit.set()
        if any(map(parts.pool.mac, there)) and await asyncio.to_thread(parts.host.wait, _HOST_STATE):
            parts.attachments.serve()  # the addresses just removed from the host

    async def _remember(self, believed: list[tuple[str, str]]) -> None:
        """Records promises that the source has and a lost ledger lacks: they stay out of use."""
        if believed:
            named = tuple((name, unit) for name, unit in believed if name)
            with contextlib.suppress(LedgerError):
                await self._parts.ledger.commit(Retire(named), Withdraw(tuple(believed)))

    def _declare(self) -> None:
        """Declares the host state for all addresses that pods may have, listed or missing."""
        pool, attachments = self._parts.pool, self._parts.attachments.by_key
        refused = self.screened.refused
        missing = [attachments[key] for key in map(pool.holder, pool.missing()) if key in attachments]
        nics = tuple(
            Nic(
                interface.mac,
                Address(interface.primary_address),
                interface.prefixes,
                (
                    *(unit for unit in interface.addresses if not refused.issuperset(expand(unit))),
                    *(a.address for a in missing if a.nic_mac == interface.mac),
                ),
            )
            for interface in self._status.interfaces
            if interface.primary_address
        )
        config = self._config
        guessed = config.source.imds is not None and config.source.imds.guesses
        direct = self._status.direct_cidrs
        self._parts.host.declare(HostState(nics, direct, config.imds, config.take_from_host, guessed))

    def _tell_missing(self) -> None:
        pool, attachments = self._parts.pool, self._parts.attachments.by_key
        for address in pool.missing():
            key = pool.holder(address)
            if key in attachments:
                said = f"{address} is no longer on the NIC: the pod has no traffic until it is there again"
                pod = attachments[key].pod
                self._parts.events.say(Event("AddressMissing", said, pod if pod and pod.name else None))

    async def _save(self) -> None:
        status = self._status
        kept = Saved(
            interfaces=status.interfaces,
            direct_cidrs=status.direct_cidrs,
            conditions=status.conditions,
            agent=self._parts.trust.kept,
            boot_id=self._boot_id,
        )
        if self._saved is not None and _but_for_the_number(kept) == _but_for_the_number(self._saved):
            return
        content = msgspec.json.encode(kept)
        try:
            with self._seal.renewed(content):
                await asyncio.to_thread(save, self._config.paths.pool, content)
            self._saved = kept
        except OSError as error:
            log.warning("pool can't be saved", file=str(self._config.paths.pool), error=str(error))


def _but_for_the_number(saved: Saved) -> Saved:
    """Drops the report number, which changes too often to save: only the reporting process matters."""
    return msgspec.structs.replace(saved, agent=saved.agent and msgspec.structs.replace(saved.agent, report=0))


def _read(file: Path) -> tuple[bytes, Saved | None]:
    try:
        content = file.read_bytes()
        return content, msgspec.json.decode(content, type=Saved)
    except FileNotFoundError:
        pass
    except (OSError, msgspec.DecodeError) as error:
        log.warning("last known pool can't be read", file=str(file), error=str(error))
    return b"", None
