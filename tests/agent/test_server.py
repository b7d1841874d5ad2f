"""The socket server: who may call, what is in flight, whose descriptors are closed when, and how it stops."""

from __future__ import annotations

import array
import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from vnetpods_agent.cni import frames
from vnetpods_agent.cni.frames import (
    AnswerFrame,
    Command,
    Request,
    RequestFrame,
    Response,
    decode_answer,
    encode_environment,
    encode_request,
)
from vnetpods_agent.cni.server import Limits, Server

STATUS = encode_request(RequestFrame(Command.STATUS, 5000, b"", b"{}"))
ADD = encode_request(RequestFrame(Command.ADD, 5000, encode_environment({"CNI_COMMAND": "ADD"}), b"{}"))

DEFAULT = Limits()


class Agent:
    """A handler whose calls the test sees and lets go."""

    def __init__(self) -> None:
        self.calls: list[Request] = []
        self.cancelled = 0
        self.go = asyncio.Event()
        self.arrived = asyncio.Event()

    async def handle(self, request: Request) -> Response:
        self.calls.append(request)
        self.arrived.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return Response(0, request.verb.name.encode())


@asynccontextmanager
async def serving(path: Path, agent: Agent, limits: Limits = DEFAULT) -> AsyncIterator[Server]:
    server = Server(path, agent.handle, limits=limits)
    await server.start()
    try:
        yield server
    finally:
        await server.stop(grace=0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "agent.sock"


def connect(path: Path) -> socket.socket:
    caller = socket.socket(socket.AF_UNIX)
    caller.setblocking(False)
    caller.connect(str(path))
    return caller


async def answer(caller: socket.socket) -> bytes | None:
    """What the agent answered; None when it closed the connection instead."""
    loop = asyncio.get_running_loop()
    data = b""
    while True:
        try:
            piece = await loop.sock_recv(caller, 65536)
        except ConnectionResetError:
            piece = b""
        if not piece:
            caller.close()
            frame = decode_answer(data) if data else None
            return frame.stdout if frame else None
        data += piece


def descriptors() -> list[str]:
    """What this process has open, by what it is: /proc/self/fd as readlink shows it, without the numbers of sockets."""
    return sorted(str(path.readlink()).split(":")[0] for path in Path("/proc/self/fd").iterdir() if path.is_symlink())


def files(folder: Path) -> dict[str, int]:
    """Names in the folder, with their permissions."""
    return {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}


async def until(condition: Callable[[], object]) -> None:
    """Lets the loop turn until the condition holds."""
    for _ in range(4000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("the condition never came to hold")


async def test_call_is_answered_and_closed(path: Path) -> None:
    agent = Agent()
    agent.go.set()
    async with serving(path, agent) as server:
        with connect(path) as caller:
            caller.send(STATUS)
            assert await answer(caller) == b"STATUS"
        assert server.in_flight == 0


async def test_frame_in_pieces(path: Path) -> None:
    agent = Agent()
    agent.go.set()
    async with serving(path, agent):
        with connect(path) as caller:
            for at in range(len(STATUS)):
                caller.send(STATUS[at : at + 1])
                await asyncio.sleep(0)
            assert await answer(caller) == b"STATUS"


async def test_shim_of_a_later_protocol_is_served_and_answered_in_ours(path: Path) -> None:
    agent = Agent()
    agent.go.set()
    later = bytearray(STATUS)
    later[3], later[6] = frames.VERSION + 1, later[6] + 4
    async with serving(path, agent):
        with connect(path) as caller:
            caller.send(later[:66] + b"more" + later[66:])
            loop = asyncio.get_running_loop()
            frame = decode_answer(await loop.sock_recv(caller, 100))
    assert frame == AnswerFrame(0, b"STATUS", version=frames.VERSION)
    assert agent.calls[0].stdin == b"{}"


async def test_socket_file_is_for_root_only(path: Path) -> None:
    async with serving(path, Agent()):
        assert files(path.parent) == {path.name: 0o600}


async def test_only_the_right_user_may_call(path: Path) -> None:
    """Whatever the file's mode. Here we, root, are the wrong one."""
    agent = Agent()
    server = Server(path, agent.handle, uid=65534)
    await server.start()
    with capture_logs() as logs, connect(path) as caller:
        caller.send(STATUS)
        assert await answer(caller) is None
    await server.stop(grace=0)
    assert agent.calls == []
    assert (logs[0]["pid"], logs[0]["uid"]) == (os.getpid(), 0)


async def test_doors_are_open_during_the_call_and_closed_after_it(path: Path) -> None:
    agent = Agent()
    request = encode_request(RequestFrame(Command.ADD, 5000, b"", b"{}", has_handles=True))
    async with serving(path, agent):
        before = descriptors()
        namespace = os.open("/proc/self/ns/net", os.O_RDONLY)
        with connect(path) as caller, socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as netlink:
            socket.send_fds(caller, [request], [namespace, netlink.fileno()])
            await agent.arrived.wait()
            handles = agent.calls[0].handles
            assert handles
            assert os.fstat(handles.netns_fd).st_ino == os.fstat(namespace).st_ino
            assert os.fstat(handles.netlink_fd).st_ino == os.fstat(netlink.fileno()).st_ino
            assert not os.get_inheritable(handles.netns_fd)
            agent.go.set()
            assert await answer(caller) == b"ADD"
        os.close(namespace)
        await until(lambda: descriptors() == before)


@pytest.mark.parametrize(
    ("request_bytes", "count"),
    [
        pytest.param(ADD, 2, id="not announced"),
        pytest.param(b"garbage", 2, id="with garbage"),
        pytest.param(ADD[:10], 2, id="with half a request"),
        pytest.param(
            encode_request(RequestFrame(Command.ADD, 5000, b"", b"", has_handles=True)), 1, id="one instead of two"
        ),
        pytest.param(
            encode_request(RequestFrame(Command.ADD, 5000, b"", b"", has_handles=True)), 0, id="none instead of two"
        ),
        pytest.param(encode_request(RequestFrame(Command.ADD, 5000, b"", b"", has_handles=True)), 5, id="five for two"),
    ],
)
async def test_unexpected_descriptors_are_closed(path: Path, request_bytes: bytes, count: int) -> None:
    agent = Agent()
    agent.go.set()
    null = os.open("/dev/null", os.O_RDONLY)
    async with serving(path, agent) as server:
        before = descriptors()
        with connect(path) as caller:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null] * count))] if count else []
            caller.sendmsg([request_bytes], ancillary)
            await asyncio.sleep(0.02)
        await until(lambda: not server.in_flight)
        assert descriptors() == before
    os.close(null)
    assert all(call.handles is None for call in agent.calls)


