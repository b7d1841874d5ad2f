"""A whole cluster from a description: one control-plane machine, any number of nodes, all in existing namespaces.

Decided here: the start order, how the caller reaches the API server (a separate veth into the control plane's
namespace, so that the fabric under test need not carry it), and the files by which another process can use the cluster
and end it (`state.json` and a `kubectl` script in the cluster's folder). Nodes are NotReady until an agent installs
a CNI configuration. A cluster dies with the process that started it unless `keep` was called. Synchronous.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.kube import apiserver, binaries, controlplane, image, machine, pki
from tests.kube.api import Api
from tests.kube.machine import Identity, Machine
from tests.kube.node import Node

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

STATE = "state.json"


@dataclass(frozen=True)
class Member:
    """One machine of the cluster: a network namespace that is ready, and its address there."""

    name: str
    netns: str
    address: str
    provider_id: str = ""
    max_pods: int = 250
    labels: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Description:
    """The cluster to start. `folder` holds everything that is written; `images` are OCI archives for every node.

    `plugins` are installed into every node's /opt/cni/bin, as by a distribution's package; containerd itself calls
    loopback.
    """

    folder: Path
    control_plane: Member
    nodes: tuple[Member, ...]
    images: tuple[Path, ...] = ()
    plugins: tuple[str, ...] = ("loopback",)
    audited: tuple[str, ...] = ()
    """Users whose requests are all written to the API server's audit log; see `Cluster.audit`."""


@dataclass(frozen=True)
class Cluster(Api):
    """A running cluster, accessed by its administrator from the tests' own network namespace."""

    description: Description
    programs: Mapping[str, Path]
    machines: Mapping[str, Machine]
    nodes: Mapping[str, Node]
    images: tuple[Path, ...]
    internal_url: str
    """The API server's URL as its members reach it; for `kubeconfig_for(…, server=…)`."""

    def node_ready(self, name: str) -> bool:
        conditions = self.get("node", name)["status"].get("conditions", [])
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    def wait_registered(self, timeout: float = 60) -> None:
        """Returns when every kubelet has registered its Node (which may be NotReady)."""
        names = set(self.nodes)
        self.wait(
            f"the Nodes {sorted(names)}",
            lambda: names <= {item["metadata"]["name"] for item in self.get("nodes")["items"]},
            timeout,
        )

    def wait_ready(self, names: Iterable[str] = (), timeout: float = 60) -> None:
        """Returns when these nodes (all, if none are named) are Ready."""
        for name in names or self.nodes:
            self.wait(f"node {name} to be Ready", functools.partial(self.node_ready, name), timeout)

    def pods(self, *arguments: str) -> list[Any]:
        """Pods as JSON; `arguments` as for `kubectl get pods`."""
        return list(self.get("pods", *arguments)["items"])

    def audit(self) -> list[Any]:
        """The requests of the audited users so far (`audit.k8s.io/v1` Events, metadata only)."""
        log = self.folder / controlplane.AUDIT_LOG
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def power_cut(self, name: str) -> None:
        self.machines[name].power_cut()

    def boot(self, name: str) -> None:
        """Boots a member again after a power cut, with the programs it had."""
        self.machines[name].boot()
        if name in self.nodes:
            for plugin in self.description.plugins:
                self.machines[name].run("cp", str(self.programs[plugin]), f"/opt/cni/bin/{plugin}")
            self.nodes[name].start(self.programs, self.folder / "pki", self.internal_url, self.images)
        else:
            _start_control_plane(self)
        self.write_state()

    def keep(self) -> None:
        """Lets the cluster outlive this process; `python -m tests.kube down FOLDER` ends it."""
        for each in self.machines.values():
            each.keep()

    def down(self) -> None:
        """Ends all machines and removes their disks; logs and state stay in the folder."""
        for each in self.machines.values():
            each.destroy()
        subprocess.run(["ip", "link", "del", _link(self.folder)], check=False, capture_output=True)

    def write_state(self) -> None:
        """Writes the processes to end, and a kubectl for people: `FOLDER/kubectl get nodes`."""
        plane = self.machines[self.description.control_plane.name]
        members = {
            each.name: {
                "identity": asdict(each.identity) if each.identity else None,
                "group": each.group if each.runs_containers else None,
            }
            for each in self.machines.values()
        }
        (self.folder / STATE).write_text(json.dumps({"machines": members}, indent=1))
        if plane.init is None:
            return
        script = self.folder / "kubectl"
        enter = f"nsenter --target={plane.init.pid} --net --"
        kubeconfig = self.folder / "pki" / "admin.kubeconfig"
        script.write_text(f'#!/bin/sh\nexec {enter} {self.kubectl_program} --kubeconfig={kubeconfig} "$@"\n')
        script.chmod(0o755)


