"""Replays DELs that the shim wrote to disk while no agent answered.

The shim writes a file (temporary name, fsync, rename, fsync of the folder); the spool reads it, passes it to the same
handler as a live call, and unlinks it on success. `run` is a task in the event loop. Live calls are served meanwhile,
but an ADD for an attached container, or into the namespace of one, waits until the first round is done (`caught_up`):
it mustn't overtake an old DEL.

After a crash at any point the file is still there or its DEL is done; a repeated DEL changes nothing. A file that can
never succeed (truncated, zeroed by a power cut, without a container) is set aside as `.bad`, at most KEPT_BAD of them,
so that it neither blocks the others nor fills the disk. Cases ACN#763, aws#2350 (a full node without its agent).
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import structlog

from vnetpods_agent.attachment import Moment
from vnetpods_agent.cni.frames import (
    ENVIRONMENT_CAP,
    STDIN_CAP,
    Command,
    FrameError,
    Handler,
    Request,
    RequestDecoder,
    Response,
)
from vnetpods_agent.cni.protocol import SHOWN, cut
from vnetpods_kit.atomicfile import sync_folder

KEPT_BAD = 16
TEMPORARY_LIFE = 3600.0
"""Seconds after which a temporary file's writer must have been killed: a shim writes within milliseconds."""

_SIZE_CAP = ENVIRONMENT_CAP + STDIN_CAP + 8192
_AT_ONCE = 16
_DEADLINE = 60.0
_NAME = re.compile(r"^(\d{1,20})-\d+\.req$")
_TEMPORARY = re.compile(r"^\.(\d{1,20})-\d+\.req\.tmp$")
_HOPELESS = 4
"""The CNI code of a call without a valid container id and interface name: no attachment can ever match it. After any
other error, the DEL's address may be held.
"""

_log = structlog.get_logger(component="spool")


class _Answer(msgspec.Struct):
    code: int = 0
    msg: str = ""


class Spool:
    """The folder of spooled calls. `now`: the wall clock, by which the shim names its files."""

    def __init__(
        self,
        folder: Path,
        handle: Handler,
        *,
        now: Callable[[], float] = time.time,
        caught_up: asyncio.Event | None = None,
    ) -> None:
        self.folder = folder
        self.caught_up = caught_up or asyncio.Event()  # the calls found at the start were tried once
        self._handle = handle
        self._now = now
        self._trouble = ""
        self._failed: dict[str, int] = {}  # file -> code of its last failure

    async def run(self, period: float, tell: Callable[[int], None] = lambda _: None) -> None:
        """Replays at once and then every `period` seconds until cancelled; `tell` gets the number of done calls."""
        while True:
            tell(await self.replay())
            self.caught_up.set()
            await asyncio.sleep(period)

    async def replay(self) -> int:
        """Passes all spooled calls to the handler, oldest first; returns how many are done.

        Calls start in the order in which they were made and then overlap, as live ones do; failed ones stay.
        """
        done, trouble = 0, ""
        try:
            waiting = await asyncio.to_thread(self._look)
        except OSError as error:
            waiting, trouble = [], str(error)
        if trouble and trouble != self._trouble:
            _log.error("spool can't be read", folder=str(self.folder), error=trouble)
        self._trouble = trouble
        for start in range(0, len(waiting), _AT_ONCE):
            batch = waiting[start : start + _AT_ONCE]
            done += sum(await asyncio.gather(*(self._replay(path, spooled_at) for path, spooled_at in batch)))
        self._failed = {path.name: self._failed[path.name] for path, _ in waiting if path.name in self._failed}
        if done:
            await asyncio.to_thread(sync_folder, self.folder)
            _log.info("spool replayed", done=done, left=len(waiting) - done)
        return done

    def _look(self) -> list[tuple[Path, float]]:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.folder.is_symlink():
            raise OSError(f"{self.folder} is a link, which the plugin doesn't follow")
        return list(self._waiting())

    def _waiting(self) -> Iterator[tuple[Path, float]]:
        """Spooled calls with their times; also removes the temporary files of killed shims."""
        names = [path.name for path in self.folder.iterdir()]
        for name in names:
            match = _TEMPORARY.match(name)
            if match and self._now() - int(match[1]) / 1e9 > TEMPORARY_LIFE:
                (self.folder / name).unlink(missing_ok=True)
        calls = [(int(match[1]), name) for name in names if (match := _NAME.match(name))]
        for nanoseconds, name in sorted(calls):
            yield self.folder / name, nanoseconds / 1e9

    async def _replay(self, path: Path, spooled_at: float) -> bool:
        try:
            request = _request(path, spooled_at)
            response = await self._handle(request)
            return self._settle(path, request, response)
        except FileNotFoundError:  # the same call was spooled again, which counts instead
            return False
        except FrameError as error:
            self._set_aside(path, str(error))
        except Exception:  # noqa: BLE001 - this loop's edge: one call mustn't block the others
            _log.exception("spooled call not replayed, it stays for later", file=path.name)
        return False

    def _settle(self, path: Path, request: Request, response: Response) -> bool:
        log = _log.bind(file=path.name, container=cut(request.env.get("CNI_CONTAINERID", ""), SHOWN))
        if response.exit_code == 0:
            path.unlink(missing_ok=True)
            self._failed.pop(path.name, None)
            log.debug("spooled call done")
            return True
        answer = _answer(response.stdout)
        if answer.code == _HOPELESS:
            self._set_aside(path, answer.msg)
        elif self._failed.get(path.name) != answer.code:  # once, not every few seconds
            self._failed[path.name] = answer.code
            log.warning("spooled call failed, it stays for later", code=answer.code, error=answer.msg)
        return False

    def _set_aside(self, path: Path, reason: str) -> None:
        bad = path.with_suffix(".bad")
        _log.error("spooled call set aside", file=str(bad), reason=reason)
        try:
            path.replace(bad)
            for old in sorted(self.folder.glob("*.bad"))[:-KEPT_BAD]:
                old.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("spooled call can't be set aside, it stays", file=path.name, error=str(error))


def _request(path: Path, spooled_at: float) -> Request:
    """Raises FrameError unless the file is one whole frame of a call that may be spooled."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        data = file.read(_SIZE_CAP + 1)
    frame = RequestDecoder().feed(data)
    if frame is None:
        raise FrameError(f"the file ends after {len(data)} bytes, within the request")
    if frame.verb is not Command.DEL:
        raise FrameError(f"only DEL is spooled, this is {frame.verb.name}")
    return Request(
        verb=frame.verb,
        env=frame.variables,
        stdin=frame.stdin,
        handles=None,
        deadline=asyncio.get_running_loop().time() + _DEADLINE,
        spooled=Moment(spooled_at, frame.boottime, frame.boot_id),
    )


def _answer(stdout: bytes) -> _Answer:
    try:
        return msgspec.json.decode(stdout, type=_Answer)
    except msgspec.MsgspecError:
        return _Answer(msg=stdout[:200].decode(errors="replace"))
