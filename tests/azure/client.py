"""Client of the running emulator and fabric, for another process: used by demo and tests.

`start(folder)` starts the process, `connect(folder)` finds one that runs; both give an `Azure`, which is
arm.builder.Builder plus what only a fabric has. Synchronous; one connection to the admin socket per Azure; not for more
than one thread. The process lives on when its starter ends, until `stop`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests import pace
from tests.azure.arm.admin import RefusedError
from tests.azure.arm.builder import Builder
from tests.azure.process import STATE

ROOT = Path(__file__).resolve().parents[2]
START_LIMIT = 20.0


class Azure(Builder):
    """A cloud with packets. `url` is ARM as reached from VMs and from the starter's namespace; `pid` is the process."""

    def __init__(self, folder: Path) -> None:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        self.folder = folder
        self.pid: int = state["pid"]
        self.url: str = state["arm"]
        self.namespace: str = state["namespace"]
        """Name of the fabric's namespace."""
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connection.connect(state["admin"])
        self._lines = self._connection.makefile("rb")
        super().__init__(self._remote)

    def _remote(self, verb: str, **arguments: Any) -> Any:
        self._connection.sendall(json.dumps({"verb": verb, "arguments": arguments}).encode() + b"\n")
        line = self._lines.readline()
        if not line:
            raise RefusedError(
                f"the emulator (pid {self.pid}) went away while it was asked to {verb}; see {self.folder}/azure.log"
            )
        answer = json.loads(line)
        if "error" in answer:
            raise RefusedError(answer["error"])
        return answer["result"]

    def drops(self) -> dict[str, int]:
        """Packets the fabric dropped, by reason (fabric/ruleset.py lists them)."""
        found: dict[str, int] = self._call("drops")
        return found

    def dropped(self, reason: str) -> list[dict[str, Any]]:
        """Rows of from, source, destination, packets."""
        found: list[dict[str, Any]] = self._call("dropped", reason=reason)
        return found

    def reboot(self, machine: str) -> None:
        """New network namespace for a VM; end its processes first."""
        self.power(machine, "restart")

    def capture(self, machine: str, path: Path, ifname: str = "eth0") -> None:
        """Captures a machine's link into a pcap file, until `capture_end`."""
        self._call("capture", machine=machine, path=str(path), ifname=ifname)

    def capture_end(self, machine: str) -> int:
        """Ends the capture; returns the number of captured packets."""
        return int(self._call("capture_end", machine=machine))

    def disk(self, machine: str) -> Path:
        """A folder that lives as long as the VM's disk: kept by a reboot, emptied by `power(…, "reimage")`, deleted
        with it."""
        return self.folder / "disks" / machine

    def delete_vm(self, name: str, *, with_nic: bool = True) -> None:
        """Deletes the VM, its namespace, and its `<name>-nic`."""
        self.delete("Microsoft.Compute/virtualMachines", name)
        if with_nic:
            self.delete("Microsoft.Network/networkInterfaces", f"{name}-nic")

    def bugs(self) -> list[str]:
        """Stack traces of the emulator's own failures; a test ends with asserting that there are none."""
        found: list[str] = self._call("bugs")
        return found

    def close(self) -> None:
        """Leaves the emulator running."""
        self._lines.close()
        self._connection.close()

    def stop(self) -> None:
        """Ends the process and waits until its namespaces are gone."""
        self.close()
        os.kill(self.pid, signal.SIGTERM)
        deadline = time.monotonic() + pace.stretched(START_LIMIT)
        while Path(f"/proc/{self.pid}").exists() and not _zombie(self.pid):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the emulator (pid {self.pid}) doesn't end; see {self.folder}/azure.log")
            time.sleep(0.02)


def start(folder: Path, *, duration: float = 1.5, outlive: bool = True) -> Azure:
    """Starts `python -m tests.azure` from the caller's namespaces; `duration` seconds per NIC write. With `outlive` off
    it ends with the caller, however that ends: what a test wants."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STATE).unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.azure", "--folder", str(folder), "--duration", str(duration)]
    with (folder / "azure.log").open("ab") as log:
        process = subprocess.Popen(
            [*command, *([] if outlive else ["--end-with-parent"])],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + pace.stretched(START_LIMIT)
    while not (folder / STATE).exists():
        if process.poll() is not None or time.monotonic() > deadline:
            tail = (folder / "azure.log").read_text(encoding="utf-8", errors="replace")[-4000:]
            raise RuntimeError(
                f"the emulator did not start (exit code {process.returncode}); {folder}/azure.log ends with:\n{tail}"
            )
        time.sleep(0.02)
    # The emulator outlives this object on purpose; the holder of the Azure ends it with stop().
    process.returncode = 0 if process.returncode is None else process.returncode
    return Azure(folder)


def connect(folder: Path) -> Azure:
    """Connects to the process that runs with this folder. Raises FileNotFoundError if none does."""
    return Azure(folder)


def _zombie(pid: int) -> bool:
    """Whether it has ended but its parent (often this process) hasn't reaped it."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return False
