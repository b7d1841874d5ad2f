"""/metrics, /healthz and /readyz over HTTP.

/healthz answers 200 while the process can do its work: the event loop runs (or nothing would answer) and, when this
operator leads, the oldest node in line does not wait for ever. /readyz says whether it leads or stands by, and when ARM
last answered. Neither asks Azure or the API server: a liveness probe that fails because Azure is away makes it worse.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import msgspec
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

STUCK_SECONDS = 900.0
"""A node in line for so long, and for as long as a write to a NIC may take, means that the workers are stuck: all else
in a look has time limits far below.
"""


@dataclass(frozen=True, slots=True)
class State:
    """What the endpoints tell, and metrics too."""

    leads: bool
    in_line: int
    oldest: float
    azure_answered: float | None
    """Seconds since ARM last answered; None: not yet."""
    waiting_for_budget: int
    kube_requests: int


@contextlib.asynccontextmanager
async def serving(
    listen: str, registry: CollectorRegistry, state: Callable[[], State], write_seconds: float
) -> AsyncIterator[None]:
    """Serves on `address:port` while the block runs; a write to a NIC takes `write_seconds` at most."""

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), content_type="text/plain", charset="utf-8")

    async def healthz(_: web.Request) -> web.Response:
        now = state()
        # a long wait for the budget is slowness, not a fault
        stuck = now.leads and now.oldest > STUCK_SECONDS + write_seconds and now.waiting_for_budget == 0
        return _answer(now, 503 if stuck else 200)

    async def readyz(_: web.Request) -> web.Response:
        return _answer(state(), 200)

    app = web.Application()
    app.add_routes([web.get("/metrics", metrics), web.get("/healthz", healthz), web.get("/readyz", readyz)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    host, _, port = listen.rpartition(":")
    try:
        await web.TCPSite(runner, host or None, int(port)).start()
        yield
    finally:
        await runner.cleanup()


def _answer(state: State, status: int) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(state), content_type="application/json")
