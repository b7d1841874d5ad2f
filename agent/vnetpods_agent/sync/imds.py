"""The VM's own addresses from instance metadata, for a machine without a NodeIPPool.

One task iterates `watch`, which queries every `interval`; while pods wait for an address (`publish` reports it), every
second: a VM may make five requests a second, for all its programs. An ADD never waits for an answer other than in the
pool's queue. Failures (429, 404, 5xx, no JSON, no answer) are retried with a growing pause, however many pods wait; the
last list stays in use. `metadata` interprets the answers: no pod loses an address because an answer lacks it.

The source is authoritative: its list needs no confirmation, since metadata describes this very VM and, except for its
lag, the present. A saved answer is different. On a disk that was rolled back, in an image of another VM and after the
VM was deallocated, its addresses may be in use elsewhere. So a saved answer is used only in the boot and with the state
folder in which it was saved (`pool_sync.recall`): there it serves as the previous answer, and a restarted agent serves
at once. Otherwise the agent waits for the first answer, without a limit.

Metadata names no ipConfigurations, and no operator requests their release. So no address from this source is ever
retired: removing one from the NIC is the administrator's own responsibility, and the pod that holds it is reported
(Event `AddressMissing`, metric `vnetpods_agent_missing`) and left alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Collection
from datetime import UTC, datetime

import aiohttp
import msgspec
import structlog

from vnetpods_agent.attachment import expand
from vnetpods_agent.config import Imds
from vnetpods_agent.sync.metadata import Listing, UnreadableAnswerError, combine, read
from vnetpods_agent.sync.source import Report, Supply
from vnetpods_api import ConditionStatus, ConditionType, Interface, Reason, Status, condition

_URL = "http://169.254.169.254/metadata/instance/network?api-version=2021-02-01"
_HEADERS = {"Metadata": "true"}
_TIMEOUT = aiohttp.ClientTimeout(total=5.0)
_LEAST = 1.0
"""Minimum seconds between two requests, also while pods wait."""
_RETRY = (1.0, 30.0)
_LONGEST = 300.0
"""Seconds; the limit for a Retry-After."""
_OK = 200

log = structlog.get_logger(component="imds")


class NoAnswerError(Exception):
    """Metadata returned no usable list; `after`: seconds of its Retry-After."""

    def __init__(self, why: str, after: float = 0.0) -> None:
        super().__init__(f"instance metadata (169.254.169.254) {why}")
        self.after = after


class ImdsSource:
    """An AddressSource. `known`: the interfaces that the pool lists now, also those from an earlier process; `absent`:
    the MACs of NICs that the machine doesn't have.
    """

    truth = True
    lasting = False

    def __init__(
        self, settings: Imds, known: Callable[[], tuple[Interface, ...]], absent: Callable[[], Collection[str]]
    ) -> None:
        self._settings = settings
        self._known = known
        self._absent = absent
        self._trouble = "instance metadata (169.254.169.254) has not answered yet"
        self._pods_wait = asyncio.Event()
        self._session: aiohttp.ClientSession | None = None

    @property
    def trouble(self) -> str:
        return self._trouble

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def publish(self, report: Report) -> None:
        """Sends nothing; waiting pods make `watch` query again."""
        if report.usage.waiting:
            self._pods_wait.set()
        else:
            self._pods_wait.clear()

    async def watch(self) -> AsyncIterator[Supply]:
        before, told, retry = self._known(), None, _RETRY[0]
        while True:
            try:
                answer = await self._ask()
            except NoAnswerError as error:
                self._say(str(error))
                await asyncio.sleep(max(error.after, retry * random.uniform(1.0, 1.2)))  # noqa: S311 - jitter
                retry = min(retry * 2, _RETRY[1])
                continue
            self._say("")
            retry = _RETRY[0]
            listing, before = combine(before, answer, self._absent())
            if listing != told:
                told = listing
                yield self._supply(listing)
            await self._pause()

    async def _pause(self) -> None:
        await asyncio.sleep(_LEAST)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.interval - _LEAST):
                await self._pods_wait.wait()

    async def _ask(self) -> tuple[Interface, ...]:
        """Raises NoAnswerError."""
        if self._session is None:  # it ignores proxies in the environment
            connector = aiohttp.TCPConnector(force_close=True)
            self._session = aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT, headers=_HEADERS)
        try:
            async with self._session.get(_URL, allow_redirects=False) as response:
                if response.status != _OK:
                    after = _seconds(response.headers.get("Retry-After", ""))
                    raise NoAnswerError(f"answers {response.status} {response.reason}", after)
                return read(msgspec.json.decode(await response.read()))
        except TimeoutError:
            raise NoAnswerError(f"does not answer within {_TIMEOUT.total:g} s") from None
        except aiohttp.ClientError as error:
            raise NoAnswerError(f"can't be asked: {error}") from error
        except (msgspec.DecodeError, RecursionError, UnreadableAnswerError) as error:
            raise NoAnswerError(f"gives an answer that can't be used: {error}") from error

    def _say(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            log.warning("instance metadata is of no use now; going on with what is known", error=trouble)
        elif self._trouble and not trouble:
            log.info("instance metadata answers")
        self._trouble = trouble

    def _supply(self, listing: Listing) -> Supply:
        prefixes = (prefix for nic in listing.interfaces for prefix in nic.prefixes)
        count = sum(len(expand(unit)) for nic in listing.interfaces for unit in nic.addresses)
        said = (
            f"instance metadata lists {count} secondary addresses of this VM, and nobody adds any by itself: add"
            " ipConfigurations to its NIC (`az network nic ip-config create`)"
        )
        log.info("instance metadata lists", addresses=count, withheld=sorted(listing.withheld)[:16])
        now = datetime.now(UTC)
        full = condition(ConditionType.STALLED, ConditionStatus.TRUE, Reason.AT_CAPACITY, said, now)
        status = Status(
            interfaces=listing.interfaces,
            direct_cidrs=tuple(dict.fromkeys((*prefixes, *self._settings.direct_cidrs))),
            conditions=(full,),
        )
        return Supply(status, withheld=listing.withheld)


def _seconds(retry_after: str) -> float:
    return min(float(retry_after), _LONGEST) if retry_after.isdecimal() else 0.0
