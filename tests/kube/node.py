"""Makes a machine a node: containerd with runc, kubelet, kube-proxy.

Decided here: their configuration. A node starts without any CNI configuration and stays NotReady until an agent has
written one to /etc/cni/net.d. kube-proxy uses nftables and recognises pods by their interface's name, because the
cluster has no pod CIDR. Images are imported at each boot from archives on the host. machine.py documents what survives
a reboot.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests import pace
from tests.kube import image, pki

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.kube.machine import Machine

RUNC = "/usr/sbin/runc"
"""Debian's: one built without cgo has no seccomp, and RuntimeDefault fails."""
POD_INTERFACES = "azv"
SOCKET_SECONDS = 20
UNUSED = ("snapshotter.v1.btrfs", "snapshotter.v1.zfs", "snapshotter.v1.devmapper", "snapshotter.v1.erofs")
CONTAINERD = """\
version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = {disabled}
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "{snapshotter}"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{sandbox}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true  # virtual machines of test runners lack CAP_SYS_RESOURCE
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["/opt/cni/bin"]
  conf_dir = "/etc/cni/net.d"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
  BinaryName = "{runc}"
  SystemdCgroup = false
"""


class NodeError(Exception):
    """A node's program didn't start; carries the end of its log."""


@dataclass(frozen=True)
class Node:
    """A node: its machine, and how its kubelet registers it."""

    machine: Machine
    address: str
    provider_id: str = ""
    max_pods: int = 250
    labels: Mapping[str, str] | None = None

    @property
    def name(self) -> str:
        return self.machine.name

    def start(self, programs: Mapping[str, Path], pki_folder: Path, server: str, images: Sequence[Path]) -> None:
        """Starts everything; also after a reboot. Returns once the images are imported and the kubelet is started."""
        self.start_containerd(programs)
        for archive in images:
            self.machine.run(str(programs["ctr"]), "--namespace=k8s.io", "images", "import", str(archive))
        self.start_kubelet(programs, pki_folder, server)
        self.start_kube_proxy(programs, pki_folder)

    def start_containerd(self, programs: Mapping[str, Path]) -> None:
        config = CONTAINERD.format(
            disabled=json.dumps([f"io.containerd.{name}" for name in (*UNUSED, "nri.v1.nri")]),
            snapshotter="native" if _on_overlay(self.machine.folder) else "overlayfs",
            sandbox=image.BUSYBOX,
            runc=RUNC,
        )
        self._write("/etc/containerd/config.toml", config)
        daemon = self.machine.start(
            "containerd",
            [str(programs["containerd"]), "--config=/etc/containerd/config.toml"],
            {"GOGC": "50", "PATH": f"{programs['containerd-shim-runc-v2'].parent}:/usr/sbin:/usr/bin:/sbin:/bin"},
        )
        deadline = time.monotonic() + pace.stretched(SOCKET_SECONDS)
        while self.machine.run(str(programs["ctr"]), "version", check=False).returncode:
            if not daemon.running or time.monotonic() > deadline:
                raise NodeError(f"{self.name}: containerd doesn't answer; end of {daemon.log}:\n{daemon.tail()}")
            time.sleep(0.05)

    def start_kubelet(self, programs: Mapping[str, Path], pki_folder: Path, server: str) -> None:
        """`server` is the API server's URL as this machine reaches it."""
        self._write("/etc/kubernetes/kubelet.json", json.dumps(self._kubelet_configuration(pki_folder), indent=1))
        authority = pki.Authority.open(pki_folder)
        kubeconfig = pki_folder / f"kubelet-{self.name}.kubeconfig"
        user = pki.with_certificate(authority.node(self.name))
        pki.kubeconfig(kubeconfig, server, pki_folder / "ca.crt", user)
        flags = [
            "--config=/etc/kubernetes/kubelet.json",
            f"--kubeconfig={kubeconfig}",
            f"--hostname-override={self.name}",
            f"--node-ip={self.address}",
        ]
        if self.labels:
            flags.append("--node-labels=" + ",".join(f"{key}={value}" for key, value in self.labels.items()))
        self.machine.start("kubelet", [str(programs["kubelet"]), *flags], {"GOGC": "50"})

    def start_kube_proxy(self, programs: Mapping[str, Path], pki_folder: Path) -> None:
        flags = [
            f"--kubeconfig={pki_folder}/kube-proxy.kubeconfig",
            f"--hostname-override={self.name}",
            "--proxy-mode=nftables",
            "--detect-local-mode=InterfaceNamePrefix",
            f"--pod-interface-name-prefix={POD_INTERFACES}",
            # settings of the whole kernel, which are read-only here
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0s",
            "--conntrack-tcp-timeout-close-wait=0s",
        ]
        self.machine.start("kube-proxy", [str(programs["kube-proxy"]), *flags], {"GOGC": "50"})

    def _kubelet_configuration(self, pki_folder: Path) -> dict[str, object]:
        never = dict.fromkeys(("memory.available", "nodefs.available", "imagefs.available", "nodefs.inodesFree"), "0%")
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": f"{pki_folder}/ca.crt"},
            },
            "authorization": {"mode": "Webhook"},
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "cgroupDriver": "cgroupfs",
            "failCgroupV1": False,
            "failSwapOn": False,
            "providerID": self.provider_id,
            "maxPods": self.max_pods,
            "clusterDNS": ["10.96.0.10"],
            "clusterDomain": "cluster.local",
            "volumePluginDir": "/var/lib/kubelet/volumeplugins",  # the default is below /usr, which is the host's
            "imageGCHighThresholdPercent": 100,
            "evictionHard": never,
            "nodeStatusUpdateFrequency": "5s",
        }

    def _write(self, path: str, content: str) -> None:
        self.machine.run("sh", "-c", f"mkdir -p {Path(path).parent} && cat > {path}", stdin=content)


def _on_overlay(folder: Path) -> bool:
    """Overlay on overlay isn't possible: where the tests' folder is one (a container), layers are copied instead."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    holding = [mount for mount in mounts if folder.resolve().is_relative_to(mount[1])]
    return max(holding, key=lambda mount: len(mount[1]))[2] == "overlay"
