"""Release requests: which entries the agent must release, which acknowledgements count (docs/architecture.md). Pure.

A request stands for names of ipConfigurations, not for addresses: names are random and never come back. Its token is
random, too, and known to this process only, so a report that repeats it was written after the request. Nothing from a
restored API server, a previous operator or a previous agent repeats it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vnetpods_api import Interface, Status


@dataclass(frozen=True, slots=True)
class Request:
    """The meaning of `status.releaseRequest`."""

    token: str
    names: Mapping[str, str]
    """ipConfiguration by address."""


def renewed(before: Request | None, interfaces: Iterable[Interface]) -> Request | None:
    """The request for all releasing addresses; it keeps its token unless it gains an entry.

    A cancelled release leaves the request: if it is requested again, that is a new request.
    """
    names = {a: i.names[a] for i in interfaces if i.releasing and i.names for a in i.releasing if a in i.names}
    if not names:
        return None
    if before is not None and names.items() <= before.names.items():
        return Request(before.token, names)
    return Request(secrets.token_hex(8), names)


def acknowledged(request: Request | None, status: Status, names: Mapping[str, str]) -> frozenset[str]:
    """Addresses that the node will never use again under their present names (`names`, by address)."""
    if request is None or status.agent is None or status.agent.release_request != request.token:
        return frozenset()
    return frozenset(a for a in status.released if a in names and request.names.get(a) == names[a])
