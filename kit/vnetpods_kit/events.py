"""Kubernetes Events as both programs write them (events.k8s.io/v1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

NOTE_BYTES = 1024
"""Longest note of an Event; the API server rejects more."""
_INSTANCE_CHARACTERS = 128


def stamp(moment: datetime) -> str:
    """The time in the format of metav1.MicroTime."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def note(message: str) -> str:
    """The message, truncated to the length of an Event's note."""
    return message.encode()[:NOTE_BYTES].decode(errors="ignore")


@dataclass(frozen=True, slots=True)
class EventWriter:
    """Builds Events of one reporting controller, instance and action."""

    controller: str
    instance: str
    action: str

    def warning(
        self, name: tuple[str, str], regarding: Mapping[str, str], reason: str, message: str, now: datetime
    ) -> dict[str, Any]:
        """Builds a Warning. `name`: the Event's namespace and name; `regarding`: the object that it is about."""
        namespace, own = name
        return {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": own, "namespace": namespace},
            "eventTime": stamp(now),
            "type": "Warning",
            "reason": reason,
            "action": self.action,
            "note": note(message),
            "reportingController": self.controller,
            "reportingInstance": self.instance[:_INSTANCE_CHARACTERS],
            "regarding": dict(regarding),
        }
