"""The shim as a process: what it carries, and what it says and does when the other end is missing, hung or broken."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests import pace
from tests.agent.machine import until
from tests.agent.plugin import plugin
from tests.agent.shim import QUICK, Runtime, named_netns, program
from vnetpods_agent.cni.frames import (
    ANSWER_CAP,
    ENVIRONMENT_CAP,
    STDIN_CAP,
    Command,
    Request,
    RequestDecoder,
    RequestFrame,
    Response,
)
from vnetpods_agent.cni.server import Server

CONFIG = b'{"cniVersion": "0.4.0", "name": "vnetpods", "type": "vnetpods"}'
BOOT_ID = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
RESULT = b'{"cniVersion":"1.1.0"}'


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    return Runtime(tmp_path)


@asynccontextmanager
async def agent(runtime: Runtime, handle: Callable[[Request], Awaitable[Response]]) -> AsyncIterator[Server]:
    server = Server(runtime.socket, handle)
    await server.start()
    try:
        yield server
    finally:
        await server.stop(grace=0)


@asynccontextmanager
async def raw_agent(
    runtime: Runtime, talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
) -> AsyncIterator[None]:
    """An agent that says on the wire what the test wants said."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_unix_server(serve, runtime.socket)
    try:
        yield
    finally:
        server.close()


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def spooled(runtime: Runtime) -> list[RequestFrame]:
    frames = []
    for path in sorted(runtime.spool.iterdir()):
        frame = RequestDecoder().feed(path.read_bytes())
        assert frame is not None
        frames.append(frame)
    return frames


async def test_call_is_carried_there_and_back(runtime: Runtime) -> None:
    calls: list[Request] = []

    async def handle(request: Request) -> Response:
        calls.append(request)
        return Response(7, RESULT)

    async with agent(runtime, handle):
        outcome = await runtime.call(
            "DEL", CONFIG, CNI_CONTAINERID="c1", CNI_ARGS="A=b=c;\udcff", OTHER="x", CNI_NETNS=""
        )
    assert (outcome.exit_code, outcome.stdout, outcome.stderr) == (7, RESULT, "")
    assert calls[0].verb is Command.DEL
    assert calls[0].stdin == CONFIG
    assert calls[0].handles is None
    expected = {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": "c1", "CNI_ARGS": "A=b=c;\udcff", "CNI_NETNS": ""}
    assert calls[0].env == expected


def link_names(netlink: socket.socket) -> bytes:
    """What an RTM_GETLINK dump of the socket's own namespace says, undecoded."""
    netlink.send(struct.pack("=IHHIIBBHiII", 32, 18, 0x301, 1, 0, 0, 0, 0, 0, 0, 0))
    answer = b""
    while struct.pack("=HH", 3, 2) not in answer[-20:]:  # NLMSG_DONE, NLM_F_MULTI
        answer += netlink.recv(65536)
    return answer


@pytest.mark.parametrize("verb", ["ADD", "CHECK"])
async def test_doors_lead_into_the_pods_namespace(runtime: Runtime, verb: str) -> None:
    inodes: list[int] = []

    async def handle(request: Request) -> Response:
        assert request.handles
        assert not os.get_inheritable(request.handles.netlink_fd)
        inodes.append(os.fstat(request.handles.netns_fd).st_ino)
        with socket.socket(fileno=os.dup(request.handles.netlink_fd)) as netlink:
            assert netlink.family == socket.AF_NETLINK
            return Response(0, link_names(netlink))

    with named_netns(link="only-here") as netns:
        async with agent(runtime, handle):
            outcome = await runtime.call(verb, CONFIG, CNI_NETNS=str(netns))
        assert inodes == [netns.stat().st_ino]
    assert b"only-here" in outcome.stdout


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("", 0),
        ("/run/netns/none", errno.ENOENT),
        ("/dev/null", errno.EINVAL),
        ("fifo", errno.EINVAL),
        ("/proc/self/ns/mnt", errno.EINVAL),
    ],
)
async def test_without_a_namespace_the_agent_is_told_so(runtime: Runtime, path: str, number: int) -> None:
    """Also for a FIFO, which open(2) would wait for, and a namespace of another kind."""
    if path == "fifo":
        path = str(runtime.folder / "fifo")
        os.mkfifo(path)

    async def handle(request: Request) -> Response:
        assert request.netns_errno == number
        return Response(1 if request.handles else 0)

    async with agent(runtime, handle):
        outcome = await runtime.call("ADD", CONFIG, CNI_NETNS=path)
    assert outcome.exit_code == 0
    assert (f"CNI_NETNS={path} can't be entered" in outcome.stderr) == (path != "")


