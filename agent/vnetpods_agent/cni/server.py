"""The unix socket on which the shim calls: from a connection to a Request, from a Response to bytes.

Everything runs in the agent's event loop. A connection carries one call and is either *reading* (the frame is
incomplete) or *handling* (a task runs the handler; the socket is only watched for its end). This module limits callers
(root only) and calls in flight, and closes a call's handles when the handler is done, whatever its outcome. The handler
interprets the call.

- If the caller disconnects, the handler is cancelled and decides what that means. It ends only when nothing uses the
  handles any more: their numbers may belong to another call a moment later.
- If the handler raises or is cancelled otherwise, the connection is closed without an answer, and the shim acts as if
  there were no agent (ADD retries and then fails with "try again later", DEL is spooled). Closing loses nothing.
- Stopping works the same way: calls in flight get some time, the rest are closed, and the shim asks the next agent.

Nothing here survives a crash; the next start atomically replaces the socket file left behind. A file that disappears
while we run (if /run is emptied) is bound again by `ensure`; call it every few seconds.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import logging
import os
import resource
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

import structlog

from vnetpods_agent.attachment import SandboxHandles
from vnetpods_agent.cni.frames import (
    Command,
    FrameError,
    Handler,
    Request,
    RequestDecoder,
    RequestFrame,
    Response,
    answer_version,
    encode_answer,
)
from vnetpods_agent.socketfile import SocketFile

__all__ = ["Command", "Limits", "Request", "Response", "Server"]

_CHUNK = 64 * 1024
_RIGHTS = socket.CMSG_SPACE(2 * array.array("i").itemsize)
_BACKLOG = 4096
_log = structlog.get_logger(component="server")


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits for calls in flight; times in seconds.

    `connections`: further callers stay in the kernel's queue. `adds` is lower, so that ADDs waiting for an address
    can't block the DELs that would free one; further ADDs are closed unanswered. `reading`: time for a frame to arrive.
    `answering`: time for a slow caller to take its answer. `margin`: how much the handler's deadline precedes the
    shim's.
    """

    connections: int = 1024
    adds: int = 512
    reading: float = 10.0
    answering: float = 5.0
    margin: float = 1.0


