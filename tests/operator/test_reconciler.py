"""What the reconciler does in one look after the other, on the bench."""

from __future__ import annotations

import asyncio

import pytest
import structlog
from msgspec.structs import replace

from tests import pace
from tests.azure.arm.ids import parse
from tests.operator.benches import bench, full, release
from tests.operator.worlds import World
from vnetpods_api import ConditionType, Reason
from vnetpods_operator.kube import MERGE
from vnetpods_operator.reconcile import status
from vnetpods_operator.state.pools import PATH

pytestmark = pytest.mark.apiserver
NIC = "Microsoft.Network/networkInterfaces"


async def test_removal_is_decided_on_the_api_servers_word(world: World) -> None:
    """A watch that lags behind: what it saw released has been removed, granted again and given to pods since."""
    _, agent = await world.worker("one")
    async with bench(world, agent) as found:
        await full(found, agent)
        stale = await release(found, agent)
        await found.look()  # removed
        await agent.sync()
        agent.start(30)
        await agent.sync()
        await found.see()
        await found.look()  # granted again: the same values, Azure takes the lowest free ones
        for _ in range(3):
            await agent.sync()
        assert agent.waiting == 0
        assert set(stale.status.released) & agent.held
        found.cluster.delete_pool(agent.node)
        found.cluster.upsert_pool(stale)
        await found.look()
        assert agent.held <= world.addresses("one-nic")


async def test_an_agent_that_writes_meanwhile_is_heard(world: World) -> None:
    _, agent = await world.worker("one")

    async def more_pods() -> None:
        agent.start(1)
        await agent.sync()

    async with bench(world, agent) as found:
        await full(found, agent)
        found.meanwhile.append(more_pods)
        agent.start(5)
        await agent.sync()
        await found.see()
        await found.look()
        pool = await found.see()
        assert set(pool.status.interfaces[0].addresses) == world.addresses("one-nic")
        assert pool.status.usage is not None
        assert pool.status.usage.waiting >= 1


async def test_an_acknowledgement_that_comes_between_is_not_overwritten(world: World) -> None:
    """Pods wait, so the release is cancelled; the agent has acknowledged part of it a moment before."""
    _, agent = await world.worker("one")
    async with bench(world, agent) as found:
        await full(found, agent)
        agent.end(20, newest=True)
        await agent.sync()
        await found.see()
        await found.look()
        await asyncio.sleep(0.35)
        await found.look()  # marked
        before = await found.see()
        agent.start(20)  # the agent sees the marks and the pods at the same time
        await agent.sync()
        acknowledged = set((await world.pool(agent.node)).status.released)
        assert acknowledged
        assert before.status.released == ()
        for _ in range(6):  # the cluster knows the pool of before, first
            await found.look()
            await agent.sync()
            assert agent.held <= world.addresses("one-nic")
            await found.see()
        assert agent.waiting == 0
        pool = await world.pool(agent.node)
        assert pool.status.interfaces[0].releasing == ()


async def test_a_nic_that_somebody_changes_each_time(world: World) -> None:
    _, agent = await world.worker("one")
    world.azure.build.fault("writer", method="PUT", change="tag", times=None)
    async with bench(world, agent) as found:
        outcome = await found.look()
    ready = await world.condition(agent.node)
    assert ready is not None
    assert ready.reason == "Conflict"
    assert world.writes() == 5
    assert outcome.requeue_after is not None
    assert found.told == [Reason.CONFLICT]


async def test_people_are_told_once_per_reason(world: World) -> None:
    _, agent = await world.worker("one")
    world.azure.build.fault("status", method="PUT", status=500, times=None)
    async with bench(world, agent) as found:
        for _ in range(4):
            await found.look()
            found.cluster.record(agent.node).not_before = 0.0
    assert found.told == [Reason.AZURE_UNAVAILABLE]
    assert found.cluster.record(agent.node).failures == 4


async def test_azure_is_left_in_peace_after_a_failure_whatever_happens(world: World) -> None:
    _, agent = await world.worker("one")
    world.azure.build.fault("status", method="PUT", status=500, times=None)
    async with bench(world, agent) as found:
        await found.look()
        requests = len(world.azure.build.requests())
        for _ in range(5):
            await found.look()
        assert len(world.azure.build.requests()) == requests