async def test_namespace_lives_no_longer_than_the_call(runtime: Runtime) -> None:
    """An open descriptor would keep a dead pod's namespace, with its interfaces, alive."""
    calls = 0

    async def handle(request: Request) -> Response:
        nonlocal calls
        calls += 1
        return Response(0)

    async with agent(runtime, handle):
        before = open_descriptors()
        with named_netns() as netns:
            for _ in range(20):
                assert (await runtime.call("ADD", CONFIG, CNI_NETNS=str(netns))).exit_code == 0
        assert calls == 20
        assert open_descriptors() == before


async def test_big_answer_and_big_request_pass(runtime: Runtime) -> None:
    async def handle(request: Request) -> Response:
        return Response(0, request.stdin[:ANSWER_CAP])

    config = os.urandom(STDIN_CAP)
    async with agent(runtime, handle):
        outcome = await runtime.call("ADD", config)
    assert outcome.stdout == config


@pytest.mark.parametrize("size", [STDIN_CAP + 1, 10 * 1024 * 1024])
async def test_stdin_beyond_the_cap_is_refused(runtime: Runtime, size: int) -> None:
    outcome = await runtime.call("ADD", b" " * size)
    assert outcome.code == 7
    assert outcome.json["msg"] == f"stdin has more than {STDIN_CAP} bytes"


@pytest.mark.parametrize("beyond", [0, 1, 5000])
async def test_environment_beyond_the_cap_is_refused(runtime: Runtime, beyond: int) -> None:
    """To the byte: what comes behind it in the buffer is standard input's."""

    async def handle(request: Request) -> Response:
        size = sum(len(f"{name}={value}") + 1 for name, value in request.env.items())
        return Response(0, b"%d " % size + request.stdin)

    args = "x" * (ENVIRONMENT_CAP - len("CNI_COMMAND=ADD\0CNI_ARGS=\0") + beyond)
    async with agent(runtime, handle):
        outcome = await runtime.call("ADD", CONFIG, CNI_ARGS=args)
    if beyond:
        assert outcome.code == 4
        assert "65536 bytes" in outcome.json["msg"]
    else:
        assert outcome.stdout == b"65536 " + CONFIG


async def test_stdin_that_never_ends_doesnt_hold_the_call(runtime: Runtime) -> None:
    process = await runtime.start("DEL")
    assert process.stdout
    answer = json.loads(await process.stdout.read())
    assert await process.wait() == 1
    assert answer["code"] == 5
    assert not runtime.spool.exists()


@pytest.mark.parametrize(
    "stdin", [b"", b"not JSON", b'{"cniVersion"', b'{"cniVersion": 5}', b'{"cniVersion": "', b"\0" * 4096]
)
async def test_what_stdin_holds_is_not_the_shims_business(runtime: Runtime, stdin: bytes) -> None:
    async def handle(request: Request) -> Response:
        return Response(0, request.stdin)

    async with agent(runtime, handle):
        assert (await runtime.call("ADD", stdin)).stdout == stdin


async def test_closed_standard_descriptors_do_no_harm(runtime: Runtime) -> None:
    async def handle(request: Request) -> Response:
        return Response(3)

    async with agent(runtime, handle):
        process = await asyncio.create_subprocess_exec(
            "sh", "-c", f"exec {runtime.shim} <&- >&- 2>&-", env=runtime.environment("STATUS")
        )
        assert await process.wait() == 3


