"""The source against a real API server: what it hears, what it writes, and that neither depends on luck."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml

from tests import pace
from tests.agent.machine import until
from tests.kube.apiserver import ApiServer
from vnetpods_agent.attachment import Pod as PodName
from vnetpods_agent.events import Event, Events
from vnetpods_agent.ipam.ledger.store import Ledger
from vnetpods_agent.ipam.pool import Pool as Addresses
from vnetpods_agent.kube import AccessError, ApiError, KubeApi, from_kubeconfig, in_cluster
from vnetpods_agent.sync.nodeippool import NodeIPPoolSource
from vnetpods_agent.sync.reporter import Reporter
from vnetpods_agent.sync.source import Report, SourceChanged, SourceUnavailable, Supply
from vnetpods_agent.sync.trust import Trust
from vnetpods_api import Usage

pytestmark = pytest.mark.apiserver
POOLS = "/apis/vnetpods.io/v1alpha1/nodeippools"
INTERFACE = {
    "name": "nic",
    "mac": "00:0d:3a:1b:c7:21",
    "subnet": "/subscriptions/s/subnets/pods",
    "prefixes": ["10.240.0.0/16"],
    "primaryAddress": "10.240.0.4",
}


class Pool:
    """A NodeIPPool as the operator keeps it."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server
        self.name = f"worker-{uuid4().hex[:8]}"
        self.path = f"{POOLS}/{self.name}"
        self.head = {"apiVersion": "vnetpods.io/v1alpha1", "kind": "NodeIPPool", "metadata": {"name": self.name}}

    def create(self) -> None:
        self.server.write(self.path, self.head | {"spec": {}})

    def status(self, **status: Any) -> None:
        self.server.write(f"{self.path}/status", self.head | {"status": status}, "vnetpods-operator")

    def addresses(self, *addresses: str, releasing: tuple[str, ...] = ()) -> None:
        self.status(interfaces=[INTERFACE | {"addresses": list(addresses), "releasing": list(releasing)}])

    def seen(self) -> dict[str, Any]:
        found: dict[str, Any] = self.server.request("GET", self.path).get("status", {})
        return found

    def delete(self) -> None:
        self.server.request("DELETE", self.path)


def report(usage: Usage, **more: Any) -> Report:
    """By an agent that says which process it is."""
    return Report(usage, instance="one", number=1, **more)


@pytest.fixture
def pool(nodeippools: ApiServer) -> Pool:
    return Pool(nodeippools)


@contextlib.asynccontextmanager
async def watching(pool: Pool) -> AsyncIterator[tuple[NodeIPPoolSource, asyncio.Queue[Supply]]]:
    source = NodeIPPoolSource(KubeApi(from_kubeconfig(pool.server.admin_kubeconfig)), pool.name)
    heard: asyncio.Queue[Supply] = asyncio.Queue()

    async def listen() -> None:
        async for supply in source.watch():
            heard.put_nowait(supply)

    task = asyncio.create_task(listen())
    try:
        yield source, heard
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await source.close()


async def next_addresses(heard: asyncio.Queue[Supply]) -> list[str]:
    async with asyncio.timeout(pace.stretched(10)):
        supply = await heard.get()
    return [address for interface in supply.interfaces for address in interface.addresses]


async def test_a_pool_that_comes_later_and_changes_is_heard(pool: Pool) -> None:
    async with watching(pool) as (source, heard):
        await until(lambda: "there is no NodeIPPool" in source.trouble)
        await asyncio.to_thread(pool.create)
        assert await next_addresses(heard) == []
        await asyncio.to_thread(pool.addresses, "10.240.0.5")
        assert await next_addresses(heard) == ["10.240.0.5"]
        assert source.trouble == ""


class Noting(KubeApi):
    """Remembers what it was asked to list."""

    def __init__(self, server: ApiServer) -> None:
        super().__init__(from_kubeconfig(server.admin_kubeconfig))
        self.listed: list[Mapping[str, str]] = []

    async def get(self, path: str, query: Mapping[str, str]) -> Any:
        self.listed.append(query)
        return await super().get(path, query)


async def test_a_list_is_never_a_caches(pool: Pool) -> None:
    """With any resourceVersion the API server may answer from its memory, which lags. After a refused report there is a
    new list, and a new watch from there.
    """
    await asyncio.to_thread(pool.create)
    api = Noting(pool.server)
    source = NodeIPPoolSource(api, pool.name)
    supplies = source.watch()
    await anext(supplies)
    source._version = "1"
    with pytest.raises(SourceChanged, match="409"):
        await source.publish(report(Usage()))
    await anext(supplies)
    await source.publish(report(Usage()))
    assert [query.get("resourceVersion") for query in api.listed] == [None, None]
    await supplies.aclose()
    await source.close()


