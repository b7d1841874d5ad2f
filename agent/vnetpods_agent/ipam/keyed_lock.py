"""Serialises calls for one attachment, first come first served; calls for different ones overlap.

Event loop only; nothing here needs to survive a crash.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from vnetpods_agent.attachment import AttachmentKey


@dataclass(slots=True)
class _Turn:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class KeyedLock:
    def __init__(self) -> None:
        self._turns: dict[AttachmentKey, _Turn] = {}

    def busy(self, key: AttachmentKey) -> bool:
        """Whether a call for it is in progress."""
        return key in self._turns

    @asynccontextmanager
    async def of(self, key: AttachmentKey) -> AsyncIterator[None]:
        turn = self._turns.setdefault(key, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[key]
