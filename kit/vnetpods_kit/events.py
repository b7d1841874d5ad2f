"""Kubernetes Events as both programs write them (events.k8s.io/v1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

NOTE_BYTES = 1024
"""Of an Event's text; the API server refuses more."""
_INSTANCE_CHARACTERS = 128


def stamp(moment: datetime) -> str:
    """As metav1.MicroTime is written."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def note(message: str) -> str:
    """As much of it as an Event holds."""
    return message.encode()[:NOTE_BYTES].decode(errors="ignore")


@dataclass(frozen=True, slots=True)
class EventWriter:
    """Who reports, and in what course of action."""

    controller: str
    instance: str
    action: str

    def warning(
        self, name: tuple[str, str], regarding: Mapping[str, str], reason: str, message: str, now: datetime
    ) -> dict[str, Any]:
        """`name`: the Event's own namespace and name. `regarding`: the object that it is about."""
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
