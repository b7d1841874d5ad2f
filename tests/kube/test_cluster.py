"""The recipe of a whole cluster, with the reference plugins as its network: one bridge as fabric, one pod subnet per
node.
"""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests import pace
from tests.kube import cluster as clusters
from tests.kube import image
from tests.kube.cluster import Cluster, Description, Member

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

FABRIC = "ktfab"
MEMBERS = {"kt-plane": "10.10.0.10", "kt-1": "10.10.0.11", "kt-2": "10.10.0.12"}
SUBNETS = {"kt-1": "10.20.1.0/24", "kt-2": "10.20.2.0/24"}


def ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True)


@pytest.fixture(scope="module")
def fabric() -> Iterator[None]:
    ip(f"netns add {FABRIC}")
    ip(f"-n {FABRIC} link add br0 type bridge")
    ip(f"-n {FABRIC} address add 10.10.0.1/24 dev br0")
    ip(f"-n {FABRIC} link set br0 up")
    subprocess.run(["ip", "netns", "exec", FABRIC, "sysctl", "-qw", "net.ipv4.ip_forward=1"], check=True)
    for name, address in MEMBERS.items():
        ip(f"netns add {name}")
        ip(f"-n {FABRIC} link add {name} type veth peer name eth0 netns {name}")
        ip(f"-n {FABRIC} link set {name} master br0 up")
        ip(f"-n {name} address add {address}/24 dev eth0")
        ip(f"-n {name} link set eth0 up")
        ip(f"-n {name} route add default via 10.10.0.1")
        subprocess.run(["ip", "netns", "exec", name, "sysctl", "-qw", "net.ipv4.ip_forward=1"], check=True)
        if name in SUBNETS:
            ip(f"-n {FABRIC} route add {SUBNETS[name]} via {address}")
    yield
    for name in (*MEMBERS, FABRIC):
        ip(f"netns del {name}")


@pytest.fixture(scope="module")
def cluster(fabric: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    nodes = tuple(
        Member(name, name, MEMBERS[name], provider_id=f"azure:///subscriptions/0/{name}", max_pods=30)
        for name in SUBNETS
    )
    plane = Member("kt-plane", "kt-plane", MEMBERS["kt-plane"])
    folder = tmp_path_factory.mktemp("cluster")
    up = clusters.up(Description(folder, plane, nodes, plugins=("loopback", "ptp", "host-local")))
    try:
        yield up
    finally:
        up.down()


def write_reference_conflist(cluster: Cluster, node: str) -> None:
    machine = cluster.machines[node]
    ipam = {"type": "host-local", "ranges": [[{"subnet": SUBNETS[node]}]], "routes": [{"dst": "0.0.0.0/0"}]}
    ipam["dataDir"] = "/var/lib/vnetpods/host-local"
    conflist = {"cniVersion": "1.0.0", "name": "reference", "plugins": [{"type": "ptp", "ipam": ipam}]}
    machine.run("sh", "-c", "cat > /etc/cni/net.d/10-reference.conflist", stdin=json.dumps(conflist))


def deployment(replicas: int) -> str:
    script = 'mkdir /www; hostname > /www/index.html; trap "exit 0" TERM; httpd -f -p 8080 -h /www & wait'
    container = {"name": "web", "image": image.BUSYBOX, "command": ["sh", "-c", script]}
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "web"}},
    }
    pod = {"containers": [container], "topologySpreadConstraints": [spread]}
    template = {"metadata": {"labels": {"app": "web"}}, "spec": pod}
    spec = {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": template}
    return json.dumps({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": spec})


def test_nodes_register_and_are_ready_only_once_they_have_a_network(cluster: Cluster) -> None:
    cluster.wait_registered()
    assert not any(cluster.node_ready(name) for name in SUBNETS)
    assert "podCIDR" not in cluster.get("node", "kt-1")["spec"]
    assert cluster.get("node", "kt-1")["spec"]["providerID"] == "azure:///subscriptions/0/kt-1"
    assert cluster.get("node", "kt-1")["status"]["capacity"]["pods"] == "30"
    for name in SUBNETS:
        write_reference_conflist(cluster, name)
    cluster.wait_ready()


def test_pods_run_on_both_nodes_and_a_service_reaches_them(cluster: Cluster) -> None:
    cluster.wait("the default ServiceAccount", lambda: cluster.get("serviceaccount", "default"), 30)
    cluster.apply(deployment(4))
    cluster.kubectl("rollout", "status", "deployment/web", f"--timeout={pace.stretched(60):.0f}s")
    pods = cluster.pods("--selector=app=web")
    assert {pod["spec"]["nodeName"] for pod in pods} == set(SUBNETS)
    cluster.kubectl("expose", "deployment/web", "--port=80", "--target-port=8080")
    address = cluster.get("service", "web")["spec"]["clusterIP"]
    names = {pod["metadata"]["name"] for pod in pods}
    first = min(names)
    cluster.wait("the Service", lambda: ask(cluster, first, f"http://{address}/") in names, 30)
    for pod in pods:
        assert ask(cluster, first, f"http://{pod['status']['podIP']}:8080/") == pod["metadata"]["name"]


def ask(cluster: Cluster, pod: str, url: str) -> str:
    return cluster.kubectl("exec", pod, "--", "wget", "-qO-", url).strip()


def test_a_node_comes_back_after_a_power_cut_with_its_pods(cluster: Cluster) -> None:
    before = {pod["metadata"]["uid"] for pod in cluster.pods("--selector=app=web")}
    cluster.power_cut("kt-2")
    cluster.boot("kt-2")
    cluster.wait_ready(["kt-2"])

    def restarted() -> bool:
        pods = [pod for pod in cluster.pods("--selector=app=web") if pod["spec"]["nodeName"] == "kt-2"]
        statuses = [pod["status"].get("containerStatuses", [{}])[0] for pod in pods]
        return bool(statuses) and all(each.get("ready") and each["restartCount"] >= 1 for each in statuses)

    cluster.wait("the pods of kt-2 to run again", restarted, 60)
    assert {pod["metadata"]["uid"] for pod in cluster.pods("--selector=app=web")} == before


def test_the_script_for_people_reaches_the_cluster(cluster: Cluster) -> None:
    done = subprocess.run(
        [cluster.folder / "kubectl", "get", "nodes", "-o", "name"], capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) == {"node/kt-1", "node/kt-2"}
    state = json.loads((cluster.folder / clusters.STATE).read_text())
    assert set(state["machines"]) == set(MEMBERS)


def test_a_token_for_a_node_is_refused_elsewhere_only_by_policy_but_names_its_node(cluster: Cluster) -> None:
    path: Path = cluster.kubeconfig_for("probe", node_name="kt-1", server=cluster.internal_url)
    machine = cluster.machines["kt-1"]
    done = machine.run(str(cluster.kubectl_program), f"--kubeconfig={path}", "auth", "whoami", "-o", "json")
    extra = json.loads(done.stdout)["status"]["userInfo"]["extra"]
    assert extra["authentication.kubernetes.io/node-name"] == ["kt-1"]
