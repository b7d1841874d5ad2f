"""The store of resources: one dictionary by id, one index by type.

Holds bodies as they are sent (with id, name, type, etag and provisioning states), so that a GET is a look-up. Knows no
rules. Everything here runs in the one task that calls `Cloud.handle`; nothing survives the process.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.azure.arm.ids import ResourceId, key

Body = dict[str, Any]

NAMESPACE = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")
"""Etags and GUIDs are derived from id and revision: the same run gives the same ones."""


@dataclass(slots=True)
class Resource:
    """One resource. `body` is a GET's response; `revision` counts changes, and with `birth` it makes the etag."""

    id: ResourceId
    body: Body
    state: str = "Succeeded"
    """Its provisioningState."""
    revision: int = 0
    birth: int = 0
    """How many resources had this id before: an etag never comes back."""
    operation: str = ""
    memory: dict[str, Any] = field(default_factory=dict)
    """State that the service keeps but doesn't show (a NIC's VM, an instance's model)."""

    @property
    def properties(self) -> Body:
        properties: Body = self.body["properties"]
        return properties

    @property
    def etag(self) -> str:
        if self.id.provider.lower() == "microsoft.compute" and not self.id.kind.endswith("/networkinterfaces"):
            return f'"{self.revision}"'
        lives = (self.birth,) if self.birth else ()
        return f'W/"{guid(self.id.key, *lives, self.revision)}"'

    def changed(self, state: str | None = None) -> None:
        """A new etag, and states stamped into the body and into what is listed inside it."""
        self.revision += 1
        self.state = state or self.state
        self.stamp()

    def stamp(self) -> None:
        etag = self.etag
        self.body["etag"] = etag
        properties = self.properties
        properties["provisioningState"] = self.state
        for part in properties.get("ipConfigurations") or ():
            if "properties" in part:
                part["etag"] = etag
                part["properties"]["provisioningState"] = self.state


def guid(*seed: object) -> str:
    return str(uuid.uuid5(NAMESPACE, "|".join(map(str, seed))))


class Store:
    """All resources of all subscriptions."""

    def __init__(self) -> None:
        self._all: dict[str, Resource] = {}
        self._kinds: dict[str, dict[str, Resource]] = {}
        self._removed: dict[str, int] = {}
        """How often a resource of this key was removed."""
        self._groups: set[str] = set()
        """Keys of resource groups that something was ever in; a group outlives what is in it."""

    def get(self, wanted: ResourceId | str) -> Resource | None:
        return self._all.get(_key(wanted))

    def add(self, resource: Resource) -> None:
        self._all[resource.id.key] = resource
        if resource.birth != (birth := self._removed.get(resource.id.key, 0)):
            resource.birth = birth
            if resource.revision:
                resource.stamp()
        self._groups.add(_group(resource.id))
        self._kinds.setdefault(resource.id.kind, {})[resource.id.key] = resource

    def has_group(self, wanted: ResourceId) -> bool:
        """Whether there is the resource group that the id names."""
        return _group(wanted) in self._groups

    def remove(self, resource: Resource) -> None:
        del self._all[resource.id.key]
        self._removed[resource.id.key] = self._removed.get(resource.id.key, 0) + 1
        del self._kinds[resource.id.kind][resource.id.key]

    def all(self) -> Iterator[Resource]:
        """All resources."""
        yield from list(self._all.values())

    def of_kind(self, kind: str) -> Iterator[Resource]:
        """All resources of a type (`Microsoft.Network/networkInterfaces`), oldest first."""
        yield from list(self._kinds.get(kind.lower(), {}).values())

    def below(self, prefix: str, kind: str) -> Iterator[Resource]:
        """Those of a type whose id starts with a subscription's, a group's or a parent's."""
        start = key(prefix) + "/"
        return (resource for resource in self.of_kind(kind) if resource.id.key.startswith(start))

    def __len__(self) -> int:
        return len(self._all)


def _group(wanted: ResourceId) -> str:
    return f"{wanted.subscription}/{wanted.group}".lower()


def _key(wanted: ResourceId | str) -> str:
    return wanted.key if isinstance(wanted, ResourceId) else key(wanted)
