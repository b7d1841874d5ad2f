"""Fuzzing of everything that reads bytes from the other side: `python -m tests.agent.fuzz [--runs N] [--seed N]`.

Three targets, each run prints its seed:
    decoder   requests and answers, mutated and cut, into the codec: a frame, nothing yet, or FrameError
    server    the same over real sockets, with descriptors: the server answers the next call and holds nothing open
    shim      random environment and stdin, and an agent that answers anything, against a build with AddressSanitizer
              and UBSan: no report, and stdout is either what the agent said or a CNI error
The decoder is run 100 times for each run of the shim (a process each), the server 10 times.
"""

from __future__ import annotations

import argparse
import array
import asyncio
import contextlib
import json
import os
import random
import socket
import struct
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from tests import pace
from tests.agent.shim import program
from tests.isolation import isolate
from vnetpods_agent.cni.frames import (
    ANSWER_CAP,
    STDIN_CAP,
    Command,
    FrameError,
    Request,
    RequestDecoder,
    RequestFrame,
    Response,
    decode_answer,
    encode_answer,
    encode_request,
)
from vnetpods_agent.cni.server import Limits, Server

SANITIZED = ("ADD_DEADLINE_MS=400", "DEL_DEADLINE_MS=300", "STATUS_DEADLINE_MS=300", "AGENT_RETURN_MS=100")


class FuzzError(AssertionError):
    """What was found, and the input it was found with."""


# inputs


def noise(chance: random.Random, most: int) -> bytes:
    return chance.randbytes(int(most ** chance.random()))


def request(chance: random.Random) -> bytes:
    environment = b"".join(
        b"CNI_" + noise(chance, 20) + b"=" + noise(chance, 60) + b"\0" for _ in range(chance.randrange(5))
    )
    frame = RequestFrame(
        verb=chance.choice(list(Command)),
        deadline_ms=chance.choice((0, 1, 1000, 2**32 - 1)),
        environment=environment,
        stdin=noise(chance, 200),
        has_handles=chance.random() < 0.3,
        replayed=chance.random() < 0.1,
        version=chance.choice((1, 2, 2, 3, 255)),
    )
    return encode_request(frame)


def answer(chance: random.Random) -> bytes:
    size = chance.choice((300, 300, 300, 1_000_000))
    return encode_answer(Response(chance.randrange(256), noise(chance, size)), version=chance.choice((1, 1, 1, 0, 2)))


def long_answer(chance: random.Random) -> bytes:
    """One that announces more than the shim may take, and keeps its word."""
    size = ANSWER_CAP + chance.choice((0, 1, 4096))
    return struct.pack("<3sBB3xI", b"VNP", 1, 0, size) + bytes(size)


