"""What may leave a NIC: entries whose very name this process asked for, and this node's agent has retired since.

And what is confirmed: a list that was read from Azure after the agent asked. docs/architecture.md has the rules.
"""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from tests.operator.benches import bench, full, release
from tests.operator.worlds import World
from vnetpods_api import AgentReport, Interface, NodeIPPool, Reason, Status, apply_body
from vnetpods_api.names import AGENT_MANAGER
from vnetpods_operator.kube import APPLY
from vnetpods_operator.planning.release_request import Request, acknowledged, renewed
from vnetpods_operator.reconcile import status as report
from vnetpods_operator.state.pools import PATH

NIC = "one-nic"


def listed(pool: NodeIPPool) -> dict[str, str]:
    """Names by address."""
    return {address: name for interface in pool.status.interfaces for address, name in interface.names.items()}


def asked(pool: NodeIPPool) -> set[str]:
    return {address for interface in pool.status.interfaces for address in interface.releasing}


async def restore(world: World, earlier: NodeIPPool) -> None:
    """The status is what it was, both halves of it, as after a restore of the API server's data."""
    for manager, status in (
        ("vnetpods-operator", report.owned(earlier.status)),
        (AGENT_MANAGER, agents_part(earlier.status)),
    ):
        body = apply_body(earlier.metadata.name, status=status)
        path, query = f"{PATH}/{earlier.metadata.name}/status", {"fieldManager": manager, "force": "true"}
        await world.kube.request("PATCH", path, query=query, body=body, content_type=APPLY)


def agents_part(status: Status) -> Status:
    return Status(
        usage=status.usage,
        agent=status.agent,
        released=status.released,
        kept=status.kept,
        missing=status.missing,
        conditions=tuple(c for c in status.conditions if c.type == "AgentReady"),
    )


@pytest.mark.apiserver
async def test_the_list_names_the_entry_behind_each_address(world: World) -> None:
    _, agent = await world.worker("one")
    async with bench(world, agent) as found:
        await found.look()
        there = {a: n for n, a in world.azure.build.addresses(NIC).items() if n.startswith("vnetpods-")}
        assert listed(await found.see()) == there


@pytest.mark.apiserver
async def test_another_operator_asks_again_before_it_removes(world: World) -> None:
    _, agent = await world.worker("one")
    async with bench(world, agent) as found:
        await full(found, agent)
        before = await release(found, agent)
        found.forget()
        writes = world.writes()
        await found.look()
        again = await found.see()
        assert asked(again) == asked(before)
        assert again.status.release_request not in (None, before.status.release_request)
        assert world.writes() == writes
        await agent.sync()
        await found.see()
        await found.look()
        assert not asked(before) & world.addresses(NIC)
        assert (await found.see()).status.release_request is None


@pytest.mark.apiserver
async def test_a_restored_acknowledgement_removes_nothing(world: World) -> None:
    """Pods have got the addresses under other names since; then the API server's data is that of before."""
    _, agent = await world.worker("one")
    async with bench(world, agent) as found:
        await full(found, agent)
        before = await release(found, agent)
        await found.look()  # removed
        await agent.sync()
        agent.start(30)
        await agent.sync()
        await found.see()
        for _ in range(3):
            await found.round()  # granted again: the same values, Azure takes the lowest free ones
        assert agent.waiting == 0
        assert asked(before) & agent.held
        await restore(world, before)
        found.forget()  # whoever looks, and whatever it remembers
        await found.see()
        for _ in range(4):
            await found.look()
            assert agent.held <= world.addresses(NIC)
            await found.see()
        for _ in range(4):
            await found.round()
            assert agent.held <= world.addresses(NIC)
        assert set(listed(await found.see())) == world.addresses(NIC)


@pytest.mark.apiserver
async def test_what_was_retired_in_a_time_that_the_api_server_has_forgotten_goes_in_the_end(world: World) -> None:
    _, agent = await world.worker("one")
    async with bench(world, agent) as found:
        await full(found, agent)
        before = await found.see()
        after = await release(found, agent)
        await restore(world, before)
        found.forget()
        await found.see()
        assert set(after.status.released) <= world.addresses(NIC)
        for _ in range(4):
            await found.round()
        assert not set(after.status.released) & world.addresses(NIC)
        agent.start(30)
        for _ in range(4):
            await found.round()
        assert agent.waiting == 0
        assert agent.held <= world.addresses(NIC)


@pytest.mark.apiserver
async def test_an_entry_that_somebody_made_anew_is_not_what_was_asked_for(world: World) -> None:
    _, agent = await world.worker("one")
    async with bench(world, agent) as found:
        await full(found, agent)
        before = await release(found, agent)
        address = min(before.status.released)
        world.azure.build.remove_address(NIC, listed(before)[address])
        world.azure.build.add_address(NIC, "vnetpods-again", address)
        await found.look()
        assert asked(before) & world.addresses(NIC) == {address}


