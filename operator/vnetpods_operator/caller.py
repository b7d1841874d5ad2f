"""On whose behalf a request to Azure is made, and how urgent that is."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum


class Priority(IntEnum):
    """Who goes first; lower is more urgent."""

    WAITING = 0  # pods wait for an address
    EMPTY = 1  # a node without any address
    WARM = 2  # growth ahead of demand
    RELEASE = 3  # addresses that go back
    AUDIT = 4  # a look whether all is as it should be


class GaveWay(Exception):  # noqa: N818 - named after what happened
    """The request was not sent: somebody more urgent needs the worker, or it is outdated. Look again."""


def never() -> bool:
    """For a caller whose task can't become outdated."""
    return False


@dataclass(slots=True)
class Caller:
    """On whose behalf the current task asks; the queue changes `priority` while the task waits."""

    priority: Priority = Priority.AUDIT
    firm: bool = False
    """Azure has accepted a write, whose end is to be known: never gives way."""
    outdated: Callable[[], bool] = never
    """Whether what the task was about to do is no longer wanted; asked when a wait has ended."""


caller: contextvars.ContextVar[Caller] = contextvars.ContextVar("caller")
"""Set by each worker around its work."""
