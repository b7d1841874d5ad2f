"""The caller of a request to Azure, and its priority."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum


class Priority(IntEnum):
    """Order of service; lower is more urgent."""

    WAITING = 0  # pods wait for an address
    EMPTY = 1  # a node without any address
    WARM = 2  # growth ahead of demand
    RELEASE = 3  # addresses that are given back
    AUDIT = 4  # a periodic check


class GaveWay(Exception):  # noqa: N818 - named after what happened
    """The request was not sent: a more urgent node needs the worker, or the request is outdated. Reconcile again."""


def never() -> bool:
    """`outdated` of a caller whose task can't become outdated."""
    return False


@dataclass(slots=True)
class Caller:
    """Whom the current task's requests are for; `priority` may change while the task waits."""

    priority: Priority = Priority.AUDIT
    firm: bool = False
    """Azure has accepted a write, whose outcome must be known: never yields."""
    outdated: Callable[[], bool] = never
    """Returns whether the task's work is no longer wanted; called when a wait ends."""


caller: contextvars.ContextVar[Caller] = contextvars.ContextVar("caller")
"""Set by each worker around its work."""
