"""`vnetpods-agent setup`: what it writes on each kind of system, and the unit under a real systemd."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from tests.agent.machine import NIC_MAC, PRIMARY, supply
from tests.kube.machine import Machine, _only_child
from tests.standalone.libnetwork import Container, Docker, ip
from tests.standalone.vm import unable, until
from vnetpods_agent import setup
from vnetpods_agent.config import load

AGENT = Path(sys.executable).with_name("vnetpods-agent")
STUBS = ("basic.target", "sysinit.target", "shutdown.target", "multi-user.target", "network-online.target")
BOOT = f"""
mount -t proc proc /proc
mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys
mount --bind /proc/sys/net /proc/sys/net && mount -o remount,rw,bind /proc/sys/net
for folder in /run /lib/systemd/system /etc/systemd/system; do mount -t tmpfs tmpfs $folder; done
for stub in {" ".join(STUBS)}; do printf '[Unit]\\nDefaultDependencies=no\\n' > /lib/systemd/system/$stub; done
export container=other
exec /lib/systemd/systemd --system --unit=multi-user.target --log-target=console --show-status=no
"""
"""systemd with units of its own: none of the host's is to be started."""
FIVE = "10.240.0.5"


@pytest.mark.parametrize("folder", ["/opt/cni/bin", "/usr/libexec/cni", "/usr/lib/cni"])
def test_plugins_go_where_the_others_are(tmp_path: Path, folder: str) -> None:
    machine = setup.Machine(tmp_path)
    machine.at(Path(folder)).mkdir(parents=True)
    machine.at(Path(folder, "loopback")).touch()
    assert machine.plugins == Path(folder)


def test_plugins_go_to_opt_where_there_are_none_or_usr_cannot_be_written(tmp_path: Path) -> None:
    machine = setup.Machine(tmp_path)
    assert machine.plugins == Path("/opt/cni/bin")
    there = machine.at(Path("/usr/libexec/cni"))
    there.mkdir(parents=True)
    (there / "loopback").touch()
    subprocess.run(["mount", "--bind", there, there], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", there], check=True)
        assert machine.plugins == Path("/opt/cni/bin")
    finally:
        subprocess.run(["umount", there], check=True)


def made(root: Path, **more: Path) -> setup.Setup:
    return setup.Setup(setup.Machine(root), AGENT, **more)


def test_the_configuration_is_one_that_the_agent_reads(tmp_path: Path) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/dockerd").touch()
    assert made(tmp_path, shim=Path("/opt/vnetpods/shim")).apply()
    config = load(tmp_path / "etc/vnetpods/agent.yaml", {})
    assert config.docker is not None
    assert (config.paths.shim, config.paths.cni_bin) == (Path("/opt/vnetpods/shim"), Path("/opt/cni/bin"))
    assert config.source.imds is not None


def test_without_docker_and_shim_neither_is_served(tmp_path: Path) -> None:
    made(tmp_path).apply()
    config = load(tmp_path / "etc/vnetpods/agent.yaml", {})
    assert (config.docker, config.paths.shim) == (None, None)


def test_a_configuration_that_is_there_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "etc/vnetpods").mkdir(parents=True)
    (tmp_path / "etc/vnetpods/agent.yaml").write_text("cooldown: 5\n")
    assert "/etc/vnetpods/agent.yaml is kept as it is" in made(tmp_path).apply()
    made(tmp_path).remove()
    assert (tmp_path / "etc/vnetpods/agent.yaml").read_text() == "cooldown: 5\n"


def test_check_names_what_differs(tmp_path: Path) -> None:
    here = made(tmp_path)
    assert [line.split(" is ")[0] for line in here.check()][:2] == [
        "/etc/vnetpods/agent.yaml",
        "/etc/systemd/system/vnetpods-agent.service",
    ]
    here.apply()
    assert here.check() == ["systemd is not running here: nobody starts the agent"]
    here.unit.write_text("[Service]\n")
    assert "differs" in here.check()[0]
    here.remove()
    assert "is missing" in here.check()[0]


def test_a_program_that_systemd_could_not_start_is_refused(tmp_path: Path) -> None:
    with pytest.raises(setup.SetupError, match="install the agent first"):
        setup.Setup(setup.Machine(tmp_path), tmp_path / "agent").apply()