async def test_a_log_that_nobody_reads_any_more_ends_no_call(runtime: Runtime) -> None:
    """Writing to such a pipe raises SIGPIPE."""

    async def handle(request: Request) -> Response:
        return Response(0, RESULT)

    reader, writer = os.pipe()
    os.close(reader)
    async with agent(runtime, handle):
        process = await asyncio.create_subprocess_exec(
            runtime.shim,
            env=runtime.environment("ADD", CNI_NETNS="/run/netns/none"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=writer,
        )
        os.close(writer)
        stdout, _ = await process.communicate()
    assert (process.returncode, stdout) == (0, RESULT)


@pytest.mark.parametrize(
    ("verb", "code", "said"),
    [("ADD", 5, "network namespace"), ("DEL", 5, "can't be kept"), ("STATUS", 50, "descriptors")],
)
async def test_with_three_descriptors_it_says_what_it_lacks(runtime: Runtime, verb: str, code: int, said: str) -> None:
    process = await asyncio.create_subprocess_exec(
        "sh",
        "-c",
        f"ulimit -n 3; exec {runtime.shim}",
        env=runtime.environment(verb, CNI_NETNS="/run/netns/none"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    stdout, _ = await process.communicate()
    answer = json.loads(stdout)
    assert (process.returncode, answer["code"]) == (1, code)
    assert said in answer["msg"]


@pytest.mark.parametrize("served", [True, False])
async def test_a_reader_that_takes_nothing_doesnt_hold_the_call(runtime: Runtime, served: bool) -> None:
    """A call ends at its deadline, or a moment after when the deadline is what is to be told."""

    async def handle(request: Request) -> Response:
        return Response(0, b"x" * ANSWER_CAP)

    reader, writer = os.pipe()
    if not served:
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, b"x" * 4096)
        os.set_blocking(writer, True)
    async with contextlib.AsyncExitStack() as stack:
        if served:
            await stack.enter_async_context(agent(runtime, handle))
        process = await asyncio.create_subprocess_exec(
            runtime.shim, env=runtime.environment("STATUS"), stdin=subprocess.DEVNULL, stdout=writer
        )
        try:
            async with asyncio.timeout(pace.stretched(20)):
                assert await process.wait() == 1
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    os.close(reader)
    os.close(writer)


async def test_without_command_it_says_what_it_is(runtime: Runtime) -> None:
    outcome = await runtime.call(None)
    assert (outcome.exit_code, outcome.stdout) == (0, b"")
    assert "this is a CNI plugin, version 0." in outcome.stderr


@pytest.mark.parametrize(
    ("config", "version"),
    [
        pytest.param(CONFIG, "0.4.0", id="asked"),
        pytest.param(b'{"x":1,"cniVersion" :\n\t"1.1.0"}', "1.1.0", id="spaces"),
        pytest.param(b"", "1.1.0", id="empty"),
        pytest.param(b"{", "1.1.0", id="cut"),
        pytest.param(b'{"cniVersion":"', "1.1.0", id="cut in the value"),
        pytest.param(b'{"cniVersion":"1\\"2"}', "1", id="quotes"),
        pytest.param(b'{"cniVersion":"' + b"9" * 100, "9" * 15, id="long"),
        pytest.param(b'{"cniVersion"\0:"1.1.0"}', "1.1.0", id="NUL"),
    ],
)
async def test_errors_are_in_the_version_asked_for(runtime: Runtime, config: bytes, version: str) -> None:
    outcome = await runtime.call("CHECK", config)
    assert outcome.code == 11
    assert outcome.json["cniVersion"] == version


@pytest.mark.parametrize("served", [False, True], ids=["alone", "with-agent"])
@pytest.mark.parametrize(
    ("stdin", "version"),
    [
        pytest.param(b'{"cniVersion":"1.0.0"}', "1.0.0", id="asked"),
        pytest.param(b'{"cniVersion":"9.9.9"}', "9.9.9", id="unknown"),
        pytest.param(b"", "1.1.0", id="empty"),
        pytest.param(b"{}", "1.1.0", id="none"),
        pytest.param(b"garbage", "1.1.0", id="garbage"),
    ],
)
async def test_version_needs_nothing_but_the_command(
    runtime: Runtime, stdin: bytes, version: str, served: bool
) -> None:
    """CNI spec section 2, VERSION. Old callers leave stdin empty; the shim alone says the same."""
    async with plugin(runtime.folder) as cni, contextlib.AsyncExitStack() as stack:
        if served:
            await stack.enter_async_context(agent(runtime, cni.verbs.handle))
        outcome = await runtime.call("VERSION", stdin)
        assert [verb for verb, _ in cni.outcomes] == ["VERSION"] * served
    assert outcome.exit_code == 0
    expected = {"cniVersion": version, "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]}
    assert outcome.json == expected


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(30)


async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    return


async def half_an_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"VNP\1\0\0\0\0\x10\0\0\0half")
    await writer.drain()


async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\n")
    await writer.drain()
    await asyncio.sleep(5)


async def other_protocol(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"VNP\3\0\0\0\0\0\0\0\0")
    await writer.drain()
    await asyncio.sleep(5)


async def no_protocol(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"VNP\0\0\0\0\0\0\0\0\0")
    await writer.drain()
    await asyncio.sleep(5)


async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"VNP\1\0\0\0\0\xff\xff\xff\xff")
    await writer.drain()
    await asyncio.sleep(5)


BROKEN = {
    "hung": (hang, "has not answered within"),
    "closing": (close, "closed the connection at"),
    "half an answer": (half_an_answer, "closed the connection at"),
    "garbage": (garbage, "answered in protocol version 80"),
    "other protocol": (other_protocol, "answered in protocol version 3"),
    "no protocol": (no_protocol, "answered in protocol version 0"),
    "endless answer": (endless, "answered in protocol version 1"),
}


@pytest.mark.parametrize("how", [None, *BROKEN])
@pytest.mark.parametrize(("verb", "code"), [("ADD", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50), ("DEL", 0)])
async def test_agent_that_doesnt_answer(runtime: Runtime, how: str | None, verb: str, code: int) -> None:
    talk, sentence = BROKEN[how] if how else (close, "is not answering at")
    if how is None:
        outcome = await runtime.call(verb, CONFIG, CNI_CONTAINERID="c1")
    else:
        async with raw_agent(runtime, talk):
            outcome = await runtime.call(verb, CONFIG, CNI_CONTAINERID="c1")
    if verb == "DEL":
        assert (outcome.exit_code, outcome.stdout) == (0, b"")
        assert sentence in outcome.stderr
        [frame], deadline = spooled(runtime), 700 * pace.factor()
        expected = RequestFrame(Command.DEL, deadline, b"CNI_COMMAND=DEL\0CNI_CONTAINERID=c1\0", CONFIG, replayed=True)
        assert replace(frame, boottime=0.0, boot_id="") == expected
        assert 0 < frame.boottime <= time.clock_gettime(time.CLOCK_BOOTTIME)
        assert frame.boot_id == BOOT_ID
    else:
        assert outcome.code == code
        assert sentence in outcome.json["msg"]
        assert "kubectl -n kube-system get pods" in outcome.json["details"]
        assert not runtime.spool.exists()


async def test_socket_file_without_listener_is_no_agent(runtime: Runtime) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(runtime.socket))
    outcome = await runtime.call("STATUS", CONFIG)
    assert outcome.code == 50
    assert "Connection refused" in outcome.json["msg"]


