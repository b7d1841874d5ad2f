"""The cloud's HTTP server, for the Azure SDK, on any number of addresses.

One aiohttp application in the caller's event loop; requests are decoded here, handled by `Cloud.handle` (synchronously,
so two never overlap in the model) and encoded here. After a request that changed something, `changed` is awaited before
the response is sent: by then the fabric already forwards what the response promises. An exception in here is a bug: it
is kept in `bugs`, and closing raises it.
"""

from __future__ import annotations

import socket
import traceback
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

import msgspec
from aiohttp import web

from tests.azure.arm import identity, specs
from tests.azure.arm.admin import Admin
from tests.azure.arm.builder import Builder
from tests.azure.arm.clock import Clock, SystemClock
from tests.azure.arm.cloud import Cloud
from tests.azure.arm.errors import ArmError
from tests.azure.arm.ids import parse
from tests.azure.arm.requests import Reply, Request
from tests.azure.arm.settings import Settings

BODY_LIMIT = 16 << 20


async def _unchanged() -> None: ...


class Emulator:
    """The cloud with its servers. `async with Emulator() as azure: … azure.url`. `checked` bodies are compared with the
    published description, which costs 0.15 ms per ipConfiguration: turn it off to measure."""

    def __init__(self, settings: Settings | None = None, clock: Clock | None = None, *, checked: bool = True) -> None:
        self._checked = checked
        self.cloud = Cloud(settings)
        self.clock = clock or SystemClock()
        self.admin = Admin(self.cloud, self.clock)
        self.build = Builder(self.admin.call)
        self.changed: Callable[[], Awaitable[None]] = _unchanged
        self.bugs: list[str] = []
        self.url = ""
        self._runner = web.AppRunner(self._application(), access_log=None, shutdown_timeout=1.0)
        self._generation = 0

    async def __aenter__(self) -> Self:
        await self.start()
        self.url = await self.listen("127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
        if self.bugs and error is None:
            raise AssertionError("the emulator failed inside:\n" + "\n".join(self.bugs))

    async def start(self) -> None:
        await self._runner.setup()

    async def close(self) -> None:
        await self._runner.cleanup()

    async def listen(self, host: str, port: int) -> str:
        """Serves on one more address; returns its URL."""
        listener = socket.create_server((host, port), backlog=1024)
        await web.SockSite(self._runner, listener).start()
        return f"http://{host}:{listener.getsockname()[1]}"

    def _application(self) -> web.Application:
        application = web.Application(client_max_size=BODY_LIMIT)
        application.router.add_get("/metadata/identity/oauth2/token", self._token)
        application.router.add_route("*", "/{path:.*}", self._serve)
        return application

    async def _token(self, http: web.Request) -> web.Response:
        now = self.clock.now()
        status, body = identity.token_reply(dict(http.query), dict(http.headers), identity.DEFAULT_PRINCIPAL, now)
        return web.json_response(body, status=status)

    async def _serve(self, http: web.Request) -> web.StreamResponse:
        try:
            request = await _decode(http)
            reply = self._checked_reply(request) if self._checked else self.cloud.handle(request, self.clock.now())
        except msgspec.DecodeError as error:
            reply = Reply(
                400,
                {"error": {"code": "InvalidRequestContent", "message": f"The request content was invalid: {error}"}},
            )
        except Exception:  # noqa: BLE001 - the edge: a bug becomes a 500 for the client and a failure of the test
            self.bugs.append(traceback.format_exc())
            reply = Reply(500, {"error": {"code": "EmulatorBug", "message": traceback.format_exc(limit=3)}})
        if reply.due is not None:
            self.clock.polled(reply.due)
        await self._mirror()
        if reply.delay:
            await self.clock.sleep(reply.delay)
        return _encode(http, reply)

    async def _mirror(self) -> None:
        """Lets the fabric follow a change; a failure is a bug, but the response is sent nevertheless."""
        if self.cloud.generation == self._generation:
            return
        self._generation = self.cloud.generation
        try:
            await self.changed()
        except Exception:  # noqa: BLE001 - the edge: kept for the test to see
            self.bugs.append(traceback.format_exc())

    def _checked_reply(self, request: Request) -> Reply:
        """Rejects a body that the description forbids; a response that it forbids is a bug of ours."""
        kind = _kind(request.path)
        if request.method == "PUT" and (found := specs.problem(kind, request.body)) is not None:
            words = f"Cannot parse the request: {found}"
            return Reply(400, {"error": {"code": "InvalidRequestFormat", "message": words, "details": []}})
        reply = self.cloud.handle(request, self.clock.now())
        if reply.status in (200, 201) and reply.raw is None and request.method != "DELETE":
            found = specs.problem(kind, reply.body)
            if found is not None:
                self.bugs.append(f"{request.method} {request.path} answered what the description forbids: {found}")
        return reply


def _kind(path: str) -> str:
    try:
        return parse(path).kind
    except ArmError:
        return ""


async def _decode(http: web.Request) -> Request:
    raw = await http.read()
    return Request(
        method=http.method,
        path=http.path.replace("//", "/"),
        query=dict(http.query),
        headers={name.lower(): value for name, value in http.headers.items()},
        body=msgspec.json.decode(raw) if raw else None,
        principal=identity.principal(http.headers.get("Authorization", "")),
        base=f"{http.scheme}://{http.host}",
    )


def _encode(http: web.Request, reply: Reply) -> web.StreamResponse:
    if reply.cut and http.transport is not None:
        http.transport.abort()
    raw = reply.raw if reply.raw is not None else (b"" if reply.body is None else msgspec.json.encode(reply.body))
    content_type = "text/html" if raw.startswith(b"<") else "application/json"
    return web.Response(status=reply.status, body=raw, headers=reply.headers, content_type=content_type)
