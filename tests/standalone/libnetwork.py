"""dockerd's part, call by call: the bodies that libnetwork sends to a remote driver, and what it does in between.

The bodies are those of 20.10.24 (drivers/remote, ipams/remote); so is the order of what happens to the interface
(osl/interface_linux.go). A call that gets no answer is repeated, as pkg/plugins does.
"""

from __future__ import annotations

import asyncio
import secrets
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests import pace
from tests.agent.machine import Machine

SUBNET = "10.240.0.0/16"
SPACE = "vnetpods"
_PATIENCE = 30.0


class DriverError(Exception):
    """What the user would read."""


def ip(arguments: str) -> str:
    done = subprocess.run(["ip", *arguments.split()], capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"ip {arguments}: {done.stderr}")
    return done.stdout


@dataclass
class Container:
    """One endpoint: every start of a container makes a new one."""

    address: str = ""
    netns: str = ""
    endpoint: str = field(default_factory=lambda: secrets.token_hex(32))
    mac: str = ""
    source: str = ""

    def ping(self, address: str) -> bool:
        inside = ["ip", "netns", "exec", Path(self.netns).name]
        asked = subprocess.run([*inside, "busybox", "ping", "-qc1", "-W5", address], check=False, capture_output=True)
        return asked.returncode == 0

    def seen(self, what: str) -> str:
        return ip(f"-n {Path(self.netns).name} {what}")


@dataclass
class Docker:
    node: Machine
    network: str = field(default_factory=lambda: secrets.token_hex(32))
    pool: str = ""

    @property
    def socket(self) -> Path:
        return self.node.folder / "plugins" / "vnetpods.sock"

    async def raw(self, name: str, body: bytes) -> tuple[int, dict[str, Any]]:
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self.socket))) as session,
            session.post(f"http://d/{name}", data=body) as response,
        ):
            return response.status, await response.json(content_type=None)

    async def call(self, name: str, **body: Any) -> dict[str, Any]:
        """Raises DriverError."""
        end = asyncio.get_running_loop().time() + pace.stretched(_PATIENCE)
        while True:
            try:
                async with (
                    aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self.socket))) as session,
                    session.post(f"http://d/{name}", json=body) as response,
                ):
                    answer: dict[str, Any] = await response.json(content_type=None)
                    break
            except aiohttp.ClientError:
                if asyncio.get_running_loop().time() > end:
                    raise
                await asyncio.sleep(0.1)
        if said := answer.get("Error" if name.startswith("Ipam") else "Err"):
            raise DriverError(said)
        return answer

    async def create_network(self, subnet: str = SUBNET, **more: Any) -> None:
        """As `docker network create -d vnetpods --ipam-driver vnetpods --subnet …`."""
        await self.call("IpamDriver.GetDefaultAddressSpaces")
        granted = await self.call(
            "IpamDriver.RequestPool", AddressSpace=SPACE, Pool=subnet, SubPool="", Options=None, V6=False
        )
        self.pool = granted["PoolID"]
        data = {
            "AddressSpace": SPACE,
            "Pool": granted["Pool"],
            "Gateway": granted["Data"]["com.docker.network.gateway"],
        }
        await self.call(
            "NetworkDriver.CreateNetwork",
            **{
                "NetworkID": self.network,
                "Options": {"com.docker.network.enable_ipv6": False, "com.docker.network.generic": {}},
                "IPv4Data": [data],
                "IPv6Data": [],
                **more,
            },
        )

    async def request(self, address: str = "") -> str:
        answer = await self.call("IpamDriver.RequestAddress", PoolID=self.pool, Address=address, Options=None)
        assert answer["Address"].endswith("/32")
        return str(answer["Address"].removesuffix("/32"))

    async def release(self, address: str) -> None:
        await self.call("IpamDriver.ReleaseAddress", PoolID=self.pool, Address=address)

    async def create(self, container: Container, **options: Any) -> None:
        interface = {"Address": f"{container.address}/32", "AddressIPv6": "", "MacAddress": ""}
        answer = await self.call(
            "NetworkDriver.CreateEndpoint",
            NetworkID=self.network,
            EndpointID=container.endpoint,
            Interface=interface,
            Options=options,
        )
        assert list(answer["Interface"]) == ["MacAddress"], "what Docker has supplied itself is not repeated"
        container.mac = answer["Interface"]["MacAddress"]

    async def join(self, container: Container) -> None:
        answer = await self.endpoint("Join", container, SandboxKey="/var/run/docker/netns/0123456789ab", Options={})
        container.source = answer["InterfaceName"]["SrcName"]
        assert (answer["InterfaceName"]["DstPrefix"], answer["Gateway"]) == ("eth", "169.254.1.1")

    async def endpoint(self, name: str, container: Container, **more: Any) -> dict[str, Any]:
        return await self.call(f"NetworkDriver.{name}", NetworkID=self.network, EndpointID=container.endpoint, **more)

    def take(self, container: Container) -> None:
        """When the container's namespace is there, some time after Join: osl's AddInterface, then the gateway."""
        container.netns = self.node.sandbox()
        inside = Path(container.netns).name
        ip(f"-n {self.node.name} link set {container.source} netns {inside}")
        ip(f"-n {inside} link set lo up")
        ip(f"-n {inside} link set {container.source} down")
        ip(f"-n {inside} link set {container.source} name eth0")
        ip(f"-n {inside} link set eth0 address {container.mac}")
        ip(f"-n {inside} addr add {container.address}/32 dev eth0")
        ip(f"-n {inside} link set eth0 up")
        ip(f"-n {inside} route add 169.254.1.1/32 dev eth0 scope link")
        ip(f"-n {inside} route add default via 169.254.1.1 dev eth0")

    def give_back(self, container: Container) -> None:
        """After Leave: osl's RemoveInterface."""
        inside = Path(container.netns).name
        ip(f"-n {inside} link set eth0 down")
        ip(f"-n {inside} link set eth0 name {container.source}")
        # by its index the host's namespace is the caller's; `ip` needs a name for it
        ip(f"-n {inside} link set {container.source} netns {self.node.name}")

    async def run(self, address: str = "") -> Container:
        container = Container(await self.request(address))
        await self.create(container)
        await self.join(container)
        self.take(container)
        return container

    async def stop(self, container: Container) -> None:
        await self.endpoint("Leave", container)
        self.give_back(container)
        await self.endpoint("DeleteEndpoint", container)
        await self.release(container.address)
        self.node.end_sandbox(container.netns)
