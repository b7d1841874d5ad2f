from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from tests.agent.machine import NIC_MAC, machine, until
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


async def test_a_pod_that_waits_is_told_why(tmp_path: Path) -> None:
    async with machine(tmp_path) as node:
        node.pool(["10.240.0.5"])
        await node.start()
        await node.add("c1", node.sandbox())
        waiting = asyncio.create_task(
            node.add("c2", node.sandbox(), args="K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-1;K8S_POD_UID=u1")
        )
        await until(lambda: node.events("event reported"))
        (event,) = node.events("event reported")
        assert (event["reason"], event["pod"]) == ("WaitingForAddress", "default/web-1")
        assert "all are in use" in event["message"]
        node.pool(["10.240.0.5", "10.240.0.6"])
        assert await waiting == "10.240.0.6"


async def test_what_is_listed_for_another_machines_nic_is_no_pods(tmp_path: Path) -> None:
    """A VM made again under its name has a new NIC; the old one's addresses are somebody else's by now."""
    async with machine(tmp_path) as node:
        subprocess.run(f"ip -n {node.name} link set eth0 address 00:0d:3a:ff:ff:ff".split(), check=True)  # noqa: ASYNC221
        node.pool(["10.240.0.5"])
        await node.start()
        while NIC_MAC not in str((status := await node.call("STATUS", "")).json):  # the pool is heard a moment later
            assert status.code == 50
        pod = asyncio.create_task(node.add("c1", node.sandbox(), args="K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-1"))
        event = await until(
            lambda: next((e for e in node.events("event reported") if e["reason"] == "WaitingForAddress"), None)
        )
        assert f"the pool is another machine's: none here has the MAC {NIC_MAC}" in event["message"]
        assert node.report().usage is None  # a copy of another machine's disk has nothing to say
        subprocess.run(f"ip -n {node.name} link set eth0 address {NIC_MAC}".split(), check=True)  # noqa: ASYNC221
        assert await pod == "10.240.0.5"
        assert (await node.call("STATUS", "")).exit_code == 0


async def test_need_is_told_at_once_and_once(tmp_path: Path) -> None:
    """Twenty pods of a burst are one need."""
    async with machine(tmp_path, reportInterval=3600) as node:
        node.pool(["10.240.0.5"])
        await node.start()
        await until(lambda: node.report().usage)
        pods = [asyncio.create_task(node.call("ADD", f"c{n}", node.sandbox())) for n in range(21)]
        await until(lambda: node.report().usage == Usage(assigned=1, waiting=20), within=5)
        node.pool([f"10.240.0.{n}" for n in range(5, 40)])
        assert {outcome.exit_code for outcome in await asyncio.gather(*pods)} == {0}
        await until(lambda: node.report().usage == Usage(assigned=21, free=14), within=5)


@pytest.mark.parametrize("verb", ["ADD", "CHECK"])
async def test_the_hosts_own_namespace_is_no_pods(tmp_path: Path, verb: str) -> None:
    """A pod's default route there would take the node off the network."""
    async with machine(tmp_path) as node:
        node.pool(["10.240.0.5"])
        await node.start()
        before = node.shown()
        outcome = await node.call(verb, "c1", f"/run/netns/{node.name}", ifname="net1", conf={"prevResult": {}})
        assert outcome.code == 8
        assert "is the host's own network namespace" in outcome.json["msg"]
        assert node.shown() == before
        assert await node.add("c1", node.sandbox()) == "10.240.0.5"
