"""Docker's calls at the socket of a real agent, in every order that restarts, crashes and repetitions make of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.agent import truths
from tests.agent.machine import PRIMARY, Machine, machine, until
from tests.standalone.libnetwork import SUBNET, Container, Docker, DriverError, ip

FIVE, SIX, SEVEN = "10.240.0.5", "10.240.0.6", "10.240.0.7"
OUTSIDE = "10.240.0.1"


@contextlib.asynccontextmanager
async def docker(folder: Path, *addresses: str, **settings: Any) -> AsyncIterator[tuple[Machine, Docker]]:
    """A VM whose agent runs, and a network on it."""
    socket = {"socket": str(folder / "plugins" / "vnetpods.sock")}
    wanted = {"docker": socket | settings.pop("docker", {}), "cooldown": 600, **settings}
    async with machine(folder, **wanted) as node:
        fabric(node)
        node.pool(addresses or [FIVE, SIX, SEVEN])
        await node.start()
        made = Docker(node)
        await until((node.state / "pool.json").exists)
        await made.create_network()
        yield node, made


def fabric(node: Machine) -> None:
    """A member of the VNet; what is sent to the VM's further addresses comes to the VM."""
    ip(f"-n {node.name}-out addr add {OUTSIDE}/16 dev nic0")
    for address in (FIVE, SIX, SEVEN):
        ip(f"-n {node.name}-out route add {address}/32 via {PRIMARY} dev nic0")


def held(node: Machine) -> set[str]:
    return set(truths.ledger(node.state / "ledger.db").values())


async def test_the_socket_is_roots_and_off_by_default(tmp_path: Path) -> None:
    async with docker(tmp_path) as (node, dock):
        assert dock.socket.stat().st_mode & 0o777 == 0o600
        assert (await dock.call("Plugin.Activate"))["Implements"] == ["NetworkDriver", "IpamDriver"]
        assert (await dock.call("NetworkDriver.GetCapabilities"))["Scope"] == "local"
        assert not (await dock.call("IpamDriver.GetCapabilities"))["RequiresRequestReplay"]
        await node.stop()
        assert not dock.socket.exists()
    async with machine(tmp_path) as node:
        node.pool([FIVE])
        await node.start()
        assert not (tmp_path / "plugins" / "vnetpods.sock").exists()


async def test_containers_reach_each_other_pods_and_the_vnet_under_their_own_addresses(tmp_path: Path) -> None:
    async with docker(tmp_path) as (node, dock):
        one, two = await dock.run(), await dock.run()
        pod = await node.add("pod", node.sandbox())
        assert [one.address, two.address, pod] == [FIVE, SIX, SEVEN]
        assert all(one.ping(there) for there in (two.address, pod, PRIMARY, OUTSIDE))
        assert truths.read(node).agreed
        assert "169.254.1.1" not in one.seen("neigh show nud permanent"), "nothing of it survives the move"
        assert "NOARP" in one.seen("link show eth0")
        for container in (one, two):
            await dock.stop(container)
        assert held(node) == {pod}
        await until(lambda: node.host_ends() == {next(iter(node.host_ends()))})
        assert truths.read(node).agreed


async def test_the_gateway_is_azures_and_costs_no_address(tmp_path: Path) -> None:
    async with docker(tmp_path) as (node, dock):
        granted = await dock.call("IpamDriver.RequestPool", AddressSpace="vnetpods", Pool="10.240.0.0/24", V6=False)
        assert granted["Data"] == {"com.docker.network.gateway": "10.240.0.1/16"}
        options = {"RequestAddressType": "com.docker.network.gateway"}
        for address in ("", OUTSIDE):
            answer = await dock.call("IpamDriver.RequestAddress", PoolID=dock.pool, Address=address, Options=options)
            assert answer["Address"] == "10.240.0.1/16"
        await dock.release(OUTSIDE)
        await dock.call("IpamDriver.ReleasePool", PoolID=dock.pool)
        assert held(node) == set()


