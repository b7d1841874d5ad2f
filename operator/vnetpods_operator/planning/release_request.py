"""Which entries the agent was asked to give back, and what of its answer counts (docs/architecture.md). Pure.

A request stands for names of ipConfigurations, not for addresses: names are random and never come back. Its token is
random, too, and known to this process alone, so an answer that repeats it was given after the question. What an API
server restored from a backup, a former operator or a former agent said repeats none.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vnetpods_api import Interface, Status


@dataclass(frozen=True, slots=True)
class Request:
    """What `status.releaseRequest` stands for."""

    token: str
    names: Mapping[str, str]
    """By address."""


def renewed(before: Request | None, interfaces: Iterable[Interface]) -> Request | None:
    """The request for what these list as releasing; the former one as long as nothing is asked for beyond it.

    What is no longer asked for leaves the request: if it is asked for once more, that is another question.
    """
    names = {a: i.names[a] for i in interfaces if i.releasing and i.names for a in i.releasing if a in i.names}
    if not names:
        return None
    if before is not None and names.items() <= before.names.items():
        return Request(before.token, names)
    return Request(secrets.token_hex(8), names)


def acknowledged(request: Request | None, status: Status, names: Mapping[str, str]) -> frozenset[str]:
    """Addresses that the node will never use again under the names that they have now (`names`, by address)."""
    if request is None or status.agent is None or status.agent.release_request != request.token:
        return frozenset()
    return frozenset(a for a in status.released if a in names and request.names.get(a) == names[a])
