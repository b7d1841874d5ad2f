"""Liveness fails when the workers are stuck, not when the world around is slow."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from vnetpods_operator.health import STUCK_SECONDS, State, serving

WRITE = 900.0


@pytest.mark.parametrize(
    ("leads", "oldest", "held_back", "status"),
    [
        (True, 0.0, 0, 200),
        (True, STUCK_SECONDS + 1, 0, 200),
        (True, STUCK_SECONDS + WRITE + 1, 0, 503),
        (True, STUCK_SECONDS + WRITE + 1, 9, 200),
        (False, STUCK_SECONDS + WRITE + 1, 0, 200),
    ],
    ids=["well", "writes-are-slow", "stuck", "the-budget-is-small", "stands-by"],
)
async def test_liveness(leads: bool, oldest: float, held_back: int, status: int) -> None:
    state = State(leads, 5, oldest, None, held_back, 0)
    async with (
        serving("127.0.0.1:19463", CollectorRegistry(), lambda: state, WRITE),
        aiohttp.ClientSession("http://127.0.0.1:19463") as http,
    ):
        assert (await http.get("/healthz")).status == status
        ready = await http.get("/readyz")
        assert ready.status == 200
        assert (await ready.json())["leads"] is leads


async def test_a_stuck_loop_does_not_answer() -> None:
    def blocking() -> State:
        import time  # noqa: PLC0415

        time.sleep(0.5)
        return State(leads=True, in_line=0, oldest=0, azure_answered=None, waiting_for_budget=0, kube_requests=0)

    timeout = aiohttp.ClientTimeout(total=0.2)
    async with (
        serving("127.0.0.1:19464", CollectorRegistry(), blocking, WRITE),
        aiohttp.ClientSession("http://127.0.0.1:19464", timeout=timeout) as http,
    ):
        with pytest.raises((TimeoutError, asyncio.TimeoutError)):
            await http.get("/healthz")
