"""The control plane: etcd, API server, controller manager and scheduler as daemons of one machine.

Decided here: their flags. Nodes get no podCIDR (addresses come from the VNet), a silent node is detected after 20 s
instead of 40, leader election is off. etcd's data is on the machine's disk, so a reboot keeps the objects. Ready 3-5 s
after start.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.kube import apiserver, pki

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tests.kube.machine import Machine

PORT = 6443
AUDIT_LOG = "audit.log"
ETCD = "127.0.0.1:2379"
MANAGER_FLAGS = (
    "--leader-elect=false",
    "--use-service-account-credentials=true",
    "--service-cluster-ip-range=10.96.0.0/16",
    "--node-monitor-period=2s",
    "--node-monitor-grace-period=20s",
    "--bind-address=127.0.0.1",
    "--profiling=false",
)
AGGREGATION_FLAGS = (
    "--requestheader-allowed-names=front-proxy-client",
    "--requestheader-username-headers=X-Remote-User",
    "--requestheader-group-headers=X-Remote-Group",
    "--requestheader-extra-headers-prefix=X-Remote-Extra-",
)
MEMORY = {"GOGC": "50"}


def prepare(authority: pki.Authority, address: str, names: Sequence[str]) -> None:
    """Writes the components' certificates and kubeconfigs; `names` are further names or addresses of the API server."""
    authority.server("apiserver", [*pki.SERVER_NAMES, address, *names])
    ca_file = authority.folder / "ca.crt"
    for name in pki.CLIENTS:
        user = pki.with_certificate(authority.component(name))
        pki.kubeconfig(authority.folder / f"{name}.kubeconfig", f"https://{address}:{PORT}", ca_file, user)


def audit_flags(folder: Path, users: Sequence[str]) -> list[str]:
    """Flags that log every finished request of these users; none without users."""
    if not users:
        return []
    rules: list[dict[str, object]] = [{"level": "Metadata", "users": list(users)}, {"level": "None"}]
    policy = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": rules}
    path = folder / "audit-policy.json"
    path.write_text(json.dumps(policy))
    return [f"--audit-policy-file={path}", f"--audit-log-path={folder / AUDIT_LOG}", "--audit-log-mode=blocking"]


def start(machine: Machine, programs: Mapping[str, Path], folder: Path, address: str, more: Sequence[str] = ()) -> None:
    """Starts the API server with etcd behind it; `folder` holds the PKI, `address` is the machine's."""
    etcd = apiserver.etcd_flags("/var/lib/etcd/data", ETCD, "127.0.0.1:2380")
    machine.start("etcd", [str(programs["etcd"]), *etcd], MEMORY)
    flags = apiserver.server_flags(folder, f"http://{ETCD}", address, PORT)
    flags += [
        f"--kubelet-client-certificate={folder}/apiserver-kubelet-client.crt",
        f"--kubelet-client-key={folder}/apiserver-kubelet-client.key",
        "--kubelet-preferred-address-types=InternalIP",
        f"--requestheader-client-ca-file={folder}/ca.crt",
        f"--proxy-client-cert-file={folder}/front-proxy-client.crt",
        f"--proxy-client-key-file={folder}/front-proxy-client.key",
        *AGGREGATION_FLAGS,
        *more,
    ]
    machine.start("kube-apiserver", [str(programs["kube-apiserver"]), *flags], MEMORY)


def start_controllers(machine: Machine, programs: Mapping[str, Path], folder: Path) -> None:
    """Starts controller manager and scheduler; they exit if the API server isn't ready, so wait for it first."""
    manager = [
        f"--kubeconfig={folder}/kube-controller-manager.kubeconfig",
        f"--service-account-private-key-file={folder}/sa.key",
        f"--root-ca-file={folder}/ca.crt",
        f"--cluster-signing-cert-file={folder}/ca.crt",
        f"--cluster-signing-key-file={folder}/ca.key",
        *MANAGER_FLAGS,
    ]
    scheduler = [f"--kubeconfig={folder}/kube-scheduler.kubeconfig", "--leader-elect=false", "--profiling=false"]
    machine.start("kube-controller-manager", [str(programs["kube-controller-manager"]), *manager], MEMORY)
    scheduler.append("--bind-address=127.0.0.1")
    machine.start("kube-scheduler", [str(programs["kube-scheduler"]), *scheduler], MEMORY)
