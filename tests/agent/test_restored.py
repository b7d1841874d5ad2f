"""The agent as a process against a real API server, when one of the two goes back in time or is another's copy."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.agent import truths
from tests.agent.machine import NIC_MAC, Machine, machine, named, supply, until
from tests.agent.test_nodeippool import Pool
from tests.agent.test_process import fetch
from tests.kube.apiserver import ApiServer
from tests.pace import stretched
from vnetpods_api import NodeIPPool, from_object
from vnetpods_api.nodeippool import to_object

pytestmark = pytest.mark.apiserver
FIVE, SIX, SEVEN = "10.240.0.5", "10.240.0.6", "10.240.0.7"


class Operator:
    """The operator's half, one step at a time. `confirms`: it repeats the agent's view."""

    def __init__(self, server: ApiServer) -> None:
        self.pool = Pool(server)

    def create(self) -> None:
        self.pool.create()

    def seen(self) -> NodeIPPool:
        return from_object(self.pool.server.request("GET", self.pool.path))

    @property
    def view(self) -> str | None:
        agent = self.seen().status.agent
        return agent.view if agent else None

    async def lists(self, *addresses: str, confirms: bool = True, request: str | None = None, **more: Any) -> None:
        view = self.view if confirms else self.seen().status.confirmed_view
        status = to_object(supply(addresses, **more)) | ({"confirmedView": view} if view else {})
        await asyncio.to_thread(self.pool.status, **status | ({"releaseRequest": request} if request else {}))

    async def asked(self, former: str | None = None) -> str:
        """Waits for the agent to ask for a confirmation, other than the former one."""

        def view() -> str | None:
            found = self.view
            return found if found != former else None

        return str(await until(view))


@contextlib.asynccontextmanager
async def node_of(operator: Operator, folder: Path, **settings: Any) -> AsyncIterator[Machine]:
    server = operator.pool.server
    source = {"kubernetes": {"kubeconfig": str(server.admin_kubeconfig)}} | settings.pop("source", {})
    async with machine(folder, node=operator.pool.name, source=source, **settings) as node:
        await node.reach(server)
        yield node


@pytest.fixture
def operator(nodeippools: ApiServer) -> Operator:
    made = Operator(nodeippools)
    made.create()
    return made


async def serving(operator: Operator, node: Machine, *addresses: str) -> str:
    """An agent whose list is confirmed; its view."""
    await node.start()
    view = await operator.asked()
    await operator.lists(*addresses)
    await until(lambda: (usage := operator.seen().status.usage) and usage.free == len(addresses))
    return view


async def test_after_a_boot_pods_wait_for_the_operator_and_are_told_why(operator: Operator, tmp_path: Path) -> None:
    async with node_of(operator, tmp_path) as node:
        view = await serving(operator, node, FIVE, SIX)
        await node.kill()
        node.reboot()
        await node.reach(operator.pool.server)
        await node.start()
        waiting = asyncio.create_task(node.add("c1", node.sandbox(), args="K8S_POD_NAMESPACE=d;K8S_POD_NAME=p"))
        await operator.asked(view)
        (event,) = await until(lambda: [e for e in node.events("event reported") if e["reason"] == "WaitingForAddress"])
        assert "the operator has not confirmed yet what the NIC holds (the machine has booted)" in event["message"]
        status = await node.call("STATUS", "")
        assert (status.code, "not confirmed" in status.json["details"], waiting.done()) == (50, True, False)
        await operator.lists(SIX)
        assert await waiting == SIX


async def test_the_wait_is_bounded(operator: Operator, tmp_path: Path) -> None:
    """A node must be able to start without an operator."""
    async with node_of(operator, tmp_path, source={"confirmation": 1}) as node:
        await operator.lists(FIVE, confirms=False)
        await node.start()
        assert await node.add("c1", node.sandbox()) == FIVE
        assert await told(node) == ["ListUnconfirmed"]


async def test_without_the_api_server_what_the_disk_has_is_used_after_that_wait(
    operator: Operator, tmp_path: Path
) -> None:
    async with node_of(operator, tmp_path, source={"confirmation": 1}) as node:
        await serving(operator, node, FIVE)
        await until((node.state / "pool.json").exists)
        await node.kill()
        node.reboot()
        await node.start()
        assert await node.add("c1", node.sandbox()) == FIVE
        assert await told(node) == ["ListUnconfirmed"]


async def told(node: Machine) -> list[str]:
    """Reasons of Events; the agent gives an address first and tells then."""
    return [event["reason"] for event in await until(lambda: node.events("event reported"))]


async def test_an_agent_that_is_merely_restarted_asks_for_nothing(operator: Operator, tmp_path: Path) -> None:
    async with node_of(operator, tmp_path) as node:
        view = await serving(operator, node, FIVE, SIX)
        await until(lambda: view.encode() in (node.state / "pool.json").read_bytes())
        await node.stop()
        await node.start()
        assert await node.add("c1", node.sandbox()) == FIVE
        await until(lambda: (usage := operator.seen().status.usage) and usage.assigned == 1)
        assert operator.view == view


async def test_a_pool_that_is_made_anew_has_to_be_confirmed(operator: Operator, tmp_path: Path) -> None:
    """Meanwhile what was known is given out."""
    async with node_of(operator, tmp_path) as node:
        view = await serving(operator, node, FIVE, SIX)
        await asyncio.to_thread(operator.pool.delete)
        await asyncio.to_thread(operator.create)
        renewed = await operator.asked(view)
        await operator.lists(SEVEN, confirms=False)
        await until(lambda: (agent := operator.seen().status.agent) and agent.view == renewed)
        assert {await node.add(name, node.sandbox()) for name in ("c1", "c2")} == {FIVE, SIX}
        waiting = asyncio.create_task(node.add("c3", node.sandbox()))
        await until(lambda: (usage := operator.seen().status.usage) and usage.waiting == 1)
        assert not waiting.done()
        await operator.lists(FIVE, SIX, SEVEN)
        assert await waiting == SEVEN


async def test_etcd_restored_from_a_backup(operator: Operator, tmp_path: Path) -> None:
    """The agent goes back with it, hands out what it knew, keeps its promises, and asks for a confirmation."""
    server = operator.pool.server
    async with node_of(operator, tmp_path) as node:
        view = await serving(operator, node, FIVE, SIX)
        backup = await asyncio.to_thread(server.backup)
        await operator.lists(FIVE, SIX, SEVEN, releasing=[FIVE], request="r1")
        await until(lambda: operator.seen().status.released == (FIVE,))
        await operator.lists(SIX, SEVEN)  # FIVE has left the NIC
        for number in range(20):  # versions that the restored API server has yet to reach
            spec = {"spec": {"sizing": {"maximum": 100 + number}}}
            await asyncio.to_thread(server.write, operator.pool.path, operator.pool.head | spec)
        await until(lambda: operator.seen().status.released == ())
        overtaken = reports(node, "overtaken")

        server.restore(backup)  # its programs end with the thread that starts them
        await operator.asked(view)
        # the list of then, with FIVE: promised, and said to be
        await until(lambda: operator.seen().status.released == (FIVE,))
        assert {await node.add(name, node.sandbox()) for name in ("c1", "c2")} == {SIX, SEVEN}
        waiting = asyncio.create_task(node.add("c3", node.sandbox()))
        await until(lambda: (usage := operator.seen().status.usage) and usage.waiting == 1)
        assert reports(node, "overtaken") - overtaken <= 5
        await operator.lists(FIVE, SIX, SEVEN, names={FIVE: "vnetpods-another"})
        assert await waiting == FIVE


def reports(node: Machine, outcome: str) -> float:
    found = re.search(rf'agent_reports_total{{outcome="{outcome}"}} (\S+)', fetch(node, "/metrics"))
    return float(found[1]) if found else 0.0


async def released_since(operator: Operator, node: Machine, snapshot: Path) -> str:
    """A copy of the agent's state, and then a release of FIVE; the view of that time."""
    view = await serving(operator, node, FIVE, SIX)
    await until(lambda: view.encode() in (node.state / "pool.json").read_bytes())
    await node.stop()
    shutil.copytree(node.state, snapshot)
    await node.start()
    await operator.lists(FIVE, SIX, releasing=[FIVE], request="r1")
    await until(lambda: operator.seen().status.released == (FIVE,))
    await operator.lists(SIX)
    return view