async def test_others_pools_are_not_heard(pool: Pool) -> None:
    other = Pool(pool.server)
    await asyncio.to_thread(pool.create)
    async with watching(pool) as (_, heard):
        assert await next_addresses(heard) == []
        await asyncio.to_thread(other.create)
        await asyncio.to_thread(pool.addresses, "10.240.0.9")
        assert await next_addresses(heard) == ["10.240.0.9"]


async def test_nothing_follows_from_a_deleted_pool(pool: Pool) -> None:
    await asyncio.to_thread(pool.create)
    async with watching(pool) as (source, heard):
        await next_addresses(heard)
        await asyncio.to_thread(pool.delete)
        await until(lambda: "deleted" in source.trouble)
        assert heard.empty()
        with pytest.raises(SourceUnavailable, match="404"):
            await source.publish(report(Usage()))


async def test_a_report_is_the_agents_own_fields_and_the_operators_stay(pool: Pool) -> None:
    await asyncio.to_thread(pool.create)
    await asyncio.to_thread(pool.addresses, "10.240.0.5", "10.240.0.6", releasing=("10.240.0.6",))
    async with watching(pool) as (source, heard):
        await next_addresses(heard)
        usage = Usage(assigned=1)
        await source.publish(report(usage, released=("10.240.0.6",), missing=("10.240.0.9",), serving=True))
        seen = pool.seen()
        assert seen["usage"] == {"assigned": 1, "cooling": 0, "free": 0, "waiting": 0}
        assert (seen["released"], seen["missing"]) == (["10.240.0.6"], ["10.240.0.9"])
        assert seen["interfaces"][0]["addresses"] == ["10.240.0.5", "10.240.0.6"]
        ready = seen["conditions"][0]
        assert (ready["type"], ready["status"], ready["reason"]) == ("AgentReady", "True", "AgentServing")

        await source.publish(report(usage, serving=False, message="no address is known"))
        seen = pool.seen()
        assert "released" not in seen
        assert "missing" not in seen
        assert (seen["conditions"][0]["reason"], seen["conditions"][0]["message"]) == (
            "AgentStarting",
            "no address is known",
        )


async def test_the_operators_words_are_the_cause(pool: Pool) -> None:
    await asyncio.to_thread(pool.create)
    condition = {"lastTransitionTime": "2026-01-01T00:00:00Z", "status": "True", "type": "Stalled"}
    stalled = condition | {"reason": "Forbidden", "message": "the role lacks networkInterfaces/write"}
    await asyncio.to_thread(pool.status, conditions=[stalled])
    async with watching(pool) as (_, heard):
        async with asyncio.timeout(pace.stretched(10)):
            supply = await heard.get()
        assert supply.cause == "Forbidden: the role lacks networkInterfaces/write"


async def test_a_compacted_history_is_listed_anew(pool: Pool) -> None:
    """410: the version to go on from is too old."""
    await asyncio.to_thread(pool.create)
    await asyncio.to_thread(pool.addresses, "10.240.0.5")
    async with watching(pool) as (source, heard):
        assert await next_addresses(heard) == ["10.240.0.5"]
        with pytest.raises(ApiError) as caught:
            async for _ in source._events("1"):
                pass
        assert caught.value.status == 410


async def test_an_event_about_a_pod_and_one_about_the_node(pool: Pool) -> None:
    api = KubeApi(from_kubeconfig(pool.server.admin_kubeconfig))
    events = Events(api, pool.name)
    posting = asyncio.create_task(events.run())
    pod = PodName("default", f"{pool.name}." + "x" * 200, "uid-1")
    for _ in range(3):
        events.say(Event("WaitingForAddress", "no address", pod))
        events.say(Event("LedgerRebuilt", "n" * 3000))

    def posted() -> list[dict[str, Any]]:
        found = pool.server.request("GET", "/apis/events.k8s.io/v1/events")["items"]
        return [event for event in found if event["regarding"]["name"].startswith(pool.name)]

    await asyncio.to_thread(pool.server.wait, "two events", lambda: len(posted()) == 2)
    about = {event["reason"]: event for event in posted()}
    assert about["WaitingForAddress"]["regarding"]["uid"] == "uid-1"
    assert (about["LedgerRebuilt"]["metadata"]["namespace"], len(about["LedgerRebuilt"]["note"])) == ("default", 1024)
    posting.cancel()
    await asyncio.gather(posting, return_exceptions=True)
    await api.close()


async def test_a_rotated_token_is_read_again(pool: Pool, tmp_path: Path) -> None:
    """As a pod's projected token: a file that is replaced before it expires."""
    kubeconfig = pool.server.kubeconfig_for("rotating", "default")
    document = yaml.safe_load(kubeconfig.read_text())
    token = tmp_path / "token"
    token.write_text("expired")
    document["users"][0]["user"] = {"tokenFile": str(token)}
    kubeconfig.write_text(yaml.safe_dump(document))
    api = KubeApi(from_kubeconfig(kubeconfig))
    with pytest.raises(ApiError) as caught:
        await api.get("/version", {})
    assert caught.value.status == 401
    token.write_text(await asyncio.to_thread(pool.server.token, "rotating", "default"))
    assert "gitVersion" in await api.get("/version", {})  # refused once, it looks again at once
    await api.close()