@pytest.mark.parametrize(
    ("data", "event"),
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", "bad request", id="http"),
        pytest.param(os.urandom(4096), "bad request", id="noise"),
        pytest.param(STATUS[:12] + b"\xff" * 8, "bad request", id="4 GiB announced"),
        pytest.param(STATUS + b"x", "bad request", id="more than a frame"),
    ],
)
async def test_garbage_is_dropped_with_a_log_line(path: Path, data: bytes, event: str) -> None:
    agent = Agent()
    agent.go.set()
    with capture_logs() as logs:
        async with serving(path, agent) as server:
            with connect(path) as caller:
                caller.send(data)
                assert await answer(caller) is None
            assert server.in_flight == 0
            with connect(path) as caller:  # and it costs the next one nothing
                caller.send(STATUS)
                assert await answer(caller) == b"STATUS"
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == [event]


async def test_caller_that_leaves_early_is_dropped(path: Path) -> None:
    async with serving(path, Agent()) as server:
        for data in (b"", b"VN", ADD[:25]):
            caller = connect(path)
            caller.send(data)
            await until(lambda: server.in_flight)
            caller.close()
            await until(lambda: not server.in_flight)


async def test_request_that_doesnt_arrive_in_time_is_dropped(path: Path) -> None:
    async with serving(path, Agent(), Limits(reading=0.05)):
        with connect(path) as caller:
            caller.send(ADD[:25])
            assert await answer(caller) is None


@pytest.mark.parametrize("how", ["close", "half-close", "more bytes"])
async def test_caller_that_goes_away_cancels_its_call(path: Path, how: str) -> None:
    agent = Agent()
    async with serving(path, agent) as server:
        caller = connect(path)
        caller.send(ADD)
        await agent.arrived.wait()
        if how == "close":
            caller.close()
        elif how == "half-close":
            caller.shutdown(socket.SHUT_WR)
        else:
            caller.send(b"x")
        await until(lambda: agent.cancelled == 1 and not server.in_flight)
        caller.close()


async def test_caller_that_goes_away_before_its_handler_runs(path: Path) -> None:
    """The task is cancelled before its first step; the connection and the count of ADDs must not stay behind."""
    agent = Agent()
    async with serving(path, agent) as server:
        caller = connect(path)
        caller.send(ADD)
        await asyncio.sleep(0)
        server._accept()
        for connection in list(server._connections):
            connection.abandon()
        await until(lambda: not server.in_flight)
        assert server.adds == 0
        caller.close()