async def test_people_see_what_goes_on_while_azure_is_left_in_peace(world: World) -> None:
    """A back-off lasts up to half an hour; pods that come meanwhile, and spec.paused, change what is to be said."""
    _, agent = await world.worker("one")
    async with bench(world, agent) as found:
        await found.look()
        world.azure.build.fault("status", resource="*one-nic", status=403, code="AuthorizationFailed", times=None)
        agent.start(1)
        await agent.sync()
        await found.see()
        await found.look()
        ready = await world.condition(agent.node)
        assert ready is not None
        assert (ready.status, ready.reason) == ("True", "Forbidden")
        agent.start(10)
        await agent.sync()
        await found.see()
        requests = len(world.azure.build.requests())
        await found.look()
        ready = await world.condition(agent.node)
        assert ready is not None
        assert (ready.status, ready.reason) == ("False", "Forbidden")
        paused = {"spec": {"paused": True}}
        await world.kube.request("PATCH", f"{PATH}/{agent.node}", body=paused, content_type=MERGE)
        await found.see()
        await found.look()
        pool = await world.pool(agent.node)
        assert pool.status.observed_generation == pool.metadata.generation
        reconciling = await world.condition(agent.node, ConditionType.RECONCILING)
        assert reconciling is not None
        assert (reconciling.status, reconciling.reason) == ("False", "Paused")
        assert len(world.azure.build.requests()) == requests
    assert found.told == [Reason.FORBIDDEN]


async def test_a_subnet_without_enough_addresses_is_not_taken_for_a_conflict(world: World) -> None:
    """What is left is not known, so each attempt asks for half as many, and the look ends before one is met."""
    world.azure.build.create_subnet("net", "small", "10.241.0.0/25")
    world.azure.build.create_nic("other", "net/small")
    for number in range(120):
        world.azure.build.add_address("other", f"x{number}")
    world.azure.build.fault("status", resource="*/usages", status=403, code="AuthorizationFailed", times=None)
    world.settings["groups"] = [{"minimum": 100, "warm": 4, "batch": 4}]
    _, agent = await world.worker("one", "net/small")
    async with bench(world, agent) as found:
        await found.look()
    ready = await world.condition(agent.node)
    assert ready is not None
    assert ready.reason == "SubnetFull"
    assert found.told == [Reason.SUBNET_FULL]


async def test_an_error_of_our_own_does_not_leave_the_look(world: World) -> None:
    _, agent = await world.worker("one")

    async def bug() -> None:
        raise ZeroDivisionError

    async with bench(world, agent) as found:
        found.meanwhile.append(bug)
        outcome = await found.look()
        assert outcome.requeue_after is not None
        for type_ in (ConditionType.READY, ConditionType.STALLED):
            said = await world.condition(agent.node, type_)
            assert said is not None
            assert said.reason == "InternalError"
            assert "ZeroDivisionError" in said.message
        assert found.told == [Reason.INTERNAL_ERROR]
        requests = len(world.azure.build.requests())
        await found.look()
        assert len(world.azure.build.requests()) == requests
        found.meanwhile.clear()
        found.cluster.record(agent.node).not_before = 0.0
        await found.look()
    assert (await world.pool(agent.node)).status.allocated == 4
    assert (await world.until_reason(agent.node, "PoolReady")).status == "True"
    assert world.writes() == 2  # nobody remembers the first: a second proves what it did, and changes nothing


@pytest.mark.parametrize("tells", [True, False], ids=["agent-says-so", "agent-is-silent"])
async def test_an_address_that_a_pod_keeps_is_given_up_on_and_the_next_one_tried(world: World, tells: bool) -> None:
    """The operator can't know which addresses pods hold; it learns it by asking."""
    _, agent = await world.worker("one")
    agent.tells_kept = tells
    async with bench(world, agent) as found:
        await full(found, agent)
        agent.end(20)
        await agent.sync()
        await found.see()
        loop = asyncio.get_running_loop()
        end = loop.time() + pace.stretched(25)
        while (await found.see()).status.allocated != 18:
            assert loop.time() < end
            outcome = await found.look()
            await agent.sync()
            assert outcome.requeue_after is not None
            assert outcome.requeue_after - loop.time() < pace.stretched(4)  # not only at the next audit
            await found.see()
            await asyncio.sleep(min(0.5, max(0.0, outcome.requeue_after - loop.time())))
        assert agent.held <= world.addresses("one-nic")


