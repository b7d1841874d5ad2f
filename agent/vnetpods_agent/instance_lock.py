"""One agent at a time: exclusive locks on the folders of socket and state, held for a process's whole life.

Two agents with one ledger would each treat the other's addresses as free (a force-deleted pod that still runs, a second
start by hand). The locks are flock(2) on the folders themselves: they end with the process, however it ends, leave no
file behind, and hold across containers, which mount the same folders. The second agent waits, logs it, serves nothing
and reports nothing. The agent awaits `begin` before anything else.

A folder may be deleted and recreated: a newcomer would find the new one unlocked. So there are two, and a newcomer
needs both; the holder checks regularly (`keep`) and locks a folder that replaced a former one. If another agent already
holds that lock, or if a mounted folder is gone from the host, the holder must exit.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from pathlib import Path

import structlog

_AGAIN = 0.25

log = structlog.get_logger(component="tenure")


class Tenure:
    """`folders` in locking order. The open descriptors are the locks."""

    def __init__(self, *folders: Path) -> None:
        self._folders = folders
        self._locks: dict[Path, int] = {}

    async def begin(self, ended: asyncio.Event) -> bool:
        """True once this is the only agent; False if `ended` was set first."""
        said = False
        while not ended.is_set():
            taken = await asyncio.to_thread(self._taken)
            if taken is None:
                return True
            if not said:
                log.warning("another agent runs with this folder; waiting for it to end", folder=str(taken))
            said = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_AGAIN):
                    await ended.wait()
        return False

    def keep(self) -> str:
        """Why this is no longer the only agent, or can't be sure of it; empty while it is. Leaves it to others to
        recreate a missing folder.
        """
        for folder, lock in list(self._locks.items()):
            with contextlib.suppress(FileNotFoundError):
                here = os.fstat(lock)
                if not os.path.samestat(here, folder.stat()):
                    log.warning("the folder was replaced while in use", folder=str(folder))
                    os.close(self._locks.pop(folder))
                    if not self._lock(folder):
                        return f"{folder} was replaced while in use, and another agent has the new one"
                elif not here.st_nlink:  # exists only in our own mount
                    return f"{folder} was deleted on the host while in use, and only another start sees the new one"
        return ""

    def _taken(self) -> Path | None:
        """The first folder that another agent has locked."""
        for folder in self._folders:
            with contextlib.suppress(OSError):  # ledger and server report it better
                folder.mkdir(0o700, parents=True, exist_ok=True)
            if not self._lock(folder):
                return folder
        return None

    def _lock(self, folder: Path) -> bool:
        if folder in self._locks:
            return True
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:  # without a folder there is no ledger either
            log.warning("the folder can't be locked", folder=str(folder), error=str(error))
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), folder.stat()):  # else it was recreated meanwhile
                self._locks[folder] = descriptor
                return True
        except BlockingIOError:
            pass
        except OSError as error:
            log.warning("the folder can't be locked", folder=str(folder), error=str(error))
            os.close(descriptor)
            return True
        os.close(descriptor)
        return False
