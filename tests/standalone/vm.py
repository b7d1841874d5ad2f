"""A VM of the fabric with the real dockerd and the agent, and nobody else: what a user of a single machine has.

dockerd is Debian's, unpacked into the cache. It runs inside the machine's own namespaces, with a disk that a reboot
keeps. Addresses are on the VM's NIC and come to the agent by instance metadata. Synchronous.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests import pace
from tests.agent import truths
from tests.azure import client, packets
from tests.kube import cgroups, debian, image, machine
from tests.kube.machine import Machine

NAME, PEER, PEER_ADDRESS, PRIMARY = "w1", "far", "10.9.1.4", "10.240.0.10"
INTERNET = "203.0.113.10"
SUBNET, GATEWAY = "10.240.0.0/16", "10.240.0.1"
NETWORK = "vnet"
PORT = 8080
ADDRESSES = [f"10.240.0.{number}" for number in range(20, 32)]
SERVE = f"""
mkdir -p /www/cgi-bin
printf '#!/bin/sh\\necho\\necho $REMOTE_ADDR\\n' > /www/cgi-bin/caller
chmod +x /www/cgi-bin/caller
trap 'exit 0' TERM
httpd -f -p 0.0.0.0:{PORT} -h /www & wait
"""
"""A web server that says who called."""
AGENT = {"source": {"imds": {"interval": 1}}, "docker": {}, "cooldown": 1, "sweepInterval": 1, "http": {"port": 0}}


def unable() -> str:
    """Why this host runs no machines with containers; empty when it does."""
    try:
        cgroups.hierarchies()
    except cgroups.HostError as error:
        return str(error)
    return ""


def programs() -> Path:
    """Had before a test's clock runs. After Debian 12, docker itself is a package of its own."""
    client = () if debian.release() == "bookworm" else ("docker-cli",)
    return debian.unpacked("docker.io", "containerd", *client)


def until(what: str, found: Callable[[], Any], within: float = 20.0) -> Any:
    """Waits for it, and returns it."""
    end = time.monotonic() + pace.stretched(within)
    while not (value := found()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {pace.stretched(within)} s: {what}")
        time.sleep(0.1)
    return value


class Vm:
    """`up` brings up all of it, with a network; `down` takes it down."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.azure = client.start(folder / "azure", duration=0.1, outlive=False)
        self.azure.create_vnet("net", "10.240.0.0/12")
        self.azure.create_subnet("net", "pods", SUBNET)
        self.azure.create_vnet("peer", "10.9.0.0/16")
        self.azure.create_subnet("peer", "hosts", "10.9.1.0/24")
        self.azure.peer("net", "peer")
        self.azure.create_vm(NAME, "net/pods", PRIMARY)
        self.azure.create_vm(PEER, "peer/hosts", PEER_ADDRESS)
        for number, address in enumerate(ADDRESSES):
            self.azure.add_address(f"{NAME}-nic", f"c{number}", address)
        self.machine = Machine(NAME, NAME, folder / NAME, durable=(*machine.DURABLE, "/var/lib/docker"))
        found = programs()
        self._dockerd, self._docker = found / "usr/sbin/dockerd", found / "usr/bin/docker"
        self._environment = {
            "PATH": f"{found}/usr/sbin:{found}/usr/bin:{machine.PATH}",
            "DOCKER_RAMDISK": "1",  # runc can't pivot_root on every root file system
        }
        (folder / "agent.yaml").write_text(json.dumps(AGENT))

    def up(self) -> None:
        self.machine.boot()
        self.start_agent()
        self.start_dockerd()
        archive = self.folder / "image.tar"
        archive.write_bytes(image.busybox().tar())
        self.docker("import", "--change", f"CMD {json.dumps(['sh', '-c', SERVE])}", str(archive), "web")
        self.create_network()

    def down(self) -> None:
        with suppress(machine.MachineError):
            self.machine.destroy()
        self.azure.stop()

    def create_network(self, name: str = NETWORK) -> None:
        self.docker("network", "create", "-d", "vnetpods", "--ipam-driver", "vnetpods", "--subnet", SUBNET, name)

    # programs

    def start_agent(self) -> None:
        command = [str(Path(sys.executable).with_name("vnetpods-agent")), "run"]
        log, said = self.machine.folder / "log" / "agent.log", "listening"
        before = self._count(log, said)
        self.machine.start("agent", [*command, f"--config={self.folder / 'agent.yaml'}"])
        until("the agent listens at both sockets", lambda: self._count(log, said) == before + 2)

    def start_dockerd(self, *options: str) -> None:
        """The process id that a killed one left behind may be somebody else's by now."""
        self.machine.run("rm", "-f", "/run/docker.pid")
        places = ["--data-root=/var/lib/docker", "--exec-root=/run/docker", "--pidfile=/run/docker.pid"]
        self.machine.start("dockerd", [str(self._dockerd), *places, *options], self._environment)
        until("dockerd answers", lambda: self.docker("version", check=False).returncode == 0, 60.0)

    def crash(self, *names: str) -> None:
        """SIGKILL for each; returns when they are gone."""
        for name in names:
            self.machine.daemons[name].crash()
        for name in names:
            self.machine.daemons[name].process.wait()

    def mend(self) -> None:
        """Starts what a failed test has left dead."""
        running = [name for name, daemon in self.machine.daemons.items() if daemon.running]
        if "agent" not in running:
            self.start_agent()
        if "dockerd" not in running:
            self.start_dockerd()

    def reboot(self) -> None:
        self.machine.power_cut()
        self.azure.reboot(NAME)
        self.machine.boot()

    @staticmethod
    def _count(log: Path, event: str) -> int:
        return log.read_text().count(f'"event":"{event}"') if log.exists() else 0

    # containers

    def docker(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """MachineError carries what the user would read."""
        return self.machine.run(str(self._docker), *arguments, check=check, timeout=90)

    def run(self, name: str, *options: str, network: str = NETWORK) -> str:
        """The container's address."""
        self.docker("run", "-d", "--name", name, "--network", network, *options, "web")
        return self.address(name)

    def address(self, name: str) -> str:
        form = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        return self.docker("inspect", "-f", form, name).stdout.strip()

    def remove_all(self) -> None:
        if names := self.docker("ps", "-aq").stdout.split():
            self.docker("rm", "-f", *names)

    def calls(self, name: str, address: str, port: int = PORT) -> str:
        """Whom the server at that address sees when a container calls."""
        page = "/cgi-bin/caller" if port == PORT else "/"
        fetch = ["timeout", f"{pace.stretched(5):.0f}", "wget", "-qO-", f"http://{address}:{port}{page}"]
        return self.docker("exec", name, *fetch, check=False).stdout.strip()

    def called(self, address: str) -> str:
        """Whom a container sees when a VM of the peered VNet calls it."""
        return packets.get(PEER, f"http://{address}:{PORT}/cgi-bin/caller")

    # what is so

    def shown(self) -> dict[str, str]:
        """Endpoint → address, as Docker says."""
        network = json.loads(self.docker("network", "inspect", NETWORK).stdout)[0]
        found = network["Containers"].values()
        return {each["EndpointID"]: each["IPv4Address"].removesuffix("/32") for each in found}

    def agreed(self) -> bool:
        """Docker, ledger and kernel say the same."""
        ledger = self.machine.folder / "disk" / "var-lib-vnetpods" / "ledger.db"
        held = {name.partition("/")[0]: address for name, address in truths.ledger(ledger).items()}
        there = {name.partition("/")[0]: address for name, address in truths.kernel(NAME).items()}
        return self.shown() == held == there
