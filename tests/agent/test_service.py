from __future__ import annotations

from pathlib import Path

from tests.agent.machine import machine, until
from vnetpods_api import Usage


async def test_a_pod_gets_an_address_of_the_pool_and_gives_it_back(tmp_path: Path) -> None:
    async with machine(tmp_path) as node:
        node.pool(["10.240.0.5", "10.240.0.6"])
        await node.start()
        netns = node.sandbox()
        address = await node.add("c1", netns, args="K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0")
        assert address in {"10.240.0.5", "10.240.0.6"}
        assert node.addresses_of(netns) == [address]
        assert node.routes() == {address}
        await node.delete("c1", netns)
        assert node.routes() == set()
        await until(lambda: node.report().usage == Usage(free=2))
