"""Wording that both programs' messages share."""

from __future__ import annotations

from collections.abc import Sequence


def some(names: Sequence[str], most: int = 5, separator: str = ", ") -> str:
    """`a, b and 3 more`: one message, however many there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more
