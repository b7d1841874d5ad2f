"""Judges whether a node's agent is silent, from its Pod and its Node. Pure except for its own memory.

An agent writes only when it has something to report, so that thousands of idle nodes cost nothing; the absence of
reports alone proves nothing. The kubelet probes the agent and sets the Ready condition of its Pod; the control plane
monitors the kubelet and sets the Node's Ready condition to Unknown. An agent is *unwell* while none of its Pods is
Ready on its node, or the Node's Ready condition is Unknown. It is *silent* once it has been unwell, and has written
nothing, for `patience`. Exception: an agent that reports that it can't serve yet is believed while its container runs;
its own report is better than our inference.

An agent that is alive although its kubelet is dead overrides the verdict with its next report. The next verdict then
takes twice as long, so that the two don't overwrite each other in turns; the kubelet's first good report resets that.

Called by the reconciler in every pass, on the event loop. Lost at a restart: patience starts again, and a verdict in
the pool stays there (vnetpods_operator.reconcile.status) until the agent itself reports.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from vnetpods_api import ConditionType, NodeIPPool, Reason, Status, find
from vnetpods_operator.planning.node import Node


@dataclass(frozen=True, slots=True)
class AgentPod:
    """The relevant fields of an agent's Pod; `since` (RFC 3339, UTC) is the last change of its readiness."""

    name: str
    node: str
    ready: bool
    running: bool
    since: str


@dataclass(slots=True)
class Vigil:
    """Memory of one node's agent (in its NodeState). Times are the event loop's."""

    said: Status | None = None
    """The agent's part of the pool's status, as last observed."""
    heard: float = 0.0
    unwell: float | None = None
    given: bool = False
    """The verdict was given, and the agent has not reported since."""
    vain: int = 0
    """How often the agent has overridden the verdict since it was last well."""
    due: float | None = None
    """When the verdict may change without an event."""


@dataclass(slots=True)
class Judge:
    """Judges all agents. `where`: the kubectl command that finds their Pods."""

    clock: Callable[[], float]
    patience: Callable[[], float]
    where: str = ""
    followed: bool = False
    """Whether the agents' Pods are being watched: only then does a missing Pod mean anything."""
    _pods: dict[str, dict[str, AgentPod]] = field(default_factory=dict)
    """Node → name of a Pod → the Pod."""

    def hold(self, pod: AgentPod) -> bool:
        """Stores the Pod; returns whether it is new or has changed."""
        pods = self._pods.setdefault(pod.node, {})
        before = pods.get(pod.name)
        pods[pod.name] = pod
        return before != pod

    def drop(self, pod: AgentPod) -> None:
        """Removes a deleted Pod."""
        self._pods.get(pod.node, {}).pop(pod.name, None)

    def replace(self, pods: list[AgentPod]) -> set[str]:
        """Replaces all Pods by a fresh list; returns the nodes for which something has changed."""
        before, self._pods, self.followed = self._pods, {}, True
        for pod in pods:
            self.hold(pod)
        return {node for node in before.keys() | self._pods.keys() if before.get(node) != self._pods.get(node)}

    def verdict(self, node: Node, pool: NodeIPPool, vigil: Vigil) -> str:
        """Why the node's agent is considered silent, since when, and what to do; empty if it isn't."""
        now, said, why = self.clock(), _words(pool.status), self._unwell(node)
        if vigil.said is None:
            vigil.heard = now
        elif said != vigil.said and not _spoken_for(said):
            vigil.heard = now
            vigil.vain += vigil.given
            vigil.given = False
        vigil.said = said
        vigil.due = None
        if not why:
            vigil.unwell, vigil.given, vigil.vain = None, False, 0
            return ""
        vigil.unwell = now if vigil.unwell is None else vigil.unwell
        if not node.unheard and self._speaks(node.name, said):
            return ""
        due = max(vigil.unwell, vigil.heard) + self.patience() * 2.0 ** min(vigil.vain, 10)
        if now < due:
            vigil.due = due
            return ""
        vigil.given = True
        return why

    def _unwell(self, node: Node) -> str:
        pods = self._pods.get(node.name, {}).values()
        if node.unheard:
            return (
                f"nothing is heard of the kubelet of Node {node.name} since {node.since}, so nobody knows whether its "
                "agent runs: look at the machine. Pods that run there need neither"
            )
        if not self.followed or any(pod.ready for pod in pods):
            return ""
        consequence = "Running pods go on, others can't start or end there"
        if not pods:
            return (
                f"no Pod of the agent is on Node {node.name}: look at the DaemonSet (its nodeSelector, the Node's "
                f"taints): {self.where} -o wide. {consequence}"
            )
        pod = max(pods, key=lambda each: each.since)
        told = f"the agent's Pod {pod.name} is not Ready since {pod.since or 'it was made'}"
        return f"{told}: look at its events and log, {self.where} -o wide. {consequence}"

    def _speaks(self, node: str, said: Status) -> bool:
        """Whether the agent reports that it can't serve yet, and its container runs."""
        own = find(said.conditions, ConditionType.AGENT_READY)
        runs = any(pod.running for pod in self._pods.get(node, {}).values())
        return runs and own is not None and own.reason == Reason.AGENT_STARTING


def _words(status: Status) -> Status:
    """The agent's part of the status."""
    own = tuple(c for c in status.conditions if c.type == ConditionType.AGENT_READY)
    return Status(
        usage=status.usage,
        agent=status.agent,
        released=status.released,
        kept=status.kept,
        missing=status.missing,
        conditions=own,
    )


def _spoken_for(said: Status) -> bool:
    own = find(said.conditions, ConditionType.AGENT_READY)
    return own is not None and own.reason == Reason.AGENT_SILENT
