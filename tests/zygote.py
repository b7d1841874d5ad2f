"""Starts our programs as forks of a process that has imported them already (a zygote).

An interpreter spends 0.5 to 3 seconds of a processor on imports before a program of ours does anything, and the tests
start hundreds of programs. A fork is the same program with its own process id, environment, network namespace and
output; only its command line isn't its own. End-to-end tests, demo, soak, chaos and benches start from nothing.

`python -m tests.zygote FD MODULE…` is the zygote: orders come through the socket FD, and it ends when that closes.
"""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import functools
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import chain
from typing import BinaryIO, Protocol

from vnetpods_kit import faultpoints

ORDER_BYTES = 1 << 20
MOST_BYTES = 1 << 24
PR_SET_PDEATHSIG = 1
STREAMS = ("stdin", "stdout", "stderr")


class Process(Protocol):
    """What a test needs of a running program, wherever it comes from."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    async def wait(self) -> int: ...
    def send_signal(self, signal: int, /) -> None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


class _Output(asyncio.StreamReaderProtocol):
    """The reading end of a pipe; `gone` when it is closed, because the other end is."""

    def __init__(self) -> None:
        self.stream = asyncio.StreamReader(limit=MOST_BYTES)
        self.gone = asyncio.get_running_loop().create_future()
        super().__init__(self.stream)

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self.gone.set_result(None)

    @classmethod
    async def of(cls, end: int) -> _Output:
        opened = os.fdopen(end, "rb", buffering=0)
        _, output = await asyncio.get_running_loop().connect_read_pipe(cls, opened)
        return output


class Fork:
    """A program that was forked off; as asyncio.subprocess.Process."""

    def __init__(self, pid: int, replies: _Output, outputs: Sequence[_Output]) -> None:
        self.pid = pid
        self._outputs = outputs
        self._ended = asyncio.ensure_future(self._end(replies))

    async def _end(self, replies: _Output) -> int:
        code = int(await replies.stream.readline())
        await asyncio.gather(*(output.gone for output in (replies, *self._outputs)))
        return code

    @property
    def returncode(self) -> int | None:
        return self._ended.result() if self._ended.done() else None

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)

    @property
    def stderr(self) -> asyncio.StreamReader:
        """Of one that was started with `piped`."""
        return self._outputs[1].stream

    async def communicate(self) -> tuple[bytes, bytes]:
        """Standard output and standard error of one that was started with `piped`; returns when it has ended."""
        stdout, stderr = await asyncio.gather(*(output.stream.read() for output in self._outputs))
        await self.wait()
        return stdout, stderr

    def send_signal(self, signal: int, /) -> None:
        if self.returncode is not None:
            raise ProcessLookupError(self.pid)
        os.kill(self.pid, signal)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Zygote:
    """The process that has imported `modules`; `start` runs the function `main` of the module `program` in a fork."""

    def __init__(self, program: str, modules: Sequence[str]) -> None:
        self._program = program
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._control, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ORDER_BYTES)
        command = [sys.executable, "-m", "tests.zygote", str(theirs.fileno()), program, *modules]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        theirs.close()
        atexit.register(self.close)

    def close(self) -> None:
        """Ends it, and with it what it started."""
        self._control.close()
        self._process.wait()

    async def start(
        self,
        *arguments: str,
        environment: Mapping[str, str],
        netns: str = "",
        stderr: BinaryIO | None = None,
        piped: bool = False,
    ) -> Fork:
        """`environment`: all of it; `netns`: a name of `ip netns`; `piped`: see Fork.communicate."""
        with ExitStack() as handed:
            replies, theirs = _pipe(handed)
            outputs = [_pipe(handed) for _ in ("stdout", "stderr") if piped]
            files = {"reply": theirs, "stdin": _opened(os.devnull, handed)}
            files |= {"stderr": stderr.fileno()} if stderr is not None else {}
            files |= dict(zip(("stdout", "stderr"), (theirs for _, theirs in outputs), strict=False))
            files |= {"netns": _opened(f"/run/netns/{netns}", handed)} if netns else {}
            order = {"arguments": arguments, "environment": dict(environment), "files": list(files)}
            socket.send_fds(self._control, [json.dumps(order).encode()], list(files.values()))
        answers = await _Output.of(replies)
        pid = int(await answers.stream.readline())
        return Fork(pid, answers, [await _Output.of(ours) for ours, _ in outputs])


@functools.cache
def zygote(program: str, *modules: str) -> Zygote:
    """One per run of pytest, from its first use on."""
    return Zygote(program, modules)


def _pipe(handed: ExitStack) -> tuple[int, int]:
    """Reading end, which stays, and writing end, which is closed when it has been handed over."""
    reading, writing = os.pipe()
    handed.callback(os.close, writing)
    return reading, writing


def _opened(path: str, handed: ExitStack) -> int:
    descriptor = os.open(path, os.O_RDONLY)
    handed.callback(os.close, descriptor)
    return descriptor


# the zygote's own side


def serve(control: socket.socket) -> tuple[dict[str, object], dict[str, int]] | None:
    """Returns in every fork, with its order and its files; and in the zygote when the other side is gone."""
    children: dict[int, tuple[int, int]] = {}
    with control, selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not control:
                    selector.unregister(key.fd)
                    _report(key.fd, *children.pop(key.fd))
                    continue
                message, received, _, _ = socket.recv_fds(control, ORDER_BYTES, 8)
                if not message:
                    return None
                order = json.loads(message)
                files = dict(zip(order["files"], received, strict=True))
                pid = os.fork()
                if pid == 0:
                    _close(chain.from_iterable((pidfd, reply) for pidfd, (_, reply) in children.items()))
                    return order, files
                reply = files.pop("reply")
                _close(files.values())
                os.write(reply, b"%d\n" % pid)
                pidfd = os.pidfd_open(pid)
                children[pidfd] = pid, reply
                selector.register(pidfd, selectors.EVENT_READ)


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _report(pidfd: int, pid: int, reply: int) -> None:
    _, status = os.waitpid(pid, 0)
    with suppress(BrokenPipeError):  # nobody waits any more
        os.write(reply, b"%d\n" % os.waitstatus_to_exitcode(status))
    _close((pidfd, reply))


def _become(environment: Mapping[str, str], files: Mapping[str, int]) -> None:
    """What a new process would have got from execve."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if "netns" in files and libc.setns(files["netns"], 0):
        raise OSError(ctypes.get_errno(), "setns")
    for number, name in enumerate(STREAMS):
        if name in files:
            os.dup2(files[name], number)
    _close(files.values())
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faultpoints.install(faultpoints.from_environment())


def run(control: socket.socket, program: str, modules: Sequence[str]) -> int:
    """The zygote's whole life, and in a fork the program's."""
    sys.modules["rich"] = None  # type: ignore[assignment] # as in the image; structlog would import it
    main = importlib.import_module(program).main
    for module in modules:
        importlib.import_module(module)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if threading.active_count() > 1:
        raise RuntimeError(f"{program} starts threads when it is imported: {threading.enumerate()}")
    gc.freeze()  # what is imported is shared by all
    order = serve(control)
    if order is None:
        return 0
    instructions, files = order
    _become(instructions["environment"], files)  # type: ignore[arg-type]
    arguments: list[str] = instructions["arguments"]  # type: ignore[assignment]
    sys.argv = [program, *arguments]
    return int(main(arguments))


if __name__ == "__main__":
    _, descriptor, entry, *preloaded = sys.argv
    sys.exit(run(socket.socket(fileno=int(descriptor)), entry, preloaded))
