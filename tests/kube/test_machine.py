"""Machines: shared and private resources, durable files, and their end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import pace
from tests.kube import cgroups
from tests.kube.machine import Daemon, Identity, Machine, MachineError

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    name = f"m{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    machine = Machine(name=name, netns=name, folder=tmp_path / name)
    try:
        machine.boot()
        yield machine
    finally:
        machine.destroy()
        subprocess.run(["ip", "netns", "del", name], check=True)


def test_a_machine_has_its_own_processes_name_and_network(machine: Machine) -> None:
    assert machine.run("hostname").stdout.strip() == machine.name
    assert machine.run("sh", "-c", "ls -d /proc/[0-9]* | wc -l").stdout.strip() in {"2", "3", "4"}
    assert machine.run("ls", "/sys/class/net").stdout.split() == ["lo"]
    assert "LOOPBACK,UP" in machine.run("ip", "link", "show", "lo").stdout
    assert machine.run("readlink", "/proc/self/ns/net").stdout != f"{Path('/proc/self/ns/net').readlink()}\n"


@pytest.mark.parametrize("path", ["/etc/vnp-mark", "/opt/vnp-mark", "/var/lib/vnp-mark", "/run/vnp-mark"])
def test_what_is_written_in_a_machine_is_not_seen_outside_and_gone_after_a_reboot(machine: Machine, path: str) -> None:
    machine.run("touch", path)
    assert not Path(path).exists()
    machine.reboot()
    assert machine.run("test", "-e", path, check=False).returncode == 1


@pytest.mark.parametrize("path", ["/var/lib/vnetpods", "/var/lib/kubelet", "/opt/cni/bin", "/etc/cni/net.d"])
def test_a_disk_survives_a_power_cut(machine: Machine, path: str) -> None:
    machine.run("sh", "-c", f"echo kept > {path}/mark")
    machine.power_cut()
    machine.boot()
    assert machine.run("cat", f"{path}/mark").stdout == "kept\n"


def test_a_power_cut_ends_every_process_and_leaves_no_cgroup(machine: Machine) -> None:
    daemon = machine.start("sleeper", ["sh", "-c", "trap '' TERM; sleep 1000 & sleep 1000"])
    inside = Identity.of(daemon.pid)
    alive = inside.alive
    groups = [hierarchy.folder / machine.group for hierarchy in cgroups.hierarchies()]
    assert all(group.is_dir() for group in groups)
    machine.power_cut()
    assert (alive, inside.alive, daemon.running) == (True, False, False)
    assert not any(group.exists() for group in groups)


def test_kernel_wide_settings_are_out_of_reach_but_those_of_the_network_are_not(machine: Machine) -> None:
    machine.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
    with pytest.raises(MachineError, match="Read-only"):
        machine.run("sh", "-c", "echo 65 > /proc/sys/vm/swappiness")


def test_a_mount_made_inside_reaches_later_processes_inside_and_nobody_outside(machine: Machine) -> None:
    machine.run("mkdir", "/run/there")
    machine.run("mount", "-t", "tmpfs", "there", "/run/there")
    assert " /run/there " in machine.run("cat", "/proc/self/mounts").stdout
    assert " /run/there " not in Path("/proc/self/mounts").read_text()


def test_a_command_that_fails_says_where_and_why(machine: Machine) -> None:
    with pytest.raises(MachineError, match=rf"{machine.name}: ls /nowhere ended with 2: .*No such file"):
        machine.run("ls", "/nowhere")


def test_a_daemon_is_signalled_itself_and_its_words_are_kept(machine: Machine) -> None:
    daemon = machine.start("polite", ["sh", "-c", POLITE])
    await_words(daemon, "hello")
    assert daemon.stop(signal.SIGTERM) == 3
    assert daemon.tail() == "hello\nbye"


POLITE = "trap 'echo bye; exit 3' TERM; echo hello; while :; do sleep 0.05; done"


def await_words(daemon: Daemon, words: str, times: int = 1) -> None:
    deadline = time.monotonic() + pace.stretched(10)
    while daemon.tail().count(words) < times:
        assert time.monotonic() < deadline, daemon.tail()
        time.sleep(0.02)


def test_a_supervised_daemon_is_back_after_a_crash_and_ends_when_it_is_told_to(machine: Machine) -> None:
    daemon = machine.start("polite", ["sh", "-c", POLITE], supervised=True)
    await_words(daemon, "hello")
    first = Identity.of(daemon.pid)
    daemon.crash()
    await_words(daemon, "hello", times=2)
    second = Identity.of(daemon.pid)
    assert (first.alive, second.alive) == (False, True)
    assert daemon.stop() == 3
    assert not second.alive


def test_a_supervised_daemon_that_cannot_stay_is_given_more_and_more_time(machine: Machine) -> None:
    daemon = machine.start("hopeless", ["false"], supervised=True)
    await_words(daemon, "again in 2 s")
    waits = [line.rpartition(" in ")[2] for line in daemon.tail().splitlines()]
    assert waits == ["0 s", "1 s", "2 s"]
    daemon.stop()
    assert not daemon.running


STARTER = """
import subprocess, sys
from pathlib import Path
from tests.isolation import isolate
isolate()
from tests.kube.machine import Machine
subprocess.run(["ip", "netns", "add", "m"], check=True)
machine = Machine(name=sys.argv[1], netns="m", folder=Path(sys.argv[2]))
machine.boot()
if sys.argv[3] == "keep":
    machine.keep()
print(machine.identity.pid, machine.identity.started, machine.group, flush=True)
"""


@pytest.mark.parametrize("fate", ["die", "keep"])
def test_a_machine_shares_the_fate_of_its_starter_unless_it_is_kept(tmp_path: Path, fate: str) -> None:
    command = [sys.executable, "-c", STARTER, f"fate{os.getpid()}", str(tmp_path / "m"), fate]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    environment.pop("VNETPODS_TEST_NETNS")
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    pid, started, group = done.stdout.split()
    identity = Identity(int(pid), int(started))
    try:
        deadline = time.monotonic() + (pace.stretched(5) if fate == "die" else 0.5)
        while identity.alive and time.monotonic() < deadline:
            time.sleep(0.02)
        assert identity.alive == (fate == "keep")
    finally:
        identity.kill()
        while identity.alive:
            time.sleep(0.02)
        cgroups.remove(group)


def test_a_reused_process_id_is_not_killed() -> None:
    with subprocess.Popen(["sleep", "100"]) as process:
        stranger = Identity(process.pid, Identity.of(process.pid).started - 1)
        stranger.kill()
        assert process.poll() is None
        Identity.of(process.pid).kill()
