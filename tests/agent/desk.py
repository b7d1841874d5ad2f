"""Attachments at a desk: a real pool and a real ledger, a kernel and a clock that do as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.agent.planes import DictPlane
from vnetpods_agent.attachment import Attachment, AttachmentKey, Limits, Moment, Pod, SandboxHandles
from vnetpods_agent.ipam.attachments import Attachments
from vnetpods_agent.ipam.ledger.schema import Content
from vnetpods_agent.ipam.ledger.store import Ledger
from vnetpods_agent.ipam.pool import Pool
from vnetpods_agent.ipam.requests import AttachRequest, Surroundings
from vnetpods_agent.ipam.worker import WorkerThread
from vnetpods_api import Interface

COOLDOWN = 30.0
HANDLES = SandboxHandles(-1, -1)
MAC = "00:0d:3a:1b:c7:21"


def wanted(name: str, pod: str = "web-0") -> AttachRequest:
    return AttachRequest(
        AttachmentKey("vnetpods", name, "eth0"), f"/run/netns/{name}", Pod("default", pod, f"uid-{pod}")
    )


class RefusingLedger(Ledger):
    """A real one on a disk that can be told to be full."""

    full = False

    def _apply(self, operations: Any) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        super()._apply(operations)


@dataclass
class Desk:
    """Attachments with a real ledger, and a kernel and a clock that do as they are told."""

    path: Path
    pool: Pool
    ledger: RefusingLedger
    plane: DictPlane
    attachments: Attachments
    kernel: WorkerThread
    now: list[float]
    stepped: list[float]
    told: list[str] = field(default_factory=list)

    def lists(self, *addresses: str) -> None:
        nic = Interface(name="nic", mac=MAC, subnet="s", primary_address="10.0.0.4", addresses=addresses)
        self.pool.supply([nic])
        self.attachments.serve()

    async def add(self, name: str, within: float = 5.0, pod: str = "web-0") -> Attachment:
        deadline = asyncio.get_running_loop().time() + within
        return await self.attachments.attach(wanted(name, pod), HANDLES, deadline)

    async def delete(self, name: str, before: Moment | None = None) -> Attachment | None:
        return await self.attachments.detach(wanted(name).key, before=before)

    def uptime(self) -> float:
        return self.now[0] - self.stepped[0]

    def steps(self, seconds: float) -> None:
        """Somebody sets the clock."""
        self.now[0] += seconds
        self.stepped[0] += seconds

    async def passes(self, seconds: float) -> None:
        self.now[0] += seconds
        self.attachments.serve()
        await asyncio.sleep(0)

    def step_clock(self, seconds: float) -> None:
        """Somebody sets the wall clock; that of the boot goes on as it was."""
        self.now[0] += seconds
        self.stepped[0] += seconds

    async def agree(self) -> dict[str, str]:
        """Container → address, as ledger, memory and kernel say alike."""
        await asyncio.sleep(0)
        held = {key.container_id: a.address for key, a in self.attachments.by_key.items()}
        assert held == {key.container_id: i.address for key, i in self.plane.there.items()}, "memory and kernel"
        assert held == {key.container_id: a for a, key in self.pool._held.items()}, "memory and pool"
        await asyncio.to_thread(self.ledger.close)
        content, _ = await loaded(self.path)
        assert held == {key.container_id: a.address for key, a in content.attachments.items()}, "memory and disk"
        self.ledger = RefusingLedger(self.path)  # nothing more is written in these tests
        return dict(held)


async def loaded(path: Path) -> tuple[Content, str]:
    """What the next agent finds."""
    ledger = Ledger(path)
    ledger.start()
    try:
        return await ledger.load()
    finally:
        await asyncio.to_thread(ledger.close)


@asynccontextmanager
async def desk(tmp_path: Path, *addresses: str) -> AsyncIterator[Desk]:
    plane, now, stepped, told = DictPlane(), [1_000_000.0], [0.0], list[str]()
    pool = Pool(COOLDOWN, leaving=plane.leaving)
    ledger, kernel = RefusingLedger(tmp_path / "ledger.db"), WorkerThread("kernel")
    ledger.start()
    kernel.start()
    await ledger.load()
    surroundings = Surroundings(
        clock=lambda: now[0],
        uptime=lambda: now[0] - stepped[0],
        boot_id="boot",
        limits=lambda _: Limits(),
        cause=lambda: "SubnetFull: no address left in pods",
        changed=lambda: None,
        waits_long=lambda who, cause: told.append(f"{who.key.container_id}: {cause}"),
    )
    attachments = Attachments(pool, ledger, kernel, plane, surroundings)
    made = Desk(tmp_path / "ledger.db", pool, ledger, plane, attachments, kernel, now, stepped, told)
    made.lists(*addresses)
    try:
        yield made
    finally:
        await asyncio.to_thread(kernel.close)
        if made.ledger.is_alive():
            await asyncio.to_thread(made.ledger.close)
