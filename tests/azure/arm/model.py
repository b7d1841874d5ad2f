"""The interface between the cloud and the rules of one resource type, both ways.

Pure. `kinds.py` lists the types; `cloud.py` is the Model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tests.azure.arm.addresses import SubnetSpace
from tests.azure.arm.ids import ResourceId
from tests.azure.arm.settings import Settings
from tests.azure.arm.store import Body, Resource, Store


class Model(Protocol):
    """The state that rules read and write."""

    store: Store
    settings: Settings
    spaces: dict[str, SubnetSpace]

    def delete(self, resource: Resource, now: float) -> None: ...

    def remember(self, resource: Resource, now: float, done: float) -> None:
        """Called before a change whose operation ends at `done`: keeps the state for stale reads and slow metadata."""

    def links(self, target: str) -> list[str]:
        """Ids of those that refer to a resource."""

    def link(self, target: str, user: str) -> None: ...

    def unlink(self, target: str, user: str) -> None: ...


def _nothing(model: Model, resource: Resource, previous: Body | None) -> None: ...


def _free(model: Model, resource: Resource, now: float) -> None: ...


def _body(model: Model, resource: Resource) -> Body:
    return resource.body


@dataclass(frozen=True, slots=True)
class Kind:
    """One resource type.

    `write` decides on a PUT: it raises ArmError and changes nothing, or returns the new body (and has allocated what it
    needs). `written` runs once the body is stored, `remove` before a resource is deleted (and may refuse), `shown`
    makes the body of a GET.
    """

    type: str
    write: Callable[[Model, ResourceId, Body, Resource | None, float], Body]
    written: Callable[[Model, Resource, Body | None], None] = _nothing
    remove: Callable[[Model, Resource, float], None] = _free
    shown: Callable[[Model, Resource], Body] = _body
