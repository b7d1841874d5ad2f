"""The world of demo and end-to-end tests: a small Azure, a real Kubernetes in it, operator and agents on its machines.

Decided here: names and addresses, the configuration that operator and agents run with (seconds where production has
minutes; the election is production's), and how a step looks at each of the three truths: the NIC in the emulator, the
NodeIPPool, the ledger on the node's disk. What a pool says for a moment only is kept by a watch (history.py). Nothing
here knows what a step expects. Synchronous; one thread.
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests import pace
from tests.agent import shim
from tests.azure import client as azure
from tests.azure.arm.admin import RefusedError
from tests.azure.arm.builder import GROUP, SUBSCRIPTION
from tests.azure.client import Azure
from tests.demo.history import History, Moment
from tests.demo.report import Report, StepFailed
from tests.install.rendering import templates
from tests.kube import cluster as clusters
from tests.kube import image
from tests.kube.api import KubeError
from tests.kube.cluster import Cluster, Description, Member
from tests.kube.machine import Daemon, Identity, Machine, MachineError

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent
PLANE, WORKERS, PEER = "plane", ("worker-1", "worker-2"), "peer"
ADDRESSES = {PLANE: "10.240.0.4", "worker-1": "10.240.0.5", "worker-2": "10.240.0.6", PEER: "10.9.0.4"}
INTERNET = "203.0.113.10"
NAMESPACE = "kube-system"
STATE = "world.json"
PORT = 8080

NIC_SECONDS = 1.5
"""How long a NIC write takes in this Azure."""
WARM = 8
OPERATOR = {
    "listen": "127.0.0.1:9461",
    "groups": [{"minimum": 16, "warm": WARM, "batch": 16}],
    "release": {"after": "5s"},
    "azure": {"endpoint": "http://20.0.0.1:8080", "poll": "500ms"},
}
AGENT = {"cooldown": 5, "sweep_interval": 3, "report_interval": 2, "annotations": {"snat": ["default"]}}

SOON = f"{pace.stretched(5):.0f}"
"""Seconds within which an answer comes, if one comes."""
SERVE = f"""
mkdir -p $1/cgi-bin
printf '#!/bin/sh\\necho\\necho $REMOTE_ADDR\\n' > $1/cgi-bin/caller
chmod +x $1/cgi-bin/caller
trap 'exit 0' TERM
httpd -f -p 0.0.0.0:{PORT} -h $1 & wait
"""
"""A web server whose page /cgi-bin/caller says who called."""


@dataclass(frozen=True)
class Pod:
    """What the steps want to know of a pod."""

    name: str
    node: str
    address: str
    ready: bool


class World:
    """`folder` gets logs, state and a kubectl script; with `keep` everything outlives this process."""

    nodes = WORKERS
    peer_address = ADDRESSES[PEER]

    def __init__(self, folder: Path, report: Report, *, keep: bool = False) -> None:
        self.folder = folder
        self.report = report
        self.keep = keep
        self._azure: Azure | None = None
        self._cluster: Cluster | None = None
        self._peer: Machine | None = None
        self._history: History | None = None

    # life

    def up(self) -> None:
        """Azure, machines, Kubernetes, our CRD and rights; neither operator nor agents."""
        self.report.say("ARM emulator and VNet fabric: VNet 10.240.0.0/12, a peered one, an internet")
        self._azure = cloud = azure.start(self.folder / "azure", duration=NIC_SECONDS, outlive=self.keep)
        cloud.create_vnet("cluster", "10.240.0.0/12")
        cloud.create_subnet("cluster", "pods", "10.240.0.0/16")
        cloud.create_vnet("other", "10.9.0.0/16")
        cloud.create_subnet("other", "hosts", "10.9.0.0/24")
        cloud.peer("cluster", "other")
        for name in (PLANE, *WORKERS):
            cloud.create_vm(name, "cluster/pods", ADDRESSES[name])
        cloud.create_vm(PEER, "other/hosts", ADDRESSES[PEER])
        self._peer = Machine(PEER, PEER, self.folder / PEER, runs_containers=False)
        self._peer.boot()
        self._peer.start("web", ["busybox", "sh", "-c", SERVE, "sh", "/run/www"])
        self.report.say(f"Kubernetes: etcd, API server, … on {PLANE}; containerd, kubelet, kube-proxy on each worker")
        self._cluster = clusters.up(self._description())
        self.cluster.apply((ROOT / "crds" / "nodeippool.yaml").read_text())
        self._history = History(self.cluster, self.folder / "pools.txt")
        self.cluster.apply(templates("serviceaccounts", "rbac-operator", "rbac-agent"))
        if self.keep:
            self._let_live()

    def _description(self) -> Description:
        members = [
            Member(name, name, ADDRESSES[name], provider_id=f"azure://{machine_id(name)}", max_pods=250)
            for name in WORKERS
        ]
        return Description(self.folder / "kube", Member(PLANE, PLANE, ADDRESSES[PLANE]), tuple(members))

    def _let_live(self) -> None:
        self.cluster.keep()
        assert self._peer is not None
        self._peer.keep()
        assert self._peer.identity is not None
        (self.folder / STATE).write_text(json.dumps({"peer": asdict(self._peer.identity)}))
        link = self.folder / "kubectl"
        link.unlink(missing_ok=True)
        link.symlink_to(self.folder / "kube" / "kubectl")

    def down(self) -> None:
        """Ends everything this world started. Logs stay in the folder."""
        if self._history is not None:
            self._history.close()
        if self._cluster is not None:
            self._cluster.down()
        if self._peer is not None:
            self._peer.destroy()
        if self._azure is not None:
            self._azure.stop()

    @staticmethod
    def down_left_over(folder: Path) -> None:
        """Ends what an earlier process left up in this folder, and removes the folder."""
        with suppress(FileNotFoundError):
            clusters.down(folder / "kube")
        with suppress(FileNotFoundError):
            Identity(**json.loads((folder / STATE).read_text())["peer"]).kill()
        with suppress(FileNotFoundError, ConnectionRefusedError):
            azure.connect(folder / "azure").stop()
        shutil.rmtree(folder, ignore_errors=True)

    @property
    def cluster(self) -> Cluster:
        assert self._cluster is not None, "the world is not up"
        return self._cluster

    @property
    def azure(self) -> Azure:
        assert self._azure is not None, "the world is not up"
        return self._azure

    # operator and agents

    def start_operator(self) -> None:
        """On the control plane's machine, under its own ServiceAccount; started again whenever it ends, as a
        Deployment's.
        """
        kubeconfig = self.cluster.kubeconfig_for("vnetpods-operator", NAMESPACE, server=self.cluster.internal_url)
        config = self._write("operator", OPERATOR)
        command = [str(PROGRAMS / "vnetpods-operator"), "--config", str(config), "--kubeconfig", str(kubeconfig)]
        environment = {"AZURE_TOKEN_CREDENTIALS": "ManagedIdentityCredential"}
        self.cluster.machines[PLANE].start("operator", command, environment, supervised=True)

    def start_agent(self, node: str) -> None:
        """Under its own ServiceAccount with a token bound to the Node; started again whenever it ends."""
        kubeconfig = self.cluster.kubeconfig_for(
            "vnetpods-agent", NAMESPACE, node_name=node, server=self.cluster.internal_url
        )
        own = {
            "node": node,
            "source": {"kubernetes": {"kubeconfig": str(kubeconfig)}},
            "paths": {"shim": str(shim.program())},
        }
        config = self._write(f"agent-{node}", {_camel(key): value for key, value in AGENT.items()} | own)
        command = [str(PROGRAMS / "vnetpods-agent"), "run", "--config", str(config)]
        self.cluster.machines[node].start("agent", command, supervised=True)

    def kill_operator(self) -> None:
        """SIGKILL, as a crash."""
        self._daemon(PLANE, "operator").crash()

    def kill_agent(self, node: str) -> None:
        """SIGKILL, as a crash."""
        self._daemon(node, "agent").crash()

    def process_ids(self, node: str) -> tuple[int, int]:
        """The operator's and that node's agent's."""
        return self._daemon(PLANE, "operator").pid, self._daemon(node, "agent").pid

    def _daemon(self, machine: str, name: str) -> Daemon:
        return self.cluster.machines[machine].daemons[name]

    def _write(self, name: str, config: dict[str, Any]) -> Path:
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps(config, indent=1))  # JSON is YAML
        return path

    # Nodes and NodeIPPools

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """As an administrator types it."""
        return self.cluster.kubectl(*arguments, stdin=stdin)

    def until_nodes_exist(self) -> tuple[str, ...]:
        """The workers' names, once their kubelets have registered them."""
        self.cluster.wait_registered()
        return WORKERS

    def node_is_ready(self, node: str) -> bool:
        """As the kubelet says."""
        return self.cluster.node_ready(node)

    def pool_status(self, node: str) -> dict[str, Any]:
        """Empty while there is no pool."""
        try:
            found: dict[str, Any] = self.cluster.get("nodeippool", node).get("status", {})
        except KubeError:
            return {}
        return found

    def pool_condition(self, node: str, type_: str) -> str:
        """Its status; empty while there is no such condition."""
        conditions = self.pool_status(node).get("conditions", [])
        return next((str(c["status"]) for c in conditions if c["type"] == type_), "")

    def pool_addresses(self, node: str) -> set[str]:
        """What the NodeIPPool lists."""
        return {a for i in self.pool_status(node).get("interfaces", []) for a in i.get("addresses", [])}

    def releasing(self, node: str) -> set[str]:
        """What the operator asks back."""
        return {a for i in self.pool_status(node).get("interfaces", []) for a in i.get("releasing", [])}

    def settled(self, node: str) -> bool:
        """Whether no release is under way."""
        return not self.releasing(node) and not self.pool_status(node).get("released")

    def history(self, node: str) -> list[Moment]:
        """What the NodeIPPool said since the world came up."""
        assert self._history is not None
        return self._history.of(node)

    def usage(self, node: str) -> dict[str, int]:
        """The agent's counts."""
        return dict(self.pool_status(node).get("usage", {}))

    # Azure

    def primary(self, node: str) -> str:
        """The node's own address."""
        return ADDRESSES[node]

    def nic_addresses(self, node: str) -> set[str]:
        """What the NIC holds for pods."""
        return {a for name, a in self.azure.addresses(f"{node}-nic").items() if name.startswith("vnetpods-")}

    def arm_requests(self) -> dict[str, int]:
        """Requests so far by operation."""
        return self.azure.counts()

    # pods

    def create_web(self, replicas: int) -> None:
        """Pods that answer who called, spread over the nodes, behind a Service."""
        spread = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule"}
        extra = {"topologySpreadConstraints": [spread | {"labelSelector": {"matchLabels": {"app": "web"}}}]}
        self.cluster.apply(json.dumps(_deployment("web", replicas, ["sh", "-c", SERVE, "sh", "/www"], extra)))
        port = {"port": 80, "targetPort": PORT}
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"selector": {"app": "web"}, "ports": [port]},
        }
        self.cluster.apply(json.dumps(service))

    def create_burst(self, replicas: int, node: str) -> None:
        """Many pods on one node, which answer who called, too."""
        extra = {"nodeSelector": {"kubernetes.io/hostname": node}, "terminationGracePeriodSeconds": 1}
        self.cluster.apply(json.dumps(_deployment("burst", replicas, ["sh", "-c", SERVE, "sh", "/www"], extra)))

    def create_untranslated(self) -> None:
        """A pod that asks to leave under its own address to everywhere."""
        deployment = _deployment("own", 1, ["sleep", "3600"], {})
        deployment["spec"]["template"]["metadata"]["annotations"] = {"vnetpods.io/snat": "never"}
        self.cluster.apply(json.dumps(deployment))

    def give_public_address(self, pod: Pod) -> str:
        """By hand, to the pod's ipConfiguration, as with `az network nic ip-config update`; returns it."""
        public = self.azure.put("Microsoft.Network/publicIPAddresses", pod.name, {"publicIPAllocationMethod": "Static"})
        nic = self.azure.nic(f"{pod.node}-nic")
        for part in nic["properties"]["ipConfigurations"]:
            if part["properties"]["privateIPAddress"] == pod.address:
                part["properties"]["publicIPAddress"] = {"id": public["id"]}
        self.azure.request("PUT", nic["id"], nic)
        return str(public["properties"]["ipAddress"])

    def scale(self, app: str, replicas: int) -> None:
        """`kubectl scale`."""
        self.kubectl("scale", f"deployment/{app}", f"--replicas={replicas}")

    def pods(self, app: str) -> list[Pod]:
        """All of an app's pods, also those that are on their way out."""
        return [_pod(item) for item in self.cluster.pods("-n", "default", "-l", f"app={app}")]

    def running(self, app: str, count: int | None = None) -> list[Pod] | None:
        """Its ready pods with an address, once there are `count` of them and no others."""
        pods = self.pods(app)
        ready = [pod for pod in pods if pod.ready and pod.address]
        return ready if count is None or len(pods) == len(ready) == count else None

    def failed_sandboxes(self) -> list[str]:
        """Events of pods whose sandbox could not be made."""
        events = self.cluster.get("events", "-n", "default")["items"]
        return [event["message"] for event in events if event["reason"] == "FailedCreatePodSandBox"]

    def service_address(self, name: str) -> str:
        """Its ClusterIP."""
        return str(self.cluster.get("service", name, "-n", "default")["spec"]["clusterIP"])

    # traffic

    def exec(self, pod: Pod, *command: str) -> str:
        """`kubectl exec`."""
        return self.kubectl("exec", "-n", "default", pod.name, "--", *command)

    def call_from_pod(self, pod: Pod, address: str, port: int = PORT, path: str = "/cgi-bin/caller") -> str:
        """Who the far side says has called."""
        return self.exec(pod, "timeout", SOON, "wget", "-qO-", f"http://{address}:{port}{path}").strip()

    def try_call_from_pod(self, pod: Pod, address: str, port: int, path: str = "/cgi-bin/caller") -> str | None:
        """The same; None when there is no answer."""
        with suppress(KubeError):
            return self.call_from_pod(pod, address, port, path)
        return None

    def call_from_peer(self, address: str) -> str:
        """Who the pod says has called."""
        assert self._peer is not None
        return _call(self._peer, address)

    def call_from_node(self, node: str, address: str) -> str:
        """Who the pod says has called."""
        return _call(self.cluster.machines[node], address)

    def metadata_from(self, pod: Pod) -> str:
        """What a pod gets from the instance metadata service: its answer, or "refused"."""
        return self.try_call_from_pod(pod, "169.254.169.254", 80) or "refused"

    def ping(self, pod: Pod, address: str, *, source: str | None = None) -> bool:
        """One echo request from the pod, perhaps with a source that isn't its own; whether it is answered."""
        if source is None:
            return self._answered(pod, "ping", "-c", "1", "-W", SOON, address)
        machine = self.cluster.machines[pod.node]
        sandbox = machine.run("sh", "-c", f"ip route get {pod.address} | grep -o 'azv[0-9a-f]*'").stdout.strip()
        namespace = machine.run("sh", "-c", _NAMESPACE_OF.format(interface=sandbox)).stdout.strip()
        inside = ["nsenter", f"--net={namespace}"]
        machine.run(*inside, "ip", "address", "add", f"{source}/32", "dev", "lo")
        try:
            forged = machine.run(*inside, "busybox", "ping", "-c", "1", "-W", "1", "-I", source, address, check=False)
        finally:
            machine.run(*inside, "ip", "address", "del", f"{source}/32", "dev", "lo")
        return forged.returncode == 0

    def _answered(self, pod: Pod, *command: str) -> bool:
        try:
            self.exec(pod, *command)
        except KubeError:
            return False
        return True

    def peer_echo_requests(self) -> int:
        """ICMP echo requests that the peered host has received."""
        assert self._peer is not None
        lines = self._peer.run("cat", "/proc/net/snmp").stdout.splitlines()
        names, values = (line.split() for line in lines if line.startswith("Icmp:"))
        return int(values[names.index("InEchos")])

    # the node

    def ledger_addresses(self, node: str) -> set[str]:
        """Assigned addresses as the ledger on the node's disk has them."""
        path = self.cluster.machines[node].folder / "disk" / "var-lib-vnetpods" / "ledger.db"
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
            found = {row[0] for row in database.execute("SELECT address FROM attachment")}
        database.close()
        return found

    def pod_interfaces(self, node: str) -> int:
        """Host ends of pods' interfaces."""
        links = json.loads(self.cluster.machines[node].run("ip", "-j", "link").stdout)
        return sum(link["ifname"].startswith("azv") for link in links)

    def add_milliseconds(self, *, waited: bool) -> list[float]:
        """How long successful ADDs took, as the agents' logs say: those served at once, or those that had to wait."""
        found = []
        for node in WORKERS:
            for line in (self.cluster.machines[node].folder / "log" / "agent.log").read_text().splitlines():
                entry = json.loads(line) if line.startswith("{") else {}
                if entry.get("verb") == "ADD" and entry.get("outcome") == "ok":
                    found.append(float(entry["ms"]))
        limit = 1000.0 * NIC_SECONDS / 3  # an address that isn't there yet takes a NIC write
        return [ms for ms in found if (ms > limit) == waited]

    def tell_why(self) -> None:
        """Prints where to look after a failure: pools, pods that aren't Running, the ends of the logs."""
        with suppress(KubeError, AssertionError, RefusedError):
            self.report.show(self.kubectl("get", "nodes,nodeippools", "-o", "wide"))
            self.report.show(self.kubectl("get", "pods", "-A", "-o", "wide", "--field-selector=status.phase!=Running"))
            self.report.show(self.kubectl("get", "events", "-A", "--field-selector=type=Warning")[-4000:])
        for log in sorted(self.folder.glob("kube/*/log/*.log")):
            if log.stem in ("operator", "agent"):
                self.report.say(str(log))
                self.report.show("\n".join(log.read_text(errors="replace").splitlines()[-15:]))