async def test_handler_may_finish_what_it_began_after_being_cancelled(path: Path) -> None:
    """A DEL whose caller is gone is carried out all the same, with its handles open until then."""
    steps: list[str] = []
    arrived = asyncio.Event()

    async def work() -> None:
        await asyncio.sleep(0.05)
        steps.append("done")

    async def handle(request: Request) -> Response:
        arrived.set()
        step = asyncio.ensure_future(work())
        try:
            await asyncio.shield(step)
        except asyncio.CancelledError:
            await step
        return Response(0)

    server = Server(path, handle)
    await server.start()
    caller = connect(path)
    caller.send(STATUS)
    await arrived.wait()
    caller.close()
    await until(lambda: not server.in_flight)
    assert steps == ["done"]
    await server.stop(grace=0)


async def test_handler_that_raises_is_logged_and_not_answered(path: Path) -> None:
    async def handle(request: Request) -> Response:
        raise RuntimeError("broken")

    server = Server(path, handle)
    await server.start()
    with capture_logs() as logs, connect(path) as caller:
        caller.send(ADD)
        assert await answer(caller) is None
    assert [(entry["event"], entry["verb"]) for entry in logs] == [("call not answered", "ADD")]
    assert server.in_flight == server.adds == 0
    await server.stop(grace=0)


async def test_caller_that_doesnt_take_its_answer_is_given_up(path: Path) -> None:
    async def handle(request: Request) -> Response:
        return Response(0, bytes(1024 * 1024))

    server = Server(path, handle, limits=Limits(answering=0.05))
    await server.start()
    with connect(path) as caller:
        caller.send(STATUS)
        await until(lambda: server.in_flight)
        await until(lambda: not server.in_flight)
    await server.stop(grace=0)


async def test_waiting_adds_dont_keep_dels_out(path: Path) -> None:
    agent = Agent()
    async with serving(path, agent, Limits(adds=3)) as server:
        adds = [connect(path) for _ in range(5)]
        for caller in adds:
            caller.send(ADD)
        await until(lambda: len(agent.calls) == 3)
        assert await answer(adds[3]) is None  # as if there were no agent: the shim asks again
        assert await answer(adds[4]) is None
        assert server.adds == 3
        with connect(path) as caller:
            caller.send(STATUS)
            await until(lambda: len(agent.calls) == 4)
            agent.go.set()
            assert await answer(caller) == b"STATUS"
        assert [await answer(caller) for caller in adds[:3]] == [b"ADD"] * 3
        assert server.adds == 0


async def test_callers_beyond_the_limit_wait_in_the_queue(path: Path) -> None:
    agent = Agent()
    async with serving(path, agent, Limits(connections=4)) as server:
        callers = [connect(path) for _ in range(20)]
        for caller in callers:
            caller.send(STATUS)
        await until(lambda: len(agent.calls) == 4)
        await asyncio.sleep(0.02)
        assert server.in_flight == 4
        agent.go.set()
        assert [await answer(caller) for caller in callers] == [b"STATUS"] * 20


async def test_running_out_of_descriptors_delays_and_loses_nothing(path: Path) -> None:
    agent = Agent()
    agent.go.set()
    async with serving(path, agent):
        caller = connect(path)
        caller.send(STATUS)
        taken = []
        try:
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        with capture_logs() as logs:
            await until(lambda: logs)
        assert logs[0]["event"] == "accept failed"
        for fd in taken:
            os.close(fd)
        assert await answer(caller) == b"STATUS"


async def test_deadline_is_a_little_before_the_callers(path: Path) -> None:
    agent = Agent()
    async with serving(path, agent, Limits(margin=1.0)):
        callers, loop = [], asyncio.get_running_loop()
        sent = loop.time()
        for deadline_ms in (110_000, 2_000, 0):
            caller = connect(path)
            caller.send(encode_request(RequestFrame(Command.ADD, deadline_ms, b"", b"")))
            callers.append(caller)
        await until(lambda: len(agent.calls) == 3)
        for call, left in zip(agent.calls, (109.0, 1.8, 0.0), strict=True):
            assert sent + left <= call.deadline <= loop.time() + left
        for caller in callers:
            caller.close()


