"""Puts the calling process into network and mount namespaces of its own.

Everything that tests and the demo build (namespaces, links, routes, nftables, mounts) then lives beside the machine's
own network, and named namespaces (`ip netns add`) live on a private /run/netns. Called once, before threads exist.
Nothing has to be cleaned up: the kernel takes the namespaces away with their last process.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MARK = "VNETPODS_TEST_NETNS"

_libc = ctypes.CDLL(None, use_errno=True)


def isolate() -> None:
    """Enters new network and mount namespaces, with loopback up and an empty /run/netns; a second call does nothing.

    Raises PermissionError when not root: everything here needs CAP_SYS_ADMIN.
    """
    here = str(Path("/proc/self/ns/net").stat().st_ino)
    if os.environ.get(MARK) == here:  # a child of an isolated process, still in its namespace
        return
    _check(_libc.unshare(CLONE_NEWNET | CLONE_NEWNS), "unshare")
    _check(_libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "mount --make-rprivate /")
    Path("/run/netns").mkdir(exist_ok=True)
    _check(_libc.mount(b"netns", b"/run/netns", b"tmpfs", 0, b"mode=755"), "mount /run/netns")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    os.environ[MARK] = str(Path("/proc/self/ns/net").stat().st_ino)


def _check(result: int, what: str) -> None:
    if result != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{what}: {os.strerror(errno)} (tests and demo need root)")
