"""The unix socket on which Docker calls: HTTP around `Driver.answer`, in the event loop.

dockerd repeats an unanswered call for up to 30 s. So a call in progress when the agent ends is cut off, and the next
agent gets it; a call whose caller is gone is cancelled, and an address that it waited for goes to another.
"""

from __future__ import annotations

import logging

import structlog
from aiohttp import web

from vnetpods_agent.config import Docker
from vnetpods_agent.docker.driver import Driver
from vnetpods_agent.socketfile import SocketFile

_TYPE = "application/vnd.docker.plugins.v1.2+json"
_BACKLOG = 128
_END = 1.0

log = structlog.get_logger(component="docker")


class DockerServer:
    """Listens from the first `ensure` to `stop`; call `ensure` every few seconds. `trouble`: why it isn't reachable."""

    def __init__(self, config: Docker, driver: Driver) -> None:
        self.trouble = ""
        self._driver = driver
        self._file = SocketFile(config.socket)
        self._runner: web.AppRunner | None = None
        self._site: web.BaseSite | None = None

    async def ensure(self) -> None:
        """Binds the socket if its file is missing or lost; on failure sets `trouble` to the reason."""
        try:
            if self._site is None or self._file.lost():
                trouble = await self._listen()
            else:
                trouble = ""
        except OSError as error:
            trouble = f"{self._file.path} can't be bound: {error.strerror}"
        if trouble != self.trouble:
            self.trouble = trouble
            log.log(logging.ERROR if trouble else logging.INFO, "socket", trouble=trouble)

    async def _listen(self) -> str:
        if self._site is not None and self._file.taken():
            return f"another process listens at {self._file.path}"
        if self._runner is None:
            application = web.Application()
            application.router.add_post("/{call}", self._serve)
            self._runner = web.AppRunner(
                application, access_log=None, handle_signals=False, handler_cancellation=True, shutdown_timeout=_END
            )
            await self._runner.setup()
        former = self._site
        site = web.SockSite(self._runner, self._file.bind(_BACKLOG))
        await site.start()
        self._site = site
        if former is not None:
            await former.stop()
        log.info("listening", path=str(self._file.path))
        return ""

    async def stop(self) -> None:
        if self._runner is not None:
            self._file.remove()
            await self._runner.cleanup()

    async def _serve(self, http: web.Request) -> web.Response:
        status, answer = await self._driver.answer(http.match_info["call"], await http.read())
        return web.json_response(answer, status=status, content_type=_TYPE)