async def test_an_address_is_in_the_ledger_before_docker_hears_of_it(tmp_path: Path) -> None:
    """And stays its when the agent is killed, until the container comes."""
    async with docker(tmp_path) as (node, dock):
        container = Container(await dock.request())
        assert held(node) == {container.address}
        await node.kill()
        await node.start()
        assert held(node) == {container.address}
        assert await dock.request() != container.address
        await dock.create(container)
        await dock.join(container)
        dock.take(container)
        assert container.ping(OUTSIDE)


Step = Callable[[Docker, Container], Awaitable[Any]]


async def _request(dock: Docker, container: Container) -> None:
    container.address = await dock.request(container.address)


async def _release(dock: Docker, container: Container) -> None:
    await dock.release(container.address)


def _of(name: str) -> Step:
    async def step(dock: Docker, container: Container) -> None:
        await dock.endpoint(name, container)

    return step


LIFE: dict[str, Step] = {
    "request": _request,
    "create": Docker.create,
    "join": Docker.join,
    "delete": _of("DeleteEndpoint"),
    "release": _release,
}
POINTS = [
    ("request", "add.chosen"),
    ("request", "add.durable"),
    ("create", "add.durable"),
    ("create", "add.attached"),
    ("delete", "del.detached"),
    ("delete", "del.released"),
]


@pytest.mark.parametrize(("died_in", "point"), POINTS)
async def test_the_agent_killed_within_a_call_is_asked_again(tmp_path: Path, died_in: str, point: str) -> None:
    """By the next call to the same socket, as dockerd does for half a minute: nothing is given twice or lost."""
    async with docker(tmp_path) as (node, dock):
        container = Container(FIVE)
        for name, step in LIFE.items():
            if name == died_in:
                await node.stop()
                await node.start(fault=point)
            doing = asyncio.ensure_future(step(dock, container))
            if name == died_in:
                await until(node.process_ended)
                await node.start()
            await doing
            if name == "join":
                dock.take(container)
                assert container.ping(OUTSIDE)
                assert truths.read(node).agreed
        await until(lambda: truths.read(node).agreed)
        assert held(node) == set()


async def test_every_call_twice_is_the_same_as_once(tmp_path: Path) -> None:
    async with docker(tmp_path) as (node, dock):
        container = Container(FIVE)
        for name, step in LIFE.items():
            await step(dock, container)
            await step(dock, container)
            if name == "join":
                dock.take(container)
                await step(dock, container)
                assert container.ping(OUTSIDE), "a Join repeated late leaves the container its interface"
        assert held(node) == set()


async def test_a_release_that_comes_again_takes_nothing_from_the_next_container(tmp_path: Path) -> None:
    async with docker(tmp_path) as (node, dock):
        first = await dock.run()
        await dock.stop(first)
        second = await dock.run(first.address)
        await dock.release(first.address)
        await dock.endpoint("DeleteEndpoint", first)
        await dock.endpoint("Leave", first)
        assert second.ping(OUTSIDE)
        assert held(node) == {second.address}
        # and between RequestAddress and CreateEndpoint it is noticed there
        third = Container(await dock.request())
        await dock.release(third.address)
        await dock.create(third)
        assert held(node) == {second.address, third.address}
        assert truths.read(node).agreed


async def test_an_address_asked_for_by_name(tmp_path: Path) -> None:
    async with docker(tmp_path) as (node, dock):
        pod = await node.add("pod", node.sandbox())
        running = await dock.run(SIX)
        for address, why in (
            (pod, "is in use, by pod/eth0"),
            (SIX, f"is in use, by {running.endpoint}"),
            ("10.240.0.99", "none of the addresses that this machine may use"),
        ):
            with pytest.raises(DriverError, match=why):
                await dock.request(address)
        await dock.stop(running)
        again = await dock.run(SIX)  # which others would not get for ten minutes
        assert again.ping(OUTSIDE)


