"""A machine: a given network namespace plus PID, mount, UTS, IPC and cgroup namespaces of its own.

Decided here: what a machine shares with the host (programs, /home, /root, /tmp), what is its own for one boot (/etc,
/opt, /var, /run, cgroups) and what survives a reboot (DURABLE, below the machine's folder). `kill -9` of one process
is a power cut: the kernel ends everything inside. A machine dies with the process that started it, because that
process holds a pipe to its PID 1 (see pid1.py); `keep` lets it live on. Its `Identity` (process id and start time) is
enough for another process to end it. Synchronous; one thread at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests import pace
from tests.kube import cgroups

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DURABLE = (
    "/var/lib/etcd",
    "/var/lib/kubelet",
    "/var/lib/containerd",
    "/var/lib/vnetpods",
    "/var/log/pods",
    "/opt/cni/bin",
    "/etc/cni/net.d",
)
"""Kept as by a disk. All other writes to /etc, /opt and /var are gone after a reboot."""
BOOT_SECONDS = 20
SUPERVISOR = [sys.executable, "-I", "-S", str(Path(__file__).with_name("supervise.py"))]
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class MachineError(Exception):
    """A machine didn't boot, or a command inside it failed; carries its output."""


@dataclass(frozen=True)
class Identity:
    """Identifies a process for good: a process id may be reused, but not together with its start time."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Identity:
        return cls(pid, _start_time(pid))

    @property
    def alive(self) -> bool:
        try:
            return _start_time(self.pid) == self.started
        except OSError:
            return False

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Signals that very process; does nothing if it is gone."""
        if self.alive:
            os.kill(self.pid, number)


def _start_time(pid: int) -> int:
    """In clock ticks since boot; OSError when there is no such process, or when it is only waiting to be reaped."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    if fields[0] in "ZX":
        raise ProcessLookupError(pid)
    return int(fields[19])


def _only_child(pid: int) -> int | None:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return None
    return int(children[0]) if children else None


@dataclass
class Daemon:
    """A long-running program inside a machine. It ends with the machine; its output is in `log`.

    A supervised one is started again whenever it ends by itself (see supervise.py).
    """

    name: str
    log: Path
    process: subprocess.Popen[bytes]
    supervised: bool = False

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def pid(self) -> int:
        """The program's process id as the host sees it."""
        return self._descendant(2 if self.supervised else 1)

    def _descendant(self, generations: int) -> int:
        """`nsenter` stays in between as a parent, and so does a supervisor."""
        deadline = time.monotonic() + pace.stretched(BOOT_SECONDS)
        while self.running and time.monotonic() < deadline:
            pid: int | None = self.process.pid
            for _ in range(generations):
                pid = _only_child(pid) if pid else None
            if pid:
                return pid
            time.sleep(0.001)  # the parent is about to fork
        raise MachineError(f"{self.name} isn't running; end of {self.log}:\n{self.tail()}")

    def crash(self) -> None:
        """SIGKILL for the program itself; a supervisor stays and starts it again."""
        os.kill(self.pid, signal.SIGKILL)

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = 20) -> int:
        """Signals it, or its supervisor, and returns its exit status."""
        if self.running:
            os.kill(self._descendant(1), number)
        return self.process.wait(pace.stretched(timeout))

    def tail(self, lines: int = 12) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


