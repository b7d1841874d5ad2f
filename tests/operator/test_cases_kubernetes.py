"""Cases about names, Nodes and NodeIPPools that come, go and change while nobody looks. Names begin with the case's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
from typing import Any

import pytest

from tests.azure.arm.builder import GROUP, SUBSCRIPTION
from tests.operator.agents import Agent
from tests.operator.worlds import World
from vnetpods_api import ConditionType, NodeIPPool
from vnetpods_operator.kube import NotFound, Outdated
from vnetpods_operator.state.pools import PATH

pytestmark = pytest.mark.apiserver


async def delete(world: World, path: str) -> None:
    await world.kube.request("DELETE", path)


async def test_c54_the_longest_name_a_node_can_have(world: World) -> None:
    """spiderpool#1747: a name of more than 63 characters was used as a label's value."""
    world.azure.build.fault(
        "status", method="PUT", resource="*/networkInterfaces/*", status=403, code="AuthorizationFailed"
    )
    label = "node-with-a-label-of-exactly-sixty-three-characters-which-is-ok"
    name = ".".join([label[:63]] * 3 + [label[: 253 - 64 * 3 - len(world.name) - 1]])
    node = await world.node(name, world.machine("one"))
    assert len(node) == 253
    async with world.operator():
        await world.until_reason(node, "Forbidden")
        assert await world.until("an Event", lambda: world.events(node))


async def test_c57_nothing_is_released_for_a_node_that_is_merely_not_ready(world: World) -> None:
    """spiderpool#4764: the kubelet is stopped, the pods still run."""
    node, agent = await world.worker("one")
    async with world.operator():
        await world.until_allocated(node, 4)
        agent.start(30)
        await world.until_pods_run(agent)
        agent.end(20, newest=True)
        await agent.sync()  # the last that is heard of the agent
        status = {"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}
        await world.kube.request(
            "PATCH", f"/api/v1/nodes/{node}/status", body=status, content_type="application/merge-patch+json"
        )
        before = world.addresses("one-nic")
        silent = await world.until_reason(node, "AgentSilent")
        await asyncio.sleep(1.5)  # beyond the patience
        assert world.addresses("one-nic") == before
        assert silent.status == "True"
        pool = await world.pool(node)
    assert set(pool.status.interfaces[0].addresses) == before


async def test_a_former_network_plugins_word_on_the_node_is_shown_with_the_command_that_clears_it(
    world: World,
) -> None:
    """calico#7816: NetworkUnavailable stays behind, and with it the taint; all of our own says that it is well."""
    node, agent = await world.worker("one")
    left = {"type": "NetworkUnavailable", "status": "True", "reason": "CalicoIsDown", "message": "x"}
    path, merge = f"/api/v1/nodes/{node}/status", "application/strategic-merge-patch+json"
    async with world.operator():
        await world.until_allocated(node, 4)
        await agent.sync()
        await world.kube.request("PATCH", path, body={"status": {"conditions": [left]}}, content_type=merge)
        said = await world.until_reason(node, "NetworkUnavailable")
        stalled = await world.condition(node, ConditionType.STALLED)
        assert stalled is not None
        assert (said.status, stalled.status) == ("True", "True")
        assert "(CalicoIsDown)" in said.message
        kubectl, *command = shlex.split(said.message.partition("To clear it: ")[2])
        assert kubectl == "kubectl"
        world.api.kubectl(*command)
        await world.until_reason(node, "PoolReady")


async def test_c59_deletes_complete_while_the_operator_is_off(world: World) -> None:
    """kopf#1088: finalizers that nobody removes."""
    node, _ = await world.worker("one")
    async with world.operator():
        await world.until_allocated(node, 4)
    for path in (f"{PATH}/{node}", f"/api/v1/nodes/{node}"):
        found = json.loads(await world.kube.request("GET", path))
        assert "finalizers" not in found["metadata"]
        assert not [a for a in found["metadata"].get("annotations", {}) if "kopf" in a or "vnetpods" in a]
        await delete(world, path)
        names = [
            n["metadata"]["name"] for n in json.loads(await world.kube.request("GET", path.rpartition("/")[0]))["items"]
        ]
        assert node not in names


async def test_c59_changes_in_the_gap_are_handled(world: World) -> None:
    """kopf#734: changes within the minute after a kill -9 were lost."""
    node, agent = await world.worker("one")
    async with world.operator():
        await world.until_allocated(node, 4)
    agent.start(9)
    await agent.sync()
    late, _ = await world.worker("two")
    async with world.operator():
        await world.until_pods_run(agent)
        await world.until_allocated(late, 4)


async def test_a_pool_that_somebody_deletes_comes_back_and_no_pod_notices(world: World) -> None:
    node, agent = await world.worker("one")
    async with world.operator():
        await world.until_allocated(node, 4)
        agent.start(3)
        await world.until_pods_run(agent)
        held, before = agent.held, world.addresses("one-nic")
        await delete(world, f"{PATH}/{node}")

        async def back() -> NodeIPPool | None:
            found = await world.pool(node)
            return found if found.status.allocated else None

        pool = await world.until("the pool to come back", back)
        assert set(pool.status.interfaces[0].addresses) >= before
        await world.until_pods_run(agent)
        assert agent.held == held
        assert held <= world.addresses("one-nic")


async def test_a_node_made_again_under_the_same_name_owns_its_pool(world: World) -> None:
    """kubernetes#131098: the garbage collector deletes what the former Node owned."""
    node, _ = await world.worker("one")
    async with world.operator():
        before = await world.until_allocated(node, 4)
        provider = json.loads(await world.kube.request("GET", f"/api/v1/nodes/{node}"))["spec"]["providerID"]
        await delete(world, f"/api/v1/nodes/{node}")
        await asyncio.sleep(0.2)
        again = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": node, "labels": {"world": world.name}},
            "spec": {"providerID": provider},
        }
        await world.kube.request("POST", "/api/v1/nodes", body=again)
        uid = json.loads(await world.kube.request("GET", f"/api/v1/nodes/{node}"))["metadata"]["uid"]

        async def owned() -> bool:
            owners = (await world.pool(node)).metadata.owner_references
            return [o.uid for o in owners] == [uid]

        await world.until("the fresh owner", owned)
        after = await world.pool(node)
    assert after.status.interfaces == before.status.interfaces
    assert world.writes() == 1


