"""`vnetpods-agent setup`: makes a VM without Kubernetes run the agent as a systemd service.

It writes two files and nothing else: the agent's configuration, unless there is one, and the unit. The agent itself
installs shim and conflist and serves Docker's socket, as the configuration says. Every step may be repeated; `check`
compares and changes nothing; `remove` takes away what `setup` wrote, except the configuration and the ledger.

`Machine` reads where this distribution keeps things: the CNI plugins' folder is the first one that holds plugins and
can be written (/usr is read-only on Flatcar and other image-based systems), otherwise /opt/cni/bin, which all runtimes
search.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vnetpods_agent.installer import InstallError, put

CONFIG = Path("/etc/vnetpods/agent.yaml")
UNIT = "vnetpods-agent.service"
_UNITS = Path("/etc/systemd/system")
_PLUGINS = (Path("/opt/cni/bin"), Path("/usr/libexec/cni"), Path("/usr/lib/cni"))
_REFERENCE = ("loopback", "bridge", "portmap")
_DOCKER = (Path("/usr/bin/dockerd"), Path("/usr/sbin/dockerd"), Path("/usr/local/bin/dockerd"))


class SetupError(Exception):
    """A step failed: which one, why, what to do."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Paths are those of the running system; `root` is where it is mounted."""

    root: Path = Path("/")

    def at(self, path: Path) -> Path:
        return self.root / path.relative_to("/")

    @property
    def plugins(self) -> Path:
        """The folder of CNI plugins."""
        for folder in _PLUGINS:
            there = self.at(folder)
            if any((there / name).exists() for name in _REFERENCE) and os.access(there, os.W_OK):
                return folder
        return _PLUGINS[0]

    @property
    def has_docker(self) -> bool:
        return any(self.at(path).exists() for path in _DOCKER)

    @property
    def has_systemd(self) -> bool:
        return self.at(Path("/run/systemd/system")).is_dir()


@dataclass(frozen=True, slots=True)
class Setup:
    """`program` is the agent's executable, `shim` the CNI plugin to install, None without CNI."""

    machine: Machine
    program: Path
    config: Path = CONFIG
    shim: Path | None = None

    @property
    def unit(self) -> Path:
        return self.machine.at(_UNITS / UNIT)

    def check(self) -> list[str]:
        """What differs from what `apply` would leave, one sentence each; empty when nothing does."""
        return list(self._differences())

    def _differences(self) -> Iterator[str]:
        if not self.machine.at(self.config).is_file():
            yield f"{self.config} is missing"
        wanted = self.unit_text()
        if not self.unit.is_file():
            yield f"{_UNITS / UNIT} is missing"
        elif self.unit.read_text() != wanted:
            yield f"{_UNITS / UNIT} differs from what this version writes"
        if not os.access(self.program, os.X_OK):
            yield f"{self.program} is not executable"
        if not self.machine.has_systemd:
            yield "systemd is not running here: nobody starts the agent"
        elif _systemctl("is-active", "--quiet", UNIT).returncode:
            yield f"{UNIT} is not active; see journalctl -u {UNIT}"

    def apply(self) -> list[str]:
        """Returns what was done. Raises SetupError."""
        if not self.program.is_absolute() or not os.access(self.program, os.X_OK):
            raise SetupError(f"{self.program} is not an executable that systemd could start; install the agent first")
        done = []
        config = self.machine.at(self.config)
        try:
            for folder in (self.machine.at(self.machine.plugins), self.machine.at(Path("/etc/cni/net.d"))):
                folder.mkdir(parents=True, exist_ok=True)
            if config.exists():
                done.append(f"{self.config} is kept as it is")
            elif put(config, self.config_text().encode(), mode=0o644):
                done.append(f"{self.config} is written")
            if put(self.unit, self.unit_text().encode(), mode=0o644):
                done.append(f"{_UNITS / UNIT} is written")
        except (OSError, InstallError) as error:
            raise SetupError(str(error)) from error
        if not self.machine.has_systemd:
            return [*done, "systemd is not running here: start the agent otherwise"]
        for step in (("daemon-reload",), ("enable", UNIT), ("restart", UNIT)):
            _succeed(*step)
        return [*done, f"{UNIT} is enabled and started"]

    def remove(self) -> list[str]:
        """Stops the service and deletes the unit. Raises SetupError."""
        done = []
        if self.machine.has_systemd and self.unit.exists():
            _succeed("disable", "--now", UNIT)
            done.append(f"{UNIT} is stopped and disabled")
        try:
            self.unit.unlink(missing_ok=True)
        except OSError as error:
            raise SetupError(f"{_UNITS / UNIT} can't be removed: {error.strerror}") from error
        if self.machine.has_systemd:
            _succeed("daemon-reload")
        return [*done, f"{self.config} and /var/lib/vnetpods are kept; delete them if no container needs them any more"]

    def config_text(self) -> str:
        lines = ["# written by `vnetpods-agent setup`, once; docs/agent.md lists the keys", "source: {imds: {}}"]
        if self.machine.has_docker:
            lines.append("docker: {}")
        if self.shim is not None:
            lines.append(f"paths: {{shim: {self.shim}, cniBin: {self.machine.plugins}}}")
            lines.append("chained: [portmap, bandwidth]")
        return "\n".join(lines) + "\n"

    def unit_text(self) -> str:
        """The agent needs CAP_NET_ADMIN, /proc/sys/net, and the folders named here; everything else is closed to it.

        What is in /run/vnetpods must survive a restart of the service, but not a reboot.
        """
        return f"""\
# written by `vnetpods-agent setup`; changes belong into `systemctl edit {UNIT}`
[Unit]
Description=Addresses of the VNet for this machine's containers (vnetpods)
Wants=network-online.target
After=network-online.target
Before=docker.service containerd.service crio.service kubelet.service

[Service]
ExecStart={self.program} run --config {self.config}
Restart=always
RestartSec=1s
TimeoutStopSec=30s
StateDirectory=vnetpods
StateDirectoryMode=0700
RuntimeDirectory=vnetpods docker/plugins
RuntimeDirectoryPreserve=yes
ReadWritePaths=-{self.machine.plugins} -/etc/cni/net.d
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
PrivateDevices=yes
ProtectControlGroups=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectClock=yes
ProtectHostname=yes
CapabilityBoundingSet=CAP_NET_ADMIN
NoNewPrivileges=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
UMask=0077
LimitNOFILE=65536
OOMScoreAdjust=-900

[Install]
WantedBy=multi-user.target
"""


def _systemctl(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)


def _succeed(*arguments: str) -> None:
    if shutil.which("systemctl") is None:
        raise SetupError("systemctl is missing, although systemd runs here")
    done = _systemctl(*arguments)
    if done.returncode:
        raise SetupError(f"systemctl {' '.join(arguments)} failed: {done.stderr.strip()}")
