"""STATUS as the runtime hears it, on a node whose host state can't be kept."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from pathlib import Path

from tests import pace
from tests.agent.machine import Machine, machine, until
from tests.agent.shim import QUICK, Outcome, program
from vnetpods_agent.cni.commands import LASTING


def programs(folder: Path, *names: str) -> Path:
    """A folder with no other programs than these."""
    folder.mkdir(exist_ok=True)
    for name in names:
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    return folder


async def first(node: Machine, code: int, within: float) -> Outcome:
    """The first STATUS with that code."""
    end = time.monotonic() + pace.stretched(within)
    while (outcome := await node.call("STATUS", "")).code != code:
        assert time.monotonic() < end, outcome
        await asyncio.sleep(0.3)
    return outcome


async def test_no_pod_comes_before_the_ruleset_and_later_51_while_it_cannot_be_kept(tmp_path: Path) -> None:
    """Without it a pod would reach the node's identity. Later the kernel has what it had, and what works isn't refused;
    but running pods may lack their SNAT. containerd makes the node NotReady for 51, so a short failure is none.
    """
    async with machine(tmp_path) as node:
        node.shim = program(*QUICK)
        path = programs(tmp_path / "programs", "nsenter", "iptables", "iptables-legacy", "iptables-nft")
        node.pool(["10.240.0.5"])
        await node.start(path=str(path))
        await until(lambda: node.report().usage)  # the pool has been heard
        outcome = await node.call("STATUS", "")
        assert (outcome.code, outcome.json["msg"]) == (50, "no pod can be added")
        assert "the nftables table vnetpods has not been loaded yet" in outcome.json["details"]
        assert "nft is not installed" in outcome.json["details"]
        netns = node.sandbox()
        refused = await node.call("ADD", "c1", netns)
        assert (refused.code, "has not been loaded yet" in refused.json["details"]) == (11, True)
        assert (node.host_ends(), node.addresses_of(netns)) == (set(), [])
        programs(path, "nft")
        await first(node, 0, within=10)
        assert await node.add("c1", netns) == "10.240.0.5"
        (path / "nft").unlink()
        undone = "nft delete table ip vnetpods"
        subprocess.run(f"nsenter --net=/run/netns/{node.name} {undone}".split(), check=True)  # noqa: ASYNC221
        outcome = await first(node, 51, within=3 * LASTING)
        assert outcome.json["msg"] == "the pods of this node are not fully connected"
        assert "nft is not installed" in outcome.json["details"]
        await node.delete("c1", netns)
        node.pool(["10.240.0.5", "10.240.0.6"])
        assert await node.add("c2", node.sandbox()) in {"10.240.0.5", "10.240.0.6"}  # what works is not refused
        programs(path, "nft")
        await first(node, 0, within=10)
