"""What a node says of an operator that is not there, and what people see of it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.agent.machine import NIC_MAC, Machine, machine, until
from tests.agent.shim import QUICK, program
from tests.agent.test_nodeippool import POOLS
from tests.kube.apiserver import ApiServer
from vnetpods_agent.attachment import Pod
from vnetpods_agent.config import Operator, Period
from vnetpods_agent.kube import KubeApi, from_kubeconfig
from vnetpods_agent.sync.operator_watch import OperatorWatch, Pulse

WEB = Pod("default", "web-0", "uid-0")


def lease(holder: str, renewed: str, duration: int = 15) -> dict[str, Any]:
    return {"spec": {"holderIdentity": holder, "renewTime": renewed, "leaseDurationSeconds": duration}}


def test_what_counts_is_that_a_lease_changes_and_not_its_times() -> None:
    pulse = Pulse(60.0, "kube-system/vnetpods-operator")
    for second in range(0, 600, 15):
        pulse.told(lease("a", f"1970-01-01T00:{second // 60:02}:{second % 60:02}Z"), second)
        assert not pulse.silent(second)
    pulse.told(lease("a", "1970-01-01T00:09:45Z"), 644)
    assert not pulse.silent(644)
    pulse.told(lease("a", "1970-01-01T00:09:45Z"), 645)
    assert pulse.silent(645)
    pulse.told(lease("b", "1970-01-01T00:00:01Z"), 646)
    assert not pulse.silent(646)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        pytest.param(lease("op-1_7_a", "T"), "its Lease ns/l is not renewed since THEN (held by op-1_7_a)", id="died"),
        pytest.param(lease("", "T"), "it was stopped: nobody holds its Lease ns/l since THEN", id="scaled to 0"),
        pytest.param(None, "there is no Lease ns/l, so none has run in this cluster yet", id="never there"),
    ],
)
def test_it_says_what_it_found(found: dict[str, Any] | None, said: str) -> None:
    pulse = Pulse(60.0, "ns/l")
    for second in (0, 30, 60):
        pulse.told(found, second)
    assert pulse.silent(60)
    assert said in pulse.words("THEN")


def test_a_lease_of_long_duration_gets_more_patience() -> None:
    pulse = Pulse(60.0, "ns/l")
    for second in (0, 239):
        pulse.told(lease("a", "T", duration=60), second)
    assert not pulse.silent(239)
    assert pulse.silent(240)


def test_after_an_api_server_that_was_away_patience_begins_anew() -> None:
    """The operator couldn't renew either."""
    pulse = Pulse(60.0, "ns/l")
    pulse.told(lease("a", "T"), 0)
    pulse.unknown()
    assert (pulse.silent(300), pulse.age(300)) == (False, 0.0)
    pulse.told(lease("a", "T"), 300)
    assert not pulse.silent(359)


# against an API server


