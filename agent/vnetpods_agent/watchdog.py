"""Ends a stuck process: an agent that hangs is worse than one that restarts.

A separate thread, since it watches the others: the event loop must answer a callback, no worker may spend longer than
`limit` on one job, and no thread may have ended. Every thread's stack is written to stderr before the exit. Nothing is
lost: every answered call is durable, and the others are retried.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Sequence

import structlog

from vnetpods_agent.ipam.worker import WorkerThread

EXIT_CODE = 70  # EX_SOFTWARE

log = structlog.get_logger(component="watchdog")


class Watchdog(threading.Thread):
    def __init__(self, workers: Sequence[WorkerThread], limit: float, threads: Sequence[threading.Thread] = ()) -> None:
        """`threads`: further threads, watched from their start until `close`."""
        super().__init__(name="watchdog", daemon=True)
        self._loop = asyncio.get_running_loop()
        self._workers = workers
        self._limit = limit
        self._threads = threads
        self._answered = time.monotonic()
        self._done = threading.Event()

    def close(self) -> None:
        self._done.set()

    def run(self) -> None:
        while not self._done.wait(self._limit / 10):
            now = time.monotonic()
            if (stuck := self._stuck(now)) and not self._done.is_set():
                log.critical("stuck, the process ends", stuck=stuck, seconds=self._limit)
                faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
                os._exit(EXIT_CODE)
            try:
                self._loop.call_soon_threadsafe(self._answer)
            except RuntimeError:  # the loop is closed
                return

    def _answer(self) -> None:
        self._answered = time.monotonic()

    def _stuck(self, now: float) -> str:
        if now - self._answered > self._limit:
            return "event loop"
        for worker in self._workers:
            since = worker.busy_since
            if since is not None and now - since > self._limit:
                return f"{worker.name} thread"
        for thread in (*self._workers, *self._threads):
            if thread.ident is not None and not thread.is_alive():
                return f"{thread.name} thread has ended"
        return ""
