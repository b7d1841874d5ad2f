"""A kernel that refuses to list its interfaces for a while: the agent comes up and says so, and gives no address to two
pods.

The agent's process is the real one but for its conversations with the kernel, which are refused as long as a file is
there.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.agent import truths
from tests.agent.machine import Machine, machine, until

REFUSAL = """
import errno, pathlib
from vnetpods_agent.dataplane import DataPlaneError
from vnetpods_agent.dataplane.netlink.socket import NetlinkSocket

def dump(self, step, reader, dumped=NetlinkSocket.dump):
    if step.what == "list links of" and pathlib.Path({file!r}).exists():
        raise DataPlaneError(step.what, step.subject, errno.ENOBUFS)
    return dumped(self, step, reader)

NetlinkSocket.dump = dump
"""


@dataclass(frozen=True)
class Kernel:
    file: Path

    def refuses(self) -> None:
        self.file.touch()

    def relents(self) -> None:
        self.file.unlink()


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    file, folder = tmp_path / "refusing", tmp_path / "python"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(REFUSAL.format(file=str(file)))  # every Python runs it first
    monkeypatch.setenv("PYTHONPATH", ":".join(filter(None, (str(folder), os.environ.get("PYTHONPATH")))))
    return Kernel(file)


async def two_pods(node: Machine) -> None:
    node.pool(["10.240.0.5", "10.240.0.6", "10.240.0.7"])
    await node.start()
    for name in ("c1", "c2"):
        await node.add(name, node.sandbox(f"p-{name}"))
    await until((node.state / "pool.json").exists)
    await node.stop()


def said(node: Machine) -> list[str]:
    return [event["message"] for event in node.events("event reported") if "running pods" in event["message"]]


async def test_with_a_whole_ledger_pods_are_served(tmp_path: Path, kernel: Kernel) -> None:
    async with machine(tmp_path) as node:
        await two_pods(node)
        node.end_sandbox("/run/netns/p-c1")
        kernel.refuses()
        await node.start()
        assert node.process
        assert node.process.returncode is None
        assert await node.add("c3", node.sandbox()) == "10.240.0.7"
        await node.delete("c2", "/run/netns/p-c2")
        await asyncio.sleep(3)
        assert len(said(node)) == 1
        kernel.relents()
        await until(lambda: truths.read(node).agreed)  # the sandbox that had gone has given back its address, too
        assert set(truths.read(node).ledger) == {"c3/eth0"}


async def test_with_a_lost_one_nobody_is_given_an_address_before_all_are_known(tmp_path: Path, kernel: Kernel) -> None:
    async with machine(tmp_path) as node:
        await two_pods(node)
        (node.state / "ledger.db").unlink()
        kernel.refuses()
        await node.start()
        outcome = await node.call("ADD", "c3", node.sandbox("p-c3"))
        assert (outcome.code, "running pods" in outcome.json["details"]) == (11, True)
        outcome = await node.call("STATUS", "")
        assert (outcome.code, "running pods" in outcome.json["details"]) == (50, True)
        kernel.relents()
        await until(lambda: len(truths.read(node).ledger) == 2)
        assert await node.add("c3", "/run/netns/p-c3") == "10.240.0.7"
        assert (await node.call("STATUS", "")).exit_code == 0