@dataclass
class Cluster:
    """The operator's Lease and one node's pool, written as an operator does."""

    server: ApiServer
    node: str = field(default_factory=lambda: f"worker-{uuid4().hex[:6]}")
    renewals: int = 0

    @property
    def path(self) -> str:
        return f"{POOLS}/{self.node}"

    @property
    def operator(self) -> Operator:
        return Operator(namespace="default", lease=self.node, patience=Period(1))

    def renew(self) -> None:
        self.renewals += 1
        stamp = f"2026-01-01T00:00:00.{self.renewals:06}Z"
        spec = {"holderIdentity": "operator-1", "renewTime": stamp, "leaseDurationSeconds": 1}
        metadata = {"name": self.node, "namespace": "default"}
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
        self.server.write(f"/apis/coordination.k8s.io/v1/namespaces/default/leases/{self.node}", body)

    def pool(self, *addresses: str) -> None:
        """It has told that it is adding addresses."""
        metadata = {"apiVersion": "vnetpods.io/v1alpha1", "kind": "NodeIPPool", "metadata": {"name": self.node}}
        self.server.write(self.path, metadata | {"spec": {}})
        nic = {"name": "nic", "mac": NIC_MAC, "subnet": "/s/pods", "prefixes": ["10.240.0.0/16"]}
        nic |= {"primaryAddress": "10.240.0.4", "addresses": list(addresses)}
        stamp = {"lastTransitionTime": "2026-01-01T00:00:00Z"}
        said = [
            {"type": "Ready", "status": "True", "reason": "PoolReady", "message": "pods can be given addresses"},
            {"type": "Reconciling", "status": "True", "reason": "Growing", "message": "addresses are being added"},
            {"type": "Stalled", "status": "False", "reason": "Idle", "message": "nobody needs to act"},
        ]
        status = {"interfaces": [nic], "conditions": [each | stamp for each in said]}
        self.server.write(f"{self.path}/status", metadata | {"status": status}, "vnetpods-operator")

    def shown(self) -> dict[str, str]:
        """`kubectl get nodeippools -o wide`: column → value."""
        heads, values = self.server.kubectl("get", "nip", self.node, "-o", "wide").splitlines()
        places = [match.span() for match in re.finditer(r"\S+\s*", heads)]
        return {heads[start:end].strip(): values[start:end].strip() for start, end in places}

    def agent_ready(self) -> dict[str, Any]:
        conditions = self.server.request("GET", self.path)["status"].get("conditions", [])
        return next((c for c in conditions if c["type"] == "AgentReady"), {})

    def events(self, pod: str) -> dict[str, str]:
        """Reason → note of a pod's Events."""
        items = self.server.request("GET", "/apis/events.k8s.io/v1/namespaces/default/events")["items"]
        return {e["reason"]: e["note"] for e in items if e["regarding"].get("name") == pod}


@pytest.fixture
def cluster(nodeippools: ApiServer) -> Cluster:
    return Cluster(nodeippools)


@contextlib.asynccontextmanager
async def watching(cluster: Cluster, kubeconfig: Path) -> AsyncIterator[tuple[OperatorWatch, list[int], list[Any]]]:
    """A watch that is asked for; how many pods wait, and what was told."""
    api, waiting, told = KubeApi(from_kubeconfig(kubeconfig)), [1], list[Any]()
    watch = OperatorWatch(
        api, cluster.operator, lambda: waiting[0], time.monotonic, lambda words, pods: told.append((words, pods))
    )
    task = asyncio.create_task(watch.run())
    try:
        yield watch, waiting, told
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await api.close()


@pytest.mark.apiserver
async def test_an_operator_that_stops_renewing_is_silent_until_it_renews(cluster: Cluster) -> None:
    await asyncio.to_thread(cluster.renew)
    async with watching(cluster, cluster.server.admin_kubeconfig) as (watch, waiting, told):
        watch.waits(WEB)
        await until(lambda: watch.silent)
        assert told == [(watch.silent, [WEB])]
        assert "held by operator-1" in watch.silent
        assert watch.age >= 1.0
        await asyncio.to_thread(cluster.renew)
        await until(lambda: not watch.silent)
        assert len(told) == 1
        waiting[0] = 0  # the need is over: nobody asks any more
        await until(lambda: watch.age == 0)
        assert not watch.silent


@pytest.mark.apiserver
async def test_one_that_renews_is_not_silent_but_may_have_left_the_need_unanswered(cluster: Cluster) -> None:
    await asyncio.to_thread(cluster.renew)
    async with watching(cluster, cluster.server.admin_kubeconfig) as (watch, _, told):
        watch.waits(WEB)
        for _ in range(12):
            await asyncio.to_thread(cluster.renew)
            await asyncio.sleep(0.2)
        assert (watch.silent, told) == ("", [])
        assert "which runs, has not answered" in watch.unanswered


@pytest.mark.apiserver
async def test_without_need_the_lease_is_not_read(cluster: Cluster) -> None:
    async with watching(cluster, cluster.server.admin_kubeconfig) as (watch, _, told):
        await asyncio.sleep(3)
        assert (watch.silent, watch.age, told) == ("", 0.0, [])


