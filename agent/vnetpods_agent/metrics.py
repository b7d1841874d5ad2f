"""The agent's metrics, and the HTTP server on the node's loopback that serves /metrics, /healthz and /readyz.

Counters are incremented in the event loop; gauges are read at each scrape. docs/agent.md lists names and meanings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from aiohttp import web
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from vnetpods_agent.ipam.sweeper import Sweep
from vnetpods_api import Usage
from vnetpods_api.version import VERSION
from vnetpods_kit import http

_BUCKETS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1, 2, 5, 15, 60, 120)


class Metrics:
    """All of the agent's metrics. `usage`, `gauges` and `refusals` (by the kernel, per errno) are read when scraped."""

    def __init__(
        self,
        usage: Callable[[], Usage],
        gauges: dict[str, tuple[str, Callable[[], float]]],
        refusals: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # avoids a second series per counter
        self.registry = CollectorRegistry()
        build = Gauge("vnetpods_agent_build_info", "1; which version this is.", ["version"], registry=self.registry)
        build.labels(VERSION).set(1)
        ProcessCollector(registry=self.registry)
        self.registry.register(_Pool(usage, gauges))
        self.registry.register(_Kernel(refusals))
        self.calls = Histogram(
            "vnetpods_agent_call_seconds",
            "CNI calls from the frame's arrival to the answer.",
            ["verb", "outcome"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.swept = Counter(
            "vnetpods_agent_swept", "What sweeps found and put right.", ["finding"], registry=self.registry
        )
        self.replayed = Counter(
            "vnetpods_agent_spool_replayed", "Spooled calls that were done.", registry=self.registry
        )
        self.events = Counter(
            "vnetpods_agent_host_events", "What the data plane put right or met.", ["kind"], registry=self.registry
        )
        self.reports = Counter(
            "vnetpods_agent_reports", "Reports to the address source.", ["outcome"], registry=self.registry
        )

    def observe(self, verb: str, outcome: str, seconds: float) -> None:
        self.calls.labels(verb, outcome).observe(seconds)

    def sweep(self, sweep: Sweep) -> None:
        for finding in ("gone", "superseded", "unclaimed", "adopted", "removed"):
            self.swept.labels(finding).inc(getattr(sweep, finding))


class _Pool(Collector):
    def __init__(self, usage: Callable[[], Usage], gauges: dict[str, tuple[str, Callable[[], float]]]) -> None:
        self._usage = usage
        self._gauges = gauges

    def collect(self) -> Iterator[GaugeMetricFamily]:
        usage = self._usage()
        addresses = GaugeMetricFamily("vnetpods_agent_addresses", "Addresses of this node by state.", labels=["state"])
        for state in ("assigned", "cooling", "free"):
            addresses.add_metric([state], getattr(usage, state))
        yield addresses
        yield GaugeMetricFamily("vnetpods_agent_waiting", "Pods that wait for an address.", value=usage.waiting)
        for name, (meaning, value) in self._gauges.items():
            yield GaugeMetricFamily(f"vnetpods_agent_{name}", meaning, value=value())


class _Kernel(Collector):
    def __init__(self, refusals: Callable[[], Mapping[str, int]]) -> None:
        self._refusals = refusals

    def collect(self) -> Iterator[CounterMetricFamily]:
        errors = CounterMetricFamily("vnetpods_agent_netlink_errors", "What the kernel refused.", labels=["errno"])
        for errno, count in self._refusals().items():
            errors.add_metric([errno], count)
        yield errors


@dataclass(frozen=True, slots=True)
class Health:
    """Empty while healthy: `ill` returns why only a restart helps, `unready` what is wrong."""

    ill: Callable[[], str]
    unready: Callable[[], str]


async def serve(metrics: Metrics, health: Health, address: str, port: int) -> tuple[web.AppRunner, int]:
    """Starts the server; returns its runner, for the cleanup, and the port. Raises OSError."""

    async def show(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(metrics.registry), content_type="text/plain", charset="utf-8")

    def answer(why: str) -> web.Response:
        return web.Response(text=f"{why or 'ok'}\n", status=503 if why else 200)

    async def alive(_: web.Request) -> web.Response:
        return answer(health.ill())

    async def ready(_: web.Request) -> web.Response:
        return answer(health.unready())

    routes = [web.get("/metrics", show), web.get("/healthz", alive), web.get("/readyz", ready)]
    return await http.serve(address, port, routes)
