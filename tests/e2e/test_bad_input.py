"""What people and programs get wrong: refused or reported with a sentence, and nobody else is disturbed.

Runs after the main job, on the cluster that it leaves with operator and agents running.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests import pace
from tests.demo.report import Report
from tests.demo.world import PROGRAMS, WARM, World, machine_id
from tests.kube.api import KubeError

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

SHIM = "/opt/cni/bin/vnetpods"
SOCKET = "/run/vnetpods/agent.sock"


@pytest.mark.parametrize(
    ("name", "provider_id", "reason"),
    [
        pytest.param("nowhere", "", "NoProviderID", id="no-provider-id"),
        pytest.param("elsewhere", "gce://project/zone/instance", "ForeignProvider", id="another-cloud"),
        pytest.param("imagined", f"azure://{machine_id('imagined')}", "MachineNotFound", id="no-such-machine"),
    ],
)
def test_a_node_that_is_no_azure_machine_says_so(
    name: str, provider_id: str, reason: str, world: World, report: Report
) -> None:
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {"providerID": provider_id}}
    others = {n: world.pool_addresses(n) for n in world.nodes}
    world.cluster.apply(json.dumps(node))
    try:
        status = report.until(
            "a condition with the reason",
            lambda: next((c for c in world.pool_status(name).get("conditions", []) if c["reason"] == reason), None),
            within=30,
        )
        assert name in status["message"]
        assert {n: world.pool_addresses(n) for n in world.nodes} == others
        assert all(world.pool_condition(n, "Ready") == "True" for n in world.nodes)
    finally:
        world.kubectl("delete", "node", name)
    report.until("the pool goes with its Node", lambda: not world.pool_status(name), within=60)


@pytest.mark.parametrize(
    ("patch", "sentence"),
    [
        pytest.param({"machine": "worker-1"}, "must be the Azure resource id of a virtual machine", id="machine"),
        pytest.param({"sizing": {"minimum": 9, "maximum": 3}}, "minimum must not be greater than", id="minimum"),
        pytest.param({"sizing": {"warm": 9, "maximum": 3}}, "warm must not be greater than", id="warm"),
        pytest.param({"sizing": {"batch": 0}}, "should be greater than or equal to 1", id="batch"),
        pytest.param({"sizing": {"warm": "many"}}, "must be of type integer", id="type"),
    ],
)
def test_a_pool_edited_into_nonsense_is_refused(patch: dict[str, object], sentence: str, world: World) -> None:
    with pytest.raises(KubeError, match=sentence):
        world.kubectl("patch", "nodeippool", world.nodes[0], "--type=merge", "-p", json.dumps({"spec": patch}))


@pytest.mark.parametrize(
    ("command", "content", "expected"),
    [
        pytest.param(["vnetpods-operator"], "groups: [{warm: lots}]", "groups[0].warm", id="operator-type"),
        pytest.param(["vnetpods-operator"], "gruops: []", "gruops", id="operator-key"),
        pytest.param(["vnetpods-agent", "run"], "cooldown: soon", "cooldown", id="agent-type"),
        pytest.param(["vnetpods-agent", "run"], "node: n\ncoolDown: 3", "coolDown", id="agent-key"),
    ],
)
def test_a_bad_configuration_stops_the_start(command: list[str], content: str, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(content)
    program, *arguments = command
    done = subprocess.run(
        [str(PROGRAMS / program), *arguments, "--config", str(file)],
        capture_output=True,
        text=True,
        timeout=pace.stretched(30),
        check=False,
    )
    assert done.returncode != 0
    assert str(file) in done.stderr
    assert expected in done.stderr


@pytest.mark.parametrize(
    ("stdin", "code"),
    [
        pytest.param("", 6, id="empty"),
        pytest.param("garbage", 6, id="no-json"),
        pytest.param('{"cniVersion": "1.1.0", "name": "vnetpods"', 6, id="cut"),
        pytest.param('{"cniVersion": "9.9.9", "name": "vnetpods", "type": "vnetpods"}', 1, id="version"),
        pytest.param('{"cniVersion": "1.1.0", "name": "v n", "type": "vnetpods"}', 7, id="name"),
    ],
)
def test_garbage_on_standard_input_costs_no_address(stdin: str, code: int, world: World) -> None:
    node = world.nodes[0]
    before = world.ledger_addresses(node)
    environment = ["CNI_COMMAND=ADD", "CNI_CONTAINERID=c", "CNI_NETNS=/proc/self/ns/net", "CNI_IFNAME=eth9"]
    done = world.cluster.machines[node].run("env", *environment, SHIM, stdin=stdin, check=False)
    assert done.returncode != 0
    assert json.loads(done.stdout)["code"] == code
    assert world.ledger_addresses(node) == before


def test_garbage_on_the_socket_costs_no_address(world: World) -> None:
    node = world.nodes[0]
    before = world.ledger_addresses(node)
    throw = (
        "import os, socket\n"
        "for length in (0, 1, 3, 24, 4096, 100000):\n"
        "    s = socket.socket(socket.AF_UNIX)\n"
        f"    s.connect({SOCKET!r})\n"
        "    try:\n"
        "        s.sendall(os.urandom(length))\n"
        "        s.shutdown(socket.SHUT_WR)\n"
        "    except OSError:\n"
        "        pass\n"
        "    s.close()\n"
    )
    world.cluster.machines[node].run(str(PROGRAMS / "python"), "-c", throw)
    status = world.cluster.machines[node].run(
        "env", "CNI_COMMAND=STATUS", SHIM, stdin='{"cniVersion": "1.1.0", "name": "vnetpods", "type": "vnetpods"}'
    )
    assert status.returncode == 0
    assert world.ledger_addresses(node) == before


def test_a_deleted_pool_comes_back_and_no_pod_notices(world: World, report: Report) -> None:
    node = world.nodes[0]
    pods = world.running("web")
    assert pods
    surplus = len([pod for pod in pods if pod.node == node]) + 2 * WARM
    report.until(
        "what earlier tests left over is released",
        lambda: world.settled(node) and len(world.nic_addresses(node)) <= surplus,
        within=90,
    )
    before = world.nic_addresses(node)
    world.kubectl("delete", "nodeippool", node)
    report.until("the pool is back", lambda: world.pool_addresses(node) == before, within=30)
    report.until("the agent reports again", lambda: world.usage(node), within=30)
    assert world.nic_addresses(node) == before
    mine = next(pod for pod in pods if pod.node == node)
    assert world.call_from_peer(mine.address) == world.peer_address
