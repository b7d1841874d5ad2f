"""Spooled DELs: written by the real shim, replayed here, whatever a crash or a disk did to the files."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.agent.shim import Runtime
from vnetpods_agent.attachment import Moment
from vnetpods_agent.cni import frames
from vnetpods_agent.cni.frames import Command, Request, RequestFrame, Response, encode_environment, encode_request
from vnetpods_agent.cni.spool import KEPT_BAD, Spool

SECOND = 1_000_000_000
NOW = 1_795_000_000


def frame(container: str = "c1", verb: Command = Command.DEL) -> bytes:
    environment = encode_environment({"CNI_COMMAND": verb.name, "CNI_CONTAINERID": container})
    return encode_request(RequestFrame(verb, 15_000, environment, b"{}", replayed=True))


class Agent:
    """Answers from a script: container id to response; success when it isn't named."""

    def __init__(self, **answers: Response | Exception) -> None:
        self.answers = answers
        self.calls: list[Request] = []
        self.seen: asyncio.Queue[str] = asyncio.Queue()

    @property
    def containers(self) -> list[str]:
        return [call.env["CNI_CONTAINERID"] for call in self.calls]

    async def handle(self, request: Request) -> Response:
        self.calls.append(request)
        self.seen.put_nowait(request.env["CNI_CONTAINERID"])
        await asyncio.sleep(0)
        answer = self.answers.get(request.env["CNI_CONTAINERID"], Response(0))
        if isinstance(answer, Exception):
            raise answer
        return answer


def error(code: int) -> Response:
    return Response(1, b'{"cniVersion":"1.0.0","code":%d,"msg":"no"}' % code)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_what_the_shim_spooled_is_replayed_and_gone(tmp_path: Path) -> None:
    """ACN `docs/feature/async-delete`, aws#2350: 110 pods deleted while the agent is away."""
    runtime, agent = Runtime(tmp_path), Agent()
    for number in range(110):
        assert (await runtime.call("DEL", b'{"name":"vnetpods"}', CNI_CONTAINERID=f"c{number:03}")).exit_code == 0
    spool = Spool(runtime.spool, agent.handle)
    assert await spool.replay() == 110
    assert agent.containers == [f"c{number:03}" for number in range(110)]
    call = agent.calls[0]
    assert (call.verb, call.stdin, call.handles, call.replayed) == (Command.DEL, b'{"name":"vnetpods"}', None, True)
    assert names(runtime.spool) == []
    assert await spool.replay() == 0


async def test_moment_of_the_call_is_passed_on(tmp_path: Path) -> None:
    """So that a DEL leaves alone what was attached after it."""
    agent = Agent()
    (tmp_path / f"{NOW * SECOND + SECOND // 2}-17.req").write_bytes(frame())
    await Spool(tmp_path, agent.handle).replay()
    assert agent.calls[0].spooled == Moment(NOW + 0.5)


async def test_oldest_comes_first_by_time_not_by_name(tmp_path: Path) -> None:
    agent = Agent()
    for at, container in ((900, "old"), (10_000, "new"), (9_000, "middle")):
        (tmp_path / f"{at}-1.req").write_bytes(frame(container))
    await Spool(tmp_path, agent.handle).replay()
    assert agent.containers == ["old", "middle", "new"]


@pytest.mark.parametrize(
    "answer", [*(error(code) for code in (1, 2, 5, 6, 7, 11, 999)), Response(1, b"no json"), RuntimeError("broken")]
)
async def test_call_that_fails_stays_for_later_and_delays_nobody(tmp_path: Path, answer: Response | Exception) -> None:
    agent = Agent(c1=answer)
    (tmp_path / "1-1.req").write_bytes(frame("c1"))
    (tmp_path / "2-1.req").write_bytes(frame("c2"))
    spool = Spool(tmp_path, agent.handle)
    assert await spool.replay() == 1
    assert names(tmp_path) == ["1-1.req"]
    agent.answers.clear()
    assert await spool.replay() == 1
    assert names(tmp_path) == []


async def test_call_that_will_never_succeed_is_set_aside(tmp_path: Path) -> None:
    """Code 4: it says no container and interface that there could be an attachment of."""
    (tmp_path / "1-1.req").write_bytes(frame())
    assert await Spool(tmp_path, Agent(c1=error(4)).handle).replay() == 0
    assert names(tmp_path) == ["1-1.bad"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"", "the file ends after 0 bytes", id="empty"),
        pytest.param(bytes(4096), "starts with", id="NULs"),
        pytest.param(frame()[:30], "the file ends after 30 bytes", id="cut in half"),
        pytest.param(frame() + b"x", "1 bytes follow", id="too long"),
        pytest.param(b"{}", "starts with", id="something else"),
        pytest.param(b"x" * 2_000_000, "starts with", id="larger than any request"),
        pytest.param(frame(verb=Command.ADD), "only DEL is spooled, this is ADD", id="another verb"),
        pytest.param(frame(verb=Command.GC), "only DEL is spooled, this is GC", id="GC"),
    ],
)
async def test_damaged_file_is_set_aside_and_delays_nobody(tmp_path: Path, content: bytes, reason: str) -> None:
    agent = Agent()
    (tmp_path / "1-1.req").write_bytes(content)
    (tmp_path / "2-1.req").write_bytes(frame("whole"))
    with capture_logs() as logs:
        assert await Spool(tmp_path, agent.handle).replay() == 1
    assert agent.containers == ["whole"]
    assert names(tmp_path) == ["1-1.bad"]
    assert reason in logs[0]["reason"]