async def test_a_stale_read_does_not_bring_back_what_was_given_back(world: World) -> None:
    """ARM answers with what was before the last write; the addresses may be another machine's by now."""
    _, agent = await world.worker("one")
    world.azure.build.fault("stale", resource="*/nothing")  # the emulator keeps what was before, from now on
    async with bench(world, agent) as found:
        await full(found, agent)
        gone = set((await release(found, agent)).status.released)
        await found.round()
        world.azure.build.fault("stale", method="GET", resource="*/networkInterfaces/*")
        await world.kube.request("DELETE", f"{PATH}/{agent.node}")  # nobody remembers anything
        found.cluster.delete_pool(agent.node)
        found.cluster.record(agent.node).audit_at = 0.0
        await found.look()
        pool = await world.pool(agent.node)
    assert world.azure.cloud.faults.rules[-1].hit == 1
    assert set(pool.status.interfaces[0].addresses) == world.addresses("one-nic")
    assert not gone & set(pool.status.interfaces[0].addresses)


async def test_a_surplus_of_adopted_addresses_asks_nothing_of_anybody(world: World) -> None:
    """An operator that has just started hasn't read the NIC; the names in the list tell which addresses are ours."""
    world.settings["adopt"] = ["pods-*"]
    world.settings["groups"] = [{"minimum": 2, "warm": 2, "batch": 2}]
    _, agent = await world.worker("one")
    for number in range(20):
        world.azure.build.add_address("one-nic", f"pods-{number}")
    async with bench(world, agent) as found:
        await found.round()
        found.cluster.record(agent.node).audit_at = float("inf")
        found.cluster.record(agent.node).surplus_since = 0.0
        requests = len(world.azure.build.requests())
        await found.round()
        pool = await found.see()
        assert (pool.status.interfaces[0].releasing, pool.status.released) == ((), ())
        assert found.cluster.record(agent.node).releasing_since is None
        assert len(world.azure.build.requests()) == requests


async def test_adopted_addresses_that_are_asked_for_are_no_longer(world: World) -> None:
    """As an operator of before may have: nobody can remove them."""
    world.settings["adopt"] = ["pods-*"]
    _, agent = await world.worker("one")
    for number in range(20):
        world.azure.build.add_address("one-nic", f"pods-{number}")
    async with bench(world, agent) as found:
        await found.look()
        pool = await found.see()
        (interface,) = pool.status.interfaces
        asked = replace(interface, releasing=interface.addresses[:16])
        await world.pools.report(pool, status.owned(replace(pool.status, interfaces=(asked,))))
        await agent.sync()
        await found.see()
        agent.start(20)
        for _ in range(4):
            await found.round()
        assert agent.held == set(interface.addresses)


async def test_excluded_addresses_that_pods_hold_wake_nobody_and_feed_nobody(world: World) -> None:
    _, agent = await world.worker("one")
    async with bench(world, agent) as found:
        await found.look()
        await agent.sync()
        agent.start(2)
        await agent.sync()
        await found.see()
        held = set(agent.held)
        world.settings["exclude"] = sorted(held)
        found.reconfigure()
        with structlog.testing.capture_logs() as logs:
            for _ in range(5):
                outcome = await found.round()
        assert [line for line in logs if line["event"].startswith("release given up")] == []
        assert outcome.requeue_after is not None
        assert outcome.requeue_after - asyncio.get_running_loop().time() > 60
        agent.start(20)
        for _ in range(8):
            await found.round()
        assert agent.waiting == 0
        assert held <= world.addresses("one-nic")


async def test_a_subnet_that_gives_only_excluded_addresses_does_not_fill_the_nic(world: World) -> None:
    world.settings["exclude"] = ["10.240.0.0/24"]
    _, agent = await world.worker("one")
    async with bench(world, agent) as found:
        for _ in range(10):
            await found.round()
        assert world.writes() == 3
        assert len(world.addresses("one-nic")) == 12
        ready = await world.condition(agent.node)
        assert ready is not None
        assert (ready.status, ready.reason) == ("False", "SubnetFull")
        assert "exclude less" in ready.message
        found.forget()  # another operator sees from the NIC what came in vain
        for _ in range(3):
            await found.round()
        assert world.writes() == 4  # which changes nothing: it proves what is there
        world.settings["exclude"] = ["10.240.0.0-10.240.0.9"]
        found.reconfigure()
        await found.look()
        pool = await found.see()
        assert pool.status.allocated == 7
        assert world.writes() == 4