def up(description: Description) -> Cluster:
    """Starts the cluster until the API server is ready and the kubelets run. Ends everything again if that fails."""
    programs = binaries.programs(*binaries.CLUSTER, *description.plugins)
    folder = description.folder
    folder.mkdir(parents=True, exist_ok=True)
    busybox = folder / "busybox.tar"
    busybox.write_bytes(image.archive(image.BUSYBOX, image.busybox()))
    plane = description.control_plane
    near, far = _link_addresses(folder)
    authority = pki.Authority.open(folder / "pki")
    controlplane.prepare(authority, plane.address, [far])
    url = f"https://{far}:{controlplane.PORT}"
    admin = pki.with_certificate(authority.component("admin"))
    machines = {each.name: Machine(each.name, each.netns, folder / each.name) for each in description.nodes}
    machines[plane.name] = Machine(plane.name, plane.netns, folder / plane.name, runs_containers=False)
    cluster = Cluster(
        url=url,
        authority=folder / "pki" / "ca.crt",
        admin_kubeconfig=pki.kubeconfig(folder / "admin.kubeconfig", url, folder / "pki" / "ca.crt", admin),
        kubectl_program=programs["kubectl"],
        folder=folder,
        description=description,
        programs=programs,
        machines=machines,
        nodes={
            each.name: Node(machines[each.name], each.address, each.provider_id, each.max_pods, each.labels)
            for each in description.nodes
        },
        images=(busybox, *description.images),
        internal_url=f"https://{plane.address}:{controlplane.PORT}",
    )
    try:
        _connect(folder, plane.netns, near, far)
        machines[plane.name].boot()
        with ThreadPoolExecutor() as pool:
            started = pool.submit(_start_control_plane, cluster)
            others = [pool.submit(cluster.boot, each.name) for each in description.nodes]
            for future in (started, *others):
                future.result()
        cluster.write_state()
    except BaseException:
        cluster.down()
        raise
    return cluster


def down(folder: Path) -> list[str]:
    """Ends a kept cluster from another process and removes its folder; returns the names of its machines."""
    state = json.loads((folder / STATE).read_text())
    for each in state["machines"].values():
        if each["identity"]:
            machine.end(Identity(**each["identity"]), each["group"])
    shutil.rmtree(folder)
    return list(state["machines"])


def _start_control_plane(cluster: Cluster) -> None:
    plane = cluster.description.control_plane
    host, folder = cluster.machines[plane.name], cluster.folder / "pki"
    audit = controlplane.audit_flags(cluster.folder, cluster.description.audited)
    controlplane.start(host, cluster.programs, folder, plane.address, audit)
    apiserver.await_ready(cluster.url, cluster.authority, [host.daemons["etcd"], host.daemons["kube-apiserver"]])
    controlplane.start_controllers(host, cluster.programs, folder)


def _link(folder: Path) -> str:
    return f"kube{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"


def _link_addresses(folder: Path) -> tuple[str, str]:
    """Two neighbours in 100.127.0.0/16 (shared address space, RFC 6598), different for each cluster's folder."""
    number = int(hashlib.sha256(str(folder).encode()).hexdigest()[:4], 16) & 0xFFFC
    return tuple(f"100.127.{number >> 8}.{(number & 0xFF) + last}" for last in (1, 2))  # type: ignore[return-value]


def _connect(folder: Path, netns: str, near: str, far: str) -> None:
    """A veth from this process's namespace into the control plane's: `kube…` here, `mgmt0` there."""
    link = _link(folder)
    subprocess.run(["ip", "link", "del", link], check=False, capture_output=True)
    for command in (
        f"ip link add {link} type veth peer name mgmt0 netns {netns}",
        f"ip address add {near}/30 dev {link}",
        f"ip link set {link} up",
        f"ip -n {netns} address add {far}/30 dev mgmt0",
        f"ip -n {netns} link set mgmt0 up",
    ):
        subprocess.run(command.split(), check=True)
