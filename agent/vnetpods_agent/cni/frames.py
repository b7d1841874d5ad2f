"""Frames between shim and agent, and the calls in them: pure functions over bytes, no sockets, clock or loop.

Defines the layout (docs/architecture.md, "Between shim and agent"), its caps, and the meaning of the version byte.
`server.py` feeds it from a connection, `spool.py` from a file; `agent/shim/shim.c` is the other end.

Request   "VNP" version(u8) verb(u8) flags(u8) extra(u16) deadline_ms(u32) env_len(u32) stdin_len(u32),
          `extra` bytes of later header fields, the environment (NUL-terminated `CNI_…=value`), then stdin as the
          runtime wrote it.
          Since version 2: netns_errno(u16) boottime_ns(u64) boot_id(36 characters), the latter two for spooled calls.
Answer    "VNP" version(u8) exit_code(u8) reserved(3 bytes) stdout_len(u32), then stdout.

All integers are little-endian. Version skew: `extra` tells how much to skip, so a request of a later version is read
as one of ours and answered in our version; a request of an earlier version is answered in its own.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from vnetpods_agent.attachment import Moment, SandboxHandles

VERSION = 2
ENVIRONMENT_CAP = 64 * 1024
STDIN_CAP = 1024 * 1024
ANSWER_CAP = 1024 * 1024
EXTRA_CAP = 4096

_MAGIC = b"VNP"
_REQUEST = struct.Struct("<3sBBBHIII")
_ANSWER = struct.Struct("<3sBB3xI")
_EXTRA = struct.Struct("<HQ36s")
_SINCE_EXTRA = 2
_HAS_DOORS = 1
_REPLAYED = 2


class FrameError(ValueError):
    """The bytes are no frame of this protocol; the message names the wrong field and its value."""


class Command(enum.IntEnum):
    """The runtime's command; OTHER is a CNI_COMMAND unknown to the shim."""

    OTHER = 0
    ADD = 1
    DEL = 2
    CHECK = 3
    GC = 4
    STATUS = 5
    VERSION = 6


_VERBS = {int(verb): verb for verb in Command}


@dataclass(frozen=True, slots=True)
class Request:
    """One CNI call.

    `env` holds the CNI_* variables (non-UTF-8 bytes as surrogate escapes). `deadline` is in the event loop's time; the
    caller waits a moment longer. `handles` belong to the request's creator, who closes them when the handler is done;
    `netns_errno` says why there are none. `spooled`: for a call from the spool, when it was made; it doesn't concern
    anything created later (container ids repeat under cnitool and Docker).
    """

    verb: Command
    env: dict[str, str]
    stdin: bytes
    handles: SandboxHandles | None
    deadline: float
    spooled: Moment | None = None
    netns_errno: int = 0

    @property
    def replayed(self) -> bool:
        return self.spooled is not None


@dataclass(frozen=True, slots=True)
class Response:
    """The shim's stdout and exit code."""

    exit_code: int
    stdout: bytes = b""


Handler = Callable[[Request], Awaitable[Response]]
"""Answers one call. It is cancelled when the caller is gone, and ends only when nothing uses the handles any more,
since they are then closed and their numbers reused."""


@dataclass(frozen=True, slots=True)
class RequestFrame:
    """A request on the wire. `version` is the sender's."""

    verb: Command
    deadline_ms: int
    environment: bytes
    stdin: bytes
    has_handles: bool = False
    replayed: bool = False
    version: int = VERSION
    netns_errno: int = 0
    boottime: float = 0.0
    boot_id: str = ""

    @property
    def variables(self) -> dict[str, str]:
        """The environment as a mapping. As with getenv(3), the first of equal names counts."""
        found: dict[str, str] = {}
        for entry in self.environment.split(b"\0"):
            name, equals, value = entry.partition(b"=")
            if equals:
                found.setdefault(name.decode(errors="surrogateescape"), value.decode(errors="surrogateescape"))
        return found


@dataclass(frozen=True, slots=True)
class AnswerFrame:
    """An answer on the wire."""

    exit_code: int
    stdout: bytes
    version: int = VERSION


