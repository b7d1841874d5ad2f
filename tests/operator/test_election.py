"""The Lease on a real API server: one leader, taken over only when it is dead, and a leader that knows when it lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests import pace
from tests.kube.apiserver import ApiServer
from tests.operator.worlds import NIC_READ, NIC_WRITE, World
from vnetpods_kit.config import Duration
from vnetpods_operator import kube
from vnetpods_operator.app import Operator
from vnetpods_operator.config import Election, Interval
from vnetpods_operator.election import Elector, NotLeading
from vnetpods_operator.kube import Kube

pytestmark = pytest.mark.apiserver


@pytest.fixture
async def api(apiserver: ApiServer) -> AsyncIterator[Kube]:
    async with kube.opened(apiserver.admin_kubeconfig) as opened:
        yield opened
    await asyncio.sleep(0.3)  # connections that were cut in their TLS handshake need the loop to close


@pytest.fixture
def election() -> Election:
    return made(pace.stretched(2.0), pace.stretched(1.2))


def made(duration: float, renew: float) -> Election:
    """Either may be an hour: what happens nevertheless doesn't happen because that time is over."""
    return Election(
        name=f"lease-{secrets.token_hex(4)}", duration=Duration(duration), renew=Duration(renew), retry=Interval(0.1)
    )


HOUR = 3600.0


async def lease(api: Kube, election: Election) -> dict[str, Any]:
    path = f"/apis/coordination.k8s.io/v1/namespaces/{election.namespace}/leases/{election.name}"
    found: dict[str, Any] = json.loads(await api.request("GET", path))
    return found


@contextlib.asynccontextmanager
async def running(elector: Elector) -> AsyncIterator[None]:
    await elector.acquire()
    task = asyncio.create_task(elector.keep())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_second_waits_for_as_long_as_the_first_renews(api: Kube, election: Election) -> None:
    first, second = Elector(api, election, "first"), Elector(api, election, "second")
    async with running(first):
        waiting = asyncio.create_task(second.acquire())
        await asyncio.sleep(float(election.duration) + 0.5)
        assert not waiting.done()
        assert (await lease(api, election))["spec"]["holderIdentity"] == "first"
    await first.release()
    await waiting
    await second.release()


async def test_the_second_follows_at_once_when_the_first_gives_it_back(api: Kube) -> None:
    election = made(duration=HOUR, renew=HOUR / 2)
    first, second = Elector(api, election, "first"), Elector(api, election, "second")
    async with running(first):
        waiting = asyncio.create_task(second.acquire())
        await asyncio.sleep(0.5)
        assert not waiting.done()
    await first.release()
    await waiting
    spec = (await lease(api, election))["spec"]
    assert (spec["holderIdentity"], spec["leaseTransitions"]) == ("second", 1)
    assert second.leads
    await second.release()


async def test_a_renewal_that_was_cut_off_does_not_keep_the_lease(api: Kube) -> None:
    """Its answer was never heard, so the version that the leader knows is not the last."""
    election = made(duration=HOUR, renew=HOUR / 2)
    first, second = Elector(api, election, "first"), Elector(api, election, "second")
    await first.acquire()
    await Elector(api, election, "first").acquire()  # what the API server made of the renewal
    await first.release()
    assert (await lease(api, election))["spec"]["holderIdentity"] == ""
    await second.acquire()
    await second.release()


async def test_a_lease_that_somebody_else_took_is_not_given_back_for_them(api: Kube) -> None:
    election = made(duration=HOUR, renew=HOUR / 2)
    first = Elector(api, election, "first")
    await first.acquire()
    path = f"/apis/coordination.k8s.io/v1/namespaces/{election.namespace}/leases/{election.name}"
    await api.request("PATCH", path, body={"spec": {"holderIdentity": "thief"}}, content_type=kube.MERGE)
    await first.release()
    assert (await lease(api, election))["spec"]["holderIdentity"] == "thief"


async def test_a_dead_leader_is_followed_after_the_duration_we_saw(api: Kube, election: Election) -> None:
    first, second = Elector(api, election, "first", lost=lambda: None), Elector(api, election, "second")
    await first.acquire()  # and never renews
    loop = asyncio.get_running_loop()
    began = loop.time()
    await second.acquire()
    assert loop.time() - began >= float(election.duration)
    await second.release()


async def test_a_wrong_clock_of_the_other_does_not_matter(api: Kube, election: Election) -> None:
    path = f"/apis/coordination.k8s.io/v1/namespaces/{election.namespace}/leases"
    spec = {
        "holderIdentity": "other",
        "leaseDurationSeconds": 1,
        "renewTime": "2001-01-01T00:00:00.000000Z",
        "acquireTime": "2001-01-01T00:00:00.000000Z",
    }
    body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": election.name}, "spec": spec}
    await api.request("POST", path, body=body)
    elector, loop = Elector(api, election, "me"), asyncio.get_running_loop()
    began = loop.time()
    await elector.acquire()
    assert loop.time() - began >= 0.9
    await elector.release()


