"""One pass over one node: observe, plan, apply, publish.

Called by a worker of `state.queue`, at most one per node at a time. Immutable values flow one way: a `Plan` is derived
from an `Observation`, and the writes to NIC and pool from both. Whatever is read again or was written gives a new
observation, and that a new plan. `memory` keeps what outlives a pass.

After a crash: no decision is stored, so before the NIC write nothing has happened; after it the NIC shows what was
done, and as the next pass reads the NIC before it writes, the same need is not met twice; a missing status write is
made up for. No exception leaves `reconcile`: it returns when the next pass is due, and the queue schedules that.

Azure is asked only if the pool calls for it (addresses to add, release or repair), if an audit is due, or if nothing is
known yet: pods that come and go within the warm addresses cost no request.
"""

from __future__ import annotations

from dataclasses import replace

import structlog

from vnetpods_api import NodeIPPool, Reason
from vnetpods_kit.faultpoints import OperatorPoint, reach
from vnetpods_operator import errors
from vnetpods_operator.caller import GaveWay, Priority, caller, never
from vnetpods_operator.election import NotLeading
from vnetpods_operator.kube import KubeError, Outdated
from vnetpods_operator.planning import model, planner
from vnetpods_operator.planning.desired import identify
from vnetpods_operator.planning.machine import Nic
from vnetpods_operator.planning.model import Plan, Problem
from vnetpods_operator.planning.node import Node
from vnetpods_operator.reconcile import memory
from vnetpods_operator.reconcile.backoff import problem_of, wait_after
from vnetpods_operator.reconcile.ensure_pool import adopted, fresh
from vnetpods_operator.reconcile.observe import Observation, Target, again, observe, read, unconfirmed
from vnetpods_operator.reconcile.parts import Parts, Result
from vnetpods_operator.reconcile.publish import notice, publish, write
from vnetpods_operator.reconcile.status import Findings
from vnetpods_operator.reconcile.writing import Writer
from vnetpods_operator.state.cluster import NodeState

ATTEMPTS = 5
"""Tries within a pass if somebody else changes the NIC or the pool meanwhile."""
HOST_PODS_MOST = 40
"""The assumed maximum of a node's host-network pods until they are counted."""
HOST_PODS_SECONDS = 600.0
"""How long a count is valid."""
_URGENCY = {Reason.GROWING: Priority.WARM, Reason.REPAIRING: Priority.WARM, Reason.RELEASING: Priority.RELEASE}

log = structlog.get_logger()


