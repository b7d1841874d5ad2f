"""Bad requests get the service's error body, never a stack trace: mutated bodies, odd paths, broken HTTP."""

from __future__ import annotations

import copy
from random import Random
from typing import Any

import aiohttp
import pytest

from tests.azure.arm import balancers, machines, networks, nics, plain, scalesets
from tests.azure.arm.clock import VirtualClock
from tests.azure.arm.requests import Request
from tests.azure.arm.server import Emulator
from tests.azure.conftest import part

SCALARS: tuple[Any, ...] = (None, True, 0, -3, 300, 1.5, "", "10.240.0.9", "Static", "/x", "a/b", "\x00", "10.0.0.0/99")


def junk(random: Random, depth: int = 0) -> Any:
    """Any JSON value."""
    shape = random.randrange(4 if depth < 3 else 2)
    if shape == 2:
        return [junk(random, depth + 1) for _ in range(random.randrange(3))]
    if shape == 3:
        names = ("id", "name", "properties", "subnet")
        return {random.choice(names): junk(random, depth + 1) for _ in range(random.randrange(3))}
    return random.choice(SCALARS)


def world() -> tuple[Emulator, list[tuple[str, Any]]]:
    """A cloud, and a good body for every type."""
    azure = Emulator(clock=VirtualClock())
    build = azure.build
    build.create_vnet("net", "10.240.0.0/12")
    build.create_subnet("net", "pods", "10.240.0.0/16")
    build.create_vnet("peer", "10.9.0.0/16")
    build.peer("net", "peer")
    build.create_vm("w1", "net/pods")
    build.create_scale_set("pool", "net/pods", 1)
    asg = build.put("Microsoft.Network/applicationSecurityGroups", "web")["id"]
    nsg = build.put("Microsoft.Network/networkSecurityGroups", "nsg", {"securityRules": []})["id"]
    public = build.put(plain.PUBLIC_IP, "ip", sku={"name": "Standard"})["id"]
    front = {"name": "f", "properties": {"subnet": part(azure, "x")["properties"]["subnet"]}}
    build.put(
        balancers.TYPE,
        "lb",
        {"frontendIPConfigurations": [front], "backendAddressPools": [{"name": "p"}], "outboundRules": []},
        sku={"name": "Standard"},
    )
    nic = part(azure, "a", applicationSecurityGroups=[{"id": asg}], publicIPAddress={"id": public})
    body = {"location": "w", "properties": {"ipConfigurations": [nic], "networkSecurityGroup": {"id": nsg}}}
    vnet = {"id": build.id(networks.TYPE, "net")}
    member = {"name": "m", "properties": {"ipAddress": "10.240.0.9", "virtualNetwork": vnet}}
    good: list[tuple[str, Any]] = [(build.id(nics.TYPE, "n1"), body)]
    for kind, name in (
        (networks.TYPE, "net"),
        (networks.SUBNET, "net/pods"),
        (networks.PEERING, "net/to-peer"),
        (machines.TYPE, "w1"),
        (balancers.TYPE, "lb"),
        (scalesets.TYPE, "pool"),
        (scalesets.INSTANCE, "pool/0"),
        (plain.PUBLIC_IP, "ip"),
        ("Microsoft.Network/networkSecurityGroups", "nsg"),
        (nics.TYPE, "w1-nic"),
    ):
        good.append((build.id(kind, name), build.get(kind, name)))
    good.append((build.id(balancers.POOL, "lb/p"), {"properties": {"loadBalancerBackendAddresses": [member]}}))
    return azure, good


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a body can be changed."""
    found = [path] if path else []
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, inner in steps:
        found += paths(inner, (*path, step))
    return found


def mutated(body: Any, path: tuple[Any, ...], value: Any, *, drop: bool) -> Any:
    changed = copy.deepcopy(body)
    inner = changed
    for step in path[:-1]:
        inner = inner[step]
    if drop:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return changed


def check(reply: Any) -> None:
    assert reply.status < 500
    if reply.status >= 400:
        error = reply.body["error"]
        assert error["code"]
        assert error["message"]
        assert "Traceback" not in error["message"]


@pytest.mark.parametrize("seed", range(6))
def test_mutated_bodies(seed: int) -> None:
    random = Random(seed)
    azure, good = world()
    for _ in range(300):
        target, body = random.choice(good)
        for _ in range(random.randint(1, 3)):
            places = paths(body)
            if places:
                body = mutated(body, random.choice(places), junk(random), drop=random.random() < 0.3)
        headers = {"if-match": random.choice(["*", "x"])} if random.random() < 0.2 else {}
        check(azure._checked_reply(Request("PUT", target, {"api-version": "1"}, headers, body, "x", "http://x")))
        check(azure._checked_reply(Request("GET", target, {"api-version": "1"}, {}, None, "x")))
    assert azure.bugs == []


SEGMENTS = ["subscriptions", "s", "resourceGroups", "vnetpods", "providers", "Microsoft.Network", "virtualNetworks"]
SEGMENTS += [
    "net",
    "subnets",
    "pods",
    "networkInterfaces",
    "w1-nic",
    "usages",
    "locations",
    "operations",
    "restart",
    "%",
    "",
]


METHODS = ["GET", "PUT", "PATCH", "DELETE", "POST", "HEAD", "OPTIONS"]


def test_odd_paths() -> None:
    random = Random(1)
    for _ in range(10):
        azure, good = world()
        for _ in range(100):
            whole = random.choice(good)[0].split("/")
            more = [random.choice(SEGMENTS) for _ in range(random.randrange(4))]
            start = whole[: len(whole) - random.randrange(4)] if random.random() < 0.8 else [""]
            query = {"api-version": "1", "$skipToken": random.choice(["0", "7", "x"])}
            body = junk(random)
            request = Request(random.choice(METHODS), "/".join(start + more), query, {}, body, "x", "http://x")
            check(azure._checked_reply(request))
        assert azure.bugs == []


@pytest.mark.parametrize(
    ("method", "headers", "body", "status", "code"),
    [
        ("PUT", {}, b"{", 400, "InvalidRequestContent"),
        ("PUT", {}, b"\xff\xfe", 400, "InvalidRequestContent"),
        ("PUT", {}, b"[1]", 400, "InvalidRequestFormat"),
        ("PUT", {}, b"", 400, "InvalidRequestFormat"),
        ("GET", {"Authorization": "Basic eA=="}, b"", 401, "AuthenticationFailed"),
    ],
    ids=["half JSON", "no UTF-8", "list", "nothing", "basic authentication"],
)
async def test_broken_http(
    cloud: Emulator, method: str, headers: dict[str, str], body: bytes, status: int, code: str
) -> None:
    url = f"{cloud.url}{cloud.build.id(nics.TYPE, 'w1-nic')}?api-version=2024-01-01"
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer x"} | headers) as session:
        async with session.request(method, url, data=body) as answer:
            assert answer.status == status
            assert (await answer.json())["error"]["code"] == code
        async with session.get(url.partition("?")[0]) as answer:
            assert (await answer.json())["error"]["code"] in ("MissingApiVersionParameter", "AuthenticationFailed")