async def test_a_leader_that_cannot_renew_loses_before_another_may_follow(apiserver: ApiServer, api: Kube) -> None:
    """The API server hangs: connections are open, nothing is answered. Nobody may follow for an hour."""
    election = made(duration=HOUR, renew=1.2)
    lost = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_loss() -> None:  # from the watchdog's thread
        loop.call_soon_threadsafe(lost.set)

    elector = Elector(api, election, "first", lost=on_loss)
    async with running(elector):
        await asyncio.to_thread(apiserver.pause)
        try:
            async with asyncio.timeout(pace.stretched(30)):
                await lost.wait()
        finally:
            await asyncio.to_thread(apiserver.resume)


async def test_a_stolen_lease_is_noticed(api: Kube) -> None:
    """By looking at it, long before it would be missed."""
    election = made(duration=HOUR, renew=HOUR / 2)
    lost = asyncio.Event()
    elector = Elector(api, election, "first", lost=lost.set)
    async with running(elector):
        found = await lease(api, election)
        found["spec"]["holderIdentity"] = "thief"
        path = f"/apis/coordination.k8s.io/v1/namespaces/{election.namespace}/leases/{election.name}"
        for _ in range(20):
            with contextlib.suppress(kube.Outdated):
                await api.request("PUT", path, body=found)
                break
            found = await lease(api, election)
            found["spec"]["holderIdentity"] = "thief"
        async with asyncio.timeout(pace.stretched(30)):
            await lost.wait()
    await elector.release()


async def test_a_stuck_event_loop_does_not_keep_a_lost_leader_alive(
    apiserver: ApiServer, election: Election, tmp_path: Path
) -> None:
    """The watchdog is a thread, and it exits the process."""
    program = f"""
import asyncio, sys, time
from pathlib import Path
from vnetpods_operator import kube
from vnetpods_kit.config import Duration
from vnetpods_operator.config import Election, Interval
from vnetpods_operator.election import Elector, NotLeading
async def main():
    election = Election(name={election.name!r}, duration=Duration(2.0), renew=Duration(1.0), retry=Interval(0.1))
    async with kube.opened(Path({str(apiserver.admin_kubeconfig)!r})) as api:
        await Elector(api, election, "stuck").acquire()
        time.sleep(3600)
asyncio.run(main())
"""
    import sys  # noqa: PLC0415

    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
    try:
        assert await asyncio.wait_for(process.wait(), pace.stretched(30)) == 3
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_leader_that_was_paused_past_its_lease_writes_nothing(api: Kube, election: Election) -> None:
    """Its watchdog may not have had its turn yet, and a renewal that comes late gives nothing back."""
    lost: list[str] = []
    elector = Elector(api, election, "first", lost=lambda: lost.append("the Lease"))
    async with running(elector):
        elector.check()
        time.sleep(float(election.renew) + 0.1)  # noqa: ASYNC251 - the whole loop stands still, as after SIGSTOP
        with pytest.raises(NotLeading):
            elector.check()
        assert lost
        await asyncio.sleep(5 * float(election.retry))  # renewed meanwhile: nobody else wanted it
        with pytest.raises(NotLeading):
            elector.check()


async def test_nothing_is_written_once_the_lease_is_given_back(api: Kube, election: Election) -> None:
    first, second = Elector(api, election, "first"), Elector(api, election, "second")
    await first.acquire()
    first.check()
    giving = asyncio.create_task(first.release())
    await second.acquire()
    with pytest.raises(NotLeading):
        first.check()
    await giving
    await second.release()


async def test_an_operator_that_was_paused_leaves_nic_and_pool_alone(world: World) -> None:
    """The pause comes while it waits for Azure's answer, so that the next thing it would do is write the NIC."""
    world.settings["election"] = {"duration": "3s", "renew": "2s", "retry": "200ms"}
    world.azure.build.fault("slow", method="GET", resource="*/networkinterfaces/*", seconds=3.0)
    lost: list[str] = []
    node = await world.node("one", world.machine("one"))
    operator = Operator(world.path, world.kubeconfig, world.config(), lambda: lost.append("the Lease"))
    running = asyncio.create_task(operator.run())
    try:
        await world.until("the NIC to be read", lambda: asked(world))
        pool = await world.pool(node)
        time.sleep(2.2)  # noqa: ASYNC251 - as above
        await asyncio.sleep(4)  # its own process would have ended by now; here it goes on and hears the answer
        assert lost
        assert world.writes() == 0
        assert (await world.pool(node)).metadata.resource_version == pool.metadata.resource_version
    finally:
        operator.stop()
        await running


async def asked(world: World) -> bool:
    return bool(world.azure.build.requests(NIC_READ))


async def test_the_lease_is_given_back_only_when_the_work_has_ended(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another operator begins at once: what this one still did then, two would do."""
    at_work: list[list[str]] = []
    release = Elector.release

    async def watched(elector: Elector) -> None:
        names = (getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks() if not task.done())
        at_work.append([name for name in names if name.startswith(("work", "Elector.keep", "Operator._"))])
        await release(elector)

    monkeypatch.setattr(Elector, "release", watched)
    world.azure.build.set_duration("Microsoft.Network/networkInterfaces", 3600)
    await world.worker("one")
    async with world.operator():

        async def writing() -> bool:
            return bool(world.azure.build.requests(NIC_WRITE))

        await world.until("a NIC to be written", writing)
        assert any(getattr(t.get_coro(), "__qualname__", "").startswith("work.") for t in asyncio.all_tasks())
    assert at_work == [[]]