async def test_a_provider_id_that_comes_later(world: World) -> None:
    node = await world.node("one")
    provider = world.machine("one")
    async with world.operator():
        await world.until_reason(node, "NoProviderID")
        patch = {"spec": {"providerID": provider}}
        await world.kube.request(
            "PATCH", f"/api/v1/nodes/{node}", body=patch, content_type="application/merge-patch+json"
        )
        await world.until_allocated(node, 4)


async def test_a_waiting_pod_reaches_azure_by_its_report_alone(world: World) -> None:
    """The next audit is half an hour away."""
    node, agent = await world.worker("one")
    async with world.operator():
        await world.until_allocated(node, 4)
        await asyncio.sleep(0.3)
        agent.start(5)
        await agent.sync()
        await world.until("the write", lambda: _writes(world, 2))


async def _writes(world: World, number: int) -> bool:
    return world.writes() >= number


async def test_ten_thousand_events_of_the_kubelet_are_no_news(world: World) -> None:
    """Heartbeats change a Node every few seconds; none of it concerns the operator."""
    node, _ = await world.worker("one")
    async with world.operator():
        await world.until_allocated(node, 4)
        version = (await world.pool(node)).metadata.resource_version
        requests = len(world.azure.build.requests())
        for number in range(20):
            patch: dict[str, Any] = {"metadata": {"annotations": {"beat": str(number)}}}
            await world.kube.request(
                "PATCH", f"/api/v1/nodes/{node}", body=patch, content_type="application/merge-patch+json"
            )
        await asyncio.sleep(0.3)
        assert (await world.pool(node)).metadata.resource_version == version
        assert len(world.azure.build.requests()) == requests


async def test_two_operators_and_one_leader(world: World) -> None:
    node, agent = await world.worker("one")
    async with world.process() as first:
        await world.until_allocated(node, 4)
        holder = await _holder(world)
        async with world.process() as second:
            agent.start(9)
            await world.until_pods_run(agent)
            assert await _holder(world) == holder
            first.terminate()
            await first.wait()
            agent.start(9)
            await world.until_pods_run(agent)  # before the Lease would have run out: it was given back
            assert f"_{second.pid}_" in await _holder(world)
    assert agent.held <= world.addresses("one-nic")


async def _holder(world: World) -> str:
    path = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/vnetpods-operator"
    return str(json.loads(await world.kube.request("GET", path))["spec"]["holderIdentity"])


async def test_the_api_server_may_be_away(world: World) -> None:
    node, agent = await world.worker("one")
    async with world.operator():
        await world.until_allocated(node, 4)
        world.api.restart()  # in this thread: its programs end with the thread that started them
        agent.start(9)
        await world.until("the API server", lambda: _answers(world))
        await world.until_pods_run(agent)
    assert agent.held <= world.addresses("one-nic")


async def _answers(world: World) -> bool:
    try:
        await world.kube.request("GET", "/readyz")
    except Exception:  # noqa: BLE001 - it is away
        return False
    return True


