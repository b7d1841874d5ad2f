"""The NodeIPPool's Python types, field by field as in crds/nodeippool.yaml (a test compares the two).

Decoding ignores unknown fields of newer versions and is strict about types. `None` means an absent field, so that a
server-side apply contains exactly the fields that its manager owns.
"""

from __future__ import annotations

from typing import Any

import msgspec

from vnetpods_api.conditions import Condition
from vnetpods_api.names import GROUP, KIND, VERSION


class _Object(msgspec.Struct, rename="camel", omit_defaults=True, kw_only=True, frozen=True):
    """Common settings: camelCase on the wire, defaults omitted, immutable."""


class Sizing(_Object, kw_only=True, frozen=True):
    """spec.sizing: overrides of the operator's configuration, in addresses."""

    minimum: int | None = None
    warm: int | None = None
    batch: int | None = None
    maximum: int | None = None


class Spec(_Object, kw_only=True, frozen=True):
    """The node's machine, and the pool's sizing."""

    machine: str | None = None
    sizing: Sizing | None = None
    paused: bool = False


class Interface(_Object, kw_only=True, frozen=True):
    """One NIC that carries pod addresses; `addresses` and `releasing` hold single addresses and /28 blocks.

    `ip_configurations` names the ipConfiguration of each address, in the same order; empty if written by an operator
    that doesn't report them.
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
        """The ipConfiguration of each address; empty if the list doesn't name them all."""
        if len(self.ip_configurations) != len(self.addresses):
            return {}
        return dict(zip(self.addresses, self.ip_configurations, strict=True))


class Usage(msgspec.Struct, rename="camel", kw_only=True, frozen=True):
    """The node's use of its addresses; zeros are sent, because they are information too."""

    assigned: int = 0
    cooling: int = 0
    free: int = 0
    waiting: int = 0
    known: int | msgspec.UnsetType = msgspec.UNSET
    """Number of addresses in the interfaces when these were counted; blocks count 16."""


class AgentReport(_Object, kw_only=True, frozen=True):
    """status.agent: the reporting agent process, and what it had read of the operator's (docs/architecture.md)."""

    instance: str
    report: int
    view: str | None = None
    release_request: str | None = None


class Status(_Object, kw_only=True, frozen=True):
    """Written by operator and agent, each owning its fields."""

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
    """A manager of an object's fields, and its last write; `time` in RFC 3339, UTC."""

    manager: str = ""
    subresource: str = ""
    time: str = ""


class Metadata(_Object, kw_only=True, frozen=True):
    """The fields of an object's metadata that we read."""

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
    """One per Node, named after the Node, cluster-scoped."""

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
    """The body of a server-side apply: exactly the fields that its manager owns.

    With `resource_version` the API server rejects the write (409) if the object has changed since it was read.
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
