"""The file of a unix socket that we listen on, accessible to its owner only.

It is bound under a temporary name and renamed, so that an earlier process's file is replaced without a moment when
nothing listens, and every caller that finds it can connect. If /run is emptied while we run, `lost` returns True.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from pathlib import Path


class SocketFile:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._identity = (0, 0)  # device and inode

    def bind(self, backlog: int) -> socket.socket:
        """Listens, replacing any file at the path. Raises OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        os.fchmod(listener.fileno(), 0o600)  # bind(2) gives the file this mode, so it is never open to others
        try:
            listener.bind(str(temporary))
            listener.listen(backlog)
            self._identity = _identity(temporary)
            temporary.replace(self.path)
        except OSError:
            listener.close()
            raise
        return listener

    def lost(self) -> bool:
        """Whether the file is missing or not ours. Raises OSError."""
        return _identity(self.path) != self._identity

    def taken(self) -> bool:
        """Whether a process listens at the path."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as caller:
            return caller.connect_ex(str(self.path)) in (0, errno.EAGAIN)

    def remove(self) -> None:
        """Removes the file, unless it is already the next agent's."""
        with contextlib.suppress(OSError):
            if not self.lost():
                self.path.unlink()


def _identity(path: Path) -> tuple[int, int]:
    """Device and inode of the file now at the path; zeroes without one."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return (0, 0)
    return found.st_dev, found.st_ino