async def test_socket_path_longer_than_the_kernel_takes(runtime: Runtime) -> None:
    outcome = await runtime.call("STATUS", CONFIG, VNETPODS_SOCKET="/" + "x" * 200)
    assert outcome.code == 50


async def test_agent_whose_queue_is_full_is_waited_for(runtime: Runtime) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(runtime.socket))
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(str(runtime.socket))
            outcome = await runtime.call("STATUS", CONFIG)
    assert outcome.code == 50
    assert "has not answered within" in outcome.json["msg"]


async def test_unknown_command_without_agent(runtime: Runtime) -> None:
    outcome = await runtime.call('A"D\\D', CONFIG)
    assert outcome.code == 4
    assert outcome.json["msg"] == 'CNI_COMMAND=A"D\\D is not known'


async def test_unknown_command_is_the_agents_to_refuse(runtime: Runtime) -> None:
    async def handle(request: Request) -> Response:
        return Response(1, f"{request.verb.name} {request.env['CNI_COMMAND']}".encode())

    async with agent(runtime, handle):
        assert (await runtime.call("UPDATE", CONFIG)).stdout == b"OTHER UPDATE"


async def test_add_waits_for_an_agent_that_restarts(runtime: Runtime) -> None:
    answered = 0

    async def handle(request: Request) -> Response:
        nonlocal answered
        answered += 1
        return Response(0, RESULT)

    calls = [asyncio.create_task(runtime.call("ADD", CONFIG)) for _ in range(5)]
    await asyncio.sleep(0.3)
    async with agent(runtime, handle):
        assert {(await call).stdout for call in calls} == {RESULT}
    assert answered == 5


