"""PID 1 of a machine: sets up its mounts, prints "ready", then reaps orphans.

A separate program (standard library only, started as `python -I -S pid1.py SPEC`) in fresh PID, mount, UTS, IPC and
cgroup namespaces, which machine.py creates. It ends, and with it everything in the machine, when the process that holds
the other end of its standard input dies (unless a line "keep" came before). Its mounts are invisible outside; what must
survive a reboot is bind-mounted from the folders in SPEC.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import NoReturn, TypedDict

MS_RDONLY = 1
MS_REMOUNT = 1 << 5
MS_BIND = 1 << 12
MS_REC = 1 << 14
MS_PRIVATE = 1 << 18
MS_SHARED = 1 << 20
SYSCTLS = {"vm/overcommit_memory": "1", "kernel/panic": "10", "kernel/panic_on_oops": "1"}
"""Kernel-wide settings that a kubelet insists on writing: per-machine files that already hold its values."""

_libc = ctypes.CDLL(None, use_errno=True)


class Spec(TypedDict):
    """What machine.py passes as JSON."""

    hostname: str
    folder: str
    """Kept visible under its own path, whatever is mounted over its parents."""
    scratch: str
    """An empty folder for this boot's tmpfs."""
    durable: dict[str, str]
    """Path inside the machine → folder that survives a reboot."""
    cgroups: dict[str, str]
    """Name below /sys/fs/cgroup → mount options ("" for version 2)."""
    nameserver: str


def mount(source: str, target: str, kind: str | None = None, flags: int = 0, data: str = "") -> None:
    if not Path(target).exists():
        Path(target).mkdir(parents=True)
    kind_bytes = kind.encode() if kind else None
    if _libc.mount(source.encode(), target.encode(), kind_bytes, flags, data.encode() or None) != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"mount {source} on {target} ({kind}, {data}): {os.strerror(errno)}")


def mount_everything(spec: Spec) -> None:
    # open first what the overlays below may hide
    sources = {target: os.open(source, os.O_PATH) for target, source in spec["durable"].items()}
    sources[spec["folder"]] = os.open(spec["folder"], os.O_PATH)
    # kubelet and containers need a shared tree; it is shared with nobody outside
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    mount("none", "/", flags=MS_REC | MS_SHARED)
    scratch = spec["scratch"]
    mount("machine", scratch, "tmpfs", data="mode=755")
    stage = f"/proc/self/fd/{os.open(scratch, os.O_PATH)}"
    own_cgroups(spec["cgroups"], f"{stage}/cgroup")
    own_sysctls(f"{stage}/sysctl")
    # /etc, /opt and /var: the host's, with this machine's own writes on a tmpfs on top
    for name in ("etc", "opt", "var"):
        for part in ("up", "work"):
            Path(stage, f"{name}.{part}").mkdir()
        layers = f"lowerdir=/{name},upperdir={stage}/{name}.up,workdir={stage}/{name}.work"
        mount("overlay", f"/{name}", "overlay", data=layers)
    mount("run", "/run", "tmpfs", data="mode=755")
    for name in ("/run/lock", "/run/netns"):
        Path(name).mkdir()
    for target, source in sources.items():
        mount(f"/proc/self/fd/{source}", target, flags=MS_BIND)
    resolver = Path("/etc/resolv.conf")  # often a link into /run, or bound over by a container runtime
    resolver.unlink(missing_ok=True)
    resolver.write_text(f"nameserver {spec['nameserver']}\n")
    Path("/etc/hostname").write_text(spec["hostname"] + "\n")


def own_cgroups(hierarchies: dict[str, str], stage: str) -> None:
    """The machine's sub-tree becomes the root of every hierarchy (it is the root of our cgroup namespace)."""
    if hierarchies:
        Path(stage).mkdir()
        for name, options in hierarchies.items():
            mount("cgroup", f"{stage}/{name}", "cgroup" if options else "cgroup2", data=options)
    mount("sysfs", "/sys", "sysfs")  # the old one shows the network devices of the namespace it was mounted in
    if hierarchies:
        mount("cgroup", "/sys/fs/cgroup", "tmpfs", data="mode=755")
        for name in hierarchies:
            mount(f"{stage}/{name}", f"/sys/fs/cgroup/{name}", flags=MS_BIND)


def own_sysctls(stage: str) -> None:
    """Kernel-wide sysctls are read-only; those of the network namespace stay writable."""
    mount("/proc/sys", "/proc/sys", flags=MS_BIND)
    mount("none", "/proc/sys", flags=MS_BIND | MS_REMOUNT | MS_RDONLY)
    mount("/proc/sys/net", "/proc/sys/net", flags=MS_BIND)
    mount("none", "/proc/sys/net", flags=MS_BIND | MS_REMOUNT)
    Path(stage).mkdir()
    for name, value in SYSCTLS.items():
        own = Path(stage, name.replace("/", "."))
        own.write_text(value + "\n")
        mount(str(own), f"/proc/sys/{name}", flags=MS_BIND)


def reap_until_orphaned() -> NoReturn:
    """Waits for children that lost their parent; ends when standard input does, unless told to keep running."""
    wakeup_read, wakeup_write = os.pipe()
    os.set_blocking(wakeup_write, False)
    signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    watched = [wakeup_read, sys.stdin.fileno()]
    while True:
        ready, _, _ = select.select(watched, [], [])
        if sys.stdin.fileno() in ready:
            if not os.read(sys.stdin.fileno(), 64).startswith(b"keep"):
                sys.exit("the process that started this machine is gone")
            watched.remove(sys.stdin.fileno())
        if wakeup_read in ready:
            os.read(wakeup_read, 4096)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass


def main() -> None:
    spec: Spec = json.loads(sys.argv[1])
    socket.sethostname(spec["hostname"])
    mount_everything(spec)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    os.chdir("/")
    print("ready", flush=True)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    reap_until_orphaned()


if __name__ == "__main__":
    main()
