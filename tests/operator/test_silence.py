"""Who says that an agent is silent, when, and that nobody argues about it."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.operator.worlds import World
from vnetpods_api import Condition, ConditionStatus, ConditionType, NodeIPPool, Reason, Status, Usage, condition
from vnetpods_api.nodeippool import Metadata
from vnetpods_operator.kube import MERGE, Outdated
from vnetpods_operator.planning.node import Node
from vnetpods_operator.state.silence import AgentPod, Judge, Vigil

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NODE = Node("n", "uid", "azure:///x", 110, {}, since="2026-01-01T00:00:07Z")
POD = AgentPod("agent-1", "n", ready=True, running=True, since="2026-01-01T00:00:00Z")
DEAD = replace(POD, ready=False, running=False, since="2026-01-01T00:01:00Z")


@dataclass
class Desk:
    """A judge whose clock is turned by hand, and one node's pool as both sides write it."""

    now: float = 1000.0
    node: Node = NODE
    usage: Usage = field(default_factory=Usage)
    own: Condition | None = None
    vigil: Vigil = field(default_factory=Vigil)
    writes: int = 0

    def __post_init__(self) -> None:
        self.judge = Judge(lambda: self.now, lambda: 60.0, "kubectl get pods")
        self.says(Reason.AGENT_SERVING)

    def says(self, reason: Reason) -> None:
        """The agent reports."""
        status = ConditionStatus.TRUE if reason is Reason.AGENT_SERVING else ConditionStatus.FALSE
        self.own = condition(ConditionType.AGENT_READY, status, reason, "", NOW)
        self.usage = Usage(free=self.usage.free + 1)

    def after(self, seconds: float) -> str:
        """What the operator says then; it is written if it is news."""
        self.now += seconds
        conditions = (self.own,) if self.own else ()
        pool = NodeIPPool(metadata=Metadata(name="n"), status=Status(usage=self.usage, conditions=conditions))
        said = self.judge.verdict(self.node, pool, self.vigil)
        if said and not (self.own and self.own.message == said):
            self.own = condition(ConditionType.AGENT_READY, ConditionStatus.UNKNOWN, Reason.AGENT_SILENT, said, NOW)
            self.writes += 1
        return said


def test_an_agent_at_rest_is_not_silent_however_long_it_writes_nothing() -> None:
    desk = Desk()
    desk.judge.replace([POD])
    assert [desk.after(86400), desk.vigil.due, desk.writes] == ["", None, 0]


@pytest.mark.parametrize(
    ("pods", "unheard", "said"),
    [
        pytest.param([DEAD], False, "Pod agent-1 is not Ready since 2026-01-01T00:01:00Z", id="it doesn't run"),
        pytest.param([replace(DEAD, running=True)], False, "Pod agent-1 is not Ready", id="it runs and doesn't answer"),
        pytest.param([], False, "no Pod of the agent is on Node n: look at the DaemonSet", id="there is none"),
        pytest.param([POD], True, "kubelet of Node n since 2026-01-01T00:00:07Z", id="the node is dead"),
    ],
)
def test_one_that_is_unwell_is_silent_after_patience_and_not_before(
    pods: list[AgentPod], unheard: bool, said: str
) -> None:
    desk = Desk()
    desk.judge.replace([POD])
    assert desk.after(0) == ""
    desk.node = replace(NODE, unheard=unheard)
    desk.judge.replace(pods)
    assert desk.after(1) == ""
    due = desk.vigil.due
    assert due == desk.now + 60
    assert desk.after(59.9) == ""
    assert said in desk.after(0.1)
    assert said in desk.after(3600)
    assert (desk.writes, desk.vigil.due) == (1, None)


def test_a_dead_node_and_a_dead_pod_are_told_within_two_minutes() -> None:
    """The API server gives a kubelet 50 s (40 s before 1.32), a kubelet its probe three times 5 s."""
    patience = 60
    assert max(50, 15) + patience < 120


