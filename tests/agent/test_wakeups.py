"""A waiting ADD is served the moment an address cools down or leaves the kernel, whatever the timing."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from pathlib import Path

import pytest

from vnetpods_agent.attachment import Address, Attachment, AttachmentKey, Limits, SandboxHandles
from vnetpods_agent.dataplane import HostInterface
from vnetpods_agent.ipam.attachments import Attachments
from vnetpods_agent.ipam.ledger.store import Ledger
from vnetpods_agent.ipam.pool import Pool
from vnetpods_agent.ipam.requests import AttachRequest, Surroundings
from vnetpods_agent.ipam.worker import WorkerThread
from vnetpods_api import Interface

ADDRESS = Address("10.240.0.5")
NIC = Interface(name="nic", mac="00:0d:3a:1b:c7:21", subnet="pods", primary_address="10.240.0.4", addresses=(ADDRESS,))
RELEASED = 1000.0
COOLDOWN = 10.0


class Plane:
    """A DataPlane that does nothing; what it says is leaving changes with every look."""

    def __init__(self, leaving: Sequence[Collection[Address]] = ()) -> None:
        self._leaving = list(leaving)

    def leaving(self) -> frozenset[Address]:
        return frozenset(self._leaving.pop(0) if self._leaving else ())

    def attach(self, attachment: Attachment, handles: SandboxHandles | None) -> None: ...
    def detach(self, attachment: Attachment) -> None: ...
    def present(self, attachment: Attachment) -> bool:
        return True

    def check(self, attachment: Attachment, handles: SandboxHandles) -> Sequence[str]:
        return ()

    def interfaces(self) -> Sequence[HostInterface]:
        return ()

    def remove(self, interface: HostInterface) -> None: ...


class Clock:
    """Time that passes only when somebody looks: 0.1 ms each time."""

    def __init__(self, start: float) -> None:
        self._now = start

    def __call__(self) -> float:
        self._now += 0.0001
        return self._now


async def attached(folder: Path, plane: Plane, clock: Clock) -> Attachment:
    pool = Pool(COOLDOWN, leaving=plane.leaving)
    pool.restore({}, {ADDRESS: RELEASED}, {}, {})
    pool.supply([NIC])
    ledger, kernel = Ledger(folder / "ledger.db"), WorkerThread("kernel")
    ledger.start()
    kernel.start()
    await ledger.load()
    surroundings = Surroundings(clock, clock, "boot", lambda _: Limits(), lambda: "", lambda: None, lambda *_: None)
    attachments = Attachments(pool, ledger, kernel, plane, surroundings)
    try:
        wanted = AttachRequest(AttachmentKey("vnetpods", "c1", "eth0"), "/run/netns/x", None)
        return await attachments.attach(wanted, SandboxHandles(-1, -1), asyncio.get_running_loop().time() + 5)
    finally:
        await asyncio.to_thread(kernel.close)
        await asyncio.to_thread(ledger.close)


@pytest.mark.parametrize("looks", range(12))
async def test_address_that_cools_down_between_two_looks_at_the_clock(tmp_path: Path, looks: int) -> None:
    """The cool-down ends with the nth look: the one by which the pool decides, or a later one."""
    clock = Clock(RELEASED + COOLDOWN - 0.0001 * looks)
    assert (await attached(tmp_path, Plane(), clock)).address == ADDRESS


@pytest.mark.parametrize("looks", range(8))
async def test_address_that_leaves_the_kernel_between_two_looks(tmp_path: Path, looks: int) -> None:
    clock = Clock(RELEASED + COOLDOWN + 5)
    assert (await attached(tmp_path, Plane([[ADDRESS]] * looks), clock)).address == ADDRESS