def mutated(chance: random.Random, data: bytes) -> bytes:
    """Some bytes changed, cut, doubled or added."""
    mutable = bytearray(data)
    for _ in range(chance.randrange(4)):
        at = chance.randrange(len(mutable) + 1)
        kind = chance.randrange(4)
        if kind == 0 and at < len(mutable):
            mutable[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        elif kind == 1:
            del mutable[at:]
        elif kind == 2:
            mutable[at:at] = noise(chance, 30)
        else:
            mutable += mutable[at:]
    return bytes(mutable)


def pieces(chance: random.Random, data: bytes) -> list[bytes]:
    cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randrange(4)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


# the decoder


def fuzz_decoder(chance: random.Random, runs: int) -> None:
    for _ in range(runs):
        data = mutated(chance, request(chance))
        decoder = RequestDecoder()
        try:
            for piece in pieces(chance, data):
                frame = decoder.feed(piece)
                if frame is not None:
                    assert isinstance(frame.variables, dict)
            with contextlib.suppress(FrameError):
                decode_answer(mutated(chance, answer(chance)))
        except FrameError:
            pass
        except Exception as error:
            raise FuzzError(f"decoder: {type(error).__name__}: {error}, with {data!r}") from error


# the server


async def fuzz_server(chance: random.Random, runs: int, folder: Path) -> None:
    async def handle(request: Request) -> Response:
        if request.handles:
            os.fstat(request.handles.netns_fd)
            os.fstat(request.handles.netlink_fd)
        return Response(0, request.stdin)

    server = Server(folder / "agent.sock", handle, limits=Limits(reading=0.2, answering=0.2))
    await server.start()
    try:
        null = os.open("/dev/null", os.O_RDONLY)
        before = _descriptors()
        for _ in range(runs):
            await _disturb(chance, server.file.path, null)
        for _ in range(200):
            if not server.in_flight:
                break
            await asyncio.sleep(0.01)
        if server.in_flight or server.adds or _descriptors() != before:
            raise FuzzError(
                f"server: {server.in_flight} calls and {server.adds} ADDs in flight, "
                f"{_descriptors() - before} descriptors more than before"
            )
        os.close(null)
    finally:
        await server.stop(grace=0)


async def _disturb(chance: random.Random, path: Path, descriptor: int) -> None:
    """One caller that means no good, and one that is an ordinary one and must be served."""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.setblocking(False)
        caller.connect(str(path))
        for piece in pieces(chance, mutated(chance, request(chance))):
            rights = array.array("i", [descriptor] * chance.choice((0, 0, 1, 2, 2, 3)))
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
            with contextlib.suppress(OSError):
                caller.sendmsg([piece], ancillary)
            if chance.random() < 0.5:
                await asyncio.sleep(0)
        if chance.random() < 0.3:
            await asyncio.sleep(0.001)
    if chance.random() < 0.1:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as caller:
            caller.setblocking(False)
            caller.connect(str(path))
            caller.send(encode_request(RequestFrame(Command.STATUS, 1000, b"", b"alive")))
            said = await asyncio.wait_for(loop.sock_recv(caller, 1000), pace.stretched(5))
        if said != encode_answer(Response(0, b"alive")):
            raise FuzzError(f"server: an ordinary call was answered with {said!r}")


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# the shim


@dataclass
class HostileAgent:
    """Listens, reads some or all of a request and answers what the dice say; `said` holds whole, valid answers."""

    chance: random.Random
    path: Path

    async def run(self) -> asyncio.Server:
        return await asyncio.start_unix_server(self._serve, self.path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        chance = self.chance
        try:
            with contextlib.suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(0.05):
                    await reader.read(chance.choice((1, 100, 2_000_000)))
                reply = answer(chance) if chance.random() < 0.9 else long_answer(chance)
                if chance.random() < 0.6:
                    reply = mutated(chance, reply)
                for piece in pieces(chance, reply):
                    writer.write(piece)
                    await writer.drain()
                    if chance.random() < 0.2:
                        await asyncio.sleep(0.01)
                if chance.random() < 0.1:
                    await asyncio.sleep(0.5)
        finally:
            writer.close()


def environment(chance: random.Random) -> dict[bytes, bytes]:
    """What execve(2) takes is anything without NUL; sometimes it is too much for the shim."""
    verbs = [b"ADD", b"DEL", b"CHECK", b"GC", b"STATUS", b"VERSION"]
    variables = {b"CNI_COMMAND": chance.choice([*verbs, b"", b"add", noise(chance, 300)])}
    if chance.random() < 0.7:
        netns = chance.choice(
            (b"", b"/proc/self/ns/net", b"/proc/self/ns/mnt", b"/dev/null", b"/", noise(chance, 5000))
        )
        variables[b"CNI_NETNS"] = netns
    for _ in range(chance.randrange(6)):
        variables[b"CNI_" + noise(chance, 50).replace(b"=", b"-")] = noise(chance, chance.choice((100, 10_000, 70_000)))
    if chance.random() < 0.2:  # together close to the cap, or beyond it
        variables |= {b"CNI_ARGS": b"x" * 40_000, b"CNI_PATH": b"x" * chance.randrange(10_000, 60_000)}
    return {name.replace(b"\0", b""): value.replace(b"\0", b"") for name, value in variables.items()}


def stdin(chance: random.Random) -> bytes:
    config = b'{"cniVersion": "1.1.0", "name": "vnetpods"}'
    kind = chance.randrange(6)
    if kind == 4:
        return config.replace(b"1.1.0", bytes(chance.choices(b"0123456789.", k=chance.randrange(100))))
    if kind == 0:
        return mutated(chance, config)
    if kind == 1:
        return noise(chance, 3000)
    if kind == 2:
        return b'{"cniVersion"' + chance.choice((b":", b"", b" :\t")) + b'"' * chance.randrange(3) + noise(chance, 60)
    if kind == 3:
        return (
            bytes(STDIN_CAP + chance.choice((-1, 0, 1, 500_000))) if chance.random() < 0.5 else noise(chance, STDIN_CAP)
        )
    return config


async def fuzz_shim(chance: random.Random, runs: int, folder: Path) -> None:
    shim = await asyncio.to_thread(lambda: program(*SANITIZED, sanitize=True))
    agents = [folder / f"hostile-{number}.sock" for number in range(4)]
    servers = [await HostileAgent(chance, path).run() for path in agents]
    limit = asyncio.Semaphore(os.cpu_count() or 2)
    sockets = [*agents, folder / "none.sock", folder / ("x" * 150)]

    async def run() -> None:
        async with limit:
            spool = folder / chance.choice(("spool", "no/such/spool", "x" * 300))
            variables = environment(chance) | {
                b"VNETPODS_SOCKET": os.fsencode(chance.choice(sockets)),
                b"VNETPODS_SPOOL": os.fsencode(spool),
                b"ASAN_OPTIONS": b"detect_leaks=0",
            }
            await _run_shim(shim, variables, stdin(chance))

    try:
        for start in range(0, runs, 100):
            async with asyncio.TaskGroup() as group:
                for _ in range(min(100, runs - start)):
                    group.create_task(run())
            _empty(folder / "spool")
        await asyncio.sleep(0.6)  # what the agents are still saying
    finally:
        for server in servers:
            server.close()


async def _run_shim(shim: Path, variables: dict[bytes, bytes], config: bytes) -> None:
    process = await asyncio.create_subprocess_exec(
        shim, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        async with asyncio.timeout(pace.stretched(30)):
            stdout, stderr = await process.communicate(config)
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode is None or process.returncode < 0 or b"Sanitizer" in stderr or b"runtime error" in stderr:
        said = stderr.decode(errors="replace")
        raise FuzzError(f"shim: exit {process.returncode}, {said}, with {variables!r} and {config!r}")
    if stdout.startswith(b'{"cniVersion":"') and b'"code":' in stdout:
        error = json.loads(stdout)
        if process.returncode != 1 or not isinstance(error["code"], int) or not error["msg"]:
            raise FuzzError(f"shim: exit {process.returncode} with {stdout!r}")


def _empty(spool: Path) -> None:
    """Every file there must be one that the agent can decode."""
    if spool.is_dir():
        for path in spool.iterdir():
            frame = RequestDecoder().feed(path.read_bytes())
            if frame is None or frame.verb is not Command.DEL or not frame.replayed:
                raise FuzzError(f"spool: {path.name} holds {frame}")
            path.unlink()


def fuzz(seed: int, runs: int, say: Callable[[str], None]) -> None:
    """Raises FuzzError. The same seed gives the same inputs; how processes interleave is the kernel's choice."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fuzz_decoder(random.Random(seed), runs * 100)
        say(f"decoder: {runs * 100} runs, nothing found")
        asyncio.run(fuzz_server(random.Random(seed), runs * 10, folder))
        say(f"server: {runs * 10} runs, nothing found")
        asyncio.run(fuzz_shim(random.Random(seed), runs, folder))
        say(f"shim: {runs} runs, nothing found")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=5000, help="of the shim (default 5000)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    options = parser.parse_args()
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    isolate()
    print(f"seed {options.seed}", flush=True)
    fuzz(options.seed, options.runs, lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
