"""Two agents on one node, told from one that was started again and from an API server that was restored."""

from __future__ import annotations

import copy

import pytest

from tests.operator.benches import bench, full
from tests.operator.worlds import World
from vnetpods_api import AgentReport, ConditionType, Reason
from vnetpods_operator.state.doubles import QUIET, REMEMBERED, Doubles


def heard(*reports: tuple[str, int], at: float = 0.0) -> Doubles:
    found = Doubles()
    for instance, number in reports:
        found.heard(AgentReport(instance=instance, report=number), at)
    return found


@pytest.mark.parametrize(
    ("reports", "doubled"),
    [
        pytest.param([("a", 1), ("a", 2), ("b", 1), ("b", 2)], False, id="started-again"),
        pytest.param([("a", 1), ("b", 1), ("a", 2)], True, id="the-replaced-one-goes-on"),
        pytest.param([("a", 1), ("a", 2), ("b", 1), ("a", 1), ("b", 2)], False, id="restored-and-going-on"),
        pytest.param([("a", 1), ("b", 1), ("a", 1), ("c", 1)], False, id="restored-and-started-again"),
        pytest.param([(str(i), 1) for i in range(REMEMBERED + 2)], False, id="many-starts"),
    ],
)
def test_who_reports(reports: list[tuple[str, int]], doubled: bool) -> None:
    assert bool(heard(*reports).said(1.0)) is doubled


def test_one_that_is_silent_for_long_is_gone() -> None:
    found = heard(("a", 1), ("b", 1), ("a", 2), at=100.0)
    assert "b" in found.said(99.0 + QUIET)
    assert found.said(100.0 + QUIET) == ""


@pytest.mark.apiserver
async def test_nothing_is_asked_back_while_two_agents_report(world: World) -> None:
    _, agent = await world.worker("one")
    async with bench(world, agent) as found:
        await full(found, agent)
        other = copy.copy(agent)
        other.restart()
        other.pods = {}
        for one in (other, agent, other):
            await one.sync()
            await found.see()
        found.cluster.record(agent.node).surplus_since = 0.0
        for _ in range(2):
            await found.look()
        pool = await found.see()
        assert pool.status.interfaces[0].releasing == ()
        for type_ in (ConditionType.READY, ConditionType.STALLED):
            said = await world.condition(agent.node, type_)
            assert said is not None
            assert said.reason == "AgentDoubled"
        assert found.told == [Reason.AGENT_DOUBLED]