async def test_an_api_server_that_is_away_is_named(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(NOBODY))
    source = NodeIPPoolSource(KubeApi(from_kubeconfig(kubeconfig)), "worker-1")
    with pytest.raises(SourceUnavailable, match="Cannot connect"):
        await source.publish(report(Usage()))
    await source.close()


NOBODY = {
    "current-context": "c",
    "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
    "clusters": [{"name": "k", "cluster": {"server": "http://127.0.0.1:9"}}],
    "users": [{"name": "u", "user": {}}],
}


def test_access_of_a_pod(tmp_path: Path, apiserver: ApiServer) -> None:
    (tmp_path / "ca.crt").write_bytes(
        apiserver.authority.joinpath("ca.crt").read_bytes()
        if apiserver.authority.is_dir()
        else apiserver.authority.read_bytes()
    )
    access = in_cluster(tmp_path, {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"})
    assert (access.server, access.token_file) == ("https://[fd00::1]:6443", tmp_path / "token")
    with pytest.raises(AccessError, match="KUBERNETES_SERVICE_HOST is not set"):
        in_cluster(tmp_path, {})


async def test_an_agent_that_was_taken_for_silent_says_that_it_is_there(pool: Pool, tmp_path: Path) -> None:
    """The operator owns the condition then, and gives it up with its next write; nobody writes by turns."""
    await asyncio.to_thread(pool.create)
    await asyncio.to_thread(pool.addresses, "10.240.0.5")
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.start()
    await ledger.load()
    try:
        async with watching(pool) as (source, heard):
            reporter = Reporter(Addresses(30.0), ledger, source, Trust(60.0, 0.0, always=True), str, 10.0)

            capacities: set[int | None] = set()

            async def hear() -> str:
                """Takes in all there is, reports what is due, and says what the pool then says of the agent."""
                async with asyncio.timeout(pace.stretched(10)):
                    news = [await heard.get()]
                while not heard.empty():
                    news.append(heard.get_nowait())
                for supply in news:
                    reporter.heard(supply.status)
                    capacities.add(supply.status.capacity)
                with contextlib.suppress(SourceChanged):
                    await reporter.step(0.0, asyncio.get_running_loop().time())
                found = {c["type"]: c["reason"] for c in pool.seen().get("conditions", [])}
                return str(found.get("AgentReady"))

            assert await hear() == "AgentServing"
            stamp = "2026-01-01T00:00:00Z"
            silent = {
                "type": "AgentReady",
                "status": "Unknown",
                "reason": "AgentSilent",
                "message": "",
                "lastTransitionTime": stamp,
            }
            listed = [INTERFACE | {"addresses": ["10.240.0.5"]}]
            await asyncio.to_thread(pool.status, interfaces=listed, conditions=[silent])
            while await hear() != "AgentServing":
                pass
            await asyncio.to_thread(pool.status, interfaces=listed, capacity=9)
            while 9 not in capacities:  # the echo of the agent's own report may come first
                assert await hear() == "AgentServing", "the operator gave up what it no longer says"
            await asyncio.sleep(0.1)
            assert heard.empty(), "and that is all"
    finally:
        await asyncio.to_thread(ledger.close)


async def test_missing_addresses_of_a_subnet_that_no_interface_is_in_are_not_reported(pool: Pool) -> None:
    """Nobody could ask Azure for them, and the admission policy would refuse everything else in the report."""
    await asyncio.to_thread(pool.create)
    await asyncio.to_thread(pool.addresses, "10.240.0.5")
    async with watching(pool) as (source, heard):
        await next_addresses(heard)
        await source.publish(report(Usage(assigned=2), missing=("10.240.0.9", "10.241.0.9")))
        assert pool.seen()["missing"] == ["10.240.0.9"]


async def test_a_report_that_answers_to_an_older_pool_is_refused(pool: Pool) -> None:
    """One that was lost on its way could otherwise arrive after a later one."""
    await asyncio.to_thread(pool.create)
    await asyncio.to_thread(pool.addresses, "10.240.0.5")
    async with watching(pool) as (source, heard):
        await next_addresses(heard)
        await source.publish(report(Usage(free=1)))
        await source.publish(report(Usage(free=2)))  # its own answer counts as heard
        source._version = str(int(source._version) - 1)
        with pytest.raises(SourceChanged, match="409"):
            await source.publish(report(Usage(free=3)))
        assert pool.seen()["usage"]["free"] == 2
        await asyncio.to_thread(pool.addresses, "10.240.0.6")
        while await next_addresses(heard) != ["10.240.0.6"]:
            pass
        await source.publish(report(Usage(free=4)))
        assert pool.seen()["usage"]["free"] == 4
