"""Wires the agent's parts, and starts and stops them in order.

Start: health and metrics, ledger, last known pool, data plane and host state, first sweep, then the socket; the spool,
for which only ADDs wait; once ADDs can be served, the shim and last the conflist, which makes the node Ready. Nothing
waits for the API server: a node with a known pool serves from it. End (SIGTERM): waiting ADDs are cancelled, so that
the shim asks the next agent; calls in flight are finished; the conflist stays. One event loop, two workers (ledger,
kernel), the data plane's own two threads and the watchdog.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import structlog
from aiohttp import web

from vnetpods_agent import installer, metrics
from vnetpods_agent.attachment import Address, Pod
from vnetpods_agent.cni.commands import Commands, Lasting
from vnetpods_agent.cni.server import Server
from vnetpods_agent.cni.spool import Spool
from vnetpods_agent.config import Config
from vnetpods_agent.dataplane import DataPlaneError
from vnetpods_agent.dataplane.host.actions import RESTORED
from vnetpods_agent.dataplane.host.reconciler import FAILED, HostReconciler
from vnetpods_agent.dataplane.netlink.socket import REFUSALS
from vnetpods_agent.dataplane.pod.reaper import Reaper
from vnetpods_agent.dataplane.pod.transparent import Transparent
from vnetpods_agent.events import Event, Events
from vnetpods_agent.installer import Installation
from vnetpods_agent.instance_lock import Tenure
from vnetpods_agent.ipam.attachments import Attachments
from vnetpods_agent.ipam.ledger.schema import Retire, Withdraw
from vnetpods_agent.ipam.ledger.store import REBUILT, UNAVAILABLE, Ledger, LedgerError
from vnetpods_agent.ipam.pool import Pool
from vnetpods_agent.ipam.requests import AttachRequest, Surroundings
from vnetpods_agent.ipam.sweeper import LEAKED, Sweep, Sweeper
from vnetpods_agent.ipam.worker import WorkerThread
from vnetpods_agent.kube import KubeApi, from_kubeconfig, in_cluster
from vnetpods_agent.sync.file import FileSource
from vnetpods_agent.sync.imds import ImdsSource
from vnetpods_agent.sync.nodeippool import NodeIPPoolSource
from vnetpods_agent.sync.operator_watch import OperatorWatch
from vnetpods_agent.sync.pool_sync import NicLimits, Parts, PoolSync
from vnetpods_agent.sync.reporter import Reporter
from vnetpods_agent.sync.source import AddressSource
from vnetpods_agent.sync.trust import Trust
from vnetpods_agent.watchdog import EXIT_CODE, Watchdog
from vnetpods_api.version import VERSION
from vnetpods_kit.clock import boottime

if TYPE_CHECKING:
    from vnetpods_agent.docker.server import DockerServer

_SWITCH_INTERVAL = 0.0005
"""With Python's default of 5 ms a thread that returns from the kernel could wait that long for the loop."""
_SPOOL_PERIOD = 3.0
_INSTALL_PERIOD = 5.0
_TICK = 2.0
_FAREWELL = 2.0
_PAUSE = 2.0

log = structlog.get_logger(component="agent")


