"""Installs the shim and the conflist on the host for the container runtime, and uninstalls both.

The order matters. The shim comes first and the conflist last, once an ADD can be served, since the conflist makes the
kubelet report the node Ready (aws#1923). The conflist stays when the agent stops: removing it would make the pods of a
full node undeletable. Uninstalling removes the conflist first.

Both files appear by rename of a synced temporary file, so that a reader finds the old file, the new one or none, also
after a crash at any point (aws#1437), and a running shim is never "text file busy". Temporary names start with a dot
and end in `.tmp`, since libcni reads every `.conf`, `.conflist` and `.json` of its folder. `Installation.ensure` is
called every few seconds once an ADD can be served, since either file may be removed; it blocks for a few milliseconds.
The shim's folder may be read-only then, if `vnetpods-agent install` put the shim there before.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import structlog

from vnetpods_kit.atomicfile import sync_folder

SHIM = "vnetpods"
CONFLIST = "05-vnetpods.conflist"
"""The runtime uses the alphabetically first file of its folder."""

LEFTOVER_AGE = 600.0
"""Seconds after which a temporary file counts as left behind by a killed writer."""

VERSIONS = ("0.4.0", "1.0.0", "1.1.0")
"""CNI versions of the conflist; a runtime that supports several uses the highest one."""
PLAIN_VERSION = "1.0.0"
"""For runtimes that ignore `cniVersions` and can't parse a result of a later version (libcni before 1.2, so containerd
1.6 and 1.7): with 1.1.0 each of their ADDs would fail.
"""

ANNOTATIONS = "io.kubernetes.cri.pod-annotations"
"""The capability by which containerd and CRI-O pass a pod's annotations to a plugin, in runtimeConfig."""
_CHAINED: dict[str, dict[str, Any]] = {
    "portmap": {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
    "bandwidth": {"type": "bandwidth", "capabilities": {"bandwidth": True}},
}
_log = structlog.get_logger(component="installer")


class InstallError(Exception):
    """A file couldn't be installed or removed; the message names it, and what to check."""


def conflist(chained: Sequence[str] = (), *, bin_dir: Path) -> dict[str, Any]:
    """The network as the runtime reads it (CNI specification 1.1.0, "Configuration format").

    `chained` names reference plugins to run after ours ("portmap" for hostPort, "bandwidth" for the bandwidth
    annotations). One whose program is missing from `bin_dir` is omitted: a conflist that names a missing program would
    fail every pod of the node.
    """
    plugins: list[dict[str, Any]] = [{"type": SHIM, "capabilities": {ANNOTATIONS: True, "ips": True}}]
    for name in chained:
        if name not in _CHAINED:
            raise InstallError(f"plugin {name!r} can't be chained; known are {', '.join(sorted(_CHAINED))}")
        if (bin_dir / name).exists():
            plugins.append(_CHAINED[name])
    return {"cniVersion": PLAIN_VERSION, "cniVersions": list(VERSIONS), "name": SHIM, "plugins": plugins}


class Installation:
    """Keeps the files installed while the agent serves. `trouble` names what is not, and why."""

    def __init__(self, source: Path, bin_dir: Path, conf_dir: Path, chained: Sequence[str] = ()) -> None:
        self.trouble = ""
        self._source = source
        self._bin_dir = bin_dir
        self._conf_dir = conf_dir
        self._chained = chained
        self._left_out: list[str] = []

    def ensure(self) -> None:
        """Installs missing or different files. Logs a lasting failure once."""
        trouble = "; ".join(self._ensure())
        if trouble != self.trouble:
            self.trouble = trouble
            _log.log(logging.ERROR if trouble else logging.INFO, "installation", trouble=trouble)

    def _ensure(self) -> Iterator[str]:
        try:
            install_shim(self._source, self._bin_dir)
        except InstallError as error:
            there = (self._bin_dir / SHIM).exists()
            found = "is not this version's" if there else "is missing"
            yield f"the shim {found} ({error}; `vnetpods-agent install` in an init container puts it there as well)"
            if not there:  # a conflist that names a missing program would fail every pod
                return
        left_out = [name for name in self._chained if not (self._bin_dir / name).exists()]
        if left_out != self._left_out:
            self._left_out = left_out
            _log.warning("chained plugins that are not installed", left_out=left_out, folder=str(self._bin_dir))
        try:
            install_conflist(self._conf_dir, conflist(self._chained, bin_dir=self._bin_dir))
        except InstallError as error:
            yield str(error)


def install_shim(source: Path, bin_dir: Path) -> bool:
    """Installs the shim in the runtime's plugin folder. False if an identical file is there already."""
    try:
        wanted = source.read_bytes()
    except OSError as error:
        raise InstallError(f"the shim can't be read from {source}: {error.strerror}; is the image whole?") from error
    return put(bin_dir / SHIM, wanted, mode=0o755)


def install_conflist(conf_dir: Path, config: dict[str, Any], *, name: str = CONFLIST) -> bool:
    """Installs the conflist; call it only when an ADD can be served. False if an identical file is there already."""
    return put(conf_dir / name, (json.dumps(config, indent=2) + "\n").encode(), mode=0o644)


def uninstall(bin_dir: Path, conf_dir: Path, *, name: str = CONFLIST) -> None:
    """Removes both, conflist first, and temporary files of killed installers. Other files are not touched."""
    for target in (conf_dir / name, bin_dir / SHIM):
        if target.parent.is_dir():
            _remove_leftovers(target, older_than=0.0)
            if target.is_file() or target.is_symlink():
                _log.info("removing", file=str(target))
            try:
                target.unlink(missing_ok=True)
                sync_folder(target.parent)
            except OSError as error:
                raise InstallError(f"{target} can't be removed: {error.strerror}") from error


def put(target: Path, content: bytes, *, mode: int) -> bool:
    try:
        if _holds(target, content, mode):
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target, older_than=LEFTOVER_AGE)
        temporary = target.with_name(f".{target.name}.{os.getpid()}-{time.monotonic_ns()}.tmp")
        with contextlib.ExitStack() as undo:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            undo.callback(temporary.unlink, missing_ok=True)
            with os.fdopen(fd, "wb") as file:
                file.write(content)
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            _await_writers(temporary)
            temporary.replace(target)
            undo.pop_all()
        sync_folder(target.parent)
    except OSError as error:
        raise InstallError(
            f"{target} can't be written: {error.strerror}; is its folder mounted into the agent's pod, and writable?"
        ) from error
    _log.info("installed", file=str(target), bytes=len(content))
    return True


def _await_writers(file: Path) -> None:
    """Returns when no process has the file open for writing, since until then it can't be executed (ETXTBSY).

    We have closed it, but a child that another thread forks meanwhile has a copy of the descriptor until its exec. The
    kernel grants a read lease only if there is no writer (fcntl(2), F_SETLEASE).
    """
    with file.open("rb") as reader:
        for _ in range(200):
            try:
                fcntl.fcntl(reader, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            except BlockingIOError:
                time.sleep(0.005)
            except OSError:  # a file system without leases
                return
            else:
                fcntl.fcntl(reader, fcntl.F_SETLEASE, fcntl.F_UNLCK)
                return


def _holds(target: Path, content: bytes, mode: int) -> bool:
    try:
        return target.stat().st_mode & 0o7777 == mode and not target.is_symlink() and target.read_bytes() == content
    except (FileNotFoundError, NotADirectoryError):
        return False


def _remove_leftovers(target: Path, *, older_than: float) -> None:
    for leftover in target.parent.glob(f".{target.name}.*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - leftover.stat().st_mtime >= older_than:
                leftover.unlink()
