"""Maps a path to a resource or list.

Pure. The result is a Target: one resource, a list, an operation or an action, and the permission it needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tests.azure.arm.errors import ArmError
from tests.azure.arm.ids import ResourceId, parse

Asked = Literal["resource", "list", "operation", "action"]
VERBS = {"GET": "read", "PUT": "write", "PATCH": "write", "DELETE": "delete"}


@dataclass(frozen=True, slots=True)
class Target:
    """`prefix` and `kind` of a list; `id` of a resource; `action` of a POST or of a sub-list like usages; `name` of an
    operation."""

    asked: Asked
    permission: str
    scope: str
    """The scope of the permission: a resource, a group, a subscription."""
    id: ResourceId | None = None
    prefix: str = ""
    kind: str = ""
    action: str = ""
    name: str = ""

    @property
    def subscription(self) -> str:
        return self.scope.split("/")[2].lower()


def target(method: str, path: str) -> Target:
    """Raises ArmError for a path that no service serves."""
    parts = [part for part in path.split("/") if part]
    lower = [part.lower() for part in parts]
    if len(parts) < 5 or lower[0] != "subscriptions" or "providers" not in lower:
        raise ArmError(404, "InvalidResourceType", f"The resource type could not be found for {path}.")
    at = lower.index("providers")
    if len(parts) < at + 3:
        raise ArmError(404, "InvalidResourceType", f"No resource type is named in {path}.")
    provider, rest = parts[at + 1], parts[at + 2 :]
    if at == 2:
        return _of_subscription(path, parts, rest)
    if lower[2] != "resourcegroups" or at != 4:
        raise ArmError(400, "InvalidResourceType", f"The path {path} is not that of a resource.")
    scope = "/" + "/".join(parts[:4])
    if method == "POST" and len(rest) % 2 == 1 and len(rest) > 2:
        resource = parse("/" + "/".join(parts[:-1]))
        action = rest[-1]
        return Target("action", f"{resource.type}/{action}/action", str(resource), resource, action=action)
    if len(rest) % 2 == 0:
        resource = parse("/" + "/".join(parts))
        verb = VERBS.get(method)
        if verb is None:
            raise ArmError(405, "MethodNotAllowed", f"{method} is not supported on {path}.")
        return Target("resource", f"{resource.type}/{verb}", str(resource), resource)
    kind = "/".join((provider, *rest[0::2]))
    prefix = "/" + "/".join(parts[:-1])
    if len(rest) == 1:
        return Target("list", f"{kind}/read", scope, prefix=scope, kind=kind)
    return Target("list", f"{kind}/read", prefix, parse(prefix), prefix=prefix, kind=kind, action=rest[-1])


def _of_subscription(path: str, parts: list[str], rest: list[str]) -> Target:
    scope = "/" + "/".join(parts[:2])
    lowered = [part.lower() for part in rest]
    if len(rest) == 4 and lowered[0] == "locations" and lowered[2] in ("operations", "operationresults"):
        permission = f"{parts[3]}/locations/{rest[2]}/read"
        return Target("operation", permission, scope, action=lowered[2], name=rest[3])
    if len(rest) == 1:
        kind = f"{parts[3]}/{rest[0]}"
        return Target("list", f"{kind}/read", scope, prefix=scope, kind=kind)
    raise ArmError(404, "InvalidResourceType", f"The resource type could not be found for {path}.")
