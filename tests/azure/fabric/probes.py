"""Health probes: from 168.63.129.16, as in Azure, to every backend of a balancing rule with a probe.

One task in the fabric's event loop runs all checks in turn; a change of health calls `changed` (the fabric's sync). A
backend counts as down until its first success. The interval is the fabric's, not the probe's: tests don't wait 15 s.
"""

from __future__ import annotations

import asyncio
import socket
import traceback
from collections.abc import Awaitable, Callable

from tests.azure.fabric.ruleset import WIRESERVER
from tests.azure.fabric.translation import Check

INTERVAL = 0.2
LIMIT = 0.5


class Probes:
    """The health of backends. `mark` returns the subnet mark of an address, by which a probe is routed."""

    def __init__(self, mark: Callable[[str], int | None], changed: Callable[[], Awaitable[None]]) -> None:
        self._mark = mark
        self._changed = changed
        self._healthy: dict[tuple[str, str], bool] = {}
        self.checks: frozenset[Check] = frozenset()
        self.bugs: list[str] = []

    def healthy(self, probe: str, address: str) -> bool:
        return self._healthy.get((probe, address), False)

    async def run(self) -> None:
        """Runs until cancelled; a failure of ours is kept in `bugs`."""
        while True:
            try:
                await self._round()
            except Exception:  # noqa: BLE001 - the edge of the task: probing goes on
                self.bugs.append(traceback.format_exc())
            await asyncio.sleep(INTERVAL)

    async def _round(self) -> None:
        checks = list(self.checks)
        found = await asyncio.gather(*map(self._probe, checks))
        results = {(check.probe, check.address): ok for check, ok in zip(checks, found, strict=True)}
        if results != self._healthy:
            self._healthy = results
            await self._changed()

    async def _probe(self, check: Check) -> bool:
        mark = self._mark(check.address)
        if mark is None:
            return False
        try:
            async with asyncio.timeout(LIMIT):
                return await _answers(check, mark)
        except OSError:  # TimeoutError is one
            return False


async def _answers(check: Check, mark: int) -> bool:
    link = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    link.setblocking(False)
    try:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        link.bind((WIRESERVER, 0))
        loop = asyncio.get_running_loop()
        await loop.sock_connect(link, (check.address, check.port))
        if check.protocol == "tcp":
            return True
        request = f"GET {check.path} HTTP/1.1\r\nHost: {check.address}\r\nConnection: close\r\n\r\n"
        await loop.sock_sendall(link, request.encode())
        status = await loop.sock_recv(link, 64)
        return status.split(b" ")[1:2] == [b"200"]
    finally:
        link.close()
