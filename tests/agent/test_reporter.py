from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from vnetpods_agent.attachment import Address, Attachment, AttachmentKey, Moment
from vnetpods_agent.ipam.ledger.schema import Assign, Release
from vnetpods_agent.ipam.ledger.store import Ledger
from vnetpods_agent.ipam.pool import Pool
from vnetpods_agent.sync.reporter import GAP, Reporter, urgency
from vnetpods_agent.sync.source import Report, SourceUnavailable, Supply
from vnetpods_agent.sync.trust import Trust
from vnetpods_api import Interface, Status, Usage

INTERVAL = 10.0
COOLDOWN = 30.0


def report(
    *,
    released: tuple[str, ...] = (),
    kept: tuple[str, ...] = (),
    missing: tuple[str, ...] = (),
    serving: bool = True,
    request: str | None = None,
    **usage: int,
) -> Report:
    return Report(Usage(**usage), released, kept, missing, serving, request=request)


@pytest.mark.parametrize(
    ("last", "now", "expected"),
    [
        pytest.param(None, report(), 0.0, id="first-start"),
        pytest.param(report(free=9), report(free=9), None, id="nothing-new"),
        pytest.param(report(free=9), report(free=8, assigned=1), INTERVAL, id="a-pod-came"),
        pytest.param(report(free=8, assigned=1), report(free=8, cooling=1), INTERVAL, id="a-pod-went"),
        pytest.param(report(free=9), report(free=4, assigned=5), GAP, id="half-of-it-is-gone"),
        pytest.param(report(free=1), report(free=0, assigned=1), GAP, id="none-left"),
        pytest.param(report(), report(waiting=1), GAP, id="a-pod-waits"),
        pytest.param(report(waiting=1), report(waiting=9), GAP, id="more-pods-wait"),
        pytest.param(report(waiting=9), report(assigned=9), GAP, id="nobody-waits-any-more"),
        pytest.param(report(waiting=9), report(waiting=9, cooling=1), INTERVAL, id="as-many-wait"),
        pytest.param(report(), report(released=("10.0.0.5",)), GAP, id="released"),
        pytest.param(report(), report(kept=("10.0.0.5",)), GAP, id="kept"),
        pytest.param(report(), report(request="r1"), INTERVAL, id="asked-and-no-answer-yet"),
        pytest.param(report(kept=("10.0.0.5",)), report(kept=("10.0.0.5",), request="r1"), GAP, id="asked-anew-kept"),
        pytest.param(
            report(released=("10.0.0.5",)), report(released=("10.0.0.5",), request="r1"), GAP, id="asked-anew-released"
        ),
        pytest.param(report(), report(missing=("10.0.0.5",)), GAP, id="missing"),
        pytest.param(report(serving=False), report(), GAP, id="serving-now"),
    ],
)
def test_urgency(last: Report | None, now: Report, expected: float | None) -> None:
    assert urgency(last, now, INTERVAL) == expected


class Cloud:
    """Operator, NIC and API server as far as the handshake goes; every write has a version, as in the API server."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.made = 0
        self.nic: dict[str, str] = {}  # address -> name
        self.add(*(f"10.0.0.{n}" for n in range(5, 11)))
        self.releasing: dict[str, str] = {}  # what is asked for, by name
        self.request: str | None = None
        self.told = Status()
        self.version = 0
        self.seen: tuple[int, Status] = (0, Status())
        self.removed: list[str] = []
        self.writes = 0

    def add(self, *addresses: str) -> None:
        for address in addresses:
            self.made += 1
            self.nic[address] = f"vnetpods-{self.made}"

    # what the agent talks to

    async def publish(self, told: Report) -> None:
        luck = self.chance.random()
        if luck < 0.15:
            raise SourceUnavailable("not sent")
        self.writes += 1
        if self.told != told.status:
            self.told = told.status
            self.version += 1
        if luck < 0.3:
            raise SourceUnavailable("sent, and no answer came")

    def watch(self) -> AsyncIterator[Supply]:
        raise NotImplementedError

    truth = True
    lasting = True

    @property
    def trouble(self) -> str:
        return ""

    async def close(self) -> None: ...

    # what the operator does, by the rules of the architecture

    def look(self) -> None:
        """Only the report can be news to it: it writes the lists itself."""
        self.seen = self.version, self.told

    def act(self) -> None:
        """On what it saw some time ago; a release is started or cancelled only if the pool hasn't changed since."""
        version, told = self.seen
        answered = told.agent is not None and told.agent.release_request == self.request
        done = [a for a in self.releasing if answered and a in told.released]
        unasked = [a for a in told.released if a in self.nic and a not in self.releasing]
        choice = self.chance.random()
        idle = [a for a in self.nic if a not in self.releasing]
        if done:  # acknowledged: always finished
            for address in done:
                assert self.nic[address] == self.releasing.pop(address), "not what was asked for"
                del self.nic[address]
            self.removed += done
        elif unasked and version == self.version:
            self.ask(*unasked)
        elif choice < 0.3 and self.removed:
            self.add(self.removed.pop())
        elif choice < 0.7 and idle and version == self.version:
            self.ask(self.chance.choice(idle))
        elif self.releasing and version == self.version:
            self.releasing.pop(self.chance.choice(sorted(self.releasing)))
        else:
            return
        self.version += 1
        self.look()

    def ask(self, *addresses: str) -> None:
        self.releasing.update((address, self.nic[address]) for address in addresses)
        self.made += 1
        self.request = f"r{self.made}"

    def restart(self) -> None:
        """The operator forgets what it has asked for."""
        self.releasing, self.request = {}, None
        self.version += 1

    def interface(self) -> Interface:
        names = tuple(self.nic.values())
        return Interface(
            name="nic",
            mac="m",
            subnet="s",
            addresses=tuple(self.nic),
            ip_configurations=names,
            releasing=tuple(self.releasing),
        )