@pytest.mark.parametrize("followed", [False, True])
def test_absence_counts_only_while_the_pods_are_followed(followed: bool) -> None:
    desk = Desk()
    desk.judge.replace([])
    desk.judge.followed = followed
    desk.after(0)
    assert bool(desk.after(3600)) == followed


def test_one_that_says_itself_why_it_cannot_serve_is_believed_while_it_runs() -> None:
    desk = Desk()
    desk.says(Reason.AGENT_STARTING)
    desk.judge.replace([replace(DEAD, running=True)])
    desk.after(0)
    assert desk.after(3600) == ""
    desk.judge.hold(DEAD)
    assert "is not Ready" in desk.after(1)


def test_one_that_was_stopped_in_good_order_and_stays_away_is_silent() -> None:
    desk = Desk()
    desk.says(Reason.AGENT_STOPPED)
    desk.judge.replace([])
    desk.after(0)
    assert "no Pod" in desk.after(60)


def test_a_rolling_update_is_no_silence() -> None:
    desk = Desk()
    desk.judge.replace([POD])
    for number in range(20):
        desk.judge.drop(POD)
        assert desk.after(30) == ""
        desk.judge.hold(replace(POD, name=f"agent-{number}"))
        assert desk.after(10) == ""
        desk.judge.drop(replace(POD, name=f"agent-{number}"))
        desk.judge.hold(POD)
    assert desk.writes == 0


def test_an_agent_that_lives_on_without_its_kubelet_is_not_argued_with() -> None:
    """It takes the verdict back as soon as it reads it. An hour of that may cost a handful of writes, no more."""
    desk = Desk(node=replace(NODE, unheard=True))
    for _ in range(3600):
        if desk.after(1):
            desk.says(Reason.AGENT_SERVING)
    assert 1 <= desk.writes <= 6
    desk.node = NODE
    desk.after(1)
    desk.node = replace(NODE, unheard=True)
    desk.after(1)
    assert desk.after(60), "the kubelet's word begins it anew"


def test_what_an_agent_writes_while_it_is_unwell_is_a_sign_of_life() -> None:
    desk = Desk(node=replace(NODE, unheard=True))
    for _ in range(100):
        desk.says(Reason.AGENT_SERVING)
        assert desk.after(59) == ""


def test_the_operators_verdict_is_no_word_of_the_agents() -> None:
    said = condition(ConditionType.AGENT_READY, ConditionStatus.UNKNOWN, Reason.AGENT_SILENT, "by a former leader", NOW)
    desk = Desk(own=said, node=replace(NODE, unheard=True))
    desk.own = said
    assert desk.after(0) == ""
    assert desk.after(60)
    assert desk.vigil.vain == 0


# against an API server


async def agent_pod(world: World, node: str, *, ready: bool) -> None:
    """As the DaemonSet controller makes it and the kubelet reports it."""
    path = "/api/v1/namespaces/kube-system/pods"
    body: dict[str, Any] = {
        "metadata": {"name": f"agent-{node}", "labels": {"agent-of": world.name}},
        "spec": {"nodeName": node, "automountServiceAccountToken": False, "containers": [{"name": "a", "image": "x"}]},
    }
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
    for where, what in (("serviceaccounts", account), ("pods", body)):
        with contextlib.suppress(Outdated):  # it is there
            await world.kube.request("POST", f"/api/v1/namespaces/kube-system/{where}", body=what)
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    state = {"running": {"startedAt": stamp}} if ready else {"waiting": {"reason": "CrashLoopBackOff"}}
    container = {"name": "a", "ready": ready, "state": state, "image": "x", "imageID": "x", "restartCount": 0}
    found = {"type": "Ready", "status": "True" if ready else "False", "lastTransitionTime": stamp}
    status = {"status": {"conditions": [found], "containerStatuses": [container]}}
    await world.kube.request("PATCH", f"{path}/agent-{node}/status", body=status, content_type=MERGE)


