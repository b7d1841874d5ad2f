"""The NodeIPPool's Python types, field by field as in crds/nodeippool.yaml (a test holds the two against each other).

Decoding is lenient towards fields of newer versions and strict about types. `None` stands for an absent field, so that
a server-side apply states exactly what its sender owns.
"""

from __future__ import annotations

from typing import Any

import msgspec

from vnetpods_api.conditions import Condition
from vnetpods_api.names import GROUP, KIND, VERSION


class _Object(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True, frozen=True):
    """Common settings: camelCase on the wire, defaults left out, immutable."""


class Sizing(_Object, kw_only=True, frozen=True):
    """spec.sizing: what differs from the operator's configuration, in addresses."""

    minimum: int | None = None
    warm: int | None = None
    batch: int | None = None
    maximum: int | None = None


class Spec(_Object, kw_only=True, frozen=True):
    """Which machine, and how large."""

    machine: str | None = None
    sizing: Sizing | None = None
    paused: bool = False


class Interface(_Object, kw_only=True, frozen=True):
    """One NIC that carries pod addresses; `addresses` and `releasing` hold single addresses and /28 blocks.

    `ip_configurations` names the ipConfiguration of each address, in the same order; empty from an operator that
    doesn't tell.
    """

    name: str
    mac: str
    subnet: str
    prefixes: tuple[str, ...] = ()
    primary_address: str | None = None
    capacity: int | None = None
    addresses: tuple[str, ...] = ()
    ip_configurations: tuple[str, ...] = ()
    releasing: tuple[str, ...] = ()

    @property
    def names(self) -> dict[str, str]:
        """The ipConfiguration of each address; empty when the list doesn't name them all."""
        if len(self.ip_configurations) != len(self.addresses):
            return {}
        return dict(zip(self.addresses, self.ip_configurations, strict=True))


class Usage(msgspec.Struct, rename="camel", kw_only=True, frozen=True):
    """What the node does with its addresses; zeros are sent, they are news too."""

    assigned: int = 0
    cooling: int = 0
    free: int = 0
    waiting: int = 0
    known: int | msgspec.UnsetType = msgspec.UNSET
    """How many addresses the interfaces listed when these were counted; blocks count 16."""


class AgentReport(_Object, kw_only=True, frozen=True):
    """status.agent: which agent process reported, and what of the operator's it had read (docs/architecture.md)."""

    instance: str
    report: int
    view: str | None = None
    release_request: str | None = None


class Status(_Object, kw_only=True, frozen=True):
    """Written by operator and agent, each its own fields."""

    observed_generation: int | None = None
    interfaces: tuple[Interface, ...] = ()
    subnet: str | None = None
    direct_cidrs: tuple[str, ...] = msgspec.field(default=(), name="directCIDRs")
    capacity: int | None = None
    allocated: int | None = None
    release_request: str | None = None
    confirmed_view: str | None = None
    lost: tuple[str, ...] = ()
    usage: Usage | None = None
    agent: AgentReport | None = None
    released: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    conditions: tuple[Condition, ...] = ()


class OwnerReference(_Object, kw_only=True, frozen=True):
    """The Node that the pool belongs to."""

    api_version: str
    kind: str
    name: str
    uid: str


class ManagedFields(_Object, kw_only=True, frozen=True):
    """Who has written an object, and when last; `time` in RFC 3339, UTC."""

    manager: str = ""
    subresource: str = ""
    time: str = ""


class Metadata(_Object, kw_only=True, frozen=True):
    """What we read of an object's metadata."""

    name: str
    uid: str | None = None
    resource_version: str | None = None
    generation: int = 0
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    owner_references: tuple[OwnerReference, ...] = ()
    managed_fields: tuple[ManagedFields, ...] = ()


class NodeIPPool(_Object, kw_only=True, frozen=True):
    """One per Node, named as the Node, cluster-scoped."""

    metadata: Metadata
    spec: Spec = Spec()
    status: Status = Status()


def from_object(body: Any) -> NodeIPPool:
    """Decodes the API server's JSON object; raises msgspec.ValidationError naming the field."""
    return msgspec.convert(body, NodeIPPool)


def apply_body(
    name: str,
    *,
    spec: Spec | None = None,
    status: Status | None = None,
    owner: OwnerReference | None = None,
    resource_version: str | None = None,
) -> dict[str, Any]:
    """The body of a server-side apply: exactly the fields that its sender owns.

    With `resource_version` the API server refuses the write (409) when the object has changed since it was read.
    """
    metadata: dict[str, Any] = {"name": name}
    if resource_version is not None:
        metadata["resourceVersion"] = resource_version
    if owner is not None:
        metadata["ownerReferences"] = [to_object(owner)]
    body: dict[str, Any] = {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND, "metadata": metadata}
    if spec is not None:
        body["spec"] = to_object(spec)
    if status is not None:
        body["status"] = to_object(status)
    return body


def to_object(value: msgspec.Struct) -> Any:
    """The JSON form (dicts and lists) of any of these types."""
    return msgspec.to_builtins(value)
