"""Proxies by environment: who is asked through them, and who never."""

from __future__ import annotations

import contextlib
import urllib.request
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from tests.operator.worlds import World
from vnetpods_operator import proxies


@pytest.mark.parametrize(
    ("said", "host", "bypassed"),
    [
        ("", "169.254.169.254", True),
        ("", "168.63.129.16", True),
        ("", "10.96.0.1", False),
        ("10.96.0.0/12", "10.96.0.1", True),
        ("10.96.0.0/12", "10.112.0.1", False),
        ("fd00::/8, .svc", "fd00::1", True),
        ("10.96.0.0/12", "management.azure.com", False),
        ("management.azure.com", "management.azure.com", True),
        (".azure.com,nonsense/x", "management.azure.com", True),
    ],
)
def test_no_proxy(said: str, host: str, bypassed: bool) -> None:
    environ = {"NO_PROXY": said}
    proxies.settle(environ, [f"https://[{host}]:443" if ":" in host else f"https://{host}:443"])
    proxies.settle(environ, [None])
    found = {"no": environ["no_proxy"]}
    assert environ["NO_PROXY"] == environ["no_proxy"]
    bypass = urllib.request.proxy_bypass_environment  # type: ignore[attr-defined]  # what aiohttp asks
    assert bool(bypass(host, found)) is bypassed


@pytest.fixture
async def proxy() -> AsyncIterator[tuple[str, list[str]]]:
    """A forward proxy; its URL, and whom it was asked for."""
    asked: list[str] = []

    async def forward(request: web.BaseRequest) -> web.StreamResponse:
        asked.append(request.host)
        if request.method == "CONNECT":
            return web.Response(status=502)
        headers = {name: value for name, value in request.headers.items() if name.lower() != "host"}
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(request.method, request.url, headers=headers, data=await request.read()) as answer,
        ):
            kept = {n: v for n, v in answer.headers.items() if n.lower() not in ("content-length", "transfer-encoding")}
            return web.Response(status=answer.status, body=await answer.read(), headers=kept)

    runner = web.ServerRunner(web.Server(forward))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    yield f"http://{host}:{port}", asked
    await runner.cleanup()


@pytest.mark.apiserver
async def test_arm_is_asked_through_the_proxy_and_the_token_and_the_api_server_are_not(
    world: World, proxy: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """azure-sdk-for-net#18967: NO_PROXY had the right CIDRs, and the token was asked for at the proxy all the same."""
    url, asked = proxy
    arm = world.azure.url.replace("127.0.0.1", "localhost")
    world.settings["azure"]["endpoint"] = arm
    node = await world.node("one", world.machine("one"))
    async with contextlib.AsyncExitStack() as stack:
        with monkeypatch.context() as environment:  # the operator's, not ours
            for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"):
                environment.setenv(name, url)
            for name in ("NO_PROXY", "no_proxy"):
                environment.setenv(name, "10.0.0.0/8,127.0.0.0/8")
            await stack.enter_async_context(world.process())
        await world.until_allocated(node, 4)
    assert set(asked) == {"localhost"}
