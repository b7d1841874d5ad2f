"""Liveness fails when the workers are stuck, not when the world around is slow."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import aiohttp
import pytest

from vnetpods_api import NodeIPPool
from vnetpods_operator.config import Config
from vnetpods_operator.health import STUCK_SECONDS, WRITES, State, serving
from vnetpods_operator.metrics import Metrics
from vnetpods_operator.state.cluster import ClusterState

WRITE = 900.0
NOWHERE = ""


async def nothing() -> bytes:
    return b""


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
        serving("127.0.0.1:19463", NOWHERE, nothing, lambda: state, WRITE),
        aiohttp.ClientSession("http://127.0.0.1:19463") as http,
    ):
        assert (await http.get("/healthz")).status == status
        ready = await http.get("/readyz")
        assert ready.status == 200
        assert (await ready.json())["leads"] is leads


@pytest.mark.parametrize(("longest", "status"), [(WRITES * WRITE, 200), (STUCK_SECONDS + WRITES * WRITE + 1, 503)])
async def test_one_look_that_never_ends_is_no_health(longest: float, status: int) -> None:
    """Its node waits in no line, and would be looked at never again; all others go on."""
    state = State(True, 0, 0.0, None, 0, 0, longest=longest)
    async with (
        serving("127.0.0.1:19463", NOWHERE, nothing, lambda: state, WRITE),
        aiohttp.ClientSession("http://127.0.0.1:19463") as http,
    ):
        assert (await http.get("/healthz")).status == status


async def test_a_stuck_loop_does_not_answer() -> None:
    def blocking() -> State:
        import time  # noqa: PLC0415

        time.sleep(0.5)
        return State(leads=True, in_line=0, oldest=0, azure_answered=None, waiting_for_budget=0, kube_requests=0)

    timeout = aiohttp.ClientTimeout(total=0.2)
    async with (
        serving("127.0.0.1:19464", NOWHERE, nothing, blocking, WRITE),
        aiohttp.ClientSession("http://127.0.0.1:19464", timeout=timeout) as http,
    ):
        with pytest.raises((TimeoutError, asyncio.TimeoutError)):
            await http.get("/healthz")


WELL = State(leads=True, in_line=0, oldest=0, azure_answered=None, waiting_for_budget=0, kube_requests=0)


@pytest.mark.parametrize(("place", "status"), [("127.0.0.1:19466", 404), ("127.0.0.1:19465", 200)])
async def test_metrics_are_on_an_address_of_their_own(place: str, status: int) -> None:
    """The probes' address is open to all the node's network; `listen` may still be chosen for both."""
    async with serving("127.0.0.1:19465", place, nothing, lambda: WELL, WRITE), aiohttp.ClientSession() as http:
        assert (await http.get("http://127.0.0.1:19465/healthz")).status == 200
        assert (await http.get("http://127.0.0.1:19465/metrics")).status == status
        assert (await http.get(f"http://{place}/metrics")).status == 200


def test_metrics_are_not_open_by_default() -> None:
    assert Config().metrics_listen.startswith("127.0.0.1:")


async def test_metrics_are_rendered_once_and_off_the_loop() -> None:
    """At 5,000 nodes that took 54 ms of the loop at each scrape."""
    threads: list[int] = []
    cluster = ClusterState()

    class Watched(dict[str, NodeIPPool]):
        def items(self) -> Any:
            threads.append(threading.get_ident())
            return super().items()

    cluster.pools = Watched()
    metrics = Metrics(cluster, lambda: WELL)
    scrapes = await asyncio.gather(*(metrics.rendered() for _ in range(5)))
    assert len(set(scrapes)) == 1
    assert b"vnetpods_leader 1.0" in scrapes[0]
    assert threads == [threading.get_ident()], "only the copy is made on the loop, and once for all"