async def test_two_containers_that_name_the_same_address_at_once(tmp_path: Path) -> None:
    async with docker(tmp_path) as (_, dock):
        first, second = Container(await dock.request(SIX)), Container(await dock.request(SIX))
        await dock.create(first)
        with pytest.raises(DriverError, match=f"in use, by {first.endpoint}"):
            await dock.create(second)
        await dock.release(SIX)  # as Docker does for the second
        await dock.join(first)
        dock.take(first)
        assert first.ping(OUTSIDE)


async def test_whoever_finds_no_address_waits_for_one_and_hears_why_there_is_none(tmp_path: Path) -> None:
    async with docker(tmp_path, FIVE, cooldown=0.1) as (node, dock):
        first = await dock.run()
        gone = asyncio.ensure_future(dock.request())
        await asyncio.sleep(0.2)
        gone.cancel()  # dockerd was killed
        waiting = asyncio.ensure_future(dock.request())
        await dock.stop(first)
        assert await waiting == FIVE
        assert held(node) == {FIVE}


async def test_after_a_reboot_nothing_of_before_counts(tmp_path: Path) -> None:
    """dockerd deletes what it remembers, in whatever order; or joins it once more."""
    async with docker(tmp_path) as (node, dock):
        before, fixed = await dock.run(), await dock.run(SIX)
        await node.kill()
        node.reboot()
        fabric(node)
        await node.start()
        with pytest.raises(DriverError, match="start the container again"):
            await dock.join(before)
        again = await dock.run(SIX)
        await dock.release(SIX)
        await dock.endpoint("DeleteEndpoint", fixed)
        await dock.endpoint("DeleteEndpoint", before)
        await dock.release(before.address)
        assert again.ping(OUTSIDE)
        assert held(node) == {SIX}
        assert truths.read(node).agreed


async def test_without_its_ledger_the_agent_knows_containers_by_their_interfaces(tmp_path: Path) -> None:
    async with docker(tmp_path) as (node, dock):
        running = await dock.run()
        await node.kill()
        for file in node.state.glob("ledger.db*"):
            file.unlink()
        await node.start()
        await until(lambda: held(node) == {running.address})
        assert await dock.request() != running.address
        await dock.stop(running)
        assert running.address not in held(node)


async def test_a_sandbox_that_goes_with_its_interface_gives_back_the_address(tmp_path: Path) -> None:
    """And what Docker still says about it then concerns nobody."""
    async with docker(tmp_path, FIVE, sweepInterval=0.2, cooldown=0.1) as (node, dock):
        lost = await dock.run()
        node.end_sandbox(lost.netns)
        await until(lambda: not held(node))
        following = await dock.run()
        assert following.address == lost.address
        await dock.endpoint("Leave", lost)
        await dock.endpoint("DeleteEndpoint", lost)
        await dock.release(lost.address)
        assert held(node) == {FIVE}
        assert following.ping(OUTSIDE)


async def test_a_socket_that_somebody_removes_is_bound_again(tmp_path: Path) -> None:
    async with docker(tmp_path) as (_, dock):
        dock.socket.unlink()
        await until(dock.socket.exists)
        await dock.run()