@pytest.mark.apiserver
async def test_a_lease_that_may_not_be_read_proves_nothing(cluster: Cluster) -> None:
    nobody = await asyncio.to_thread(cluster.server.kubeconfig_for, "nobody", "default")
    async with watching(cluster, nobody) as (watch, _, told):
        watch.waits(WEB)
        await asyncio.sleep(3)
        assert (watch.silent, watch.unanswered, told) == ("", "", [])


@contextlib.asynccontextmanager
async def node_of(cluster: Cluster, folder: Path) -> AsyncIterator[Machine]:
    settings = {
        "node": cluster.node,
        "source": {"kubernetes": {"kubeconfig": str(folder / "kubeconfig")}, "confirmation": 0},
        "operator": {"namespace": "default", "lease": cluster.node, "patience": 1},
    }
    async with machine(folder, **settings) as node:
        node.connect(cluster.server)
        await node.start()
        yield node


def pod_args(name: str) -> str:
    return f"K8S_POD_NAMESPACE=default;K8S_POD_NAME={name};K8S_POD_UID=uid-{name}"


@pytest.mark.apiserver
async def test_a_dead_operator_is_named_wherever_people_look(cluster: Cluster, tmp_path: Path) -> None:
    """Its last words stay in the pool, and are not repeated: it isn't adding addresses any more."""
    await asyncio.to_thread(cluster.renew)
    await asyncio.to_thread(cluster.pool, "10.240.0.5")
    async with node_of(cluster, tmp_path) as node:
        await node.add("c1", node.sandbox())
        waiting = asyncio.create_task(node.call("ADD", "c2", node.sandbox(), args=pod_args(cluster.node)))
        await until(lambda: "OperatorSilent" in cluster.events(cluster.node), within=40)
        await until(lambda: cluster.shown()["AGENT-REASON"] == "OperatorSilent")
        assert "the operator does not run" in cluster.agent_ready()["message"]
        assert cluster.agent_ready()["status"] == "True", "the agent itself is well"
        late = f"{cluster.node}-late"
        second = asyncio.create_task(node.call("ADD", "c3", node.sandbox(), args=pod_args(late)))
        await until(lambda: cluster.events(late), within=40)
        said = f"{cluster.events(cluster.node)['OperatorSilent']} {cluster.events(late)}"
        assert said.count("the operator does not run") == 2, "a later ADD is told at once"
        assert f"default/{cluster.node} is not renewed since" in said
        assert "being added" not in said
        node.shim = program(*QUICK)  # which waits for an answer and gets it, as a kubelet does that has given up
        failed = await node.call("ADD", "c4", node.sandbox(), args=pod_args(late))
        assert (failed.code, failed.stderr) == (11, "")
        assert "the operator does not run, and nobody adds addresses: its Lease" in failed.json["details"]
        for add in (waiting, second):
            add.cancel()


@pytest.mark.apiserver
async def test_what_the_pool_said_before_the_api_server_went_away_is_marked_as_old(
    cluster: Cluster, tmp_path: Path
) -> None:
    await asyncio.to_thread(cluster.renew)
    await asyncio.to_thread(cluster.pool, "10.240.0.5")
    async with node_of(cluster, tmp_path) as node:
        await node.add("c1", node.sandbox())
        node.disconnect()
        await until(lambda: node.events("NodeIPPool can't be watched"), within=60)
        waiting = asyncio.create_task(node.call("ADD", "c2", node.sandbox(), args=pod_args(cluster.node)))
        waits = lambda: [e for e in node.events("event reported") if e["reason"] == "WaitingForAddress"]  # noqa: E731
        (told,) = await until(waits, within=40)
        assert "ApiUnreachable" in told["message"] or "/apis/vnetpods.io" in told["message"]
        assert "heard last: Growing: addresses are being added" in told["message"]
        assert "operator does not run" not in told["message"], "nobody can know"
        waiting.cancel()