async def test_metrics_and_health_over_http(world: World) -> None:
    import aiohttp  # noqa: PLC0415

    node, agent = await world.worker("one")
    world.settings["listen"] = world.settings["metricsListen"] = "127.0.0.1:19461"
    async with world.operator(), aiohttp.ClientSession("http://127.0.0.1:19461") as http:
        await world.until_allocated(node, 4)
        agent.start(3)
        await world.until_pods_run(agent)
        await world.until_allocated(node, 8)
        await agent.sync()
        await asyncio.sleep(0.2)
        text = await (await http.get("/metrics")).text()
        health = await (await http.get("/readyz")).json()
        assert (await http.get("/healthz")).status == 200
        subnet = (await world.pool(node)).status.interfaces[0].subnet
        for line in (
            f'vnetpods_addresses{{state="allocated",subnet="{subnet}"}} 8.0',
            f'vnetpods_addresses{{state="assigned",subnet="{subnet}"}} 3.0',
            'vnetpods_nodes{ready="True",reason="PoolReady"} 1.0',
            'vnetpods_azure_requests_total{operation="put_nic",outcome="200"} 2.0',
            "vnetpods_leader 1.0",
            "vnetpods_waiting_granted_seconds_count",
            "vnetpods_node_first_address_seconds_count 1.0",
        ):
            assert line in text, line
        assert health["leads"]
        assert health["azure_answered"] < 30
        await delete(world, f"/api/v1/nodes/{node}")

        async def forgotten() -> bool:
            return subnet not in await (await http.get("/metrics")).text()

        await world.until("the series of the Node's subnet to be gone", forgotten)


async def test_a_pod_limit_leaves_room_for_host_network_pods(world: World) -> None:
    node = await world.node("one", world.machine("one"))
    agent = Agent(world.kube, node)
    status = {"status": {"allocatable": {"pods": "10"}}}
    await world.kube.request(
        "PATCH", f"/api/v1/nodes/{node}/status", body=status, content_type="application/merge-patch+json"
    )
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
    with contextlib.suppress(Outdated):  # it exists; no controller makes it here
        await world.kube.request("POST", "/api/v1/namespaces/default/serviceaccounts", body=account)
    for number in range(3):
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"{world.name}-{number}", "namespace": "default"},
            "spec": {
                "nodeName": node,
                "hostNetwork": number < 2,
                "automountServiceAccountToken": False,
                "containers": [{"name": "c", "image": "none"}],
            },
        }
        await world.kube.request("POST", "/api/v1/namespaces/default/pods", body=pod)
    async with world.operator():
        await world.until("the pool", lambda: world.condition(node))
        agent.start(20)

        async def capped() -> bool:
            await agent.sync()
            return (await world.pool(node)).status.allocated == 8

        await world.until("the rest of the pod limit", capped)
        await world.until_reason(node, "AtCapacity")
        await asyncio.sleep(0.3)
        assert (await world.pool(node)).status.allocated == 8


async def test_a_windows_node_is_left_alone(world: World) -> None:
    """aks-engine#4791: no agent runs there, so it would hold addresses in vain and be called ready."""
    windows = await world.node("win", world.machine("win"), labels={"kubernetes.io/os": "windows"})
    linux = await world.node("lin", world.machine("lin"), labels={"kubernetes.io/os": "linux"})
    async with world.operator():
        await world.until_allocated(linux, 4)
    assert world.addresses("win-nic") == set()
    with pytest.raises(NotFound):
        await world.pool(windows)


async def test_a_node_can_name_only_machines_beside_the_control_plane(world: World) -> None:
    """Whoever may register a Node could otherwise have the NIC of any machine changed that the role reaches."""
    await world.node("cp", world.machine("cp"), labels={"node-role.kubernetes.io/control-plane": ""})
    elsewhere = world.azure.build.id("Microsoft.Compute/virtualMachines", "db").replace(f"/{GROUP}/", "/databases/")
    world.azure.build.create_vm(elsewhere, nics=[world.azure.build.create_nic("db-nic", "net/pods")])
    intruder = await world.node("intruder", f"azure://{elsewhere}")
    async with world.operator():
        refused = await world.until_reason(intruder, "MachineNotAllowed")
        stalled = await world.condition(intruder, ConditionType.STALLED)
    assert f"{SUBSCRIPTION}/databases" in refused.message
    assert "machines.resourceGroups" in refused.message
    assert stalled is not None
    assert stalled.status == "True"
    assert world.addresses("db-nic") == set()
    assert world.azure.build.requests(resource="db") == []
    world.settings["machines"] = {"resourceGroups": ["vnetpods", f"{SUBSCRIPTION}/data*"]}
    async with world.operator():
        await world.until_allocated(intruder, 4)
