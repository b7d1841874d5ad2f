"""Reports this node's state to the source, and takes the node's steps of the release handshake.

One task, `Reporter.run`, woken by `changed`. An urgent report goes out at once (a pod without an address, a pool half
emptied, a step of a release); others are coalesced, so that a thousand starting and ending pods cost a handful of
writes. `urgency` is pure. This module enforces the handshake's order (docs/architecture.md): the ledger retires an
ipConfiguration before `released` reports it, so every report also holds for later starts of the agent. After a crash
between the two, the next report lists the retired one.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace

import structlog

from vnetpods_agent.ipam.ledger.schema import Forget, Operation, Reinstate, Retire, Withdraw
from vnetpods_agent.ipam.ledger.store import Ledger, LedgerError
from vnetpods_agent.ipam.pool import Pool
from vnetpods_agent.sync.source import AddressSource, Report, SourceChanged, SourceUnavailable
from vnetpods_agent.sync.trust import Trust
from vnetpods_api import ConditionType, Reason, Status, find
from vnetpods_kit.faultpoints import AgentPoint, reach

MERGE = 0.02
"""Seconds in which changes are collected before a write, so that a burst of pods is one report."""
GAP = 0.5
"""Minimum seconds between two writes, however urgent."""
RETRY = (0.5, 30.0)
"""First and longest wait after a failed write, in seconds."""

log = structlog.get_logger(component="reporting")


def urgency(last: Report | None, report: Report, interval: float) -> float | None:
    """Minimum seconds between the last report and this one; None if nothing has changed."""
    if last is None:
        return 0.0
    if report == last:
        return None
    before, now = last.usage, report.usage
    must_act = (
        now.waiting != before.waiting
        or (now.free == 0 and before.free > 0)
        or now.free < before.free / 2
        or report.view != last.view
        or report.released != last.released
        or (report.request != last.request and bool(report.released or report.kept))
        or report.kept != last.kept
        or report.missing != last.missing
        or (report.serving, report.stopping) != (last.serving, last.stopping)
    )
    return GAP if must_act else interval


def _taken_for_silent(status: Status) -> bool:
    """Whether the operator has set AgentReady to AgentSilent on the agent's behalf."""
    said = find(status.conditions, ConditionType.AGENT_READY)
    return said is not None and said.reason == Reason.AGENT_SILENT


class Reporter:
    """`unfit` returns why no ADD could be served ("" if one could). `live`: the source itself has delivered a list.
    While the list is `another_machines`, nothing is reported: this disk may be a copy of that machine's.
    """

    def __init__(
        self,
        pool: Pool,
        ledger: Ledger,
        source: AddressSource,
        trust: Trust,
        unfit: Callable[[], str],
        interval: float,
    ) -> None:
        self.observe: Callable[[str], None] = lambda _: None
        self.another_machines: Callable[[], bool] = lambda: False
        self.remark: Callable[[], str] = str
        self.live = False
        self.stopping = False
        self.said_farewell = asyncio.Event()
        self._pool = pool
        self._ledger = ledger
        self._source = source
        self._trust = trust
        self._unfit = unfit
        self._interval = interval
        self._wake = asyncio.Event()
        self._heard = asyncio.Event()
        self._number = 0
        self._last: Report | None = None
        self._last_at = float("-inf")

    def changed(self) -> None:
        """Wakes the reporter: a report may be due."""
        self._wake.set()

    def heard(self, status: Status) -> None:
        """The source has delivered a list, so it is reachable."""
        self.live = True
        if _taken_for_silent(status):
            self._last = None
        self._heard.set()
        self._wake.set()

    async def run(self, clock: Callable[[], float]) -> None:
        loop = asyncio.get_running_loop()
        delay: float | None = None
        retry, refused = RETRY[0], 0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._wake.wait()
            await asyncio.sleep(MERGE)
            self._wake.clear()
            try:
                delay = await self.step(clock(), loop.time())
                retry, refused = RETRY[0], 0
            except SourceChanged:
                self.observe("overtaken")
                if refused:  # twice in a row, so not by a change that merely crossed ours
                    await asyncio.sleep(retry * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
                refused += 1
                retry, delay = await self._until_heard(retry), 0.0
            except (SourceUnavailable, LedgerError) as error:
                log.warning("report not delivered", error=str(error))
                self.observe("failed")
                retry, delay = await self._until_heard(retry), 0.0

    async def _until_heard(self, retry: float) -> float:
        """Waits until the source delivers, at most about `retry` seconds; returns the limit for the next time."""
        self._heard.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(retry * random.uniform(0.8, 1.2)):  # noqa: S311 - jitter
                await self._heard.wait()
        return min(retry * 2, RETRY[1])

    async def step(self, now: float, monotonic: float) -> float | None:
        """Takes all due steps; returns the seconds until the next may be due. Raises SourceUnavailable, LedgerError."""
        if not self.live or self.another_machines():
            return None
        if cold := self._pool.cold(now):
            self._pool.forget(cold)  # first: one of them may be in use, and released again, by the time that is on disk
            await self._ledger.commit(Forget(tuple(cold)))
        if self._trust.current and (entries := self._pool.retirable(now)):
            # out of use before the disk write: no pod may get one meanwhile
            self._pool.retire(entries)
            try:
                await self._ledger.commit(Retire(tuple(entries)), Withdraw(tuple(entries)))
            except LedgerError:
                self._pool.unretire(entries)
                raise
            reach(AgentPoint.RELEASE_WITHDRAWN)
            log.info("retired", ip_configurations=dict(entries))
        await self.settle()
        report = self._report(now)
        wait = urgency(self._last, report, self._interval * random.uniform(1.0, 1.3))  # noqa: S311 - jitter
        if wait is not None:
            early = self._last_at + wait - monotonic
            if early > 0:
                return min(filter(None, (early, self._next_change(now))), default=early)
            self._number += 1
            report = replace(report, instance=self._trust.instance, number=self._number)
            await self._source.publish(report)
            if report.released:
                reach(AgentPoint.RELEASE_REPORTED)
            self._last, self._last_at = report, monotonic
            self.observe("delivered")
            if report.stopping:
                self.said_farewell.set()
        return self._next_change(now)

    def settle(self) -> Awaitable[None]:
        """Commits to the ledger what the list settles about released addresses. Submitted when this returns, so before
        any later ADD; only earlier versions depend on the outcome.
        """
        promised, void = self._pool.settle()
        operations: list[Operation] = [
            *([Withdraw(tuple(promised))] if promised else []),
            *([Reinstate(tuple(void))] if void else []),
        ]
        return _regardless(self._ledger.commit(*operations)) if operations else _nothing()

    def _next_change(self, now: float) -> float | None:
        change = self._pool.next_change(now)
        return None if change is None else max(change - now, MERGE)

    def _report(self, now: float) -> Report:
        why = self._unfit()
        return Report(
            usage=self._pool.usage(now),
            released=self._pool.released(),
            kept=self._pool.kept() if self._trust.current else (),
            missing=self._pool.missing(),
            serving=not why and not self.stopping,
            stopping=self.stopping,
            message=why or self.remark(),
            request=self._pool.request if self._trust.current else None,
            view=self._trust.view,
        )


async def _nothing() -> None: ...


async def _regardless(outcome: Awaitable[None]) -> None:
    with contextlib.suppress(LedgerError):
        await outcome
