"""An operator newer than the CRD: what it writes is refused, it says so once, and goes on when the CRD is upgraded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from tests.operator.conftest import CRD
from tests.operator.worlds import World
from vnetpods_api import Status, apply_body
from vnetpods_api.names import OPERATOR_MANAGER
from vnetpods_operator.kube import APPLY, Invalid
from vnetpods_operator.state.pools import PATH

pytestmark = pytest.mark.apiserver
STATUS = Status(lost=("10.0.0.9", "10.0.0.10"), direct_cidrs=("10.0.0.0/8",))


def without_a_field(status: dict[str, Any]) -> None:
    del status["directCIDRs"]


def with_a_narrower_one(status: dict[str, Any]) -> None:
    status["directCIDRs"]["maxItems"] = 0


@pytest.fixture(params=[without_a_field, with_a_narrower_one])
async def earlier(request: pytest.FixtureRequest, world: World) -> Any:
    """The API server has an earlier CRD; returns what upgrades it."""
    change: Callable[[dict[str, Any]], None] = request.param
    now = yaml.safe_load(CRD.read_text())
    before = copy.deepcopy(now)
    change(before["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"])
    probe = await world.node("probe")
    await world.kube.request("POST", PATH, body=apply_body(probe) | {"spec": {}})
    world.nodes.append(probe)

    async def accepted() -> bool:
        query = {"fieldManager": OPERATOR_MANAGER, "force": "true", "dryRun": "All"}
        body = apply_body(probe, status=STATUS)
        try:
            await world.kube.request("PATCH", f"{PATH}/{probe}/status", query=query, body=body, content_type=APPLY)
        except Invalid:
            return False
        return True

    async def refused() -> bool:
        return not await accepted()

    async def upgrade() -> None:
        world.api.apply(yaml.safe_dump(now))
        await world.until("the present CRD to be in force", accepted)

    world.api.apply(yaml.safe_dump(before))
    await world.until("the earlier CRD to be in force", refused)
    await world.kube.request("DELETE", f"/api/v1/nodes/{probe}")
    try:
        yield upgrade
    finally:
        await upgrade()


async def test_a_refused_status_is_told_once_and_heals_with_the_upgrade(world: World, earlier: Any) -> None:
    node, agent = await world.worker("one")
    async with world.operator():

        async def told() -> list[dict[str, Any]]:
            return [event for event in await world.events(node) if event["reason"] == "PoolRefused"]

        (event,) = await world.until("an Event about the refusal", told)
        assert "directCIDRs" in event["note"]
        assert "upgrade the CRD" in event["note"]
        writes, requests = world.writes(), len(world.azure.build.requests())
        for _ in range(10):
            agent.start(1)
            await agent.sync()
        assert (writes, requests) == (world.writes(), len(world.azure.build.requests()))
        await earlier()
        await world.until_pods_run(agent)
        assert len(await told()) == 1
