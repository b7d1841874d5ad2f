"""Atomic file writes: after a crash or power failure the file holds either the old or the new content.

Temporary file, fsync, rename, fsync of the directory.
"""

from __future__ import annotations

import os
from pathlib import Path

from vnetpods_kit.faultpoints import AgentPoint, reach


def save(path: Path, content: bytes) -> None:
    """Replaces the file; blocks for two fsyncs. Raises OSError; unless the last fsync failed, the old file remains."""
    temporary = path.with_name(f".{path.name}.tmp")  # a fixed name: a killed agent's leftover is overwritten
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
    """Makes the creation, renaming and removal of files in the directory durable. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
