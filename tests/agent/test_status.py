"""STATUS as the runtime hears it, on a node whose host state can't be kept."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path

from tests import pace
from tests.agent.machine import Machine, machine
from tests.agent.shim import Outcome
from vnetpods_agent.verbs import LASTING


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


async def test_51_once_the_ruleset_cannot_be_kept_for_long_and_0_when_it_can_again(tmp_path: Path) -> None:
    """Running pods lack their SNAT then, too. containerd makes the node NotReady for it, so a short failure is none."""
    async with machine(tmp_path) as node:
        path = programs(tmp_path / "programs", "nsenter", "iptables", "iptables-legacy", "iptables-nft")
        node.pool(["10.240.0.5"])
        began = time.monotonic()  # what fails before "serving" is said counts
        await node.start(path=str(path))
        assert (await node.call("STATUS", "")).exit_code == 0
        outcome = await first(node, 51, within=3 * LASTING)
        assert time.monotonic() > began + LASTING
        assert outcome.json["msg"] == "the pods of this node are not fully connected"
        assert "nft is not installed" in outcome.json["details"]
        assert await node.add("c1", node.sandbox()) == "10.240.0.5"  # what works is not refused
        programs(path, "nft")
        await first(node, 0, within=10)
