"""/healthz and /readyz over HTTP for the kubelet, and /metrics on an address of its own.

The probes' address is open to the node's network, because the kubelet asks there; they tell nothing worth hiding, and
answer in no time. Metrics name subscriptions and subnets and cost work at each scrape, so they are on the machine's own
address unless the configuration says otherwise.

/healthz answers 200 while the process can do its work: the event loop runs (or nothing would answer) and, when this
operator leads, neither the oldest node in line nor the longest look at one takes for ever. /readyz says whether it
leads or stands by, and when ARM last answered. Neither asks Azure or the API server: a liveness probe that fails
because Azure is away makes it worse.
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
"""A node in line for so long, and for as long as a write to a NIC may take, means that the workers are stuck: all else
in a look has time limits far below.
"""
WRITES = 5
"""A look at a node may take that many writes, each begun anew since somebody else changed the NIC."""


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
    longest: float = 0.0
    """Seconds for which the look that is under way longest has been: a node that nobody else will look at."""


@contextlib.asynccontextmanager
async def serving(
    listen: str,
    metrics_listen: str,
    rendered: Callable[[], Awaitable[bytes]],
    state: Callable[[], State],
    write_seconds: float,
) -> AsyncIterator[None]:
    """Serves while the block runs, on each `address:port`; a write to a NIC takes `write_seconds` at most."""

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
