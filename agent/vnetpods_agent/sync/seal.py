"""Which state of a file is the newest of this boot, kept where neither a boot nor a copy of the state folder brings it.

A state folder that somebody puts back as it was (a backup, a snapshot of a volume) while the machine runs on has the
right boot id, and a list of addresses of which some may have left the NIC since. Blocking, for memory's file system.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path


class Seal:
    """`path` is in a folder that ends with the boot. Without a seal (an agent of before made none) all is believed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def fits(self, content: bytes) -> bool:
        try:
            return _digest(content) in self._path.read_text().split()
        except OSError:
            return True

    @contextlib.contextmanager
    def renewed(self, content: bytes) -> Iterator[None]:
        """While the file is being written either state may be found after a crash."""
        with contextlib.suppress(OSError):
            former = self._path.read_text().split() if self._path.exists() else []
            self._path.write_text(" ".join([*former[-1:], _digest(content)]))
        yield
        with contextlib.suppress(OSError):
            self._path.write_text(_digest(content))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
