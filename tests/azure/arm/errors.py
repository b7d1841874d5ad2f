"""The error envelope of ARM: `{"error": {"code", "message", "details": []}}`.

Every refusal in this package is an ArmError; `cloud.Cloud.handle` turns it into a reply. Anything else that escapes is
a bug of the emulator and ends the test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class ArmError(Exception):
    """One refusal, in the service's words."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        details: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.details = tuple(details)
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        return {"error": self.error()}

    def error(self) -> dict[str, Any]:
        """The inner object, which a failed operation has, too."""
        details = [{"code": code, "message": message} for code, message in self.details]
        return {"code": self.code, "message": self.message, "details": details}


def not_found(text: str, group: str) -> ArmError:
    """A resource that a request names in its path."""
    kind, _, name = text.rpartition("/")
    kind = kind.partition("/providers/")[2]
    return ArmError(
        404, "ResourceNotFound", f"The Resource '{kind}/{name}' under resource group '{group}' was not found."
    )


def unknown_group(name: str) -> ArmError:
    return ArmError(404, "ResourceGroupNotFound", f"Resource group '{name}' could not be found.")


def check_names(entries: Sequence[Mapping[str, Any]], where: object) -> None:
    """Every entry of a list in a body must have a name."""
    if not all(entry.get("name") for entry in entries):
        raise ArmError(400, "InvalidRequestFormat", f"A child resource of {where} has no name.")


def missing_reference(wanted: str, by: str) -> ArmError:
    """A resource that a body refers to."""
    return ArmError(
        400,
        "InvalidResourceReference",
        f"Resource {wanted} referenced by resource {by} was not found. Please make sure that the referenced resource "
        "exists, "
        "and that both resources are in the same region.",
    )
