"""What a pool says of its subnet may be anything; the operator goes on."""

from __future__ import annotations

import pytest

from tests.azure.arm.sdk import StaticCredential
from tests.azure.arm.server import Emulator
from tests.operator.benches import Nobody
from tests.operator.worlds import World
from vnetpods_operator import azure
from vnetpods_operator.azure import client
from vnetpods_operator.azure.budget import Budget
from vnetpods_operator.azure.client import NicId
from vnetpods_operator.azure.networks import Networks
from vnetpods_operator.config import Azure

SUBNET = "Microsoft.Network/virtualNetworks/subnets"


@pytest.mark.parametrize("subnet", ["", "/s/pods", "pods", "/subscriptions/s/subnets/pods"])
async def test_what_is_no_subnet_is_passed_over(subnet: str) -> None:
    networks = Networks(arm=None)  # type: ignore[arg-type]  # ARM is not asked at all
    assert await networks.prefixes(subnet) == ()
    assert networks.direct(subnet) is None
    assert await networks.left(subnet) is None
    assert await networks.refresh([subnet]) == set()


async def test_a_vnet_that_nobody_uses_any_more_is_not_read() -> None:
    budget = Budget(lambda _: (100.0, 100.0))
    async with (
        Emulator() as emulator,
        azure.opened(Azure(emulator.url), budget, Nobody(), lambda: StaticCredential("operator")) as arm,
    ):
        for name in ("one", "two"):
            emulator.build.create_vnet(name, "10.0.0.0/8")
            emulator.build.create_subnet(name, "pods", "10.1.0.0/16")
        one, two = (emulator.build.id(SUBNET, f"{name}/pods") for name in ("one", "two"))
        networks = Networks(arm)
        for subnet in (one, two):
            assert await networks.prefixes(subnet) == ("10.1.0.0/16",)
        assert await networks.refresh([one.upper()]) == set()
        assert networks.direct(one) == (("10.0.0.0/8",), ())
        assert networks.direct(two) is None
        reads = {
            n: len(emulator.build.requests(principal="operator", resource=f"virtualNetworks/{n}"))
            for n in ("one", "two")
        }
        assert reads == {"one": 2, "two": 1}


async def test_nics_of_machines_that_are_gone_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = Budget(lambda _: (100.0, 100.0))
    async with azure.opened(Azure(), budget, Nobody(), lambda: StaticCredential("operator")) as arm:
        monkeypatch.setattr(client, "NICS_SECONDS", 0.0)
        for number in range(10):
            arm.learn_nics(f"machine-{number}", (NicId("nic", True),))
        monkeypatch.undo()
        arm.learn_nics("last", (NicId("nic", True),))
        assert arm.known_nics("LAST") == (NicId("nic", True),)
        assert arm.remembered == 1


@pytest.mark.apiserver
@pytest.mark.parametrize(
    "answer",
    [
        "<html>Sign in</html>",
        "null",
        "[]",
        '{"properties": null}',
        '{"properties": {"addressSpace": null, "subnets": null, "virtualNetworkPeerings": null}}',
        '{"properties": {"addressSpace": {"addressPrefixes": null}, "subnets": [{"id": null}]}}',
        '{"properties": {"addressSpace": {"addressPrefixes": ["everything"]}}}',
    ],
)
async def test_an_odd_answer_changes_nothing_and_ends_nothing(world: World, answer: str) -> None:
    """One VNet's odd answer ended the operator for all nodes, and again at each start."""
    world.settings["azure"]["networks"] = "100ms"

    async def read(times: int) -> bool:
        return world.azure.build.fault_hits()[-1] >= times

    node, _ = await world.worker("one")
    async with world.operator():
        before = await world.until_allocated(node, 4)
        assert before.status.direct_cidrs == ("10.240.0.0/12",)
        world.azure.build.fault("garbage", resource="*/virtualNetworks/net", times=None, argument=answer)
        await world.until("the VNet to be read", lambda: read(2))
    async with world.operator():
        await world.until("the VNet to be read again", lambda: read(4))
        new, _ = await world.worker("two")
        assert (await world.until_allocated(new, 4)).status.interfaces[0].prefixes
        assert (await world.pool(node)).status.direct_cidrs == before.status.direct_cidrs