@dataclass
class Machine:
    """`netns` is the name of a network namespace (`ip netns`) that already has its addresses and routes."""

    name: str
    netns: str
    folder: Path
    nameserver: str = "127.0.0.1"
    runs_containers: bool = True
    durable: tuple[str, ...] = DURABLE
    daemons: dict[str, Daemon] = field(default_factory=dict)
    identity: Identity | None = None
    init: Identity | None = None
    _process: subprocess.Popen[bytes] | None = None

    @property
    def group(self) -> str:
        """Its cgroup's name; two clusters on one host have different folders."""
        return f"vnetpods-{hashlib.sha256(str(self.folder.parent).encode()).hexdigest()[:8]}/{self.name}"

    @property
    def up(self) -> bool:
        return self.identity is not None and self.identity.alive

    def boot(self) -> None:
        """Starts the machine, with the disk of an earlier boot. Returns when its mounts are in place."""
        if self.up:
            raise MachineError(f"machine {self.name} is already up")
        scratch = self.folder / "scratch"
        durable = {path: self.folder / "disk" / path.strip("/").replace("/", "-") for path in self.durable}
        for path in (*durable.values(), scratch, self.folder / "log"):
            path.mkdir(parents=True, exist_ok=True)
        hierarchies = cgroups.hierarchies() if self.runs_containers else []
        joined = cgroups.make(self.group) if self.runs_containers else []
        spec = {
            "hostname": self.name,
            "folder": str(self.folder.parent),
            "scratch": str(scratch),
            "durable": {path: str(source) for path, source in durable.items()},
            "cgroups": {each.folder.name: each.options for each in hierarchies},
            "nameserver": self.nameserver,
        }
        with (self.folder / "log" / "machine.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(spec, joined),
                stdin=subprocess.PIPE,  # only we hold its other end: closed when we die
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )
        self._await_ready(self._process)

    def _command(self, spec: Mapping[str, object], groups: Sequence[Path]) -> list[str]:
        # a process moves itself ("0") into the groups before the cgroup namespace is made from them
        join = "".join(f"echo 0 > '{group}/cgroup.procs' && " for group in groups)
        own = ["--cgroup", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
        pid1 = [sys.executable, "-I", "-S", str(Path(__file__).with_name("pid1.py")), json.dumps(spec)]
        namespaces = ["nsenter", f"--net=/run/netns/{self.netns}", "unshare", *own, *pid1]
        return ["sh", "-c", join + 'exec "$@"', "sh", *namespaces]

    def _await_ready(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.stdout.close()
        init = _only_child(process.pid)
        if line != b"ready\n" or init is None:
            process.kill()
            process.wait()
            text = (self.folder / "log" / "machine.log").read_text(errors="replace")[-2000:]
            raise MachineError(f"machine {self.name} in namespace {self.netns} didn't boot: {text.strip()}")
        self.identity, self.init = Identity.of(process.pid), Identity.of(init)

    def power_cut(self) -> None:
        """Ends everything in the machine at once; returns when the last process is gone."""
        if self.identity is None:
            return
        self.identity.kill()
        for daemon in self.daemons.values():
            daemon.process.wait()
        self.daemons.clear()
        if self._process is not None:
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._process.wait()
        _await_gone([self.identity, *([self.init] if self.init else [])])
        if self.runs_containers:
            cgroups.remove(self.group)
        self.identity = self.init = self._process = None

    def reboot(self) -> None:
        """Cuts the power and boots again; programs are not restarted."""
        self.power_cut()
        self.boot()

    def destroy(self) -> None:
        """Cuts the power and removes the disk; logs stay."""
        self.power_cut()
        shutil.rmtree(self.folder / "disk", ignore_errors=True)

    def keep(self) -> None:
        """Lets the machine outlive this process."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(b"keep\n")
            self._process.stdin.flush()

    @property
    def entrance(self) -> list[str]:
        """The command prefix that runs something inside the machine."""
        if not self.up or self.init is None:
            raise MachineError(f"machine {self.name} is down")
        kinds = ("--net", "--mount", "--uts", "--ipc", "--pid", "--cgroup")
        return ["nsenter", f"--target={self.init.pid}", *kinds, "--wd", "--"]

    def run(
        self, *command: str, stdin: str | None = None, timeout: float = 60, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command inside and returns its result; MachineError (with its words) when it fails and `check` is
        on.
        """
        done = subprocess.run(
            [*self.entrance, *command],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=pace.stretched(timeout),
            check=False,
            env=self._environment({}),
        )
        if check and done.returncode:
            words = done.stderr.strip() or done.stdout.strip()
            raise MachineError(f"{self.name}: {' '.join(command)} ended with {done.returncode}: {words}")
        return done

    def start(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        supervised: bool = False,
    ) -> Daemon:
        """Starts a daemon inside; its output is appended to log/<name>.log. A running one of that name is an error."""
        if name in self.daemons and self.daemons[name].running:
            raise MachineError(f"{self.name}: {name} is already running")
        log = self.folder / "log" / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*self.entrance, *(SUPERVISOR if supervised else []), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=self._environment(environment or {}),
            )
        self.daemons[name] = Daemon(name, log, process, supervised)
        return self.daemons[name]

    def _environment(self, more: Mapping[str, str]) -> dict[str, str]:
        return {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8", **more}


def _await_gone(identities: Sequence[Identity]) -> None:
    deadline = time.monotonic() + pace.stretched(BOOT_SECONDS)
    while any(identity.alive for identity in identities):
        if time.monotonic() > deadline:
            raise MachineError(f"processes {[identity.pid for identity in identities]} don't end")
        time.sleep(0.01)


def end(identity: Identity, group: str | None) -> None:
    """Ends a machine that another process started and kept."""
    identity.kill()
    _await_gone([identity])
    if group is not None:
        cgroups.remove(group)