class Node:
    """The agent's half: pool, ledger and reporter, which may be restarted at any moment."""

    def __init__(self, path: Path, cloud: Cloud) -> None:
        self.path, self.cloud = path, cloud
        self.now = 1000.0
        self.pods = 0

    async def start(self) -> None:
        self.ledger = Ledger(self.path)
        self.ledger.start()
        content, _ = await self.ledger.load()
        self.held = {a.address: key for key, a in content.attachments.items()}
        self.pool = Pool(COOLDOWN)
        rests = {address: since.boottime for address, since in content.rests.items()}
        self.pool.restore(self.held, rests, content.withdrawn, content.retired)
        self.reporter = Reporter(
            self.pool, self.ledger, self.cloud, Trust(60.0, 0.0, always=True), lambda: "", INTERVAL
        )

    def hear(self) -> None:
        self.pool.supply([self.cloud.interface()], self.cloud.request)
        self.settled = asyncio.ensure_future(self.reporter.settle())
        self.reporter.heard(self.cloud.told)

    async def report(self) -> None:
        with contextlib.suppress(SourceUnavailable):
            await self.reporter.step(self.now, self.now)

    async def add(self) -> None:
        self.pods += 1
        key = AttachmentKey("vnetpods", f"p{self.pods}", "eth0")
        address = self.pool.take(key, self.now)
        if address is None:
            self.pool.leave(key)
            return
        assert address in self.cloud.nic, "given to a pod, and not on the NIC"
        self.held[address] = key
        await self.ledger.commit(Assign(Attachment(key, address, "", "m", 1500, "b", self.now)))

    async def delete(self, address: Address) -> None:
        await self.ledger.commit(Release(self.held.pop(address), Moment(self.now, self.now, "b")))
        self.pool.release(address, self.now)

    async def stop(self) -> None:
        await asyncio.to_thread(self.ledger.close)


@pytest.mark.parametrize("seed", range(25))
async def test_no_address_that_a_pod_holds_ever_leaves_the_nic(tmp_path: Path, seed: int) -> None:
    """Operator, agent, lost answers, late looks and restarts in any order."""
    chance = random.Random(seed)
    cloud = Cloud(chance)
    node = Node(tmp_path / "ledger.db", cloud)
    await node.start()

    async def restart() -> None:
        await node.stop()
        await node.start()

    async def operator_acts() -> None:
        cloud.act()

    async def operator_restarts() -> None:
        cloud.restart()

    doings = [node.report] * 6 + [node.add] * 3 + [operator_acts] * 4 + [operator_restarts, restart]
    for _ in range(250):
        node.now += chance.choice([0.1, 1.0, 20.0])
        if chance.random() < 0.5:
            cloud.look()
        if chance.random() < 0.6:
            node.hear()
        if node.held and chance.random() < 0.3:
            await node.delete(chance.choice(sorted(node.held)))
        else:
            await chance.choice(doings)()
        assert not [a for a in node.held if a not in cloud.nic], "taken from a pod"
    await come_to_an_end(node)
    await node.stop()


async def come_to_an_end(node: Node) -> None:
    """Everything that is wanted back goes, once no pod is left."""
    cloud = node.cloud
    for address in list(node.held):
        await node.delete(address)
    node.now += COOLDOWN + 1
    for _ in range(60):
        node.hear()
        node.now += 2 * INTERVAL
        await node.report()
        cloud.look()
        if {*cloud.releasing, *cloud.nic} & set(cloud.told.released):
            cloud.act()
    assert (cloud.releasing, cloud.told.released) == ({}, ())
    assert node.pool.usage(node.now).free == len(cloud.nic)


async def test_a_thousand_pods_that_come_and_go_cost_a_handful_of_writes(tmp_path: Path) -> None:
    cloud = Cloud(random.Random(0))
    cloud.chance.random = lambda: 0.9  # type: ignore[method-assign]  # nothing fails here
    cloud.add(*(f"10.0.0.{n}" for n in range(5, 69)))
    node = Node(tmp_path / "ledger.db", cloud)
    await node.start()
    node.hear()
    for _ in range(1000):
        node.now += 0.05
        await node.add()
        await node.report()
        node.now += 0.05
        if len(node.held) > 5:
            await node.delete(next(iter(node.held)))
        await node.report()
    assert cloud.writes <= 15  # 100 seconds
    await node.stop()
