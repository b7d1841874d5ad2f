"""Where the time of one ADD goes: its parts measured one by one, medians in milliseconds.

What is left over between their sum and a whole ADD is the rest of the agent's own work (JSON, attachments, hops between
its threads) and the shim's way into the pod's namespace.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tests.agent.dataplane.world import World, inside
from vnetpods_agent.attachment import Address, Attachment, AttachmentKey
from vnetpods_agent.dataplane.pod.reaper import Reaper
from vnetpods_agent.dataplane.pod.transparent import Transparent
from vnetpods_agent.ipam.ledger.schema import Assign
from vnetpods_agent.ipam.ledger.store import Ledger

if TYPE_CHECKING:
    from tests.bench.cni import Candidate

PROCESS, ROUND_TRIP, LEDGER, KERNEL, REST = (
    "process: start, read, write, end",
    "to the agent and back",
    "ledger: one durable write",
    "kernel: 15 netlink messages",
    "the rest: JSON, attachments, threads",
)


async def parts(candidate: Candidate, pods: Sequence[str]) -> dict[str, float]:
    """STATUS goes to the agent and back without any work there; VERSION without an agent is answered by the shim."""
    alone = replace(candidate, environment={"VNETPODS_SOCKET": "/nonexistent"}, measured={})
    process = _median(alone, "VERSION", pods)
    round_trip = _median(candidate, "STATUS", pods)
    add = _median(candidate, "ADD", pods)
    candidate.call("DEL", 1, pods)
    attachments = [_attachment(number) for number in range(len(pods))]
    ledger = await _ledger(attachments, candidate.folder / "parts.db")
    kernel = _kernel(attachments, candidate.node, pods)
    found = {PROCESS: process, ROUND_TRIP: round_trip - process, LEDGER: ledger, KERNEL: kernel}
    return {**found, REST: add - sum(found.values())}


def _median(candidate: Candidate, verb: str, pods: Sequence[str]) -> float:
    """Of this moment: what else goes on here changes within seconds."""
    before = len(candidate.measured[verb, 1].ms) if (verb, 1) in candidate.measured else 0
    candidate.call(verb, 1, pods)
    return statistics.median(candidate.measured[verb, 1].ms[before:])


def _attachment(number: int) -> Attachment:
    key = AttachmentKey("vnetpods", f"part-{number}", "eth0")
    return Attachment(key, Address(f"10.241.0.{number}"), "", "00:0d:3a:1b:c7:21", 1500, "boot", 0.0)


async def _ledger(attachments: Sequence[Attachment], path: Path) -> float:
    ledger = Ledger(path)
    ledger.start()
    await ledger.load()
    took = []
    for attachment in attachments:
        began = time.perf_counter()
        await ledger.commit(Assign(attachment))
        took.append(1e3 * (time.perf_counter() - began))
    ledger.close()
    return statistics.median(took)


def _kernel(attachments: Sequence[Attachment], node: str, pods: Sequence[str]) -> float:
    world = World()
    took = []
    with inside(node), contextlib.closing(Reaper()) as reaper, contextlib.closing(world):
        reaper.start()
        with contextlib.closing(Transparent(reaper)) as plane:
            for attachment, pod in zip(attachments, pods, strict=True):
                handles = world.open_doors(pod)
                began = time.perf_counter()
                plane.attach(attachment, handles)
                took.append(1e3 * (time.perf_counter() - began))
                plane.detach(attachment)
        reaper.wait(10)  # else the next ADD in these namespaces would have to do its work
    return statistics.median(took)