async def test_excluded_addresses_among_others_stop_nothing(world: World) -> None:
    world.settings["exclude"] = ["10.240.0.5-10.240.0.12"]
    _, agent = await world.worker("one")
    async with bench(world, agent) as found:
        for _ in range(8):
            await found.round()
        assert (await found.see()).status.allocated == 4


async def test_lost_addresses_that_others_have_by_now_cost_few_writes(world: World) -> None:
    """Azure names one at a time, and each refusal costs a write."""
    _, agent = await world.worker("one")
    world.azure.build.create_nic("other", "net/pods")
    async with bench(world, agent) as found:
        await full(found, agent)
        pool = await found.see()
        names = {a: n for i in pool.status.interfaces for a, n in i.names.items()}
        lost = sorted(agent.held)[:21]
        for number, address in enumerate(lost):
            world.azure.build.remove_address("one-nic", names[address])
            if number:
                world.azure.build.add_address("other", f"theirs-{number}", address)
        found.cluster.record(agent.node).audit_at = 0.0
        await found.round()
        before = world.writes()
        for _ in range(30):
            await found.round()
        assert lost[0] in world.addresses("one-nic")
        assert world.writes() - before <= 8
        ready = await world.condition(agent.node)
        assert ready is not None
        assert "Azure does not give 10." in ready.message
        assert ready.message.endswith(": restart those pods")
        agent.replace_pods((await found.see()).status.missing)
        for _ in range(4):
            await found.round()
        assert agent.waiting == 0
        await world.until_reason(agent.node, "PoolReady")


async def test_what_was_lost_is_asked_for_by_the_next_operator_too(world: World) -> None:
    _, agent = await world.worker("one")
    async with bench(world, agent) as found:
        await full(found, agent)
        pool = await found.see()
        names = {a: n for i in pool.status.interfaces for a, n in i.names.items()}
        lost = min(agent.held)
        world.azure.build.remove_address("one-nic", names[lost])
        found.cluster.record(agent.node).audit_at = 0.0
        await found.look()
        assert (await found.see()).status.lost == (lost,)
        found.forget()
        for _ in range(4):
            await found.round()
        assert lost in world.addresses("one-nic")
        assert (await found.see()).status.lost == ()


async def test_an_agent_gets_no_address_by_claiming_to_miss_it(world: World) -> None:
    _, agent = await world.worker("one")
    async with bench(world, agent) as found:
        await found.round()
        agent.pods["x"] = "10.240.9.9"
        for _ in range(4):
            await found.round()
        assert "10.240.9.9" not in world.addresses("one-nic")
        ready = await world.condition(agent.node)
        assert ready is not None
        assert ready.reason == "AddressLost"
        assert "never listed" in ready.message


async def test_addresses_that_azure_stamps_failed_stay_usable(world: World) -> None:
    """They go on working; a write that repairs them is all that is needed."""
    _, agent = await world.worker("one")
    async with bench(world, agent) as found:
        await full(found, agent)
        world.azure.build.fault("fail", method="PUT", code="InternalServerError", times=None)
        resource = world.azure.cloud.store.get(parse(world.azure.build.id(NIC, "one-nic")))
        assert resource is not None
        for part in resource.body["properties"]["ipConfigurations"]:
            part["properties"]["provisioningState"] = "Failed"
        found.cluster.record(agent.node).audit_at = 0.0
        await found.round()
        pool = await found.see()
        assert pool.status.allocated == 34
        agent.start(4)
        await found.round()
        assert agent.waiting == 0


