"""One agent at a time: exclusive locks on the folders of socket and state, held for a process's whole life.

Two agents with one ledger would each take the other's addresses for free (a force-deleted pod that still runs, a second
start by hand). The locks are the kernel's (flock(2) on the folders themselves): they end with the process, however that
ends, need no file that could be left behind, and hold across containers, since they have mounted the same folders.
Whoever comes second waits, says so, serves nothing and reports nothing. The agent awaits `begin` before anything else.

Somebody may delete a folder and make it again: who comes then would find the new one without a lock. So there are two,
and the newcomer has to have both; and the first looks now and then (`keep`), and locks what has taken a folder's place.
If that is another's already, or if the folder that it has mounted is gone from the host, it has to end.
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
    """`folders` in the order in which they are locked. The descriptors stay open: they are the locks."""

    def __init__(self, *folders: Path) -> None:
        self._folders = folders
        self._locks: dict[Path, int] = {}

    async def begin(self, ended: asyncio.Event) -> bool:
        """True once we are alone; False when the end came first."""
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
        """Why we aren't alone any more, or can't be; empty while we are. A folder that is gone is somebody else's to
        make anew.
        """
        for folder, lock in list(self._locks.items()):
            with contextlib.suppress(FileNotFoundError):
                here = os.fstat(lock)
                if not os.path.samestat(here, folder.stat()):
                    log.warning("the folder was replaced while in use", folder=str(folder))
                    os.close(self._locks.pop(folder))
                    if not self._lock(folder):
                        return f"{folder} was replaced while in use, and another agent has the new one"
                elif not here.st_nlink:  # still there for us alone, by our mount of it
                    return f"{folder} was deleted on the host while in use, and only another start sees the new one"
        return ""

    def _taken(self) -> Path | None:
        """The first folder that another agent has."""
        for folder in self._folders:
            with contextlib.suppress(OSError):  # the ledger and the server say it better
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
            if os.path.samestat(os.fstat(descriptor), folder.stat()):  # else it was made anew meanwhile
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
