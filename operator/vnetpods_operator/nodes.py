"""What the operator needs to know of a Node. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vnetpods_api import OwnerReference
from vnetpods_api.names import MANAGED_LABEL
from vnetpods_operator.configuration import Selector

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

    @property
    def owner(self) -> OwnerReference:
        return OwnerReference(api_version="v1", kind="Node", name=self.name, uid=self.uid)

    def served(self, selector: Selector) -> bool:
        """Whether the operator is to look after it."""
        return self.labels.get(MANAGED_LABEL) != "false" and selector.matches(self.labels)


def node_from(body: Mapping[str, Any]) -> Node:
    """Out of the API server's JSON."""
    metadata = body["metadata"]
    conditions = body.get("status", {}).get("conditions") or ()
    pods = body.get("status", {}).get("allocatable", {}).get("pods", POD_LIMIT)
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
        ready=all(c.get("status") == "True" for c in conditions if c.get("type") == "Ready"),
    )
