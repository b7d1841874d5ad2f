"""Files that are there whole: after a crash or a power cut the old one or the new one.

Temporary name, sync, rename, sync of the folder.
"""

from __future__ import annotations

import os
from pathlib import Path

from vnetpods_kit.faultpoints import AgentPoint, reach


def save(path: Path, content: bytes) -> None:
    """Blocks for a disk sync or two. Raises OSError, and then the old file is still there."""
    temporary = path.with_name(f".{path.name}.tmp")  # one name: what a killed agent left is overwritten
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        reach(AgentPoint.POOL_SAVING)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes names in the folder durable: new, renamed and removed ones. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
