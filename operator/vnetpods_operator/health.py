"""/healthz and /readyz over HTTP for the kubelet, and /metrics on its own address.

The probes' address is open to the node's network, because the kubelet probes there; they disclose nothing sensitive and
are cheap. Metrics name subscriptions and subnets and cost work at each scrape, so they are served on loopback unless
configured otherwise.

/healthz returns 200 while the process can work: the event loop runs (or there would be no response) and, if this
operator leads, neither the oldest queued node nor the longest running reconcile is stuck. /readyz returns 200 always;
its body tells whether the operator leads or stands by, and when ARM last responded. Neither probe contacts Azure or the
API server: a liveness probe that fails because Azure is down makes it worse.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import msgspec
from aiohttp import web

from vnetpods_kit import http

STUCK_SECONDS = 900.0
"""A node queued for this time plus the longest write of a NIC means stuck workers: all other steps of a pass have far
lower time limits.
"""
WRITES = 5
"""Most writes in one pass, each repeated because another writer changed the NIC."""


@dataclass(frozen=True, slots=True)
class State:
    """The state that the endpoints and metrics report."""

    leads: bool
    in_line: int
    oldest: float
    azure_answered: float | None
    """Seconds since ARM's last response; None: none yet."""
    waiting_for_budget: int
    kube_requests: int
    longest: float = 0.0
    """Seconds that the longest running reconcile has taken so far: no other worker takes its node."""


@contextlib.asynccontextmanager
async def serving(
    listen: str,
    metrics_listen: str,
    rendered: Callable[[], Awaitable[bytes]],
    state: Callable[[], State],
    write_seconds: float,
) -> AsyncIterator[None]:
    """Serves on each `address:port` while the block runs; a write of a NIC takes `write_seconds` at most."""

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=await rendered(), content_type="text/plain", charset="utf-8")

    async def healthz(_: web.Request) -> web.Response:
        now = state()
        # a long wait for the budget is slowness, not a fault
        in_line = now.oldest > STUCK_SECONDS + write_seconds
        at_work = now.longest > STUCK_SECONDS + WRITES * write_seconds
        stuck = now.leads and (in_line or at_work) and now.waiting_for_budget == 0
        return _answer(now, 503 if stuck else 200)

    async def readyz(_: web.Request) -> web.Response:
        return _answer(state(), 200)

    places: defaultdict[str, list[web.RouteDef]] = defaultdict(list)
    places[listen] += [web.get("/healthz", healthz), web.get("/readyz", readyz)]
    if metrics_listen:
        places[metrics_listen].append(web.get("/metrics", metrics))
    async with contextlib.AsyncExitStack() as stack:
        for place, routes in places.items():
            host, _, port = place.rpartition(":")
            runner, _ = await http.serve(host, int(port), routes)
            stack.push_async_callback(runner.cleanup)
        yield


def _answer(state: State, status: int) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(state), content_type="application/json")
