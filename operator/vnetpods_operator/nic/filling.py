"""Fills a machine's NICs, from the first read to the end of the last write.

A pass reads, plans and writes; a pass that fails because of Azure or another writer is repeated. A process that ends in
between leaves nothing unfinished but what Azure has accepted, and the next run reads the outcome of that.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from vnetpods_api import Reason
from vnetpods_operator import errors
from vnetpods_operator.nic import order as ordering
from vnetpods_operator.nic.order import Order, Repairs
from vnetpods_operator.planning import planner
from vnetpods_operator.planning.machine import Machine, Nic, Nics
from vnetpods_operator.planning.model import BLOCK, Change, Plan
from vnetpods_operator.reconcile.backoff import wait_after
from vnetpods_operator.reconcile.writing import Writer

ATTEMPTS = 5
"""Consecutive attempts of a pass."""
SIGN_OF_LIFE = 10.0
"""Seconds between progress messages about a long write."""
_PASSING = (errors.Changed, errors.Busy, errors.Throttled, errors.Unavailable)


T = TypeVar("T")


@dataclass(slots=True)
class Filling:
    """One machine and the order for it."""

    machine: Machine
    order: Order
    pick: Callable[[Nics], tuple[Nic, ...]]
    writer: Writer
    patience: float
    """Longest wait, in seconds, for Azure to finish its own update of a NIC, or before a retry."""
    say: Callable[[str], None]
    before: tuple[Nic, ...] = ()
    """The NICs as first read."""
    nics: tuple[Nic, ...] = ()
    """The NICs as last read or written."""
    plan: Plan | None = None
    repairs: Repairs = field(default_factory=Repairs)

    async def look(self) -> None:
        """Reads and plans, once Azure no longer updates the NICs; raises what prevents it."""
        await self._persistently(self._look)

    async def fill(self) -> None:
        """Writes until nothing is left to do, or nothing can be done; `plan` then tells which."""
        while not await self._persistently(self._pass):
            pass

    async def _pass(self) -> bool:
        """Makes one pass; returns whether nothing is left to do."""
        await self._look()
        assert self.plan is not None
        if not self.plan.changes or self.plan.limit is Reason.NIC_FAILED:
            return True
        if self.repairs.vain >= planner.HOPELESS:
            text = f"ipConfigurations of {self._names} are Failed again after {self.repairs.vain} writes"
            raise errors.Unavailable(text, "StillFailed")
        written = {nic.name: nic for nic in self.nics}
        for change in self.plan.changes:
            answer = await self._written(written[change.nic], change)
            if isinstance(answer, errors.Busy):
                raise answer
            if isinstance(answer, errors.AzureError):
                self.say(f"{answer}; asking for {'single addresses' if change.blocks else 'what is left'}")
                return False
            written[change.nic] = answer
            self.nics = tuple(written.values())
        self._plan()
        return self._rests()

    async def _look(self) -> None:
        end = _now() + self.patience
        while True:
            self.nics = self.pick(await self.machine.nics())
            self.before = self.before or self.nics
            self._plan()
            if self._rests() or (self.plan is not None and self.plan.changes):
                return
            if _now() > end:
                raise errors.Unavailable(
                    f"Azure works on {self._names} for {self.patience:.0f} s and more", "StillBusy"
                )
            self.say("the machine's NICs are being changed or mended; waiting")
            assert self.plan is not None
            await asyncio.sleep(max(0.0, (self.plan.look_again or 0.0) - _now()))

    def _plan(self) -> None:
        self.plan = ordering.plan(self.nics, self.order, self.writer.subnets.limits, self.repairs, _now())

    def _rests(self) -> bool:
        """Whether nothing is left to do and nothing is pending. A full subnet is not waited for."""
        assert self.plan is not None
        waits = self.plan.look_again is not None and math.isfinite(self.plan.look_again)
        return not self.plan.changes and (not waits or self.plan.limit is not None)

    @property
    def _names(self) -> str:
        return "NIC " + ", ".join(nic.name for nic in self.nics)

    async def _written(self, nic: Nic, change: Change) -> Nic | errors.AzureError:
        self.say(f"writing NIC {nic.name}: {_described(change)}")
        task = asyncio.ensure_future(self.writer.write(self.machine, nic, change, {"nic": nic.name}))
        began = _now()
        try:
            while not (await asyncio.wait({task}, timeout=SIGN_OF_LIFE))[0]:
                self.say(f"Azure works on NIC {nic.name} for {_now() - began:.0f} s")
        finally:
            task.cancel()  # no effect on a finished task
        after = task.result()
        if isinstance(after, Nic):
            self._learn(change, after)
        return after

    def _learn(self, change: Change, after: Nic) -> None:
        if change.add or change.blocks:
            self.writer.subnets.granted(after.subnet)
        if ordering.failed(after):
            vain = self.repairs.vain + 1
            wait = wait_after(errors.Busy(""), vain) if vain < planner.HOPELESS else math.inf
            self.repairs = Repairs(vain, _now() + wait)

    async def _persistently(self, step: Callable[[], Awaitable[T]]) -> T:
        """Repeats a step that fails with a transient error."""
        for failures in range(1, ATTEMPTS):
            try:
                return await step()
            except _PASSING as error:
                if error.code == "NoCredentials":  # nothing will provide them meanwhile
                    raise errors.SignInRefused(str(error), error.code) from error
                changed = error.code == "Changed"  # retried at once, unless reads are stale
                wait = wait_after(errors.Changed("") if changed else error, failures)
                if wait > self.patience or error.code in ("StillBusy", "StillFailed"):
                    raise
                self.say(f"{error}; again in {round(wait, 1):g} s")
                await asyncio.sleep(wait)
        return await step()


def _described(change: Change) -> str:
    parts = [
        (change.add + BLOCK * change.blocks, "addresses to add"),
        (len(change.remove), "ipConfigurations to remove"),
        (len(change.sweep), "half-made ipConfigurations to remove"),
    ]
    return ", ".join(f"{number} {what}" for number, what in parts if number) or "as it is, to clear its state Failed"


def _now() -> float:
    return asyncio.get_running_loop().time()