async def test_call_of_a_later_shim_is_replayed(tmp_path: Path) -> None:
    """After a downgrade of the agent the spool holds frames of the newer protocol, with fields we don't know."""
    agent = Agent()
    newer = bytearray(frame())
    newer[3], newer[6] = frames.VERSION + 1, newer[6] + 4
    (tmp_path / "1-1.req").write_bytes(newer[:66] + b"more" + newer[66:])
    assert await Spool(tmp_path, agent.handle).replay() == 1
    assert agent.containers == ["c1"]


async def test_number_of_files_set_aside_is_bounded(tmp_path: Path) -> None:
    for number in range(100, 150):
        (tmp_path / f"{number}-1.req").write_bytes(b"")
    await Spool(tmp_path, Agent().handle).replay()
    assert names(tmp_path) == [f"{number}-1.bad" for number in range(150 - KEPT_BAD, 150)]


async def test_other_files_are_left_alone(tmp_path: Path) -> None:
    fresh, stale = f".{(NOW - 60) * SECOND}-1.req.tmp", f".{(NOW - 7200) * SECOND}-1.req.tmp"
    for name in (fresh, stale, "README", "x-1.req", "1.req", "-1-1.req"):
        (tmp_path / name).write_bytes(frame())
    agent = Agent()
    assert await Spool(tmp_path, agent.handle, now=lambda: NOW).replay() == 0
    assert agent.calls == []
    assert names(tmp_path) == sorted([fresh, "README", "x-1.req", "1.req", "-1-1.req"])


async def test_folder_is_made(tmp_path: Path) -> None:
    assert await Spool(tmp_path / "a" / "spool", Agent().handle).replay() == 0
    assert (tmp_path / "a" / "spool").stat().st_mode & 0o777 == 0o700


async def test_folder_that_cant_be_read_is_reported(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("no folder")
    with capture_logs() as logs:
        assert await Spool(tmp_path / "spool", Agent().handle).replay() == 0
    assert logs[0]["event"] == "spool can't be read"


@pytest.fixture
def readonly(tmp_path: Path) -> Path:
    folder = tmp_path / "spool"
    folder.mkdir()
    (folder / "1-1.req").write_bytes(frame("c1"))
    (folder / "2-1.req").write_bytes(b"")
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
    return folder


async def test_read_only_disk_neither_stops_replay_nor_loses_a_call(readonly: Path) -> None:
    agent = Agent()
    spool = Spool(readonly, agent.handle)
    assert await spool.replay() == 0
    subprocess.run(["umount", readonly], check=True)  # noqa: ASYNC221 - nothing else runs
    assert await spool.replay() == 1
    assert agent.containers == ["c1", "c1"]
    assert names(readonly) == ["2-1.bad"]


async def test_first_round_is_through_when_all_had_their_turn(tmp_path: Path) -> None:
    """Also those that fail and stay, and when the folder can't be read: an ADD doesn't wait for them for ever."""
    for number in range(1, 101):
        (tmp_path / f"{number}-1.req").write_bytes(frame(f"c{number}"))
    agent, told = Agent(c100=error(5)), list[int]()
    spool = Spool(tmp_path, agent.handle)
    task = asyncio.create_task(spool.run(3600, told.append))
    await spool.caught_up.wait()
    assert (len(agent.calls), told, names(tmp_path)) == (100, [99], ["100-1.req"])
    task.cancel()
    (tmp_path / "file").touch()
    spool = Spool(tmp_path / "file", agent.handle)
    task = asyncio.create_task(spool.run(3600))
    await spool.caught_up.wait()
    task.cancel()


async def test_what_fails_again_and_again_is_told_once(tmp_path: Path) -> None:
    agent = Agent(c1=error(5))
    (tmp_path / "1-1.req").write_bytes(frame("c1"))
    spool = Spool(tmp_path, agent.handle)
    with capture_logs() as logs:
        for _ in range(3):
            await spool.replay()
        agent.answers["c1"] = error(11)
        await spool.replay()
    assert [line["code"] for line in logs if line["event"].startswith("spooled call failed")] == [5, 11]


async def test_folder_that_somebody_removed_is_made_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "state" / "spool", Agent().handle)
    await spool.replay()
    shutil.rmtree(tmp_path / "state")
    await spool.replay()
    assert names(tmp_path / "state" / "spool") == []


@pytest.mark.parametrize("what", ["folder", "file"])
async def test_links_are_not_followed(tmp_path: Path, what: str) -> None:
    """As in the shim: who may make one would have root read, write and remove where he wants."""
    elsewhere, spool, agent = tmp_path / "elsewhere", tmp_path / "spool", Agent()
    elsewhere.mkdir()
    (elsewhere / "1-1.req").write_bytes(frame("c1"))
    if what == "folder":
        spool.symlink_to(elsewhere)
    else:
        spool.mkdir()
        (spool / "1-1.req").symlink_to(elsewhere / "1-1.req")
    assert await Spool(spool, agent.handle).replay() == 0
    assert (agent.calls, names(elsewhere)) == ([], ["1-1.req"])


async def test_it_runs_until_cancelled(tmp_path: Path) -> None:
    agent = Agent()
    task = asyncio.create_task(Spool(tmp_path, agent.handle).run(0.01))
    (tmp_path / "1-1.req").write_bytes(frame("c1"))
    assert await agent.seen.get() == "c1"
    (tmp_path / "2-1.req").write_bytes(frame("c2"))
    assert await agent.seen.get() == "c2"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