async def test_start_replaces_a_socket_file_left_behind(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    agent = Agent()
    agent.go.set()
    async with serving(path, agent):
        with connect(path) as caller:
            caller.send(STATUS)
            assert await answer(caller) == b"STATUS"
    assert files(path.parent) == {}


async def test_next_agent_takes_over_while_the_first_still_runs(path: Path) -> None:
    """At every moment somebody listens at the path; the first one's stop doesn't take the second one's file away."""
    first, second = Agent(), Agent()
    old = Server(path, first.handle)
    await old.start()
    early = connect(path)
    early.send(ADD)
    await first.arrived.wait()
    async with serving(path, second):
        late = connect(path)
        late.send(STATUS)
        await second.arrived.wait()
        stopping = asyncio.create_task(old.stop(grace=5))
        first.go.set()
        second.go.set()
        await stopping
        assert (await answer(early), await answer(late)) == (b"ADD", b"STATUS")
        assert path.name in files(path.parent)


async def test_stop_finishes_what_is_in_flight_and_in_the_queue(path: Path) -> None:
    agent = Agent()
    server = Server(path, agent.handle, limits=Limits(connections=2))
    await server.start()
    callers = [connect(path) for _ in range(6)]
    for caller in callers:
        caller.send(STATUS)
    await until(lambda: len(agent.calls) == 2)
    stopping = asyncio.create_task(server.stop(grace=10))
    await until(lambda: len(agent.calls) == 6)
    assert files(path.parent) == {}
    agent.go.set()
    await stopping
    assert [await answer(caller) for caller in callers] == [b"STATUS"] * 6


async def test_stop_closes_the_rest_unanswered_after_its_grace(path: Path) -> None:
    agent = Agent()
    server = Server(path, agent.handle)
    await server.start()
    waiting, sending = connect(path), connect(path)
    waiting.send(ADD)
    sending.send(ADD[:10])
    await until(lambda: server.in_flight == 2)
    await agent.arrived.wait()
    await server.stop(grace=0.05)
    assert (await answer(waiting), await answer(sending)) == (None, None)
    assert agent.cancelled == 1


async def test_five_hundred_at_once(path: Path) -> None:
    agent = Agent()
    agent.go.set()
    async with serving(path, agent):
        callers = [connect(path) for _ in range(500)]
        for caller in callers:
            caller.send(ADD)
        assert [await answer(caller) for caller in callers] == [b"ADD"] * 500


def harm(path: Path, what: str) -> None:
    """What may become of a socket's file while the agent lives."""
    path.unlink()
    if what != "file":
        path.parent.rmdir()
    if what == "a file for a folder":
        path.parent.write_text("x")
    elif what not in ("file", "folder"):
        path.parent.mkdir()
    if what == "another file":
        path.write_text("x")


def mend(path: Path) -> None:
    path.parent.unlink()


def identity(path: Path) -> tuple[int, int] | None:
    return (path.stat().st_ino, path.stat().st_mode) if path.exists() else None


class TestSocketFile:
    """What is put in place once may be taken away: /run emptied by hand, a hostPath made anew."""

    @pytest.mark.parametrize("what", ["file", "folder", "a dead socket", "another file"])
    async def test_bound_again_when_it_is_gone(self, path: Path, what: str) -> None:
        agent = Agent()
        agent.go.set()
        async with serving(path, agent) as server:
            harm(path, what)
            if what == "a dead socket":
                with socket.socket(socket.AF_UNIX) as dead:
                    dead.bind(str(path))
            server.ensure()
            assert server.trouble == ""
            assert files(path.parent) == {path.name: 0o600}
            with connect(path) as caller:
                caller.send(STATUS)
                assert await answer(caller) == b"STATUS"
            before = identity(path)
            server.ensure()
            assert identity(path) == before
        assert identity(path) is None

    async def test_who_was_connected_before_is_served(self, path: Path) -> None:
        agent = Agent()
        agent.go.set()
        async with serving(path, agent) as server:
            with connect(path) as caller:
                harm(path, "file")
                server.ensure()
                caller.send(STATUS)
                assert await answer(caller) == b"STATUS"

    async def test_another_listener_is_left_alone_and_told(self, path: Path) -> None:
        async with serving(path, Agent()) as server:
            harm(path, "file")
            with socket.socket(socket.AF_UNIX) as other:
                other.bind(str(path))
                other.listen()
                with capture_logs() as logs:
                    server.ensure()
                    server.ensure()
                assert server.trouble == f"another process listens at {path}"
                assert [line["log_level"] for line in logs] == ["error"]
            server.ensure()
            assert server.trouble == ""

    async def test_what_prevents_it_is_told_until_it_works(self, path: Path) -> None:
        agent = Agent()
        agent.go.set()
        async with serving(path, agent) as server:
            harm(path, "a file for a folder")
            server.ensure()
            assert f"{path} can't be bound" in server.trouble
            mend(path)
            server.ensure()
            assert server.trouble == ""
            with connect(path) as caller:
                caller.send(STATUS)
                assert await answer(caller) == b"STATUS"
