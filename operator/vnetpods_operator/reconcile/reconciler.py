"""One look at one node: gather what is the case, decide, write the NIC, report.

Called by a worker of `state.queue`, for one node by one worker at a time. What a crash leaves, after each
step: nothing decided is remembered, so before the NIC write nothing has happened; after it the NIC shows what was done,
and the next look reads the NIC before it writes, so the same need is not met twice; a status not written is written
then. An exception never leaves `reconcile`: it returns when to look again, and the queue acts on it.

Azure is asked only if the pool gives reason to (something to add, release or repair), if a look is due, or if nothing
is known yet: pods that come and go within the warm addresses cost no request.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import msgspec
import structlog

from vnetpods_api import ConditionType, NodeIPPool, Reason, find
from vnetpods_kit.faultpoints import OperatorPoint, reach
from vnetpods_operator import errors
from vnetpods_operator.caller import GaveWay, Priority, caller, never
from vnetpods_operator.election import NotLeading
from vnetpods_operator.kube import Invalid, KubeError, Outdated
from vnetpods_operator.planning import model
from vnetpods_operator.planning.desired import identify, wanted_for
from vnetpods_operator.planning.machine import Naming, Nic
from vnetpods_operator.planning.model import Change, Problem
from vnetpods_operator.planning.node import Node
from vnetpods_operator.planning.release_request import renewed
from vnetpods_operator.reconcile import status as report
from vnetpods_operator.reconcile.backoff import given_up, problem_of, wait_after
from vnetpods_operator.reconcile.ensure_pool import adopted, fresh
from vnetpods_operator.reconcile.observe import Look, Observer, unconfirmed
from vnetpods_operator.reconcile.parts import Outcome, Parts
from vnetpods_operator.reconcile.unfinished import cut_short
from vnetpods_operator.reconcile.writing import Writer
from vnetpods_operator.state.cluster import NodeState

ATTEMPTS = 5
"""How often a look starts over because somebody else changed the NIC or the pool meanwhile."""
HOST_PODS_MOST = 40
"""A node is taken to have no more pods in the host's network than this, until they are counted."""
HOST_PODS_SECONDS = 600.0
"""How long such a count is good."""
_TOLD = (Reason.SUBNET_FULL, Reason.ADDRESS_LOST, Reason.AGENT_SILENT, Reason.NIC_FAILED)
"""Limits that are worth an Event."""
_URGENCY = {Reason.GROWING: Priority.WARM, Reason.REPAIRING: Priority.WARM, Reason.RELEASING: Priority.RELEASE}

log = structlog.get_logger()