@pytest.mark.apiserver
async def test_an_agent_of_before_is_asked_for_nothing_and_loses_nothing(world: World) -> None:
    _, agent = await world.worker("one")
    agent.tells_agent = False
    async with bench(world, agent) as found:
        await full(found, agent)
        agent.end(30)
        found.cluster.record(agent.node).surplus_since = 0.0
        for _ in range(3):
            await found.round()
        assert asked(await found.see()) == set()
        world.settings["exclude"] = ["10.240.0.5"]
        found.reconfigure()
        await found.round()
        found.cluster.record(agent.node).releasing_since = 1.0
        await found.round()
        await found.look()
        assert "10.240.0.5" in world.addresses(NIC)
        ready = await world.condition(agent.node)
        assert ready is not None
        assert ready.reason == Reason.AGENT_SILENT
        assert "upgrade" in ready.message


@pytest.mark.apiserver
async def test_a_view_is_confirmed_together_with_what_is_read_for_it(world: World) -> None:
    _, agent = await world.worker("one")
    async with bench(world, agent) as found:
        await full(found, agent)
        before = await found.see()
        gone = listed(before)[min(set(listed(before)) - agent.held)]
        world.azure.build.remove_address(NIC, gone)
        agent.restart(boot=True)
        await agent.sync()
        await found.see()
        await found.look()
        pool = await found.see()
        assert pool.status.confirmed_view == agent.view
        assert gone not in listed(pool).values()
        reads = len(world.azure.build.requests())
        await found.round()
        assert len(world.azure.build.requests()) == reads


@pytest.mark.apiserver
async def test_a_view_that_comes_while_the_nic_is_read_needs_another_read(world: World) -> None:
    _, agent = await world.worker("one")
    async with bench(world, agent) as found:
        await found.round()
        agent.start(9)

        async def boots() -> None:
            agent.restart(boot=True)
            await agent.sync()
            found.meanwhile.clear()

        await agent.sync()
        await found.see()
        found.meanwhile.append(boots)
        outcome = await found.look()
        assert (await world.pool(agent.node)).status.confirmed_view is None
        assert outcome.requeue_after is not None
        await found.look()  # nobody has told it anything
        assert (await world.pool(agent.node)).status.confirmed_view == agent.view


def interface(**more: object) -> Interface:
    given = {"addresses": ("10.0.0.5", "10.0.0.6"), "ip_configurations": ("vnetpods-5", "vnetpods-6")}
    return Interface(name="n", mac="m", subnet="s", **(given | more))  # type: ignore[arg-type]


def test_a_request_is_made_anew_when_more_is_asked_for_and_only_then() -> None:
    one = renewed(None, [interface(releasing=("10.0.0.5",))])
    assert one is not None
    assert one.names == {"10.0.0.5": "vnetpods-5"}
    both = renewed(one, [interface(releasing=("10.0.0.5", "10.0.0.6"))])
    assert both is not None
    assert both.token != one.token
    less = renewed(both, [interface(releasing=("10.0.0.6",))])
    assert less == Request(both.token, {"10.0.0.6": "vnetpods-6"})
    other = renewed(less, [interface(releasing=("10.0.0.6",), ip_configurations=("vnetpods-5", "vnetpods-7"))])
    assert other is not None
    assert other.token != both.token
    assert renewed(both, [interface()]) is None
    assert renewed(both, [interface(releasing=("10.0.0.5",), ip_configurations=())]) is None


@pytest.mark.parametrize(
    ("agent", "names", "expected"),
    [
        pytest.param(AgentReport(instance="i", report=1, release_request="t"), {}, {"10.0.0.5"}, id="answered"),
        pytest.param(AgentReport(instance="i", report=1, release_request="u"), {}, set(), id="another-question"),
        pytest.param(AgentReport(instance="i", report=1), {}, set(), id="no-question"),
        pytest.param(None, {}, set(), id="an-agent-of-before"),
        pytest.param(
            AgentReport(instance="i", report=1, release_request="t"), {"10.0.0.5": "x"}, set(), id="another-name"
        ),
    ],
)
def test_what_counts_as_acknowledged(agent: AgentReport | None, names: dict[str, str], expected: set[str]) -> None:
    request = Request("t", {"10.0.0.5": "vnetpods-5", "10.0.0.6": "vnetpods-6"})
    status = replace(Status(agent=agent), released=("10.0.0.5", "10.0.0.7"))
    there = {"10.0.0.5": "vnetpods-5", "10.0.0.6": "vnetpods-6", "10.0.0.7": "vnetpods-7"} | names
    assert acknowledged(request, status, there) == expected
    assert acknowledged(None, status, there) == set()
