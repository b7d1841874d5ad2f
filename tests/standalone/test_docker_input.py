"""Whatever is sent to Docker's socket is answered in its own form, and never takes the driver by surprise."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.agent.desk import Desk, desk
from vnetpods_agent.docker.driver import _TABLE, Driver

SUBNET = "10.0.0.0/24"
POOL = f"vnetpods {SUBNET} {SUBNET} {SUBNET}"
WHOLE: dict[str, Any] = {
    "NetworkID": "n" * 64,
    "EndpointID": "e" * 64,
    "IPv4Data": [{"AddressSpace": "vnetpods", "Pool": SUBNET}],
    "IPv6Data": None,
    "Interface": {"Address": "10.0.0.5/32", "AddressIPv6": "", "MacAddress": ""},
    "Options": {},
    "SandboxKey": "/var/run/docker/netns/0123456789ab",
    "AddressSpace": "vnetpods",
    "Pool": SUBNET,
    "SubPool": "",
    "V6": False,
    "PoolID": POOL,
    "Address": "10.0.0.5",
}
NASTY: list[Any] = [
    None,
    0,
    -1,
    1e300,
    True,
    "",
    " ",
    "a b/c\nd",
    "x" * 100_000,
    "../../etc",
    "10.0.0.5/99",
    "::1",
    "0.0.0.0/0",
    f"vnetpods {SUBNET}",
    "vnetpods a b c",
    [],
    [[]],
    [None],
    {},
    {"": None},
    {"com.docker.network.portmap": 5, "com.docker.network.generic": 5, "com.docker.network.internal": []},
    {"com.docker.network.portmap": [[1], None, {"Port": {}}]},
    {"com.docker.network.generic": ["a"]},
    {"RequestAddressType": []},
]


@pytest.fixture
async def driver(tmp_path: Path) -> AsyncIterator[tuple[Desk, Driver]]:
    guarded = asyncio.Event()
    guarded.set()
    async with desk(tmp_path, *(f"10.0.0.{number}" for number in range(5, 200))) as made:
        yield made, Driver(made.attachments, guarded, str, lambda: [SUBNET], lambda *_: None, ignores_ports=False)


@pytest.mark.parametrize("name", _TABLE)
async def test_any_value_of_any_key_is_answered(driver: tuple[Desk, Driver], name: str) -> None:
    _, docker = driver
    for key in WHOLE:
        for value in NASTY:
            status, answer = await docker.answer(name, json.dumps({**WHOLE, key: value}).encode())
            assert status == 200
            assert "a defect of the agent" not in answer.get("Err", ""), (key, value, answer)


@pytest.mark.parametrize("body", [b"", b"{}", b"null", b"[]", b"7", b'"', b"\xff\x00", b"[" * 10_000, b'{"a":' * 500])
async def test_any_body_is_answered(driver: tuple[Desk, Driver], body: bytes) -> None:
    _, docker = driver
    for name in _TABLE:
        status, answer = await docker.answer(name, body)
        assert status == 200
        assert "a defect of the agent" not in answer.get("Err", ""), (name, answer)


async def test_an_endpoint_whose_id_could_not_be_in_an_alias_is_refused(driver: tuple[Desk, Driver]) -> None:
    made, docker = driver
    for endpoint in ("", "short", "two words and more", "a/b" * 20, "é" * 64, "e" * 200):
        body = json.dumps({**WHOLE, "EndpointID": endpoint}).encode()
        _, answer = await docker.answer("NetworkDriver.CreateEndpoint", body)
        assert "EndpointID" in answer["Err"]
    assert not made.plane.there
    assert not made.attachments.by_key


async def test_a_release_from_before_takes_nothing_from_who_is_just_being_served(tmp_path: Path) -> None:
    """DeleteEndpoint has freed the address, ReleaseAddress comes after it, and another container waits for one."""
    guarded = asyncio.Event()
    guarded.set()
    async with desk(tmp_path) as made:
        docker = Driver(made.attachments, guarded, str, lambda: [SUBNET], lambda *_: None, ignores_ports=False)
        request = json.dumps({"PoolID": POOL, "Address": "", "Options": None}).encode()
        waiting = asyncio.create_task(docker.answer("IpamDriver.RequestAddress", request))
        await asyncio.sleep(0)
        made.lists("10.0.0.5")  # it is the waiting one's from now on
        release = json.dumps({"PoolID": POOL, "Address": "10.0.0.5"}).encode()
        assert await docker.answer("IpamDriver.ReleaseAddress", release) == (200, {})
        assert (await waiting)[1] == {"Address": "10.0.0.5/32", "Data": {}}


async def test_naming_what_is_just_being_reserved_is_answered_when_it_is_durable(tmp_path: Path) -> None:
    guarded = asyncio.Event()
    guarded.set()
    async with desk(tmp_path, "10.0.0.5") as made:
        docker = Driver(made.attachments, guarded, str, lambda: [SUBNET], lambda *_: None, ignores_ports=False)
        request = json.dumps({"PoolID": POOL, "Address": "10.0.0.5", "Options": None}).encode()
        made.ledger.full = True
        both = [asyncio.create_task(docker.answer("IpamDriver.RequestAddress", request)) for _ in range(2)]
        assert all("can't be written" in answer["Err"] for _, answer in await asyncio.gather(*both))