class Server:
    """Listens from `start` to `stop`. Only the user `uid` may call."""

    def __init__(self, path: Path, handle: Handler, *, limits: Limits = Limits(), uid: int = 0) -> None:
        self.file = SocketFile(path)
        self.limits = limits
        self.uid = uid
        self.handle = handle
        self.adds = 0
        self._connections: set[_Connection] = set()
        self._idle = asyncio.Event()
        self.trouble = ""  # why the socket is unreachable
        self._listener: socket.socket | None = None
        self._accepting = False

    @property
    def in_flight(self) -> int:
        return len(self._connections)

    async def start(self) -> None:
        """Takes over the socket file; one that an earlier agent left (or still uses) is replaced by rename."""
        self._loop = asyncio.get_running_loop()
        _raise_descriptor_limit()
        self._listen()

    def ensure(self) -> None:
        """Binds the socket again if its file is lost; on failure sets `trouble` to the reason."""
        if self._listener is None:
            return
        try:
            if not self.file.lost():
                trouble = ""
            elif self.file.taken():
                trouble = f"another process listens at {self.file.path}"
            else:
                trouble = self._listen_again()
        except OSError as error:
            trouble = f"{self.file.path} can't be bound: {error.strerror}"
        if trouble != self.trouble:
            self.trouble = trouble
            _log.log(logging.ERROR if trouble else logging.INFO, "socket", trouble=trouble)

    def _listen_again(self) -> str:
        _log.warning("the socket is gone, it is bound again", path=str(self.file.path))
        self._accept(drain=True)
        self._pause()
        former, self._listener = self._listener, None
        try:
            self._listen()
        except OSError:
            self._listener = former
            self._resume()
            raise
        assert former is not None
        former.close()
        return ""

    def _listen(self) -> None:
        self._listener = self.file.bind(_BACKLOG)
        self._resume()
        _log.info("listening", path=str(self.file.path))

    async def stop(self, grace: float) -> None:
        """Accepts no new calls, gives those in flight `grace` seconds, then closes the rest unanswered."""
        if self._listener is None:
            return
        self.file.remove()
        self._accept(drain=True)
        self._pause()
        self._listener.close()
        self._listener = None
        self._settle()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._idle.wait()
        left = list(self._connections)
        for connection in left:
            connection.abandon()
        if tasks := [connection.task for connection in left if connection.task]:
            await asyncio.wait(tasks, timeout=1.0)
        _log.info("stopped", unanswered=len(left))

    def forget(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        self._settle()

    def _settle(self) -> None:
        if self._listener is None:
            if not self._connections:
                self._idle.set()
        elif not self._accepting and len(self._connections) < self.limits.connections:
            self._resume()

    def _resume(self) -> None:
        if self._listener is not None and not self._accepting:
            self._accepting = True
            self._loop.add_reader(self._listener.fileno(), self._accept)

    def _pause(self) -> None:
        if self._listener is not None and self._accepting:
            self._accepting = False
            self._loop.remove_reader(self._listener.fileno())

    def _accept(self, *, drain: bool = False) -> None:
        assert self._listener is not None
        while drain or len(self._connections) < self.limits.connections:
            try:
                caller, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:  # no descriptor left, or the caller is gone already
                _log.warning("accept failed", error=str(error))
                self._pause()
                self._loop.call_later(0.1, self._resume)
                return
            caller.setblocking(False)
            pid, uid, _ = struct.unpack("3i", caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if uid != self.uid:
                _log.warning("caller refused: only root may call", pid=pid, uid=uid)
                caller.close()
                continue
            connection = _Connection(self, caller, pid)
            self._connections.add(connection)
            connection.read()
        self._pause()


class _Connection:
    """One call, from accept to close."""

    __slots__ = ("_decoder", "_fds", "_loop", "_pid", "_server", "_socket", "_timer", "task")

    def __init__(self, server: Server, caller: socket.socket, pid: int) -> None:
        self.task: asyncio.Task[None] | None = None
        self._server = server
        self._socket = caller
        self._pid = pid
        self._loop = asyncio.get_running_loop()
        self._decoder = RequestDecoder()
        self._fds: list[int] = []
        self._timer: asyncio.TimerHandle | None = None

    def read(self) -> None:
        """Called at once, since the frame has usually arrived already, and then whenever more arrives."""
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(_CHUNK, _RIGHTS, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            self._wait()
            return
        except OSError as error:
            self._drop("caller reset the connection", error=str(error))
            return
        for level, kind, rights in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                self._fds += array.array("i", rights[: len(rights) // 4 * 4])
        if flags & socket.MSG_CTRUNC:
            self._drop("descriptors of a caller didn't arrive: more than two, or the agent has none left")
            return
        if not data:
            self._drop("caller closed the connection before its request was complete" if self._decoder.started else "")
            return
        try:
            frame = self._decoder.feed(data)
        except FrameError as error:
            self._drop("bad request", error=str(error))
            return
        if frame is None:
            self._wait()
        else:
            self._begin(frame)

    def abandon(self) -> None:
        """Ends the call without an answer."""
        if self.task:
            self.task.cancel()
        else:
            self._close()

    def _wait(self) -> None:
        if self._timer is None:
            self._loop.add_reader(self._socket.fileno(), self.read)
            self._timer = self._loop.call_later(
                self._server.limits.reading, self._drop, "request took too long to arrive"
            )

    def _drop(self, event: str, **context: str) -> None:
        if event:
            _log.warning(event, pid=self._pid, **context)
        self._close()

    def _begin(self, frame: RequestFrame) -> None:
        if frame.has_handles and len(self._fds) != 2:
            self._drop("bad request", error=f"two descriptors are announced, {len(self._fds)} came")
            return
        if frame.verb is Command.ADD and self._server.adds >= self._server.limits.adds:
            self._drop("too many ADDs in flight", limit=str(self._server.limits.adds))
            return
        if self._timer:
            self._timer.cancel()
        self._server.adds += frame.verb is Command.ADD
        self.task = self._loop.create_task(self._serve(frame), name=frame.verb.name)
        self.task.add_done_callback(self._finished)  # not a `finally`: a task cancelled at once never reaches it
        self._loop.add_reader(self._socket.fileno(), self._watch)

    def _watch(self) -> None:
        """Readable while the call is handled: the caller disconnected, or violates the protocol."""
        with contextlib.suppress(BlockingIOError, InterruptedError, ConnectionError):
            if self._socket.recv(1):
                _log.warning("bad request", pid=self._pid, error="more bytes follow a complete request")
        self._loop.remove_reader(self._socket.fileno())
        assert self.task
        self.task.cancel()

    async def _serve(self, frame: RequestFrame) -> None:
        margin = min(self._server.limits.margin, frame.deadline_ms / 10_000)
        request = Request(
            verb=frame.verb,
            env=frame.variables,
            stdin=frame.stdin,
            handles=SandboxHandles(*self._fds) if frame.has_handles else None,
            deadline=self._loop.time() + frame.deadline_ms / 1000 - margin,
            netns_errno=frame.netns_errno,
        )
        response = await self._server.handle(request)
        await self._answer(encode_answer(response, version=answer_version(frame.version)))

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._server.adds -= task.get_name() == Command.ADD.name
        if not task.cancelled() and (error := task.exception()):
            _log.error("call not answered", pid=self._pid, verb=task.get_name(), exc_info=error)
        self._close()

    async def _answer(self, answer: bytes) -> None:
        try:
            sent = self._socket.send(answer)
            if sent < len(answer):
                async with asyncio.timeout(self._server.limits.answering):
                    await self._loop.sock_sendall(self._socket, answer[sent:])
        except (OSError, TimeoutError) as error:
            _log.info("caller doesn't take the answer", pid=self._pid, error=str(error) or type(error).__name__)

    def _close(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        self._server.forget(self)


def _raise_descriptor_limit() -> None:
    """A call takes three descriptors: 250 pods starting at once exhaust the usual soft limit of 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