NETWORK: dict[str, Any] = {
    "NetworkID": "n",
    "Options": {},
    "IPv4Data": [{"AddressSpace": "vnetpods", "Pool": SUBNET, "Gateway": "10.240.0.1/16"}],
    "IPv6Data": None,
}
ENDPOINT: dict[str, Any] = {
    "NetworkID": "n",
    "EndpointID": "e" * 64,
    "Interface": {"Address": f"{FIVE}/32"},
    "Options": {},
}
PUBLISHED = {"com.docker.network.portmap": [{"Proto": 6, "IP": "", "Port": 80, "HostIP": "", "HostPort": 8080}]}
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("NetworkDriver.CreateNetwork", {"IPv4Data": [{"AddressSpace": "LocalDefault"}]}, "add --ipam-driver vnetpods"),
    ("NetworkDriver.CreateNetwork", {"IPv6Data": [{"AddressSpace": "vnetpods"}]}, "leave out --ipv6"),
    ("NetworkDriver.CreateNetwork", {"Options": {"com.docker.network.internal": True}}, "leave out --internal"),
    ("NetworkDriver.CreateNetwork", {"Options": {"com.docker.network.generic": {"mtu": "9000"}}}, "called mtu"),
    (
        "NetworkDriver.CreateNetwork",
        {"IPv4Data": [{"AddressSpace": "vnetpods", "AuxAddresses": {"a": FIVE}}]},
        "leave out --aux-address",
    ),
    ("NetworkDriver.CreateEndpoint", {"Options": PUBLISHED}, f"(80).*{FIVE}.*leave out -p"),
    ("NetworkDriver.CreateEndpoint", {"Interface": {}}, "use --ipam-driver vnetpods"),
    (
        "NetworkDriver.CreateEndpoint",
        {"Interface": {"Address": f"{FIVE}/32", "MacAddress": "02:42:ac:11:00:02"}},
        "leave out --mac-address",
    ),
    ("IpamDriver.RequestPool", {"Pool": ""}, "--subnet 10.240.0.0/16"),
    ("IpamDriver.RequestPool", {"Pool": "10.0.0.0/24"}, "no subnet of this VM"),
    ("IpamDriver.RequestPool", {"Pool": SUBNET, "SubPool": "10.0.0.0/24"}, "--ip-range"),
    ("IpamDriver.RequestPool", {"Pool": SUBNET, "V6": True}, "leave out --ipv6"),
    ("IpamDriver.RequestPool", {"Pool": SUBNET, "Options": {"a": "b"}}, "leave out --ipam-opt"),
    ("IpamDriver.RequestAddress", {"PoolID": "LocalDefault/10.0.0.0/8"}, "no pool of vnetpods"),
    ("IpamDriver.ReleaseAddress", {"Address": "ten"}, "no IPv4 address"),
    ("NetworkDriver.Join", {"EndpointID": 7}, "can't be read"),
]


async def test_what_cannot_be_is_refused_in_words_that_help(tmp_path: Path) -> None:
    async with docker(tmp_path) as (node, dock):
        for name, changed, why in REFUSED:
            form: dict[str, Any] = {"CreateNetwork": NETWORK, "CreateEndpoint": ENDPOINT}.get(
                name.partition(".")[2], {}
            )
            with pytest.raises(DriverError, match=why):
                await dock.call(name, **{**form, **changed})
        assert (await dock.raw("NetworkDriver.Later", b"{}"))[0] == 404
        status, answer = await dock.raw("NetworkDriver.Join", b"\xff")
        assert (status, "can't be read" in answer["Err"]) == (200, True)
        assert held(node) == set()


async def test_ports_are_ignored_when_that_is_wanted(tmp_path: Path) -> None:
    async with docker(tmp_path, docker={"ports": "ignore"}) as (node, dock):
        await dock.create(Container(await dock.request()), **PUBLISHED)
        assert "ports are not published (80)" in node.log.read_text()


async def test_calls_without_meaning_for_us_are_answered(tmp_path: Path) -> None:
    async with docker(tmp_path) as (_, dock):
        running = await dock.run()
        assert await dock.endpoint("EndpointOperInfo", running) == {"Value": {}}
        await dock.endpoint("ProgramExternalConnectivity", running, Options={})
        await dock.endpoint("RevokeExternalConnectivity", running)
        for name in ("DiscoverNew", "DiscoverDelete"):
            await dock.call(f"NetworkDriver.{name}", DiscoveryType=1, DiscoveryData={"Address": "10.0.0.9"})
        assert await dock.call("NetworkDriver.AllocateNetwork", NetworkID="n") == {"Options": {}}
        for name in ("FreeNetwork", "DeleteNetwork"):
            await dock.call(f"NetworkDriver.{name}", NetworkID=dock.network)
        assert running.ping(OUTSIDE)
