"""The demo's Azure and cluster, with vnetpods installed as people install it: the built image, the chart, helm.

Differs from the demo's world in who starts operator and agents (kubelets do) and in that the API server writes down
every request of their two ServiceAccounts.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests import pace
from tests.azure import client as azure
from tests.demo.world import ADDRESSES, AGENT, NIC_SECONDS, OPERATOR, PLANE, ROOT, WORKERS, World
from tests.install import building
from tests.kube import binaries
from tests.kube import cluster as clusters

if TYPE_CHECKING:
    from tests.kube.cluster import Description

NAMESPACE = "kube-system"
CHART = ROOT / "helm" / "vnetpods"
ACCOUNTS = ("vnetpods-operator", "vnetpods-agent")
RELEASE_TIME = f"{pace.stretched(180):.0f}s"
MAX_PODS = 60
"""So few that the operator has to count the pods in the host's network."""
IDENTITY = "vnetpods"
"""Client id of the user-assigned identity that the operator signs in with."""


class HelmError(Exception):
    """helm failed; its words."""


def _camel(key: str) -> str:
    first, *others = key.split("_")
    return first + "".join(map(str.capitalize, others))


def azure_actions() -> list[str]:
    """The role that docs/install.md has people make."""
    role: dict[str, Any] = json.loads((ROOT / "docs" / "azure-role.json").read_text())
    return list(role["Actions"])


def values() -> dict[str, Any]:
    """What a person would write for this cluster: the image, this Azure's endpoint, seconds where they'd have
    minutes.
    """
    repository, _, tag = building.IMAGE.rpartition(":")
    own = {key: value for key, value in OPERATOR.items() if key != "listen"}
    return {
        "image": {"repository": repository, "tag": tag, "pullPolicy": "Never"},
        "azure": {"credentials": {"type": "managedIdentity", "clientId": IDENTITY}},
        "operator": {"config": own},
        "agent": {"config": {_camel(key): value for key, value in AGENT.items()}},
    }


class InstalledWorld(World):
    """Nothing of ours is on the cluster until `install`."""

    def up(self) -> None:
        self._azure = cloud = azure.start(self.folder / "azure", duration=NIC_SECONDS, outlive=self.keep)
        cloud.create_vnet("cluster", "10.240.0.0/12")
        cloud.create_subnet("cluster", "pods", "10.240.0.0/16")
        for name in (PLANE, *WORKERS):
            cloud.create_vm(name, "cluster/pods", ADDRESSES[name])
        cloud.assign_role(IDENTITY, azure_actions())
        self._cluster = clusters.up(self._description())

    def _description(self) -> Description:
        described = super()._description()
        return dataclasses.replace(
            described,
            nodes=tuple(dataclasses.replace(member, max_pods=MAX_PODS) for member in described.nodes),
            images=(building.ARCHIVE,),
            audited=tuple(f"system:serviceaccount:{NAMESPACE}:{name}" for name in ACCOUNTS),
        )

    def helm(self, *arguments: str, stdin: str | None = None) -> str:
        """As an administrator types it."""
        command = [str(binaries.program("helm")), *arguments, f"--namespace={NAMESPACE}"]
        command.append(f"--kubeconfig={self.cluster.admin_kubeconfig}")
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, check=False, timeout=pace.stretched(240)
        )
        if done.returncode:
            raise HelmError(f"helm {' '.join(arguments)}: {done.stderr}")
        return done.stdout

    def install(self, chart: Path = CHART, *arguments: str) -> str:
        return self.helm("install", "vnetpods", str(chart), "--values=-", *arguments, stdin=json.dumps(values()))

    def upgrade(self, change: dict[str, Any] | None = None, *arguments: str) -> str:
        """To the chart of this tree, with `change` over the values; returns when everything is rolled out.

        helm alone waits for no more of a DaemonSet than its maxUnavailable demands.
        """
        given = merged(values(), change or {})
        waiting = ("--wait", f"--timeout={RELEASE_TIME}")
        said = self.helm("upgrade", "vnetpods", str(CHART), "--values=-", *waiting, *arguments, stdin=json.dumps(given))
        for workload in ("deployment/vnetpods-operator", "daemonset/vnetpods-agent"):
            self.cluster.kubectl(
                "rollout", "status", workload, f"--namespace={NAMESPACE}", f"--timeout={pace.stretched(60):.0f}s"
            )
        return said


def merged(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    """As helm lays values over each other."""
    both = {key: merged(left[key], right[key]) for key in left.keys() & right.keys() if isinstance(right[key], dict)}
    return left | right | both


def previous_chart(folder: Path) -> Path:
    """The chart of the commit before this one, unpacked into `folder`."""
    command = ["git", "-C", str(ROOT), "archive", "HEAD~1", "helm/vnetpods"]
    archive = subprocess.run(command, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder / "helm" / "vnetpods"
