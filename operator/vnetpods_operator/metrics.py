"""The operator's metrics, by Prometheus conventions (base units, `_total`, `_seconds`).

Totals over nodes are computed from the cluster state at each scrape, so deleted nodes disappear by themselves; only
requests and durations are recorded as they occur. At 5,000 nodes that takes 54 ms: it runs in a thread, over a copy of
the list of pools (pools are never changed in place), once for all scrapes within FRESH_SECONDS.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from vnetpods_api import ConditionType, NodeIPPool, find
from vnetpods_api.version import VERSION
from vnetpods_operator.azure.budget import Kind
from vnetpods_operator.health import State
from vnetpods_operator.planning import model
from vnetpods_operator.state.cluster import ClusterState

FRESH_SECONDS = 2.0
_SECONDS = (0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """All metrics of one operator, in a registry of its own."""

    def __init__(self, cluster: ClusterState, state: Callable[[], State]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        build = Gauge("vnetpods_operator_build_info", "1; which version this is.", ["version"], registry=self.registry)
        build.labels(VERSION).set(1)
        self._configuration_valid = Gauge(
            "vnetpods_operator_configuration_valid",
            "0 while the configuration file can't be used, so that an earlier one stays in force.",
            registry=self.registry,
        )
        self._configuration_valid.set(1)
        self._pools = _Pools(cluster, state)
        self.registry.register(self._pools)
        self._rendering: asyncio.Task[bytes] | None = None
        self._rendered_at = -math.inf
        self._requests = Counter(
            "vnetpods_azure_requests",
            "Requests to ARM, polls included.",
            ["operation", "outcome"],
            registry=self.registry,
        )
        self._latency = Histogram(
            "vnetpods_azure_request_duration_seconds",
            "Time until ARM answered, without waiting for the budget.",
            ["operation"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._throttled = Counter(
            "vnetpods_azure_throttled", "Requests that ARM refused with 429.", ["operation"], registry=self.registry
        )
        self._remaining = Gauge(
            "vnetpods_azure_remaining_requests",
            "Requests that Azure says are left.",
            ["subscription", "kind"],
            registry=self.registry,
        )
        self._budget = Histogram(
            "vnetpods_azure_budget_wait_seconds",
            "Time that requests were held back by the operator's own budget.",
            ["kind"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._first_address = Histogram(
            "vnetpods_node_first_address_seconds",
            "Time from a Node's first sight to its first address.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._granted = Histogram(
            "vnetpods_waiting_granted_seconds",
            "Time from pods waiting on a node to none waiting.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._looks = Histogram(
            "vnetpods_look_duration_seconds",
            "Time of one look at one node.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._left = Gauge(
            "vnetpods_subnet_left",
            "Addresses that Azure said last are left in a subnet.",
            ["subnet"],
            registry=self.registry,
        )
        self.last_answer: float | None = None
        """When ARM last responded (monotonic clock)."""

    async def rendered(self) -> bytes:
        """The response to a scrape; a second one within `FRESH_SECONDS` gets the same."""
        now = asyncio.get_running_loop().time()
        if self._rendering is None or (self._rendering.done() and now - self._rendered_at > FRESH_SECONDS):
            self._rendered_at = now
            self._pools.snap()
            self._rendering = asyncio.create_task(asyncio.to_thread(generate_latest, self.registry))
        return await asyncio.shield(self._rendering)

    # implements vnetpods_operator.azure.Watcher, among others

    def configuration_valid(self, *, valid: bool) -> None:
        """Records whether the configuration file is valid at present."""
        self._configuration_valid.set(valid)

    def answered(self, operation: str, outcome: str, seconds: float) -> None:
        self._requests.labels(operation, outcome).inc()
        self._latency.labels(operation).observe(seconds)
        if outcome != "no_answer":
            self.last_answer = time.monotonic()
        if outcome == "429":
            self._throttled.labels(operation).inc()

    def remaining(self, subscription: str, kind: Kind, requests: int) -> None:
        self._remaining.labels(subscription, kind.value).set(requests)

    def held_back(self, kind: Kind, seconds: float) -> None:
        self._budget.labels(kind.value).observe(seconds)

    def headroom(self, left: Mapping[str, int]) -> None:
        """Records the free addresses of each subnet, and drops the series of all others."""
        self._left.clear()
        for subnet, number in left.items():
            self._left.labels(subnet).set(number)

    def first_address(self, seconds: float) -> None:
        self._first_address.observe(seconds)

    def granted(self, seconds: float) -> None:
        self._granted.observe(seconds)

    def looked(self, seconds: float) -> None:
        self._looks.observe(seconds)


class _Pools(Collector):
    """Computed from the cluster at each scrape."""

    def __init__(self, cluster: ClusterState, state: Callable[[], State]) -> None:
        self._cluster = cluster
        self._state = state
        self._seen: list[NodeIPPool] = []
        self._now: State | None = None

    def snap(self) -> None:
        """Takes a snapshot on the event loop, as `collect` may run in a thread."""
        nodes = self._cluster.nodes
        self._seen = [pool for name, pool in self._cluster.pools.items() if name in nodes]
        self._now = self._state()

    def collect(self) -> Iterable[Metric]:
        addresses = GaugeMetricFamily(
            "vnetpods_addresses", "Addresses by what they are to the nodes.", labels=["subnet", "state"]
        )
        reasons = GaugeMetricFamily("vnetpods_nodes", "Nodes by the reason of Ready.", labels=["ready", "reason"])
        agents = GaugeMetricFamily(
            "vnetpods_agents", "Nodes by what is said of their agent.", labels=["ready", "reason"]
        )
        waiting = GaugeMetricFamily("vnetpods_waiting_pods", "Pods that wait for an address.")
        by_subnet: Tally[tuple[str, str]] = Tally()
        by_reason: Tally[tuple[str, str]] = Tally()
        by_agent: Tally[tuple[str, str]] = Tally()
        total = 0
        for pool in self._seen:
            usage = pool.status.usage
            subnet = pool.status.interfaces[0].subnet if pool.status.interfaces else ""
            allocated = sum(model.count(interface.addresses) for interface in pool.status.interfaces)
            by_subnet[subnet, "allocated"] += allocated
            by_subnet[subnet, "releasing"] += sum(model.count(i.releasing) for i in pool.status.interfaces)
            if usage is not None:
                by_subnet[subnet, "assigned"] += usage.assigned
                by_subnet[subnet, "cooling"] += usage.cooling
                by_subnet[subnet, "free"] += usage.free
                total += usage.waiting
            ready = find(pool.status.conditions, ConditionType.READY)
            by_reason[(ready.status, ready.reason) if ready else ("Unknown", "Pending")] += 1
            agent = find(pool.status.conditions, ConditionType.AGENT_READY)
            by_agent[(agent.status, agent.reason) if agent else ("Unknown", "Pending")] += 1
        for (subnet, state), number in by_subnet.items():
            addresses.add_metric([subnet, state], number)
        for (status, reason), number in by_reason.items():
            reasons.add_metric([status, reason], number)
        for (status, reason), number in by_agent.items():
            agents.add_metric([status, reason], number)
        waiting.add_metric([], total)
        now = self._now or self._state()
        yield addresses
        yield reasons
        yield agents
        yield waiting
        yield GaugeMetricFamily("vnetpods_queue_depth", "Nodes in line.", value=now.in_line)
        yield GaugeMetricFamily(
            "vnetpods_queue_age_seconds", "Wait of the node that is in line longest.", value=now.oldest
        )
        yield GaugeMetricFamily(
            "vnetpods_azure_held_back", "Requests that the budget holds back now.", value=now.waiting_for_budget
        )
        yield GaugeMetricFamily("vnetpods_leader", "1 when this operator holds the Lease.", value=int(now.leads))
        yield CounterMetricFamily(
            "vnetpods_kubernetes_requests", "Requests to the API server, watches apart.", value=now.kube_requests
        )