_NAMESPACE_OF = """
index=$(cat /sys/class/net/{interface}/iflink); for n in /run/netns/cni-*; do
ip=$(nsenter --net=$n cat /proc/net/if_inet6 /proc/net/dev >/dev/null && nsenter --net=$n ip -o link show dev eth0)
case "$ip" in $index:*@if$(cat /sys/class/net/{interface}/ifindex):*) echo $n;; esac; done
"""
"""Prints the network namespace in which the other end of a host interface is."""


def machine_id(name: str) -> str:
    """The VM's resource id."""
    return f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.Compute/virtualMachines/{name}"


def _deployment(app: str, replicas: int, command: list[str], extra: dict[str, Any]) -> dict[str, Any]:
    container = {"name": app, "image": image.BUSYBOX, "command": command}
    labels = {"app": app}
    spec = {"containers": [container], "terminationGracePeriodSeconds": 2, "enableServiceLinks": False, **extra}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": app, "namespace": "default"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }


def _pod(item: dict[str, Any]) -> Pod:
    status = item["status"]
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", []))
    return Pod(item["metadata"]["name"], item["spec"].get("nodeName", ""), status.get("podIP", ""), ready)


def _call(machine: Machine, address: str) -> str:
    command = ["busybox", "timeout", SOON, "busybox", "wget", "-qO-", f"http://{address}:{PORT}/cgi-bin/caller"]
    try:
        return machine.run(*command).stdout.strip()
    except MachineError as error:
        raise StepFailed(f"{machine.name} → {address}: {error}") from error


def _camel(name: str) -> str:
    return re.sub(r"_(.)", lambda match: match[1].upper(), name)
