"""A machine's own subtree in every cgroup hierarchy of this host.

Decided here: what a host must offer for a kubelet to run pods inside a machine (version 1 hierarchies; on a pure
version 2 host the machine's own processes would have to leave the root of their subtree first, which isn't done here),
and how the subtrees are named and removed. Called by machine.py before a machine boots and after it has died.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

from tests import pace

ROOT = Path("/sys/fs/cgroup")
NEEDED = frozenset({"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids"})
REMOVE_SECONDS = 10


class HostError(Exception):
    """This host can't run machines; the message says what is missing and what to do."""


@dataclass(frozen=True)
class Hierarchy:
    """One mounted hierarchy: where, and what `mount` has to be told to mount it again (empty for version 2)."""

    folder: Path
    options: str


def hierarchies() -> list[Hierarchy]:
    """Every hierarchy of this host; HostError if pods can't run with them."""
    found: list[Hierarchy] = []
    controllers: set[str] = set()
    generic = {"rw", "ro", "nosuid", "nodev", "noexec", "relatime", "noatime"}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, folder, kind, options, *_ = line.split()
        if not folder.startswith(str(ROOT)) or kind not in ("cgroup", "cgroup2"):
            continue
        words = [word for word in options.split(",") if word not in generic and not word.startswith("xattr")]
        if kind == "cgroup2":
            found.append(Hierarchy(Path(folder), ""))
        else:
            named = [word for word in words if word.startswith("name=")]
            controllers |= set(words)
            found.append(Hierarchy(Path(folder), ",".join(["none", *named] if named else words)))
    if missing := NEEDED - controllers:
        raise HostError(
            f"machines need the cgroup version 1 hierarchies {', '.join(sorted(NEEDED))}; this host lacks "
            f"{', '.join(sorted(missing))} below {ROOT} (a version 2 host?). Boot it with "
            "systemd.unified_cgroup_hierarchy=0, or run only the tests that need no cluster: pytest -m 'not e2e'"
        )
    return found


def make(group: str) -> list[Path]:
    """Creates the subtree `group` (such as "vnetpods-1f2e/worker-1") in every hierarchy; returns its folders."""
    folders = []
    for hierarchy in hierarchies():
        folder = hierarchy.folder
        for part in Path(group).parts:
            folder /= part
            folder.mkdir(exist_ok=True)
            for name in ("cpuset.cpus", "cpuset.mems"):  # a new cpuset is empty, and no process may run in it
                if (folder / name).exists() and hierarchy.options:
                    (folder / name).write_text((folder.parent / name).read_text())
            with contextlib.suppress(OSError):  # already so, or a kernel that knows nothing else
                if (folder / "memory.use_hierarchy").exists():
                    (folder / "memory.use_hierarchy").write_text("1")
        folders.append(folder)
    return folders


def remove(group: str) -> None:
    """Removes the subtrees of a dead machine; its last processes may need a moment to exit."""
    deadline = time.monotonic() + pace.stretched(REMOVE_SECONDS)
    for hierarchy in hierarchies():
        folder = hierarchy.folder / group
        while folder.exists():
            for child in sorted(folder.rglob("*/"), key=lambda path: -len(path.parts)):
                with contextlib.suppress(OSError):
                    child.rmdir()
            with contextlib.suppress(OSError):
                folder.rmdir()
            if folder.exists():
                if time.monotonic() > deadline:
                    raise HostError(f"{folder} can't be removed: processes {(folder / 'cgroup.procs').read_text()!r}")
                time.sleep(0.05)
        with contextlib.suppress(OSError):  # other machines of the same cluster may still be there
            folder.parent.rmdir()
