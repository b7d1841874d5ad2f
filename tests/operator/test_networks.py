"""What a pool says of its subnet may be anything; the operator goes on."""

from __future__ import annotations

import pytest

from vnetpods_operator.azure.networks import Networks


@pytest.mark.parametrize("subnet", ["", "/s/pods", "pods", "/subscriptions/s/subnets/pods"])
async def test_what_is_no_subnet_is_passed_over(subnet: str) -> None:
    networks = Networks(arm=None)  # type: ignore[arg-type]  # ARM is not asked at all
    assert await networks.prefixes(subnet) == ()
    assert networks.direct(subnet) is None
    assert await networks.left(subnet) is None
    networks.meet(subnet)
    assert await networks.refresh() == []
