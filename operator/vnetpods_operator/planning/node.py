"""The fields of a Node that the operator uses. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vnetpods_api import OwnerReference
from vnetpods_api.names import MANAGED_LABEL
from vnetpods_operator.config import Selector

OS_LABEL = "kubernetes.io/os"
"""Set by the kubelet; a Node without it has no kubelet yet."""
CONTROL_PLANE_LABELS = ("node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/etcd")
"""A kubelet can't set these on itself (NodeRestriction)."""
POD_LIMIT = 110
"""The kubelet's default."""


@dataclass(frozen=True, slots=True)
class Node:
    """Compared as a whole: an event that changes none of these fields is ignored."""

    name: str
    uid: str
    provider_id: str
    pod_limit: int
    labels: Mapping[str, str]
    ready: bool = True
    """False if its condition Ready is False or Unknown: then its agent may be down, too."""
    unheard: bool = False
    """Whether Ready is Unknown: its kubelet has not reported for 40 s."""
    barred: str = ""
    """The reason of its condition NetworkUnavailable if that is True: it keeps pods away, whatever Ready is."""
    boot: tuple[str, ...] = ()
    """The boot, machine and system IDs that the kubelet reports; they differ after each boot."""
    since: str = ""
    """When the Node was created or its readiness last changed: it registered no later than that. RFC 3339, UTC."""

    @property
    def control_plane(self) -> bool:
        return any(label in self.labels for label in CONTROL_PLANE_LABELS)

    @property
    def registration(self) -> tuple[str, ...]:
        """If it differs, another machine may have taken the Node's name, even under the same resource id."""
        return self.uid, *self.boot

    @property
    def owner(self) -> OwnerReference:
        return OwnerReference(api_version="v1", kind="Node", name=self.name, uid=self.uid)

    def served(self, selector: Selector) -> bool:
        """Whether the operator manages the Node: agents run on Linux only, other Nodes would hold addresses in vain."""
        return (
            self.labels.get(MANAGED_LABEL) != "false"
            and self.labels.get(OS_LABEL, "linux") == "linux"
            and selector.matches(self.labels)
        )


def node_from(body: Mapping[str, Any]) -> Node:
    """Parses the API server's JSON."""
    metadata, status = body["metadata"], body.get("status", {})
    ready = [c for c in status.get("conditions") or () if c.get("type") == "Ready"]
    barred = [c for c in status.get("conditions") or () if c.get("type") == "NetworkUnavailable"]
    system = status.get("nodeInfo") or {}
    pods = status.get("allocatable", {}).get("pods", POD_LIMIT)
    try:
        pod_limit = int(pods)
    except ValueError:
        pod_limit = POD_LIMIT
    return Node(
        name=metadata["name"],
        uid=metadata["uid"],
        provider_id=body.get("spec", {}).get("providerID") or "",
        pod_limit=pod_limit,
        labels=dict(metadata.get("labels") or {}),
        ready=all(c.get("status") == "True" for c in ready),
        unheard=any(c.get("status") == "Unknown" for c in ready),
        barred=next((c.get("reason") or "no reason" for c in barred if c.get("status") == "True"), ""),
        boot=tuple(system.get(key) or "" for key in ("bootID", "machineID", "systemUUID")),
        since=max([metadata.get("creationTimestamp") or "", *(c.get("lastTransitionTime") or "" for c in ready)]),
    )