class Reconciler:
    """Looks after all nodes, one call per node at a time."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._observer = Observer(parts.subnets, parts.networks, parts.cluster, self._now)
        self._writer = Writer(parts.subnets, parts.networks, parts.random)

    async def reconcile(self, name: str) -> Outcome:
        """One look; see the module's text."""
        record, bound = self._parts.cluster.record(name), log.bind(node=name)
        if self._now() < record.unwritable_until:
            return Outcome(record.unwritable_until)
        caller.set(record.caller)
        record.caller.outdated = never
        try:
            if name in self._parts.cluster.doubted:
                await fresh(self._parts.pools, self._parts.cluster, name)
            outcome = await self._reconcile(name, record)
        except (KubeError, NotLeading) as error:
            again = self._now() + cut_short(self._parts.cluster, name, error, self._parts.tell, self._parts.random)
            record.unwritable_until = again if isinstance(error, Invalid) else 0.0
            return Outcome(again)
        except Exception as error:  # noqa: BLE001 - the edge of a look: other nodes must not suffer
            bound.exception("a look at the node failed")
            try:
                await self._broken(name, record, error)
            except Exception as another:  # noqa: BLE001 - what is broken may break this, too
                bound.warning("the failure is not said on the node", error=repr(another))
            return Outcome(self._now() + self._jitter(30.0))
        record.refusals = 0
        return outcome

    async def _reconcile(self, name: str, record: NodeState) -> Outcome:
        node, config = self._parts.cluster.nodes.get(name), self._parts.config()
        if node is None:
            await self._orphaned(name, record)
        if node is None or not node.served(config.nodes):
            return Outcome()
        trusted = self._parts.cluster.trusted_places
        machine, problem = identify(node, self._sharers(node), config.machines, trusted)
        pool = await adopted(self._parts.pools, self._parts.cluster, node, machine)
        if machine is None or problem is not None:
            assert problem is not None
            self._notice(node, record, problem)
            await self._write(pool, report.Findings(problem=problem), record)
            record.audit_at = 0.0
            return Outcome()
        wanted, problem = wanted_for(node, pool, config, record.host_pods, record.doubles.said(self._now()))
        naming = Naming(adopt=config.adopt, exclude=tuple(r.bounds for r in config.exclude))
        look = Look(node, pool, record, self._parts.machine(machine), wanted, naming, problem)
        if problem is not None:
            self._notice(node, record, problem)
        if self._now() < record.not_before:
            look.problem = record.problem
            if pool.status.interfaces:  # Azure is left in peace, but what people see goes on
                self._observer.from_pool(look)
            await self._report(look)
            return Outcome(record.not_before)
        if not self._due(look):
            await self._report(look)
            return Outcome(self._next(look))
        try:
            return await self._act(look)
        except (errors.AzureError, GaveWay) as error:
            return await self._failed(look, error)

    async def _orphaned(self, name: str, record: NodeState) -> None:
        """A pool without Node: somebody made it by hand, or nobody collects garbage."""
        pool = self._parts.cluster.pools.get(name)
        if pool is not None:
            text = f"there is no Node {name}, so nobody looks after this pool: delete it, or name it as a Node is named"
            problem = Problem(Reason.NODE_MISSING, text, stalled=True)
            await self._write(pool, report.Findings(problem=problem), record)

    def _sharers(self, node: Node) -> set[str]:
        """Other Nodes that name the same machine: which of them is real, only a person can say."""
        cluster, selector = self._parts.cluster, self._parts.config().nodes
        return {name for name in cluster.sharers(node.name) if cluster.nodes[name].served(selector)}

    def _due(self, look: Look) -> bool:
        """Whether Azure has to be asked, judged by the pool alone."""
        if not look.pool.status.interfaces:
            return True
        self._observer.from_pool(look)
        assert look.plan is not None
        return bool(look.plan.changes) or self._now() >= look.record.audit_at or unconfirmed(look.pool)

    async def _act(self, look: Look) -> Outcome:
        """Asks Azure, and does at most one write per NIC."""
        self._rank(look)
        if not look.pool.status.conditions:
            await self._report(look)
        hindrance: errors.AzureError | None = None
        for _ in range(ATTEMPTS):
            await self._observer.read(look, self._parts.config().interfaces)
            await self._observer.from_azure(look)
            assert look.plan is not None
            if await self._limit_matters(look, look.plan):
                await self._observer.from_azure(look)
            if any(change.remove for change in look.plan.changes):
                # what leaves the NIC is decided on the API server's word, not on the watch's: it may lag behind
                look.pool = await fresh(self._parts.pools, self._parts.cluster, look.node.name)
                await self._observer.from_azure(look)
            reach(OperatorPoint.DECIDED)
            if not look.plan.changes:
                self._succeeded(look, wrote=False)
                await self._report(look)
                return Outcome(self._next(look))
            hindrance = await self._carried_out(look)
            if hindrance is None:
                self._succeeded(look, wrote=True)
                await self._report(look)
                return Outcome(self._now())
        assert hindrance is not None
        raise hindrance

    async def _limit_matters(self, look: Look, plan: model.Plan) -> bool:
        """Counts the pods that need no address, when growth comes near the kubelet's limit; whether that is news."""
        added = sum(change.add + model.BLOCK * change.blocks for change in plan.changes)
        have = sum(model.count(view.addresses) for view in look.views)
        record, now = look.record, self._now()
        if not added or have + added <= look.node.pod_limit - HOST_PODS_MOST or now < record.host_pods_until:
            return False
        before, record.host_pods = record.host_pods, await self._parts.host_pods(look.node.name)
        record.host_pods_until = now + HOST_PODS_SECONDS
        look.wanted, _ = wanted_for(look.node, look.pool, self._parts.config(), record.host_pods)
        return record.host_pods != before

    async def _carried_out(self, look: Look) -> errors.AzureError | None:
        """Does the plan's changes; returns what hindered it when the NIC has to be read again first."""
        assert look.plan is not None
        if self._sharers(look.node):
            raise Outdated("another Node names the same machine now")
        if not any(c.type == "Reconciling" and c.status == "True" for c in look.pool.status.conditions):
            await self._report(look)  # which plans anew if the agent has written meanwhile
        reach(OperatorPoint.ANNOUNCED)
        written = {nic.name: nic for nic in look.nics}
        look.record.caller.outdated = lambda: self._parts.cluster.wants_else(look.node.name, look.pool.spec)
        for change in look.plan.changes:
            nic = written[change.nic]
            if look.record.caller.outdated():
                raise GaveWay
            answer = await self._writer.write(look.machine, nic, change, {"node": look.node.name})
            if isinstance(answer, errors.AzureError):
                return answer
            written[nic.name] = answer
            reach(OperatorPoint.NIC_WRITTEN)
            look.record.trail.wrote(nic, change, written[nic.name].carries)
            self._done(look, nic, change)
        nics = tuple(written.values())
        if look.record.trail.older(nics, self._now()):
            return errors.Busy("what Azure answers is from before the write", "OutdatedRead")
        look.record.trail.saw(nics)
        look.nics = nics
        await self._observer.from_azure(look)
        return None

    def _done(self, look: Look, nic: Nic, change: Change) -> None:
        """A write worked."""
        assert look.plan is not None
        if change.restore:
            look.record.taken = 0
        added = change.add + model.BLOCK * change.blocks
        log.info(
            "NIC written",
            node=look.node.name,
            nic=change.nic,
            reason=look.plan.reason,
            added=added,
            restored=len(change.restore),
            removed=len(change.remove),
            swept=len(change.sweep),
        )
        if change.remove and self._parts.subnets.given_back(nic.subnet):
            self._parts.wake(nic.subnet)
        elif added:
            self._parts.subnets.granted(nic.subnet)

    async def _failed(self, look: Look, error: errors.AzureError | GaveWay) -> Outcome:
        """Azure did not do as asked: says so, and leaves it in peace for a while. Unless it was not even asked."""
        if isinstance(error, GaveWay):
            return Outcome(self._now())
        record, now = look.record, self._now()
        record.failures += 1
        wait = self._jitter(wait_after(error, record.failures))
        problem = look.problem = problem_of(error)
        record.not_before = now + wait
        if isinstance(error, errors.AddressTaken):  # the rest of the node's needs must not wait for it
            asked = [address for change in look.plan.changes for address in change.restore] if look.plan else []
            record.contested |= dict.fromkeys(given_up(asked, str(error), record.taken), now + wait)
            record.taken += 1
            record.not_before = now
        elif any(view.failed for view in look.views):
            self._repaired_in_vain(record)
        if isinstance(error, errors.NicFull):
            record.full_until = now + float(self._parts.config().audit)
        self._notice(look.node, record, problem)
        told = {"reason": problem.reason, "again_in": round(wait, 1), "error": str(error)}
        log.warning("Azure did not do as asked", node=look.node.name, **told)
        await self._report(look)
        return Outcome(max(record.not_before, now + 0.1))

    async def _broken(self, name: str, record: NodeState, error: Exception) -> None:
        """A fault of our own: says so, and tries again later, whatever happens meanwhile."""
        node, pool, now = self._parts.cluster.nodes.get(name), self._parts.cluster.pools.get(name), self._now()
        if now >= record.not_before:
            record.failures += 1
            record.not_before = now + self._jitter(wait_after(error, record.failures))
        if node is not None:
            self._notice(node, record, problem_of(error))
        if pool is not None:
            await self._write(pool, report.Findings(problem=problem_of(error)), record)

    def _repaired_in_vain(self, record: NodeState) -> None:
        record.repairs += 1
        record.repair_after = self._now() + self._jitter(min(1800.0, 15.0 * 2.0 ** min(record.repairs, 10)))

    def _succeeded(self, look: Look, *, wrote: bool) -> None:
        record, config, now = look.record, self._parts.config(), self._now()
        record.failures, record.not_before, record.problem = 0, 0.0, look.problem
        record.contested = {address: until for address, until in record.contested.items() if until > now}
        record.audit_at = now + float(config.audit) * self._parts.random.uniform(0.8, 1.0)
        if not any(view.failed for view in look.views):
            record.repairs, record.repair_after = 0, 0.0
        elif wrote:
            self._repaired_in_vain(record)

    def _notice(self, node: Node, record: NodeState, problem: Problem) -> None:
        """Tells people once per reason, not once per attempt."""
        if record.problem is None or record.problem.reason is not problem.reason:
            self._parts.tell(node, problem)
            log.warning("people are told", node=node.name, reason=problem.reason, text=problem.message)
        record.problem = problem

    def _notice_limit(self, look: Look) -> None:
        """The same for what stands in a plan's way."""
        limit = look.plan.limit if look.plan is not None else None
        if look.plan is not None and limit in _TOLD and look.record.limit is not limit and look.problem is None:
            assert limit is not None
            self._parts.tell(look.node, Problem(limit, look.plan.detail))
        look.record.limit = limit

    async def _report(self, look: Look) -> None:
        """Writes what was found; thinks again if the agent has written meanwhile."""
        for _ in range(ATTEMPTS):
            interfaces = look.nics or look.pool.status.interfaces
            known = self._parts.networks.direct(interfaces[0].subnet) if interfaces else None
            direct = report.direct(*known, self._parts.config().direct_cidrs) if known else None
            lost = tuple(sorted(look.record.lost)) if look.nics else None
            findings = report.Findings(look.plan, look.nics, look.views, direct, look.problem, lost, view=look.view)
            try:
                look.pool = await self._write(look.pool, findings, look.record)
            except Outdated:
                look.pool = await fresh(self._parts.pools, self._parts.cluster, look.node.name)
                if look.nics:
                    await self._observer.from_azure(look)
                elif look.plan is not None:
                    self._observer.from_pool(look)
                continue
            look.record.overtaken = 0
            self._observer.remember(look)
            if look.plan is not None and look.plan.overdue:
                kept, refused = sorted(look.plan.overdue), len(look.record.refused)
                log.info("release given up, pods hold these", node=look.node.name, kept=kept, refused=refused)
            self._notice_limit(look)
            return
        raise Outdated(f"NodeIPPool {look.node.name} changes faster than it can be written")

    async def _write(self, pool: NodeIPPool, findings: report.Findings, record: NodeState) -> NodeIPPool:
        node = self._parts.cluster.nodes.get(pool.metadata.name)
        barred = report.leftover(node, pool) if node is not None else ""
        silence, unreadable = self._parts.silence(pool), self._unreadable(node, pool, record)
        findings = replace(findings, silence=silence, barred=barred, unreadable=unreadable)
        status = report.status(pool, findings, datetime.now(UTC))
        request = renewed(record.request, status.interfaces)
        status = msgspec.structs.replace(status, release_request=request.token if request else None)
        if not report.differs(pool, status):
            return pool
        known = self._parts.cluster.version(pool.metadata.name)
        written = await self._parts.pools.report(pool, status)
        reach(OperatorPoint.STATUS_WRITTEN)
        record.request = request
        self._parts.cluster.upsert_pool(written, known)
        return written

    def _unreadable(self, node: Node | None, pool: NodeIPPool, record: NodeState) -> str:
        """Which NICs can't be read, said on the Node when it is news; what the pool says until they were looked at."""
        said = find(pool.status.conditions, ConditionType.READY)
        before = said.message if said is not None and said.reason == Reason.NIC_UNREADABLE else ""
        if record.unreadable is None:
            return before
        if node is not None and record.unreadable and record.unreadable != before:
            self._parts.tell(node, Problem(Reason.NIC_UNREADABLE, record.unreadable))
        return record.unreadable

    def _rank(self, look: Look) -> None:
        """How urgent the requests of this look are."""
        priority = self._parts.cluster.priority(look.node.name)
        if priority is Priority.AUDIT and look.plan is not None:
            priority = _URGENCY.get(look.plan.reason, Priority.AUDIT)
        look.record.caller.priority = priority

    def _next(self, look: Look) -> float:
        """When to look again: at once if what was written last asks for more, and the pool may be no news any more."""
        if unconfirmed(look.pool) or (look.plan is not None and look.plan.changes):
            return self._now()
        times = [look.record.audit_at, *(t for t in look.record.contested.values() if t > self._now())]
        if look.plan is not None and look.plan.look_again is not None:
            times.append(look.plan.look_again)
        return min(times)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _jitter(self, seconds: float) -> float:
        return seconds * self._parts.random.uniform(1.0, 1.2)
