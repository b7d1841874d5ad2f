"""What the operator needs to know of a Node. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vnetpods_api import OwnerReference
from vnetpods_api.names import MANAGED_LABEL
from vnetpods_operator.config import Selector

OS_LABEL = "kubernetes.io/os"
"""The kubelet sets it; a Node without it has not been seen by a kubelet yet."""
CONTROL_PLANE_LABELS = ("node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/etcd")
"""A kubelet can't give itself these (NodeRestriction)."""
POD_LIMIT = 110
"""The kubelet's own default."""


@dataclass(frozen=True, slots=True)
class Node:
    """Compared as a whole: an event that changes none of this is no news."""

    name: str
    uid: str
    provider_id: str
    pod_limit: int
    labels: Mapping[str, str]
    ready: bool = True
    """False when the Node says that it isn't, or nothing is heard of its kubelet: then its agent may be away too."""
    unheard: bool = False
    """Nothing is heard of its kubelet: the API server says so after 40 s."""
    barred: str = ""
    """The reason of a condition NetworkUnavailable that holds: it keeps pods away, whatever Ready says."""
    boot: tuple[str, ...] = ()
    """What the kubelet says of the system it runs on; differs after each start of it."""
    since: str = ""
    """When the Node was made or its readiness changed last: it has not registered later. RFC 3339, UTC."""

    @property
    def control_plane(self) -> bool:
        return any(label in self.labels for label in CONTROL_PLANE_LABELS)

    @property
    def registration(self) -> tuple[str, ...]:
        """Once it differs, another machine may have taken the Node's name, even under the same resource id."""
        return self.uid, *self.boot

    @property
    def owner(self) -> OwnerReference:
        return OwnerReference(api_version="v1", kind="Node", name=self.name, uid=self.uid)

    def served(self, selector: Selector) -> bool:
        """Whether the operator is to look after it: agents run on Linux only, others would hold addresses in vain."""
        return (
            self.labels.get(MANAGED_LABEL) != "false"
            and self.labels.get(OS_LABEL, "linux") == "linux"
            and selector.matches(self.labels)
        )


def node_from(body: Mapping[str, Any]) -> Node:
    """Out of the API server's JSON."""
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