def test_systemd_finds_no_fault_with_the_unit_and_rates_it_ok(tmp_path: Path) -> None:
    here = made(tmp_path)
    here.apply()
    verified = subprocess.run(["systemd-analyze", "verify", here.unit], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")
    rated = ["systemd-analyze", "security", "--offline=true", "--threshold=30", "--no-pager", str(here.unit)]
    assert subprocess.run(rated, capture_output=True, check=False).returncode == 0


@dataclass
class Booted:
    """A machine whose processes have a systemd as their PID 1."""

    machine: Machine
    pid: int

    @property
    def folder(self) -> Path:
        """Where Docker's socket is found; see Docker.socket."""
        return Path(f"/proc/{self.pid}/root/run/docker")

    @property
    def name(self) -> str:
        return self.machine.netns

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        inside = ["nsenter", f"--target={self.pid}", "--all", "--wd=/", "--"]
        return subprocess.run([*inside, *command], capture_output=True, text=True, check=False)


@pytest.fixture
def booted(tmp_path: Path) -> Iterator[Booted]:
    ip("netns add sd")
    ip(f"-n sd link add eth0 address {NIC_MAC} type veth peer name nic0")
    for command in ("link set lo up", f"addr add {PRIMARY}/16 dev eth0", "link set eth0 up", "link set nic0 up"):
        ip(f"-n sd {command}")
    machine = Machine("sd", "sd", tmp_path / "sd")
    machine.boot()
    try:
        kinds = ["--pid", "--fork", "--mount", "--ipc", "--uts", "--cgroup", "--kill-child", "--propagation=private"]
        daemon = machine.start("systemd", ["unshare", *kinds, "sh", "-c", BOOT])
        pid = until("systemd's process", lambda: _only_child(daemon.pid))
        made = Booted(machine, pid)
        until("systemd answers", lambda: made.run("systemctl", "is-active", "multi-user.target").returncode == 0)
        yield made
    finally:
        machine.destroy()
        ip("netns delete sd")


@pytest.mark.timeout(120)
@pytest.mark.skipif(bool(unable()), reason=unable())
async def test_the_agent_does_its_work_inside_the_unit(booted: Booted) -> None:
    """With one capability, and almost nothing that it may write."""
    pool = booted.machine.folder / "disk" / "var-lib-vnetpods" / "pool.yaml"
    pool.write_bytes(msgspec.json.encode(supply([FIVE, "10.240.0.6"])))
    config = {"source": {"file": "/var/lib/vnetpods/pool.yaml"}, "docker": {}, "http": {"port": 0}}
    booted.run("sh", "-c", f"mkdir -p /etc/vnetpods; echo '{json.dumps(config)}' > /etc/vnetpods/agent.yaml")
    done = booted.run(str(AGENT), "setup")
    assert done.returncode == 0, done
    docker = Docker(booted)  # type: ignore[arg-type]  # a machine in what is asked of it
    socket = booted.folder / "plugins" / "vnetpods.sock"
    until("the agent listens", socket.exists)
    assert booted.run(str(AGENT), "setup", "--check").stdout == ""
    until("the pool is known", (pool.parent / "pool.json").exists)
    await docker.create_network()
    container = Container(await docker.request())
    await docker.create(container)
    await docker.join(container)
    assert container.source in ip("-n sd link show")
    assert "chain from_pods" in booted.run("nft", "list", "ruleset").stdout
    assert booted.run("sysctl", "-n", "net.ipv4.ip_forward").stdout.strip() == "1"
    assert booted.run("systemctl", "restart", setup.UNIT).returncode == 0
    until("it listens again", socket.exists)
    await docker.endpoint("DeleteEndpoint", container)
    shown = booted.run("systemctl", "show", "-p", "NRestarts", setup.UNIT).stdout
    assert shown.strip() == "NRestarts=0"
    assert booted.run(str(AGENT), "setup", "--remove").returncode == 0
    assert booted.run("systemctl", "is-active", setup.UNIT).returncode != 0
    assert booted.run(str(AGENT), "setup", "--check").returncode == 1
