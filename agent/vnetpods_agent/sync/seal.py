"""Identifies a file's newest version in this boot, in a place that neither a boot nor a copy of the state folder keeps.

A state folder restored while the machine runs (a backup, a snapshot of a volume) has the right boot id, but some of its
addresses may have left the NIC since. Blocking; the seal is in a memory file system.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path


class Seal:
    """`path` is in a folder that is emptied by a boot. Without a seal (earlier agents wrote none), any content fits."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def fits(self, content: bytes) -> bool:
        try:
            return _digest(content) in self._path.read_text().split()
        except OSError:
            return True

    @contextlib.contextmanager
    def renewed(self, content: bytes) -> Iterator[None]:
        """Accepts the old and the new content while the file is written: a crash may leave either."""
        with contextlib.suppress(OSError):
            former = self._path.read_text().split() if self._path.exists() else []
            self._path.write_text(" ".join([*former[-1:], _digest(content)]))
        yield
        with contextlib.suppress(OSError):
            self._path.write_text(_digest(content))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