async def test_pods_that_come_after_a_write_of_unknown_end_are_followed_by_another(world: World) -> None:
    """They are heard of only when the status is written: no event tells of them again, and no audit is waited for."""
    _, agent = await world.worker("one")
    async with bench(world, agent) as found:
        await found.round()
        agent.start(12)
        await agent.sync()
        await found.see()
        world.azure.build.set_duration(NIC, 0.3)
        world.azure.build.fault(
            "status", method="GET", resource="*/operations/*", status=503, code="ServiceUnavailable"
        )
        await found.look()
        assert found.told == [Reason.AZURE_UNAVAILABLE]
        await agent.sync()
        agent.start(12)
        await agent.sync()
        writes = world.writes()
        for _ in range(20):  # nobody watches
            if world.writes() > writes:
                break
            outcome = await found.look()
            assert outcome.requeue_after is not None
            wait = outcome.requeue_after - asyncio.get_running_loop().time()
            assert wait < 60
            await asyncio.sleep(max(0.0, wait))
        for _ in range(3):
            await found.round()
        assert agent.waiting == 0
        assert agent.held <= world.addresses("one-nic")


async def test_a_nic_that_could_not_be_read_stays_told_after_a_restart(world: World) -> None:
    """Until the NICs are read again, which may be half an hour later."""
    _, agent = await world.worker("one")
    async with bench(world, agent) as found:
        await full(found, agent)
        record = found.cluster.record(agent.node)
        record.unreadable = "NIC extra is left out: no"
        await found.look()
        assert found.told == [Reason.NIC_UNREADABLE]
        await found.see()
        found.forget()
        for _ in range(3):
            await found.round()
        assert (await world.until_reason(agent.node, "NicUnreadable")).message == "NIC extra is left out: no"
        assert found.told == [Reason.NIC_UNREADABLE]
        found.cluster.record(agent.node).audit_at = 0.0
        await found.round()
        await world.until_reason(agent.node, "PoolReady")


async def test_sizes_that_contradict_each_other_are_logged(world: World) -> None:
    _, agent = await world.worker("one")
    async with bench(world, agent) as found:
        await found.round()
        body = {"spec": {"sizing": {"minimum": 300}}}
        await world.kube.request("PATCH", f"{PATH}/{agent.node}", body=body, content_type=MERGE)
        await found.see()
        with structlog.testing.capture_logs() as logs:
            for _ in range(3):
                await found.round()
        (line,) = [line for line in logs if line.get("reason") == Reason.INVALID_SIZING]
        assert (line["log_level"], line["node"]) == ("warning", agent.node)
        assert "`minimum` <= `maximum`, got 300 and 250" in line["text"]
        assert found.told == [Reason.INVALID_SIZING]


async def test_a_pool_without_a_node_says_so(world: World) -> None:
    async with world.operator():
        nobodys = f"{world.name}-nobody"
        world.api.apply(
            f"{{apiVersion: vnetpods.io/v1alpha1, kind: NodeIPPool, metadata: {{name: {nobodys}}}, spec: {{}}}}"
        )
        ready = await world.until_reason(nobodys, "NodeMissing")
        assert ready.status == "False"
        assert f"there is no Node {nobodys}" in ready.message
        node = await world.node("nobody", world.machine("nobody"))
        assert node == nobodys
        await world.until_reason(nobodys, "PoolReady")


async def test_a_pool_that_was_without_a_node_before_the_operator_came_says_so(world: World) -> None:
    nobodys = f"{world.name}-nobody"
    world.nodes.append(nobodys)
    world.api.apply(
        f"{{apiVersion: vnetpods.io/v1alpha1, kind: NodeIPPool, metadata: {{name: {nobodys}}}, spec: {{}}}}"
    )
    async with world.operator():
        await world.until_reason(nobodys, "NodeMissing")


async def test_a_subnet_of_more_prefixes_than_a_pool_can_list_is_cut_and_logged(world: World) -> None:
    many = [f"10.241.{number}.0/28" for number in range(130)]
    world.azure.build.create_subnet("net", "many", many[0], addressPrefixes=many)
    _, agent = await world.worker("one", "net/many")
    async with bench(world, agent) as found:
        with structlog.testing.capture_logs() as logs:
            await found.round()
        pool = await found.see()
        assert (len(pool.status.interfaces[0].prefixes), pool.status.allocated) == (128, 4)
        (line,) = {line["event"]: line for line in logs if "prefixes" in line["event"]}.values()
        assert (line["has"], line["listed"]) == (130, 128)