async def test_add_is_asked_again_when_the_agent_dies_during_the_call(runtime: Runtime) -> None:
    waiting = asyncio.Event()

    async def wait(request: Request) -> Response:
        waiting.set()
        await asyncio.sleep(30)
        return Response(9)

    async def answer(request: Request) -> Response:
        assert request.handles
        return Response(0, str(os.fstat(request.handles.netns_fd).st_ino).encode())

    with named_netns() as netns:
        async with agent(runtime, wait):
            call = asyncio.create_task(runtime.call("ADD", CONFIG, CNI_NETNS=str(netns)))
            await waiting.wait()
        async with agent(runtime, answer):
            outcome = await call
        assert outcome.stdout == str(netns.stat().st_ino).encode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_killed_shim_frees_its_waiting_add(runtime: Runtime, number: signal.Signals) -> None:
    waiting, cancelled = asyncio.Event(), asyncio.Event()

    async def handle(request: Request) -> Response:
        waiting.set()
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return Response(0)

    async with agent(runtime, handle):
        process = await runtime.start("ADD")
        assert process.stdin
        process.stdin.close()
        await waiting.wait()
        process.send_signal(number)
        await cancelled.wait()
        assert await process.wait() == -number


async def test_remaining_time_is_passed_on(runtime: Runtime) -> None:
    left = []

    async def handle(request: Request) -> Response:
        left.append(request.deadline - asyncio.get_running_loop().time())
        return Response(0)

    async with agent(runtime, handle):
        process = await runtime.start("ADD")
        await until(lambda: waits_for_input(process.pid, runtime.shim))
        await asyncio.sleep(0.5)
        await process.communicate(CONFIG)
    remaining = pace.stretched(2.0) - 0.5  # at the most: the half second counts
    assert left[0] <= remaining - min(1.0, remaining / 10)  # something is kept back for the way home


def waits_for_input(pid: int, shim: Path) -> bool:
    """It is the shim (no longer the fork of this process), and asleep."""
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    return Path(f"/proc/{pid}/exe").readlink() == shim and state == "S"


@contextmanager
def disk(folder: Path, options: str) -> Iterator[None]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "spool", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


async def test_del_fails_when_it_can_be_kept_nowhere(runtime: Runtime) -> None:
    with disk(runtime.spool, "ro"):
        outcome = await runtime.call("DEL", CONFIG)
    assert outcome.code == 5
    assert f"can't be kept in {runtime.spool}: creating a file: Read-only file system" in outcome.json["msg"]
    assert "make room" in outcome.json["details"]


async def test_del_fails_on_a_full_disk_and_leaves_nothing(runtime: Runtime) -> None:
    with disk(runtime.spool, "size=8k"):
        (runtime.spool / "filler").write_bytes(bytes(4096))
        outcome = await runtime.call("DEL", b"x" * 5000)
        assert outcome.code == 5
        assert "writing a file: No space left on device" in outcome.json["msg"]
        assert [path.name for path in runtime.spool.iterdir()] == ["filler"]
        (runtime.spool / "filler").unlink()
        assert (await runtime.call("DEL", b"{}")).exit_code == 0  # there is room for this one


async def test_spool_that_is_no_folder(runtime: Runtime) -> None:
    runtime.spool.write_text("x")
    assert (await runtime.call("DEL")).code == 5


async def test_spool_that_is_a_link_isnt_followed(runtime: Runtime, tmp_path: Path) -> None:
    """Who may make one would have root write where he wants."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    runtime.spool.symlink_to(elsewhere)
    outcome = await runtime.call("DEL", CONFIG)
    assert outcome.code == 5
    assert "opening the folder" in outcome.json["msg"]
    assert list(elsewhere.iterdir()) == []


async def test_the_same_del_again_takes_the_place_of_the_first(runtime: Runtime) -> None:
    """A runtime repeats what it isn't sure of; the later one includes the earlier."""
    for container in ("c1", "c2", "c1", "c1"):
        assert (await runtime.call("DEL", CONFIG, CNI_CONTAINERID=container)).exit_code == 0
    frames = spooled(runtime)
    assert [frame.variables["CNI_CONTAINERID"] for frame in frames] == ["c2", "c1"]
    assert frames[0].boottime < frames[1].boottime


async def test_spool_is_bounded(tmp_path: Path) -> None:
    """While an agent is away, every try of every waiting pod ends with a DEL. What is kept stays, and nothing fails."""
    runtime = Runtime(tmp_path, shim=program(*QUICK, "SPOOL_CAP=3"))
    for number in range(3):
        assert (await runtime.call("DEL", CONFIG, CNI_CONTAINERID=f"c{number}")).exit_code == 0
    outcome = await runtime.call("DEL", CONFIG, CNI_CONTAINERID="c3")
    assert (outcome.exit_code, outcome.stdout) == (0, b"")
    assert "holds 3 calls, so this DEL isn't kept" in outcome.stderr
    assert (await runtime.call("DEL", CONFIG, CNI_CONTAINERID="c0")).exit_code == 0  # needs no more room
    assert [frame.variables["CNI_CONTAINERID"] for frame in spooled(runtime)] == ["c1", "c2", "c0"]