def followed(world: World) -> None:
    """The operator follows the agents' Pods of this world."""
    selector = {"matchLabels": {"agent-of": world.name}}
    world.settings["agents"] = {"namespace": "kube-system", "selector": selector, "patience": "1s"}


async def silent(world: World, node: str) -> Condition | None:
    found = await world.condition(node, ConditionType.AGENT_READY)
    return found if found is not None and found.reason == Reason.AGENT_SILENT else None


@pytest.mark.apiserver
async def test_a_dead_agent_is_told_and_takes_it_back_when_it_is_there_again(world: World) -> None:
    followed(world)
    node, agent = await world.worker("one")
    await agent_pod(world, node, ready=True)
    async with world.operator():
        await world.until_allocated(node, 4)
        await agent.sync()
        await agent_pod(world, node, ready=False)
        said = await world.until("the verdict", lambda: silent(world, node))
        assert (said.status, f"agent-{node} is not Ready since" in said.message) == ("Unknown", True)
        shown = world.api.kubectl("get", "nodeippool", node, "-o", "wide").splitlines()
        assert dict(zip(shown[0].split(), shown[1].split(), strict=True))["AGENT"] == "Unknown"
        events = await world.until("an Event", lambda: world.events(node))
        assert (events[-1]["reason"], events[-1]["note"]) == ("AgentSilent", said.message)
        before = (await world.pool(node)).metadata.resource_version
        agent.start(2)  # what pods and Azure do meanwhile doesn't wipe it out
        await agent_pod(world, node, ready=True)
        await asyncio.sleep(0.3)
        assert (await world.pool(node)).metadata.resource_version == before, "nobody writes until the agent does"
        await agent.sync()
        found = await world.condition(node, ConditionType.AGENT_READY)
        assert found is not None
        assert found.reason == Reason.AGENT_SERVING
        await world.until_pods_run(agent)
        await world.until_allocated(node, 8)
        assert await silent(world, node) is None


@pytest.mark.apiserver
async def test_a_verdict_stays_while_the_operator_goes_on_writing(world: World) -> None:
    """It belongs to the operator then: a status without it would take it away, or be refused for half a condition."""
    followed(world)
    node, agent = await world.worker("one")
    async with world.operator():
        await world.until_allocated(node, 4)
        await agent.sync()
        await world.until("the verdict", lambda: silent(world, node))
        await world.kube.request(
            "PATCH",
            f"/apis/vnetpods.io/v1alpha1/nodeippools/{node}",
            body={"spec": {"sizing": {"minimum": 9}}},
            content_type=MERGE,
        )
        await world.until_allocated(node, 9)
        assert await silent(world, node)
    async with world.operator():  # another leader, who has not judged yet
        await world.kube.request(
            "PATCH",
            f"/apis/vnetpods.io/v1alpha1/nodeippools/{node}",
            body={"spec": {"sizing": {"minimum": 12}}},
            content_type=MERGE,
        )
        await world.until_allocated(node, 12)
        found = await silent(world, node)
    assert found is not None
    assert "no Pod of the agent" in found.message


@pytest.mark.apiserver
async def test_a_thousand_quiet_nodes_with_agents_cost_no_write(world: World) -> None:
    """Here: five. Pods that become unready and ready again within patience, kubelets that beat."""
    followed(world)
    world.settings["agents"]["patience"] = "1h"
    pairs = [await world.worker(f"n{number}") for number in range(5)]
    for node, _ in pairs:
        await agent_pod(world, node, ready=True)
    async with world.operator() as operator:
        for node, agent in pairs:
            await world.until_allocated(node, 4)
            await agent.sync()
        await world.until("the Pods to be known", lambda: _followed(operator))
        versions = [(await world.pool(node)).metadata.resource_version for node, _ in pairs]
        for ready in (False, True):
            for node, _ in pairs:
                await agent_pod(world, node, ready=ready)
        await asyncio.sleep(0.5)
        assert [(await world.pool(node)).metadata.resource_version for node, _ in pairs] == versions


async def _followed(operator: Any) -> bool:
    return bool(operator._judge.followed)
