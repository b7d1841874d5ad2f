"""Whether a node's agent can be taken to be there, judged by what others say of it. Pure, but for what it remembers.

An agent writes only when it has something to say, so that thousands of nodes at rest cost nothing; its silence alone
says nothing. Who keeps looking at it is the kubelet, whose word is the Ready condition of the agent's Pod, and at the
kubelet the API server, whose word is the Node's Ready condition: Unknown. An agent is *unwell* while no Pod of it is
Ready on its node, or nothing is heard of the node's kubelet. It is *silent* when it has been unwell, and has written
nothing, for `patience`. Exception: an agent that says itself that it can't serve yet is believed while its container
runs; its own words are better than ours.

One that is alive though its kubelet is dead takes the verdict back by its next report. It is then waited for twice as
long before it is given again, so that the two don't write by turns; the first good word of the kubelet ends that.

Asked by the reconciler at every look, in the event loop. Lost at a restart: then patience begins anew, and a verdict
that is in the pool stays there (vnetpods_operator.reconcile.status) until the agent itself is heard.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from vnetpods_api import ConditionType, NodeIPPool, Reason, Status, find
from vnetpods_operator.planning.node import Node


@dataclass(frozen=True, slots=True)
class AgentPod:
    """What counts of an agent's Pod; `since` (RFC 3339, UTC) is when its readiness changed last."""

    name: str
    node: str
    ready: bool
    running: bool
    since: str


@dataclass(slots=True)
class Vigil:
    """What is remembered of one node's agent (in its NodeState). Times are the event loop's."""

    said: Status | None = None
    """The agent's part of the pool, as seen last."""
    heard: float = 0.0
    unwell: float | None = None
    given: bool = False
    """The verdict was given, and the agent has not been heard since."""
    vain: int = 0
    """How often the verdict was taken back since."""
    due: float | None = None
    """When the verdict may change although nothing happens."""


@dataclass(slots=True)
class Judge:
    """Of all agents. `where`: how to find their Pods with kubectl."""

    clock: Callable[[], float]
    patience: Callable[[], float]
    where: str = ""
    followed: bool = False
    """Whether the agents' Pods are followed at present: only then is the absence of one known."""
    _pods: dict[str, dict[str, AgentPod]] = field(default_factory=dict)
    """Node → name of a Pod → the Pod."""

    def hold(self, pod: AgentPod) -> bool:
        """The Pod is as told; whether that is news."""
        pods = self._pods.setdefault(pod.node, {})
        before = pods.get(pod.name)
        pods[pod.name] = pod
        return before != pod

    def drop(self, pod: AgentPod) -> None:
        """The Pod is gone."""
        self._pods.get(pod.node, {}).pop(pod.name, None)

    def replace(self, pods: list[AgentPod]) -> set[str]:
        """These are all Pods there are; returns the nodes for which that is news."""
        before, self._pods, self.followed = self._pods, {}, True
        for pod in pods:
            self.hold(pod)
        return {node for node in before.keys() | self._pods.keys() if before.get(node) != self._pods.get(node)}

    def verdict(self, node: Node, pool: NodeIPPool, vigil: Vigil) -> str:
        """Why the node's agent is taken to be silent, since when, and what to do; empty when it isn't."""
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
        """Whether the agent says itself that it can't serve, and may be believed to be there."""
        own = find(said.conditions, ConditionType.AGENT_READY)
        runs = any(pod.running for pod in self._pods.get(node, {}).values())
        return runs and own is not None and own.reason == Reason.AGENT_STARTING


def _words(status: Status) -> Status:
    """The agent's part."""
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
