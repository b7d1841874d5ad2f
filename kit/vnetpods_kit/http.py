"""The small HTTP server of both programs: probes and metrics."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web


async def serve(address: str, port: int, routes: Iterable[web.RouteDef]) -> tuple[web.AppRunner, int]:
    """Starts serving; returns the runner to clean up, and the port (0 requests any free one). Raises OSError."""
    application = web.Application()
    application.add_routes(routes)
    runner = web.AppRunner(application, access_log=None, handle_signals=False)
    await runner.setup()
    try:
        await web.TCPSite(runner, address or None, port).start()
    except OSError:
        await runner.cleanup()
        raise
    return runner, runner.addresses[0][1]