def put_back(node: Machine, snapshot: Path) -> None:
    shutil.rmtree(node.state)
    shutil.copytree(snapshot, node.state)


async def test_a_disk_that_is_rolled_back(operator: Operator, tmp_path: Path) -> None:
    """Ledger and last known pool are both of before a release; the API server is away at first."""
    async with node_of(operator, tmp_path) as node:
        view = await released_since(operator, node, tmp_path / "snapshot")
        await node.kill()
        put_back(node, tmp_path / "snapshot")
        node.reboot()
        await node.start()
        adds = [asyncio.create_task(node.call("ADD", name, node.sandbox())) for name in ("c1", "c2")]
        await until(
            lambda: [e for e in node.events("event reported") if e["reason"] == "WaitingForAddress"] or node.pods
        )
        status = await node.call("STATUS", "")
        assert (status.code, "the machine has booted" in status.json["details"]) == (50, True)
        await node.reach(operator.pool.server)
        await operator.asked(view)
        await operator.lists(SIX)
        done, _ = await asyncio.wait(adds, return_when=asyncio.FIRST_COMPLETED)
        assert [add.result().json["ips"][0]["address"] for add in done] == [f"{SIX}/32"]
        await operator.lists(SIX, SEVEN)
        outcomes = await asyncio.gather(*adds)
        assert {outcome.json["ips"][0]["address"] for outcome in outcomes} == {f"{SIX}/32", f"{SEVEN}/32"}


