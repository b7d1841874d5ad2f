"""The installed shim and conflist as the reference implementation drives them: cnitool (libcni), for every version.

The agent installs both itself. libcni's cache of results is bound over /var/lib/cni in a mount namespace per call, so
that nothing of the machine is touched and CHECK and DEL get their prevResult from the ADD before.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import pace
from tests.agent import truths
from tests.agent.dataplane.world import inside
from tests.agent.machine import Machine, machine, until
from tests.agent.shim import Outcome
from tests.kube import binaries

pytestmark = pytest.mark.timeout(120)
NOTHING = truths.Truths({}, {}, frozenset())


@pytest.fixture(scope="module")
def programs() -> dict[str, Path]:
    return binaries.programs(*binaries.CNI_TOOLS)


@dataclass(frozen=True)
class CniTool:
    node: Machine
    program: Path

    async def __call__(self, command: str, netns: str, **environment: str) -> Outcome:
        cache = self.node.folder / "cache"
        cache.mkdir(exist_ok=True)
        script = 'mkdir -p /var/lib/cni && mount --bind "$CACHE" /var/lib/cni && exec "$@"'
        process = await asyncio.create_subprocess_exec(
            *("nsenter", f"--net=/run/netns/{self.node.name}", "unshare", "--mount"),
            *("sh", "-c", script, "sh", self.program, command, "vnetpods", netns),
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "CACHE": str(cache),
                "CNI_PATH": str(self.node.folder / "bin"),
                "NETCONFPATH": str(self.node.folder / "net.d"),
                "VNETPODS_SOCKET": str(self.node.socket),
                "VNETPODS_SPOOL": str(self.node.state / "spool"),
                "VNETPODS_BOOT_ID": str(self.node.folder / "boot_id"),
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        stdout, stderr = await process.communicate()
        assert process.returncode is not None
        return Outcome(process.returncode, stdout, stderr.decode())


async def serving(node: Machine, *addresses: str) -> Path:
    """The agent runs and has installed what the runtime needs; the conflist."""
    node.pool(addresses)
    await node.start()
    conflist = node.folder / "net.d" / "05-vnetpods.conflist"
    await until(conflist.exists)
    return conflist


def version(conflist: Path, wanted: str) -> None:
    """A network of one plugin in that version; libcni speaks the version that the list says."""
    config: dict[str, Any] = json.loads(conflist.read_text())
    del config["cniVersions"]
    conflist.write_text(json.dumps(config | {"cniVersion": wanted}))


@pytest.mark.parametrize("wanted", ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
async def test_life_of_an_attachment(tmp_path: Path, programs: dict[str, Path], wanted: str) -> None:
    async with machine(tmp_path) as node:
        version(await serving(node, "10.240.0.5"), wanted)
        cnitool = CniTool(node, programs["cnitool"])
        netns = node.sandbox()

        added = await cnitool("add", netns)
        assert added.exit_code == 0, added
        assert added.json["cniVersion"] == wanted
        assert [ip["address"] for ip in added.json["ips"]] == ["10.240.0.5/32"]
        assert ("version" in added.json["ips"][0]) == (wanted < "1")
        assert node.addresses_of(netns) == ["10.240.0.5"]

        checked = await cnitool("check", netns)
        assert checked.exit_code == (0 if wanted >= "0.4.0" else 1), checked
        subprocess.run(["ip", "-n", Path(netns).name, "addr", "flush", "dev", "eth0"], check=True)  # noqa: ASYNC221
        assert (await cnitool("check", netns)).exit_code == 1

        for command in ("status", "gc"):
            outcome = await cnitool(command, netns)
            assert outcome.exit_code == 0, outcome  # before 1.1.0 libcni has nothing to call

        for _ in range(2):  # a repeated DEL succeeds, too
            deleted = await cnitool("del", netns)
            assert deleted.exit_code == 0, deleted
        await until(lambda: truths.read(node) == NOTHING)


@pytest.mark.parametrize(("tool", "spoken"), [("cnitool", "1.1.0"), ("cnitool-oldest", "1.0.0")])
async def test_every_libcni_can_use_the_conflist_as_it_is(
    tmp_path: Path, programs: dict[str, Path], tool: str, spoken: str
) -> None:
    """The older one refuses a list whose cniVersion is 1.1.0, and with it every pod."""
    async with machine(tmp_path) as node:
        await serving(node, "10.240.0.5")
        cnitool = CniTool(node, programs[tool])
        netns = node.sandbox()
        for command in ("add", "check", "del"):
            outcome = await cnitool(command, netns)
            assert outcome.exit_code == 0, outcome
            if command == "add":
                assert outcome.json["cniVersion"] == spoken


async def test_delete_and_add_in_the_same_namespace(tmp_path: Path, programs: dict[str, Path]) -> None:
    """cnitool's container id follows from the namespace, so this is one and the same attachment each time."""
    async with machine(tmp_path, cooldown=0) as node:
        await serving(node, "10.240.0.5", "10.240.0.6")
        cnitool = CniTool(node, programs["cnitool"])
        netns = node.sandbox()
        for _ in range(5):
            for command in ("add", "check", "del"):
                outcome = await cnitool(command, netns)
                assert outcome.exit_code == 0, outcome


async def test_chained_with_portmap_and_bandwidth(tmp_path: Path, programs: dict[str, Path]) -> None:
    """The result of each plugin is the next one's prevResult; ours comes through to the end and back at DEL."""
    async with machine(tmp_path, chained=["portmap", "bandwidth"]) as node:
        (tmp_path / "bin").mkdir()
        for name in ("portmap", "bandwidth"):
            shutil.copy(programs[name], tmp_path / "bin" / name)
        conflist = await serving(node, "10.240.0.5")
        plugins = [plugin["type"] for plugin in json.loads(conflist.read_text())["plugins"]]
        assert plugins == ["vnetpods", "portmap", "bandwidth"]
        cnitool = CniTool(node, programs["cnitool"])
        netns = node.sandbox()
        capabilities = {
            "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
            "bandwidth": {"ingressRate": 800_000, "ingressBurst": 800_000},
        }
        arguments = {"CAP_ARGS": json.dumps(capabilities), "CNI_IFNAME": "eth0"}
        added = await cnitool("add", netns, **arguments)
        assert added.exit_code == 0, added
        assert added.json["ips"][0]["address"] == "10.240.0.5/32"
        assert "8080" in _nft(node)
        with inside(Path(netns).name):
            server = socket.create_server(("0.0.0.0", 80))
        with server, inside(node.name):  # for which portmap changes a setting of the pod's link
            socket.create_connection(("127.0.0.1", 8080), timeout=pace.stretched(5)).close()
        checked = await cnitool("check", netns, **arguments)
        assert checked.exit_code == 0, checked
        deleted = await cnitool("del", netns, **arguments)
        assert deleted.exit_code == 0, deleted
        assert "8080" not in _nft(node)
        await until(lambda: truths.read(node) == NOTHING)


def _nft(node: Machine) -> str:
    command = ["nsenter", f"--net=/run/netns/{node.name}", "nft", "list", "ruleset"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


async def test_without_an_agent_libcni_shows_our_sentence(tmp_path: Path, programs: dict[str, Path]) -> None:
    async with machine(tmp_path) as node:
        await serving(node, "10.240.0.5")
        cnitool = CniTool(node, programs["cnitool"])
        netns = node.sandbox()
        await node.kill()
        status = await cnitool("status", netns)
        assert "the vnetpods agent on this node is not answering" in status.stderr
        assert "kubectl -n kube-system get pods" in status.stderr
        assert (await cnitool("del", netns)).exit_code == 0