class Agent:
    """All parts, wired; `run` starts and ends them."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._loop = asyncio.get_running_loop()
        self._tasks: list[asyncio.Task[None]] = []
        self._runner: web.AppRunner | None = None
        api = _api(config) if config.source.is_kubernetes else None
        self.source = self._source(api)
        self.events = Events(api, config.node)
        self.ledger = Ledger(
            config.paths.ledger, notify=lambda reason, message: self.events.say(Event(reason, message))
        )
        self.kernel = WorkerThread("kernel")
        self.reaper = Reaper()
        self.plane = Transparent(self.reaper)
        self.host = HostReconciler(
            lambda kind, message: self._call_from_thread(self._host_event, kind, message),
            sysctl=config.paths.sysctl,
            on_links=lambda: self._call_from_thread(self.limits.changed),
            on_guarded=lambda: self._call_from_thread(self._now_guarded),
        )
        self.pool = Pool(config.cooldown, self._elsewhere, self.plane.leaving, lambda: self.limits.absent)
        self.trust = Trust(config.source.confirmation, time.monotonic(), always=self.source.truth)
        self.reporter = Reporter(self.pool, self.ledger, self.source, self.trust, self.unfit, config.report_interval)
        self.operator = OperatorWatch(api, config.operator, self.pool.waiting, time.monotonic, self._operator_silent)
        self.reporter.remark = lambda: self.operator.silent
        self.limits = NicLimits(self.kernel)
        surroundings = Surroundings(
            clock=time.time,
            uptime=boottime,
            boot_id=config.paths.boot_id.read_text().strip(),
            limits=self.limits.of,
            cause=self.cause,
            changed=self.reporter.changed,
            waits_long=self._waits_long,
            barred=self.barred,
        )
        self.attachments = Attachments(self.pool, self.ledger, self.kernel, self.plane, surroundings)
        parts = Parts(
            self.pool,
            self.ledger,
            self.attachments,
            self.reporter,
            self.host,
            self.kernel,
            self.limits,
            self.events,
            self.trust,
            self.unfit,
        )
        self.listener = PoolSync(config, self.source, parts)
        self.reporter.another_machines = self.listener.is_another_machines
        self.sweeper = Sweeper(self.attachments, self.kernel, self.plane, boottime)
        self.metrics = metrics.Metrics(lambda: self.pool.usage(boottime()), self._gauges(), REFUSALS.counts)
        self.limited = Lasting(lambda: self.host.failing)
        caught_up = asyncio.Event()
        self.guarded = asyncio.Event()
        self.commands = Commands(
            self.attachments,
            self.kernel,
            self.plane,
            self.unfit,
            self.limited,
            self.metrics.observe,
            caught_up,
            self.guarded,
            config.annotations,
            lambda pod, why: self.events.say(Event("AnnotationRefused", why, pod)),
        )
        self.server = Server(config.paths.socket, self.commands.handle)
        self.unreachable = Lasting(lambda: self.server.trouble)
        self.docker = self._docker()
        self.spool = Spool(config.paths.spool, self.commands.handle, caught_up=caught_up)
        paths = config.paths
        self.installation = (
            Installation(paths.shim, paths.cni_bin, paths.cni_conf, config.chained) if paths.shim else None
        )
        self.reporter.observe = lambda outcome: self.metrics.reports.labels(outcome).inc()
        self._boot_id = surroundings.boot_id
        self.tenure = Tenure(paths.socket.parent, paths.state)
        self._starting = True
        self._lacking = ""  # the ledger's trouble at the start
        self._unmet = "the interfaces of running pods have not been looked at yet"  # empty after the first look

    def _source(self, api: KubeApi | None) -> AddressSource:
        source = self.config.source
        if api is not None:
            return NodeIPPoolSource(api, self.config.node)
        if source.imds:
            return ImdsSource(source.imds, lambda: self.listener.interfaces, lambda: self.limits.absent)
        assert source.file
        return FileSource(source.file)

    def _docker(self) -> DockerServer | None:
        if (config := self.config.docker) is None:
            return None
        from vnetpods_agent.docker.driver import Driver  # noqa: PLC0415 - a node of Kubernetes has no use for it
        from vnetpods_agent.docker.server import DockerServer  # noqa: PLC0415

        driver = Driver(
            self.attachments,
            self.guarded,
            self.unfit,
            lambda: [prefix for interface in self.listener.interfaces for prefix in interface.prefixes],
            self.metrics.observe,
            config.ports == "ignore",
        )
        return DockerServer(config, driver)

    # callbacks between the parts

    def unfit(self) -> str:
        """Why no ADD can be served; empty when ADDs can. An empty pool that may grow is fit: ADDs wait."""
        if why := self.ledger.trouble or self.barred():
            return why
        if not self.pool.listed():
            return f"no address for pods is known: {self.cause()}"
        if self.pool.listed(self.limits.absent | self.listener.screened.nics):
            return self.host.unguarded
        return "; ".join(filter(None, (self._absent(), self.listener.refusals)))

    def unready(self) -> str:
        """Why the agent isn't ready, for health checks."""
        if self._starting:
            return "the agent is starting"
        deaf = self.server.trouble or (self.docker.trouble if self.docker else "")
        return deaf or self.unfit() or (self.installation.trouble if self.installation else "")

    def barred(self) -> str:
        """Why no address may be assigned, whatever the pool lists: a pod may hold it, or it may be promised back."""
        if self.ledger.unread:
            return self.ledger.trouble
        return self._unmet if self._lacking else ""

    def cause(self) -> str:
        """Why there are no (more) addresses."""
        trouble, heard = self.source.trouble, self.listener.cause
        if heard and trouble:  # possibly outdated
            heard = f"heard last: {heard}"
        said = "; ".join(filter(None, (trouble, self._absent(), self.operator.silent or heard)))
        if said:
            return said
        if not self.pool.listed():
            return "the operator has listed none yet"
        return self.operator.unanswered or "all are in use, and more have been asked for"

    def _absent(self) -> str:
        """Why the addresses of some listed NICs are unusable here."""
        listed = sorted(self.limits.absent & self.listener.macs)
        if not listed:
            return ""
        macs = ", ".join(listed)
        if self.limits.foreign.issuperset(listed):
            return f"the pool is another machine's: none here has the MAC {macs} of its NIC"
        return f"the NIC with the MAC {macs} is gone from this machine at present"

    def _elsewhere(self) -> frozenset[Address]:
        """Addresses on the host's own interfaces, of NICs that this machine doesn't have, those refused by `screen`,
        and those that the source withholds as uncertain.
        """
        listener = self.listener
        return (
            self.host.held_by_host() | self.pool.of(self.limits.absent) | listener.screened.refused | listener.withheld
        )

    def _waits_long(self, wanted: AttachRequest, cause: str) -> None:
        self.operator.waits(wanted.pod)
        if wanted.pod is not None:
            self.events.say(Event("WaitingForAddress", f"no address of the VNet is free yet: {cause}", wanted.pod))

    def _operator_silent(self, words: str, pods: list[Pod]) -> None:
        log.warning("the operator is silent", message=words)
        for pod in pods:
            self.events.say(Event("OperatorSilent", words, pod))
        self.reporter.changed()

    def _host_event(self, kind: str, message: str) -> None:
        self.metrics.events.labels(kind).inc()
        if kind != RESTORED:  # repairs are only logged
            self.events.say(Event(kind, message))

    def _now_guarded(self) -> None:
        self.guarded.set()
        if not self.unfit():
            self.listener.fit.set()

    def _call_from_thread(self, call: Any, *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed already
            self._loop.call_soon_threadsafe(call, *args)

    def _gauges(self) -> dict[str, Any]:
        return {
            "listed": ("Addresses that the pool lists for use.", self.pool.listed),
            "missing": ("Addresses that pods hold and the pool doesn't list.", lambda: len(self.pool.missing())),
            "in_flight": ("CNI calls under way.", lambda: self.server.in_flight),
            "ledger_unavailable": ("1 while the ledger can't be written.", lambda: bool(self.ledger.trouble)),
            "operator_silent_seconds": (
                "Time since the operator's last sign of life, while pods wait.",
                lambda: self.operator.age,
            ),
            "source_unavailable": ("1 while the address source can't be reached.", lambda: bool(self.source.trouble)),
        }

    # start and end

    async def run(self) -> None:
        """Runs until SIGTERM or SIGINT."""
        ended = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, ended.set)
        sys.setswitchinterval(_SWITCH_INTERVAL)
        if not await self.tenure.begin(ended):
            await self.source.close()
            return
        began = time.monotonic()
        log.info("starting", version=VERSION, node=self.config.node)
        await self.start()
        log.info("serving", seconds=round(time.monotonic() - began, 3), unfit=self.unfit())
        await ended.wait()
        await self.stop()

    async def start(self) -> None:
        self.ledger.start()
        self.kernel.start()
        self.watchdog = Watchdog(
            [self.ledger, self.kernel], self.config.stuck_after, [self.reaper.thread, self.host.thread]
        )
        self.watchdog.start()
        self._keep(self._serve_metrics)
        self._lacking = await self._recall()
        if self._lacking:
            log.warning("ledger", trouble=self._lacking)
        self.host.start()
        await self.listener.recall(self._lacking, self._boot_id)
        await self._meet()
        await self.server.start()
        if self.docker is not None:
            await self.docker.ensure()
        self._starting = False
        for part in (
            self.listener.run,
            self._report,
            self._sweep,
            self._follow_limits,
            self._replay,
            self.events.run,
            self.operator.run,
            self._tick,
            self._install,
        ):
            self._keep(part)

    async def _serve_metrics(self) -> None:
        http, health, said = self.config.http, metrics.Health(self.unreachable, self.unready), ""
        while self._runner is None:
            try:
                self._runner, port = await metrics.serve(self.metrics, health, http.address, http.port)
                log.info("metrics", address=http.address, port=port)
            except OSError as error:  # serving pods matters more
                if str(error) != said:
                    log.error("no metrics and no health yet", address=http.address, port=http.port, error=str(error))  # noqa: TRY400
                said = str(error)
                await asyncio.sleep(_PAUSE)

    async def stop(self) -> None:
        log.info("stopping", in_flight=self.server.in_flight)
        self.attachments.close()
        if self.docker is not None:
            await self.docker.stop()
        await self.server.stop(self.config.stop_grace)
        self.reporter.stopping = True
        self.reporter.changed()
        if self.reporter.live:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FAREWELL):
                    await self.reporter.said_farewell.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._runner is not None:
            await self._runner.cleanup()
        await self.source.close()
        self.watchdog.close()
        await asyncio.to_thread(self._join)

    def _join(self) -> None:
        self.kernel.close()
        self.ledger.close()
        self.host.close()
        self.reaper.close()
        self.plane.close()

    def _keep(self, part: Callable[[], Awaitable[None]]) -> None:
        """Runs a part until the agent ends, restarting it after an error: a defect in one mustn't stop the others."""

        async def live() -> None:
            while True:
                try:
                    return await part()
                except Exception:
                    log.exception("a part of the agent failed, it begins anew", part=part.__qualname__)
                    await asyncio.sleep(_PAUSE)

        self._tasks.append(self._loop.create_task(live()))

    # recovery

    async def _recall(self) -> str:
        """Restores attachments from the ledger; voids those of an earlier boot. Returns the ledger's trouble."""
        content, trouble = await self.ledger.load()
        self.attachments.remember(content)  # no await since `load`: from now on addresses may be assigned
        self.limits.seen.update(a.nic_mac for a in content.attachments.values() if a.boot_id == self._boot_id)
        old = [a for a in content.attachments.values() if a.boot_id != self._boot_id]
        for attachment in old:
            await self.attachments.void(attachment)
        if old:
            log.info("attachments of an earlier boot are void", attachments=len(old))
        return trouble

    async def _meet(self) -> None:
        """The first sweep over running pods. If the kernel refuses, it is retried later: with a whole ledger pods are
        served meanwhile; without one it is unknown which addresses are free.
        """
        try:
            if self.reaper.thread.ident is None:
                await asyncio.to_thread(self.reaper.start)
            found, why = await self.sweeper.sweep(), ""
        except DataPlaneError as error:
            found, why = Sweep(), str(error)
        if self._lacking and found.unsettled:
            why = f"{found.unsettled} of them are not settled yet"
        if why:
            self._unmet = f"the interfaces of running pods can't be looked at: {why}"
            log.warning("pods are not known yet, tried again", error=why)
            self.events.say(Event(FAILED, self._unmet))
            return
        self._unmet = ""
        log.info("known", attachments=len(self.attachments.by_key), listed=self.pool.listed(), sweep=str(found))
        self.metrics.sweep(found)
        if found.adopted or self._lacking not in ("", "new"):
            missing = "the ledger is gone" if self._lacking == "new" else self._lacking or "the ledger lacked pods"
            said = f"{missing}; {found.adopted} pods were recognised by their interfaces"
            self.events.say(Event(UNAVAILABLE if self.ledger.unread else REBUILT, said))

    async def _tick(self) -> None:
        """Polls what sends no notification: addresses that the host no longer holds, a ledger that became readable."""
        while True:
            await asyncio.sleep(_TICK)
            if why := self.tenure.keep():
                log.critical("this agent is not alone, the process ends", why=why)
                os._exit(EXIT_CODE)  # at once, as by kill -9: any further step would compete with the other agent
            self.server.ensure()
            if self.docker is not None:
                await self.docker.ensure()
            self.ledger.submit(self.ledger.look)
            self.limited(), self.unreachable()  # they measure durations by frequent calls; others may call rarely
            if self.ledger.unread and not await self._late():
                continue
            if not self.unfit():
                self.listener.fit.set()
            await self.listener.tick()
            self.attachments.serve()

    async def _late(self) -> bool:
        """Retries a ledger that was unreadable at the start; returns whether it was read."""
        trouble = await self._recall()
        if self.ledger.unread:
            return False
        log.info("the ledger has been read at last", attachments=len(self.attachments.by_key))
        if trouble not in ("", "new"):
            self.events.say(Event(REBUILT, trouble))
        retired, withdrawn = self.pool.promises()  # also promises known only from the source
        with contextlib.suppress(LedgerError):
            await self.ledger.commit(Retire(retired), Withdraw(withdrawn))
        return True

    async def _report(self) -> None:
        await self.reporter.run(boottime)

    async def _sweep(self) -> None:
        while self._unmet:
            await asyncio.sleep(_PAUSE)
            await self._meet()
        await self.sweeper.run(self.config.sweep_interval, self._swept)

    def _swept(self, found: Sweep) -> None:
        self.metrics.sweep(found)
        if found.said:
            self.events.say(Event(LEAKED, found.said))

    async def _follow_limits(self) -> None:
        await self.limits.follow(self.config.sweep_interval)

    async def _replay(self) -> None:
        await self.spool.run(_SPOOL_PERIOD, self.metrics.replayed.inc)

    async def _install(self) -> None:
        """Installs shim and conflist once ADDs can be served."""
        if self.installation is None:
            return
        await self.listener.fit.wait()
        while True:
            await asyncio.to_thread(self.installation.ensure)
            await asyncio.sleep(_INSTALL_PERIOD)


def _api(config: Config) -> KubeApi:
    kubeconfig = config.source.kubernetes.kubeconfig
    return KubeApi(from_kubeconfig(kubeconfig) if kubeconfig else in_cluster())


def uninstall(config: Config) -> list[str]:
    """Removes the conflist, then the shim, then our state in the kernel; returns what has to stay and why."""
    installer.uninstall(config.paths.cni_bin, config.paths.cni_conf)
    return HostReconciler(lambda *_: None).uninstall()