class RequestDecoder:
    """Assembles a request from pieces of any size. Raises FrameError as soon as the bytes can't become one."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._total = 0  # length of the whole frame, once the header is there

    @property
    def started(self) -> bool:
        return bool(self._buffer)

    def feed(self, data: bytes) -> RequestFrame | None:
        """Takes the next bytes; returns the frame once it is complete."""
        buffer = self._buffer
        buffer += data
        if not buffer.startswith(_MAGIC[: len(buffer)]):
            raise FrameError(f"a request starts with {_MAGIC!r}, this one with {bytes(buffer[:8])!r}")
        if not self._total:
            if len(buffer) < _REQUEST.size:
                return None
            self._total = _request_size(buffer)
        if len(buffer) < self._total:
            return None
        if len(buffer) > self._total:
            raise FrameError(f"{len(buffer) - self._total} bytes follow a request of {self._total} bytes")
        return _request(buffer)


def _request_size(buffer: bytearray) -> int:
    _, version, _, _, extra, _, env_len, stdin_len = _REQUEST.unpack_from(buffer)
    if version == 0:
        raise FrameError("there is no protocol version 0")
    known = _EXTRA.size if version >= _SINCE_EXTRA else 0
    if extra < known or (extra > known and version <= VERSION):
        raise FrameError(f"protocol version {version} has {known} bytes of added header fields, this request {extra}")
    for field, size, cap in (
        ("extra", extra, EXTRA_CAP),
        ("env", env_len, ENVIRONMENT_CAP),
        ("stdin", stdin_len, STDIN_CAP),
    ):
        if size > cap:
            raise FrameError(f"{field} has {size} bytes, the cap is {cap}")
    return int(_REQUEST.size + extra + env_len + stdin_len)


def _request(buffer: bytearray) -> RequestFrame:
    _, version, verb, flags, extra, deadline_ms, env_len, _ = _REQUEST.unpack_from(buffer)
    environment = _REQUEST.size + extra
    stdin = environment + env_len
    netns_errno, nanoseconds, boot_id = (
        _EXTRA.unpack_from(buffer, _REQUEST.size) if version >= _SINCE_EXTRA else (0, 0, b"")
    )
    return RequestFrame(
        verb=_VERBS.get(verb, Command.OTHER),
        deadline_ms=deadline_ms,
        environment=bytes(buffer[environment:stdin]),
        stdin=bytes(buffer[stdin:]),
        has_handles=bool(flags & _HAS_DOORS),
        replayed=bool(flags & _REPLAYED),
        version=version,
        netns_errno=netns_errno,
        boottime=nanoseconds / 1e9,
        boot_id=boot_id.rstrip(b"\0").decode(errors="replace"),
    )


def encode_request(frame: RequestFrame) -> bytes:
    """The shim's side, for tests and for programs that call the agent without a shim."""
    flags = (_HAS_DOORS if frame.has_handles else 0) | (_REPLAYED if frame.replayed else 0)
    extra = b""
    if frame.version >= _SINCE_EXTRA:
        extra = _EXTRA.pack(frame.netns_errno, round(frame.boottime * 1e9), frame.boot_id.encode())
    sizes = len(extra), frame.deadline_ms, len(frame.environment), len(frame.stdin)
    head = _REQUEST.pack(_MAGIC, frame.version, frame.verb, flags, *sizes)
    return head + extra + frame.environment + frame.stdin


def encode_environment(variables: dict[str, str]) -> bytes:
    """The reverse of RequestFrame.variables."""
    return b"".join(f"{name}={value}".encode(errors="surrogateescape") + b"\0" for name, value in variables.items())


def answer_version(asked: int) -> int:
    """The version to answer in: the request's, or ours if the request's is unknown."""
    return min(asked, VERSION)


def encode_answer(response: Response, *, version: int = VERSION) -> bytes:
    """The answer to a request, in a version from `answer_version`. Raises FrameError if it is too long for the shim."""
    if len(response.stdout) > ANSWER_CAP:
        raise FrameError(f"an answer of {len(response.stdout)} bytes is longer than the shim takes ({ANSWER_CAP})")
    return _ANSWER.pack(_MAGIC, version, response.exit_code & 0xFF, len(response.stdout)) + response.stdout


def decode_answer(data: bytes) -> AnswerFrame | None:
    """Decodes as the shim does; None while bytes are missing."""
    if not data.startswith(_MAGIC[: len(data)]):
        raise FrameError(f"an answer starts with {_MAGIC!r}, this one with {data[:8]!r}")
    if len(data) < _ANSWER.size:
        return None
    _, version, exit_code, size = _ANSWER.unpack_from(data)
    if size > ANSWER_CAP:
        raise FrameError(f"stdout has {size} bytes, the cap is {ANSWER_CAP}")
    if len(data) < _ANSWER.size + size:
        return None
    if len(data) > _ANSWER.size + size:
        raise FrameError(f"{len(data) - _ANSWER.size - size} bytes follow an answer of {_ANSWER.size + size} bytes")
    return AnswerFrame(exit_code=exit_code, stdout=data[_ANSWER.size :], version=version)