class Reconciler:
    """Reconciles every node, at most one pass per node at a time."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._writer = Writer(parts.subnets, parts.networks, parts.random)

    async def reconcile(self, name: str) -> Result:
        """Makes one pass (see the module's docstring)."""
        record, bound = self._parts.cluster.record(name), log.bind(node=name)
        if self._parts.now() < record.unwritable_until:
            return Result(record.unwritable_until)
        caller.set(record.caller)
        record.caller.outdated = never
        try:
            if name in self._parts.cluster.doubted:
                await fresh(self._parts, name)
            result = await self._pass(name, record)
        except GaveWay:  # no request was sent
            result = Result(self._parts.now())
        except (KubeError, NotLeading) as error:
            return Result(memory.cut_short(self._parts, name, record, error))
        except Exception as error:  # noqa: BLE001 - other nodes must not suffer
            bound.exception("a look at the node failed")
            try:
                await self._broken(name, record, error)
            except Exception as another:  # noqa: BLE001 - the same fault may strike again
                bound.warning("the failure is not said on the node", error=repr(another))
            return Result(self._parts.now() + self._parts.jitter(30.0))
        record.refusals = 0
        return result

    async def _pass(self, name: str, record: NodeState) -> Result:
        cluster, config = self._parts.cluster, self._parts.config()
        node = cluster.nodes.get(name)
        if node is None:
            await self._orphaned(name, record)
        if node is None or not node.served(config.nodes):
            return Result()
        machine, problem = identify(node, self._sharers(node), config.machines, cluster.trusted_places)
        pool = await adopted(self._parts, node, machine)
        if machine is None or problem is not None:
            assert problem is not None
            notice(self._parts, node, record, problem)
            await write(self._parts, pool, Findings(problem=problem), record)
            record.audit_at = 0.0
            return Result()
        seen = await observe(self._parts, Target(node, self._parts.machine(machine), record), pool)
        plan = self._plan(seen) if pool.status.interfaces else None
        if seen.problem is not None:
            notice(self._parts, node, record, seen.problem)
        when = None
        if self._parts.now() < record.not_before:  # Azure backs off, but the status stays up to date
            seen, when = replace(seen, problem=record.problem), record.not_before
        elif plan is None or plan.changes or self._parts.now() >= record.audit_at or unconfirmed(pool):
            seen, plan, when = await self._with_azure(seen, plan)
        seen, plan = await self._published(seen, plan)
        return Result(memory.next_look(self._parts, seen, plan) if when is None else when)

    async def _orphaned(self, name: str, record: NodeState) -> None:
        """Reports a pool without Node: somebody created it by hand, or garbage collection doesn't work."""
        pool = self._parts.cluster.pools.get(name)
        if pool is not None:
            text = f"there is no Node {name}, so nobody looks after this pool: delete it, or name it as a Node is named"
            await write(self._parts, pool, Findings(problem=Problem(Reason.NODE_MISSING, text, stalled=True)), record)

    def _sharers(self, node: Node) -> set[str]:
        """Other Nodes with the same machine: only a person can tell which one is real."""
        cluster, selector = self._parts.cluster, self._parts.config().nodes
        return {name for name in cluster.sharers(node.name) if cluster.nodes[name].served(selector)}

    async def _with_azure(self, seen: Observation, plan: Plan | None) -> tuple[Observation, Plan | None, float | None]:
        """Reads the NICs and writes each at most once; after a conflict it reads and plans again.

        Returns the last observation and plan, and when the next pass is due unless the plan decides that.
        """
        node, record = seen.target.node, seen.target.record
        priority = self._parts.cluster.priority(node.name)
        planned = _URGENCY.get(plan.reason, Priority.AUDIT) if plan is not None else Priority.AUDIT
        record.caller.priority = planned if priority is Priority.AUDIT else priority
        hindrance: errors.AzureError | None = None
        try:
            if not seen.pool.status.conditions:
                seen, plan = await self._published(seen, plan)
            for _ in range(ATTEMPTS):
                seen, plan = await self._decided(await read(self._parts, seen))
                reach(OperatorPoint.DECIDED)
                if not plan.changes:
                    memory.succeeded(self._parts, seen, wrote=False)
                    return seen, plan, None
                if self._sharers(node):
                    raise Outdated("another Node names the same machine now")
                if not any(c.type == "Reconciling" and c.status == "True" for c in seen.pool.status.conditions):
                    seen, plan = await self._published(seen, plan)
                reach(OperatorPoint.ANNOUNCED)
                assert plan is not None
                written = await self._apply(seen, plan)
                if not isinstance(written, errors.AzureError):
                    seen, plan = await self._anew(seen, nics=written)
                    memory.succeeded(self._parts, seen, wrote=True)
                    return seen, plan, self._parts.now()
                hindrance = written
            assert hindrance is not None
            raise hindrance
        except errors.AzureError as error:
            problem, when = memory.failed(self._parts, seen, plan, error)
            notice(self._parts, node, record, problem)
            return replace(seen, problem=problem), plan, when

    def _plan(self, seen: Observation) -> Plan:
        plan = planner.plan(seen.observed, seen.wanted, seen.at)
        claimed = self._parts.cluster.claimed(seen.target.node.name, plan.releasing)
        if not claimed:
            return plan
        # an address that another node counts on never leaves the NIC, whatever the reason for its release
        nics = tuple(replace(view, claimed=claimed) for view in seen.observed.nics)
        return planner.plan(replace(seen.observed, nics=nics), seen.wanted, seen.at)

    async def _anew(
        self, seen: Observation, *, pool: NodeIPPool | None = None, nics: tuple[Nic, ...] = ()
    ) -> tuple[Observation, Plan]:
        """Observes and plans again, with a newer pool or newer NICs."""
        seen = await again(self._parts, seen, pool or seen.pool, nics or seen.nics)
        return seen, self._plan(seen)

    async def _decided(self, seen: Observation) -> tuple[Observation, Plan]:
        """Plans, and asks the API server first for what the plan depends on and the watch may not know."""
        plan = self._plan(seen)
        if await self._limit_matters(seen, plan):
            seen, plan = await self._anew(seen)
        if any(change.remove for change in plan.changes):  # the watch may lag behind
            seen, plan = await self._anew(seen, pool=await fresh(self._parts, seen.target.node.name))
        return seen, plan

    async def _limit_matters(self, seen: Observation, plan: Plan) -> bool:
        """Counts host-network pods if growth nears the kubelet's pod limit; returns whether the count is new."""
        added = sum(change.add + model.BLOCK * change.blocks for change in plan.changes)
        have = sum(model.count(view.addresses) for view in seen.observed.nics)
        node, record, now = seen.target.node, seen.target.record, self._parts.now()
        if not added or have + added <= node.pod_limit - HOST_PODS_MOST or now < record.host_pods_until:
            return False
        before, record.host_pods = record.host_pods, await self._parts.host_pods(node.name)
        record.host_pods_until = now + HOST_PODS_SECONDS
        return record.host_pods != before

    async def _apply(self, seen: Observation, plan: Plan) -> tuple[Nic, ...] | errors.AzureError:
        """Writes the plan's changes. Returns the NICs as written, or the error if a new plan may succeed."""
        name, record, nics = seen.target.node.name, seen.target.record, {nic.name: nic for nic in seen.nics}
        record.caller.outdated = lambda: self._parts.cluster.wants_else(name, seen.pool.spec)
        for change in plan.changes:
            nic = nics[change.nic]
            if record.caller.outdated():
                raise GaveWay
            answer = await self._writer.write(seen.target.machine, nic, change, {"node": name})
            if isinstance(answer, errors.AzureError):
                return answer
            nics[nic.name] = answer
            reach(OperatorPoint.NIC_WRITTEN)
            record.trail.wrote(nic, change, answer.carries)
            record.taken = 0 if change.restore else record.taken
            added, removed = change.add + model.BLOCK * change.blocks, len(change.remove)
            rest = {"restored": len(change.restore), "swept": len(change.sweep), "reason": plan.reason}
            log.info("NIC written", node=name, nic=change.nic, added=added, removed=removed, **rest)
            if removed and self._parts.subnets.given_back(nic.subnet):
                self._parts.wake(nic.subnet)
            elif added:
                self._parts.subnets.granted(nic.subnet)
        written = tuple(nics.values())
        if record.trail.older(written, self._parts.now()):
            return errors.Busy("what Azure answers is from before the write", "OutdatedRead")
        record.trail.saw(written)
        return written

    async def _published(self, seen: Observation, plan: Plan | None) -> tuple[Observation, Plan | None]:
        """Publishes observation and plan; observes and plans again if the agent has written meanwhile."""
        for _ in range(ATTEMPTS):
            try:
                pool = await publish(self._parts, seen, plan)
            except Outdated:
                seen, anew = await self._anew(seen, pool=await fresh(self._parts, seen.target.node.name))
                plan = None if plan is None else anew
                continue
            seen = replace(seen, pool=pool)
            if plan is not None:
                memory.published(self._parts, seen, plan)
            return seen, plan
        raise Outdated(f"NodeIPPool {seen.target.node.name} changes faster than it can be written")

    async def _broken(self, name: str, record: NodeState, error: Exception) -> None:
        """Reports a fault of the operator itself, and backs off whatever happens meanwhile."""
        node, pool, now = self._parts.cluster.nodes.get(name), self._parts.cluster.pools.get(name), self._parts.now()
        if now >= record.not_before:
            record.failures += 1
            record.not_before = now + self._parts.jitter(wait_after(error, record.failures))
        if node is not None:
            notice(self._parts, node, record, problem_of(error))
        if pool is not None:
            await write(self._parts, pool, Findings(problem=problem_of(error)), record)