async def test_a_state_folder_that_is_put_back_without_a_boot(operator: Operator, tmp_path: Path) -> None:
    """Its list is of this boot, and of before a release; the API server is away at first."""
    async with node_of(operator, tmp_path) as node:
        view = await released_since(operator, node, tmp_path / "snapshot")
        await until(lambda: FIVE.encode() not in (node.state / "pool.json").read_bytes())
        held = await node.add("c1", node.sandbox())
        await node.kill()
        put_back(node, tmp_path / "snapshot")
        assert node.door
        node.door.close()
        await node.start()
        adding = asyncio.create_task(node.add("c2", node.sandbox()))
        await until(lambda: "the state folder was put back as it once was" in readiness(node))
        assert (held, adding.done()) == (SIX, False)
        await node.reach(operator.pool.server)
        await operator.asked(view)
        await operator.lists(SIX, SEVEN)
        assert await adding == SEVEN
        await until(lambda: truths.read(node).agreed)


async def test_an_image_of_the_disk_that_boots_as_another_machine(operator: Operator, tmp_path: Path) -> None:
    """State inside the image, and the pool under its name: neither handed out nor reported."""
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
    async with node_of(operator, tmp_path / "a") as node, node_of(operator, tmp_path / "b") as copy:
        await serving(operator, node, FIVE, SIX)
        await node.add("c1", node.sandbox())
        await until(lambda: (usage := operator.seen().status.usage) and usage.assigned == 1)
        shutil.copytree(node.state, copy.state)
        copy.boot_id("another")
        link = f"ip -n {copy.name} link set eth0 address 00:0d:3a:ff:ff:ff"
        await asyncio.to_thread(subprocess.run, link.split(), check=True)
        before = operator.seen().status
        await copy.start()
        await until(lambda: NIC_MAC in readiness(copy))
        assert (await copy.call("STATUS", "")).code == 50
        pod = asyncio.create_task(copy.call("ADD", "c2", copy.sandbox(), killed_after=3))
        assert (await pod).exit_code != 0
        after = operator.seen().status
        assert (after.agent, after.usage, after.released) == (before.agent, before.usage, before.released)


def readiness(node: Machine) -> str:
    return fetch(node, "/readyz")


async def test_a_promise_outlives_a_lost_ledger(operator: Operator, tmp_path: Path) -> None:
    """The pool still has it, and pool.json, which would give it out, isn't used."""
    async with node_of(operator, tmp_path) as node:
        await serving(operator, node, FIVE, SIX)
        await operator.lists(FIVE, SIX, releasing=[FIVE], request="r1")
        await until(lambda: operator.seen().status.released == (FIVE,))
        await node.stop()
        (node.state / "ledger.db").unlink()
        assert FIVE.encode() in (node.state / "pool.json").read_bytes()
        assert node.door
        node.door.close()
        await node.start()
        assert "no address for pods is known" in readiness(node)
        former = operator.view
        await node.reach(operator.pool.server)
        await operator.asked(former)
        await until(lambda: operator.seen().status.released == (FIVE,))  # also before the list is trusted
        await operator.lists(FIVE, SIX)
        assert await node.add("c1", node.sandbox()) == SIX
        assert operator.seen().status.released == (FIVE,)
        assert named(FIVE) in operator.seen().status.interfaces[0].ip_configurations


@pytest.mark.parametrize(
    "point", ["pool.saving", "release.withdrawn", "release.reported", "add.durable", "del.detached"]
)
async def test_killed_where_an_operator_confirms(operator: Operator, tmp_path: Path, point: str) -> None:
    """As `test_crash`, with a view and reports that somebody remembers: what was promised stays so, whoever asks."""
    async with node_of(operator, tmp_path) as node:
        view = await serving(operator, node, FIVE, SIX)
        saved = node.state / "pool.json"
        await until(lambda: saved.exists() and view.encode() in saved.read_bytes())
        held = await node.add("c1", node.sandbox("p-c1"))
        await node.stop()
        await node.start(fault=point, serving=False)
        calls: list[asyncio.Task[Any]] = [asyncio.create_task(node.delete("c1", "/run/netns/p-c1"))]
        await asyncio.gather(*calls) if point != "del.detached" else None
        await operator.lists(FIVE, SIX, SEVEN, releasing=[held], request="r1")
        calls.append(asyncio.create_task(node.add("c2", node.sandbox("p-c2"))))
        assert node.process
        assert await node.process.wait() == -signal.SIGKILL
        await node.start()

        async def confirmed() -> bool:
            await operator.lists(FIVE, SIX, SEVEN, releasing=[held], request="r1")
            status = operator.seen().status
            return status.released == (held,) and status.agent is not None and status.agent.release_request == "r1"

        async with asyncio.timeout(stretched(30)):
            while not await confirmed():
                if truths.ledger(node.state / "ledger.db").get("c2/eth0") == held:
                    # the repeated ADD came before the agent had heard of the request: the pod keeps what it was given
                    await asyncio.gather(*calls)
                    assert held not in operator.seen().status.released
                    return
                await asyncio.sleep(0.1)
        others = {FIVE, SIX, SEVEN} - {held}
        await asyncio.gather(*calls)
        assert {*truths.read(node).ledger.values(), await node.add("c3", node.sandbox())} == others
        await until(lambda: truths.read(node).agreed)