async def test_spooled_call_is_small(runtime: Runtime) -> None:
    """What a DEL needs stays; what it may do without goes when it is large."""
    needed = {"CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0"}
    outcome = await runtime.call("DEL", CONFIG, CNI_ARGS="x" * 20_000, CNI_PATH="y" * 20_000, **needed)
    assert outcome.exit_code == 0
    assert (await runtime.call("DEL", CONFIG + b" " * 100_000, **needed)).exit_code == 0
    without_arguments, without_input = spooled(runtime)
    assert without_arguments.variables == without_input.variables == {"CNI_COMMAND": "DEL"} | needed
    assert (without_arguments.stdin, without_input.stdin) == (CONFIG, b"")


async def test_spool_is_made_when_the_agent_never_ran(runtime: Runtime) -> None:
    runtime = Runtime(runtime.folder / "lib" / "missing")
    runtime.folder.parent.mkdir()
    assert (await runtime.call("DEL", CONFIG)).exit_code == 0
    assert runtime.spool.stat().st_mode & 0o777 == 0o700
    assert [(path.suffix, path.stat().st_mode & 0o777) for path in runtime.spool.iterdir()] == [(".req", 0o600)]


async def test_spooled_file_is_synced_before_it_has_its_name(runtime: Runtime) -> None:
    """After a power cut there is a whole file or none: file and folder are synced, in this order."""
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    traced = Runtime(runtime.folder, shim=runtime.folder / "traced")
    traced.shim.write_text(
        f"#!/bin/sh\nexec strace -qq -o {runtime.folder}/trace -e write,fsync,renameat {runtime.shim}"
    )
    traced.shim.chmod(0o755)
    assert (await traced.call("DEL", CONFIG)).exit_code == 0
    calls = [line.split("(")[0] for line in (runtime.folder / "trace").read_text().splitlines()]
    assert calls[:4] == ["write", "fsync", "renameat", "fsync"]


async def test_a_hundred_dels_at_once_have_a_hundred_files(runtime: Runtime) -> None:
    # so many start at once that some wait longer for their standard input than a quick one has
    patient = Runtime(runtime.folder, shim=program(f"AGENT_RETURN_MS={1000 * pace.factor()}"))
    outcomes = await asyncio.gather(*(patient.call("DEL", CONFIG, CNI_CONTAINERID=f"c{n}") for n in range(110)))
    assert {outcome.exit_code for outcome in outcomes} == {0}
    containers = {frame.variables["CNI_CONTAINERID"] for frame in spooled(patient)}
    assert containers == {f"c{n}" for n in range(110)}


@pytest.mark.parametrize(("arch", "machine"), [("amd64", 62), ("arm64", 183)])
def test_released_program_is_small_and_static(arch: str, machine: int) -> None:
    pytest.importorskip("ziglang")
    elf = program(arch=arch).read_bytes()
    assert elf[:5] == b"\x7fELF\x02"
    assert struct.unpack_from("<H", elf, 18) == (machine,)
    assert len(elf) <= 64 * 1024
    assert b"/ld-" not in elf


def test_gcc_builds_it_too_and_its_analyzer_is_content(tmp_path: Path) -> None:
    """Where zig isn't at hand. The sanitized build is gcc's, so what remains to be seen is static linking."""
    source = Path(__file__).parents[2] / "agent" / "shim" / "shim.c"
    output = tmp_path / "shim"
    options = ["-std=c11", "-O2", "-static", "-fanalyzer", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", *options, source, "-o", output], check=True)
    assert subprocess.run([output], capture_output=True, check=True, env={}).stdout == b""


def test_deadlines_are_shorter_than_the_callers() -> None:
    """The kubelet waits 4 minutes, CRI-O and containerd 2 or more; the tests' own are overrides of the same names."""
    source = (Path(__file__).parents[2] / "agent" / "shim" / "shim.c").read_text()
    for name, limit in (("ADD_DEADLINE_MS", 120_000), ("DEL_DEADLINE_MS", 30_000), ("STATUS_DEADLINE_MS", 10_000)):
        assert int(source.split(f"#define {name} ")[1].split("\n")[0]) < limit
        assert any(entry.startswith(name) for entry in QUICK)
