"""One agent at a time: an exclusive lock on the state folder, held for a process's whole life.

Two agents with one ledger would each take the other's addresses for free (a force-deleted pod that still runs, a second
start by hand). The lock is the kernel's (flock(2) on the folder itself): it ends with the process, however that ends,
needs no file that could be left behind, and holds across containers, since they have mounted the same folder. Whoever
comes second waits, says so, serves nothing and reports nothing. The agent awaits `begin` before anything else.
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


async def begin(folder: Path, ended: asyncio.Event) -> bool:
    """True once we are alone; False when the end came first. The lock's descriptor stays open: it is the lock."""
    said = False
    with contextlib.suppress(OSError):  # the ledger says it better
        await asyncio.to_thread(folder.mkdir, 0o700, parents=True, exist_ok=True)
    while not ended.is_set():
        try:
            if _locked(folder):
                return True
        except OSError as error:  # without a folder there is no ledger either
            log.warning("the state folder can't be locked", folder=str(folder), error=str(error))
            return True
        if not said:
            log.warning("another agent runs with this state folder; waiting for it to end", folder=str(folder))
        said = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_AGAIN):
                await ended.wait()
    return False


def _locked(folder: Path) -> bool:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), folder.stat()):  # else it was made anew meanwhile
            return True
    except BlockingIOError:
        pass
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return False
