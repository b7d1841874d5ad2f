"""Wires the operator: start order and shutdown.

Order: configuration → API server → health and metrics → Lease → Azure → the CRD is served → pools, then Nodes are
listed → workers, watch, and the schedules (relist, VNets, configuration file). All on one event loop, except for the
Lease's watchdog thread. It ends on SIGTERM or SIGINT, when the watch ends, or by the watchdog when the Lease is lost;
the Lease is released last.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import structlog

from vnetpods_api import NodeIPPool, Reason
from vnetpods_kit.config import ConfigError
from vnetpods_operator import azure, health, proxies
from vnetpods_operator import config as configuration
from vnetpods_operator import kube as kubernetes
from vnetpods_operator.azure.budget import Budget, rates
from vnetpods_operator.config import Config
from vnetpods_operator.election import Elector, exit_now
from vnetpods_operator.events import Recorder
from vnetpods_operator.kube import Kube, KubeError
from vnetpods_operator.metrics import Metrics
from vnetpods_operator.planning.model import Problem
from vnetpods_operator.planning.subnets import Subnets
from vnetpods_operator.reconcile.parts import Parts
from vnetpods_operator.reconcile.reconciler import Reconciler
from vnetpods_operator.state import agent_pods, handlers, relist
from vnetpods_operator.state.cluster import ClusterState
from vnetpods_operator.state.pools import Pools
from vnetpods_operator.state.queue import Queue, work
from vnetpods_operator.state.silence import Judge

RESTORED_SECONDS = 60.0
"""A restored API server shows at every pool: only one new list is requested within this time."""
RELOAD_SECONDS = 5.0
"""Interval of reading the configuration file."""

log = structlog.get_logger()


class Operator:
    """One process's operator; created inside the event loop that runs it."""

    def __init__(
        self, path: Path, kubeconfig: Path | None, config: Config, lost: Callable[[], None] = exit_now
    ) -> None:
        """`lost`: called at once when the Lease is lost."""
        self.config = config
        self._lost = lost
        self._path = path
        self._kubeconfig = kubeconfig
        self._unloadable = ""
        self._stop = asyncio.Event()
        self._again = asyncio.Event()
        self._restored_at = float("-inf")
        self._cluster = ClusterState()
        self._queue = Queue(asyncio.get_running_loop().time, self._cluster.priority)
        self._judge = Judge(
            asyncio.get_running_loop().time,
            lambda: float(self.config.agents.patience),
            f"kubectl -n {config.agents.namespace} get pods -l {agent_pods.labels(config.agents.selector)}",
        )
        self._elector: Elector | None = None
        self._kube: Kube | None = None
        self._metrics = Metrics(self._cluster, self._state)
        self._budget = Budget(lambda kind: rates(self.config.azure.budget, kind), self._metrics.held_back)
        self._queue.crowded = self._budget.give_way

    async def run(self) -> None:
        """Runs until stopped."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        places = [self.config.azure.endpoint, os.environ.get("AZURE_POD_IDENTITY_AUTHORITY_HOST")]
        proxies.settle(os.environ, places)
        async with (
            kubernetes.opened(self._kubeconfig) as kube,
            kubernetes.opened(self._kubeconfig) as lease,
            health.serving(
                self.config.listen,
                self.config.metrics_listen,
                self._metrics.rendered,
                self._state,
                float(self.config.azure.operation_timeout),
            ),
        ):
            self._kube = kube
            identity = f"{socket.gethostname()}_{os.getpid()}_{secrets.token_hex(4)}"
            elector = self._elector = Elector(lease, self.config.election, identity, self._lost)
            elector.restored = self._cluster.restored = self._restored
            if not await self._unless_stopped(elector.acquire()):
                return
            try:
                await self._lead(kube, elector, identity)
            finally:
                await elector.release()

    def stop(self) -> None:
        """Makes `run` return."""
        self._stop.set()

    async def _lead(self, kube: Kube, elector: Elector, identity: str) -> None:
        """Everything that only the leader does."""
        recorder, pools, subnets = Recorder(kube, identity), Pools(kube), Subnets()
        kube.fence = elector.check
        async with azure.opened(self.config.azure, self._budget, self._metrics, fence=elector.check) as arm:
            networks = azure.Networks(arm)
            parts = Parts(
                config=lambda: self.config,
                cluster=self._cluster,
                pools=pools,
                host_pods=lambda node: relist.host_pods(kube, node),
                subnets=subnets,
                machine=lambda machine: azure.machine(arm, machine),
                networks=networks,
                random=Random(),  # noqa: S311 - spreads retries, guards nothing
                tell=recorder.tell,
                wake=self._wake,
                silence=lambda pool: self._silence(pool, recorder),
            )
            running = [
                elector.keep(),
                recorder.write(),
                agent_pods.follow(kube, self.config.agents, self._judge, self._cluster, self._queue),
                self._serve(kube, pools, networks, Reconciler(parts)),
                self._repeat(lambda: self.config.relist, lambda: relist.compare(kube, self._cluster, self._queue)),
                self._repeat(lambda: RELOAD_SECONDS, self._reload),
            ]
            await self._until_one_ends(running)

    async def _serve(self, kube: Kube, pools: Pools, networks: azure.Networks, reconciler: Reconciler) -> None:
        """Lists, watches, and runs the workers."""
        await asyncio.to_thread(azure.load)
        await relist.served(kube)
        await relist.first_list(pools, self._cluster)
        now = asyncio.get_running_loop().time()
        for name in self._cluster.pools:
            # spread over the audit interval: the NICs are not all read at once after a restart
            self._cluster.record(name).audit_at = now + secrets.SystemRandom().uniform(0, float(self.config.audit))
        await relist.first_nodes(kube, self._cluster, self._queue)

        async def look(name: str) -> float | None:
            began = time.monotonic()
            self._measure(name)
            outcome = await reconciler.reconcile(name)
            self._metrics.looked(time.monotonic() - began)
            self._measure(name)
            judged = self._cluster.record(name).vigil.due if name in self._cluster.nodes else None
            return min(filter(None, (outcome.requeue_after, judged)), default=None)

        watch = handlers.run(handlers.registry(self._cluster, self._queue, kube.login), self._stop, self._again)
        schedule = self._repeat(lambda: self.config.azure.networks, lambda: self._refresh(networks), at_once=True)
        await self._until_one_ends([watch, work(self._queue, look, self.config.workers), schedule])

    async def _until_one_ends(self, coroutines: list[Coroutine[Any, Any, None]]) -> None:
        """Runs them concurrently; when one ends, or the operator is stopped, cancels the others."""
        tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
        stop = asyncio.create_task(self._stop.wait())
        try:
            done, _ = await asyncio.wait([*tasks, stop], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*tasks, stop):
                task.cancel()
            await asyncio.gather(*tasks, stop, return_exceptions=True)
        for task in done - {stop}:
            task.result()

    async def _unless_stopped(self, coroutine: Coroutine[Any, Any, None]) -> bool:
        """Whether it ended before the operator was stopped."""
        task = asyncio.create_task(coroutine)
        await self._until_one_ends([_wait(task)])
        return not self._stop.is_set()

    async def _repeat(
        self, every: Callable[[], float], action: Callable[[], Awaitable[None]], *, at_once: bool = False
    ) -> None:
        while True:
            if not at_once:
                await asyncio.sleep(float(every()))
            at_once = False
            try:
                await action()
            except KubeError as error:
                log.warning("the API server did not do as asked", error=str(error))
            except Exception:
                log.exception("what is done again and again failed, and is done again")

    async def _refresh(self, networks: azure.Networks) -> None:
        """Reads VNets again and queues the nodes in changed ones."""
        pools = self._cluster.pools.values()
        subnets = {interface.subnet for pool in pools for interface in pool.status.interfaces}
        changed = await networks.refresh(subnets)
        left = {subnet: await networks.left(subnet) for subnet in subnets}
        self._metrics.headroom({subnet: number for subnet, number in left.items() if number is not None})
        for name, pool in self._cluster.pools.items():
            if any(interface.subnet.lower() in changed for interface in pool.status.interfaces):
                self._queue.add(name)

    async def _reload(self) -> None:
        """Applies a changed configuration file; an invalid one changes nothing."""
        try:
            config = await asyncio.to_thread(configuration.load, self._path)
        except ConfigError as error:
            if str(error) != self._unloadable:  # it is read every few seconds: log an error once
                log.warning("configuration not reloaded, the former one stays", error=str(error))
            self._unloadable = str(error)
            self._metrics.configuration_valid(valid=False)
            return
        self._unloadable = ""
        self._metrics.configuration_valid(valid=True)
        if config == self.config:
            return
        before, self.config = self.config, config
        fixed = [
            name
            for name in ("listen", "metrics_listen", "election", "workers", "agents")
            if getattr(config, name) != getattr(before, name)
        ]
        same = {"budget": before.azure.budget, "networks": before.azure.networks}
        if msgspec.structs.replace(config.azure, **same) != before.azure:
            fixed.append("azure")
        log.info("configuration reloaded", needs_restart=fixed)
        self._budget.adjust()
        reread = (config.adopt, config.interfaces) != (before.adopt, before.interfaces)
        for name in self._cluster.nodes:
            if reread:
                self._cluster.record(name).audit_at = 0.0
            self._queue.add(name, self._cluster.priority(name))

    def _silence(self, pool: NodeIPPool, recorder: Recorder) -> str:
        """Why the node's agent is silent, or empty; also recorded as an Event on the Node, once."""
        node = self._cluster.nodes.get(pool.metadata.name)
        if node is None:
            return ""
        said = self._judge.verdict(node, pool, self._cluster.record(node.name).vigil)
        if said and not any(c.message == said for c in pool.status.conditions):
            recorder.tell(node, Problem(Reason.AGENT_SILENT, said))
        return said

    def _restored(self) -> None:
        """Lists again after the API server's data has gone back in time: the watch's version no longer exists."""
        now = asyncio.get_running_loop().time()
        if now - self._restored_at < RESTORED_SECONDS:
            return
        self._restored_at = now
        log.warning("the API server has gone back in time (restored from a backup?); everything is listed again")
        self._again.set()

    def _wake(self, subnet: str) -> None:
        """Queues the nodes in a subnet that has free addresses again: they need not wait longer."""
        for name, pool in self._cluster.pools.items():
            if any(interface.subnet.lower() == subnet.lower() for interface in pool.status.interfaces):
                self._queue.add(name, self._cluster.priority(name))

    def _measure(self, name: str) -> None:
        """Measures how long pods waited, and how long a new Node had no address."""
        pool, now = self._cluster.pools.get(name), asyncio.get_running_loop().time()
        if name not in self._cluster.nodes:
            return
        record = self._cluster.record(name)
        if pool is None or not any(interface.addresses for interface in pool.status.interfaces):
            record.seen_at = record.seen_at or now
        elif record.seen_at:
            self._metrics.first_address(now - record.seen_at)
            record.seen_at = 0.0
        waiting = pool.status.usage.waiting if pool is not None and pool.status.usage else 0
        if waiting and record.waiting_since is None:
            record.waiting_since = now
        elif not waiting and record.waiting_since is not None:
            self._metrics.granted(now - record.waiting_since)
            record.waiting_since = None

    @property
    def _leads(self) -> bool:
        return self._elector is not None and self._elector.leads

    def _state(self) -> health.State:
        last = self._metrics.last_answer
        return health.State(
            leads=self._leads,
            in_line=self._queue.depth,
            oldest=round(self._queue.age, 3),
            azure_answered=None if last is None else round(time.monotonic() - last, 3),
            waiting_for_budget=self._budget.waiting,
            kube_requests=self._kube.requests if self._kube else 0,
            longest=round(self._queue.longest, 3),
        )


async def _wait(task: asyncio.Task[None]) -> None:
    await task
