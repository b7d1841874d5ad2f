"""One node for a test: a network namespace with a NIC, the agent as a process in it, and a runtime that calls the shim.

The agent is the real one with its real data plane; addresses come from a file, so that no API server is needed. Reports
to that file's owner (what the operator would read) are in `report`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_OID, uuid4, uuid5

import msgspec

from tests import pace
from tests.agent.shim import PATIENT, Outcome, program
from tests.kube import pki
from tests.kube.apiserver import ApiServer
from tests.zygote import Process, zygote
from vnetpods_api import Interface, Status

NIC_MAC = "00:0d:3a:1b:c7:21"
PRIMARY = "10.240.0.4"
SOON = 15.0
AGENT = ("vnetpods_agent.__main__", "vnetpods_agent.app", "vnetpods_agent.kube")
OF_A_START = ("LD_PRELOAD", "PYTHONPATH")
"""What a program reads at its start only, so that no fork takes notice of it."""
NOTHING = "import sys; sys.modules['rich'] = None; from vnetpods_agent.__main__ import main; sys.exit(main())"
"""The agent from nothing; without what the image doesn't have, either, and structlog would import."""


async def until(what: Callable[[], Any], within: float = SOON) -> Any:
    """Waits for something to be true, and returns it."""
    end = time.monotonic() + pace.stretched(within)
    while not (value := what()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {pace.stretched(within)} s: {what.__name__ or what}")
        await asyncio.sleep(0.02)
    return value


def named(unit: str) -> str:
    """The ipConfiguration of a unit, unless a test cares for its lives."""
    return f"vnetpods-{unit.replace('/', '-')}"


def supply(
    addresses: Sequence[str],
    releasing: Sequence[str] = (),
    released: Sequence[str] = (),
    names: Mapping[str, str] | None = None,
) -> Status:
    """What the operator lists for a machine's NIC. `names` of ipConfigurations where they matter; empty: none."""
    interface = Interface(
        name="nic",
        mac=NIC_MAC,
        subnet="/subscriptions/s/subnets/pods",
        prefixes=("10.240.0.0/16",),
        primary_address=PRIMARY,
        addresses=tuple(addresses),
        ip_configurations=() if names == {} else tuple((names or {}).get(unit, named(unit)) for unit in addresses),
        releasing=tuple(releasing),
    )
    return Status(interfaces=(interface,), direct_cidrs=("10.240.0.0/12",), released=tuple(released))


@dataclass
class Machine:
    """`settings` are keys of the agent's configuration, over those that the test needs."""

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    shim: Path = field(default_factory=lambda: program(*PATIENT))
    name: str = field(default_factory=lambda: f"m-{uuid4().hex[:6]}")
    process: Process | None = None
    pods: list[str] = field(default_factory=list)
    port: int = 0
    door: asyncio.Server | None = None
    environment: Mapping[str, str] = field(default_factory=dict)  # of the agent, besides ours

    # the machine

    def build(self) -> None:
        for name in (self.name, f"{self.name}-out"):
            _ip(f"netns add {name}")
            _ip(f"-n {name} link set lo up")
        _ip(f"-n {self.name} link add eth0 address {NIC_MAC} type veth peer name nic0 netns {self.name}-out")
        _ip(f"-n {self.name} addr add {PRIMARY}/16 dev eth0")
        _ip(f"-n {self.name} link set eth0 up")
        _ip(f"-n {self.name}-out link set nic0 up")
        self.boot_id("boot-1")
        config = {
            "source": {"file": str(self.folder / "pool.yaml")},
            "paths": {
                "state": str(self.state),
                "socket": str(self.socket),
                "cniBin": str(self.folder / "bin"),
                "cniConf": str(self.folder / "net.d"),
                "shim": str(self.shim),
                "bootId": str(self.folder / "boot_id"),
            },
            "http": {"port": 0},
            "cooldown": 0.3,
            "reportInterval": 0.1,
            "sweepInterval": 3600,
        } | self.settings
        (self.folder / "agent.yaml").write_text(json.dumps(config))

    def connect(self, server: ApiServer) -> Path:
        """A link to the API server, which answers there under the address that its certificate names."""
        _ip(f"link add to-{self.name} type veth peer name mgmt netns {self.name}")
        _ip(f"addr add {pki.SERVICE_ADDRESS}/30 dev to-{self.name}")
        _ip(f"link set to-{self.name} up")
        _ip(f"-n {self.name} addr add 10.96.0.2/30 dev mgmt")
        _ip(f"-n {self.name} link set mgmt up")
        url = f"https://{pki.SERVICE_ADDRESS}:{server.url.rpartition(':')[2]}"
        user = json.loads(server.admin_kubeconfig.read_text())["users"][0]["user"]
        return pki.kubeconfig(self.folder / "kubeconfig", url, server.authority, user)

    async def reach(self, server: ApiServer) -> Path:
        """The API server answers on the machine's own loopback; its kubeconfig. `door` is the way there."""
        port = int(server.url.rpartition(":")[2])

        async def carry(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    target.write(data)
                    await target.drain()
            target.close()

        async def enter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                inner, outer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                writer.close()
            else:
                await asyncio.gather(carry(reader, outer), carry(inner, writer))

        self.door = await asyncio.start_server(enter, sock=listening_in(self.name, port))
        return server.admin_kubeconfig

    def disconnect(self) -> None:
        """The API server is away: nothing comes back from where it was."""
        _ip(f"-n {self.name} link set mgmt down")

    def close(self) -> None:
        if self.door is not None:
            self.door.close()
        for name in (*self.pods, self.name, f"{self.name}-out"):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def socket(self) -> Path:
        return self.folder / "run" / "agent.sock"

    @property
    def log(self) -> Path:
        return self.folder / "agent.log"

    def boot_id(self, value: str) -> None:
        (self.folder / "boot_id").write_text(f"{uuid5(NAMESPACE_OID, value)}\n")

    def reboot(self) -> None:
        """All of the kernel's state is gone, the disk isn't."""
        self.close()
        self.pods.clear()
        self.build()
        self.boot_id(f"boot-{uuid4()}")

    # the pool

    def pool(self, addresses: Sequence[str], releasing: Sequence[str] = (), **more: Any) -> None:
        """What the operator lists; see `supply`."""
        temporary = self.folder / "pool.yaml.new"
        temporary.write_bytes(msgspec.json.encode(supply(addresses, releasing, **more)))
        temporary.replace(self.folder / "pool.yaml")

    def report(self) -> Status:
        """What the agent has told the pool's owner."""
        try:
            return msgspec.json.decode((self.folder / "pool.yaml.report.json").read_bytes(), type=Status)
        except FileNotFoundError:
            return Status()

    # the agent

    async def start(self, fault: str = "", serving: bool = True, path: str = "") -> None:
        """Starts the agent and waits until it listens. With `fault` it kills itself there; `path`: its PATH."""
        seen = len(self.events("serving"))
        environment = {**os.environ, **self.environment, "VNETPODS_FAULT": fault, "NODE_NAME": "worker-1"} | (
            {"PATH": path} if path else {}
        )
        arguments = ("run", f"--config={self.folder / 'agent.yaml'}")
        with self.log.open("ab") as log:
            if any(environment.get(name) for name in OF_A_START):
                command = ("nsenter", f"--net=/run/netns/{self.name}", sys.executable, "-c", NOTHING, *arguments)
                self.process = await asyncio.create_subprocess_exec(*command, env=environment, stderr=log)
            else:
                agent = zygote(*AGENT)
                self.process = await agent.start(*arguments, environment=environment, netns=self.name, stderr=log)
        if serving:
            await until(lambda: len(self.events("serving")) > seen or self.process_ended())

    def processor_seconds(self) -> float:
        """What the agent has used of a CPU so far."""
        assert self.process
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def process_ended(self) -> bool:
        assert self.process
        return self.process.returncode is not None

    async def kill(self) -> None:
        assert self.process
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()

    async def stop(self) -> None:
        assert self.process
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        await self.process.wait()

    def events(self, name: str) -> list[dict[str, Any]]:
        """Log lines of that name."""
        if not self.log.exists():
            return []
        written, _, _ = self.log.read_bytes().rpartition(b"\n")  # the last line may be on its way
        lines = (json.loads(line) for line in written.splitlines() if line.startswith(b"{"))
        return [line for line in lines if line["event"] == name]

    # the runtime

    def sandbox(self, name: str = "", *, link: str = "") -> str:
        """A pod's network namespace; its path. `link`: an interface of somebody else's that is there already."""
        name = name or f"p-{uuid4().hex[:8]}"
        _ip(f"netns add {name}")
        if link:
            _ip(f"-n {name} link add {link} type veth peer name other")
        self.pods.append(name)
        return f"/run/netns/{name}"

    def end_sandbox(self, netns: str) -> None:
        name = Path(netns).name
        _ip(f"netns delete {name}")
        self.pods.remove(name)

    async def call(self, verb: str, container: str, netns: str | None = None, **more: Any) -> Outcome:
        """`conf`: keys of the network configuration; `stdin`: all of it, in bytes; `args`: CNI_ARGS; `ifname`;
        `killed_after`: seconds after which the shim is killed, if it still runs.
        """
        conf = {"cniVersion": "1.1.0", "name": "vnetpods", "type": "vnetpods"} | more.get("conf", {})
        environment = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container,
            "CNI_IFNAME": more.get("ifname", "eth0"),
            "CNI_PATH": "/opt/cni/bin",
            "CNI_ARGS": more.get("args", ""),
            "VNETPODS_SOCKET": str(self.socket),
            "VNETPODS_SPOOL": str(self.state / "spool"),
            "VNETPODS_BOOT_ID": str(self.folder / "boot_id"),
        }
        if netns is not None:
            environment["CNI_NETNS"] = netns
        process = await asyncio.create_subprocess_exec(
            "nsenter",
            f"--net=/run/netns/{self.name}",
            self.shim,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        stdin = more.get("stdin", json.dumps(conf).encode())
        try:
            async with asyncio.timeout(more.get("killed_after")):
                stdout, stderr = await process.communicate(stdin)
        except TimeoutError:
            return Outcome(-signal.SIGKILL, b"", "")
        finally:
            if process.returncode is None:  # also when the test waits no longer
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        assert process.returncode is not None
        return Outcome(process.returncode, stdout, stderr.decode(errors="replace"))

    async def add(self, container: str, netns: str, **more: Any) -> str:
        """The address that the pod got."""
        outcome = await self.call("ADD", container, netns, **more)
        assert outcome.exit_code == 0, outcome
        return str(outcome.json["ips"][-1]["address"]).removesuffix("/32")

    async def delete(self, container: str, netns: str | None = None, **more: Any) -> None:
        outcome = await self.call("DEL", container, netns, **more)
        assert outcome.exit_code == 0, outcome

    # the kernel

    def routes(self) -> set[str]:
        """Addresses that are routed to pods."""
        return {route["dst"] for route in self._show("route show proto 118") if "/" not in route["dst"]}

    def shown(self) -> tuple[list[dict[str, Any]], set[str]]:
        """All routes, and the names of all links."""
        return self._show("route show"), {link["ifname"] for link in self._show("link show")}

    def host_ends(self) -> set[str]:
        return {link["ifname"] for link in self._show("link show") if link["ifname"].startswith("azv")}

    def addresses_of(self, netns: str, ifname: str = "eth0") -> list[str]:
        shown = json.loads(_ip(f"-n {Path(netns).name} -j -4 addr show"))
        return [info["local"] for link in shown if link["ifname"] == ifname for info in link["addr_info"]]

    def _show(self, what: str) -> list[dict[str, Any]]:
        return list(json.loads(_ip(f"-n {self.name} -j {what}") or "[]"))


def listening_in(netns: str, port: int, address: str = "127.0.0.1") -> socket.socket:
    """A socket belongs to the namespace that it was made in, whoever uses it."""
    made: list[socket.socket] = []

    def make() -> None:
        with Path(f"/run/netns/{netns}").open() as there:
            if ctypes.CDLL(None, use_errno=True).setns(there.fileno(), 0):
                raise OSError(ctypes.get_errno(), f"setns {netns}")
        made.append(socket.create_server((address, port)))

    thread = threading.Thread(target=make)  # which ends with it
    thread.start()
    thread.join()
    return made[0]


def _ip(arguments: str) -> str:
    done = subprocess.run(["ip", *arguments.split()], capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"ip {arguments}: {done.stderr}")
    return done.stdout


@contextlib.asynccontextmanager
async def machine(folder: Path, **settings: Any) -> AsyncIterator[Machine]:
    """Built, not yet started. What the agent said is shown when the test fails."""
    made = Machine(folder, settings)
    made.build()
    try:
        yield made
    except BaseException:
        if made.log.exists():
            print(made.log.read_text()[-8000:])
        raise
    finally:
        if made.process is not None and made.process.returncode is None:
            await made.kill()
        made.close()
