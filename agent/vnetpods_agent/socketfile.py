"""The file of a unix socket that we listen on: open to its owner alone, and ours for as long as it is there.

It is bound under another name and renamed, so that the file of a process before us is replaced without a moment in
which nobody listens, and whoever finds it may call. Somebody may empty /run while we live: `lost` says so.
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
        """Listens, in place of whatever was there. Raises OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        os.fchmod(listener.fileno(), 0o600)  # the mode that bind(2) gives the file: it is never open to others
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
        """Whether what is there isn't ours, or nothing is. Raises OSError."""
        return _identity(self.path) != self._identity

    def taken(self) -> bool:
        """Whether a process listens there."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as caller:
            return caller.connect_ex(str(self.path)) in (0, errno.EAGAIN)

    def remove(self) -> None:
        """Unless it is the next agent's already."""
        with contextlib.suppress(OSError):
            if not self.lost():
                self.path.unlink()


def _identity(path: Path) -> tuple[int, int]:
    """Of the file there, no matter which one a path led to before; zeroes when there is none."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return (0, 0)
    return found.st_dev, found.st_ino
