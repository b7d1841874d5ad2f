"""Sends requests over one netlink socket: a batch of steps per send, and the first failure with its step.

The kernel works inside `send`: when it returns, all messages of the batch have been executed and all answers are in the
receive buffer. A NetlinkSocket belongs to one thread at a time. Nothing here needs to survive a crash.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self, TypeVar

from vnetpods_agent.dataplane import DataPlaneError
from vnetpods_agent.dataplane.netlink.messages import (
    NLM_F_ACK,
    NLM_F_ACK_TLVS,
    NLM_F_CAPPED,
    NLM_F_DUMP_INTR,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSGHDR,
    attributes,
)

T = TypeVar("T")

SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP, NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 1, 10, 11, 12
NLMSGERR_ATTR_MSG = 1
PATIENCE = 10.0
"""Seconds until a missing answer is an error. The kernel always answers: a stuck `send` is for the watchdog."""
DUMP_ATTEMPTS = 10
DUMP_PAUSE = 0.002
"""Seconds, times the attempt: between two pods of a burst the table stands still."""
BUFFER = 1 << 16
_SEQUENCE = struct.Struct("=I")


@dataclass(frozen=True, slots=True)
class NetlinkRequest:
    """One message and its purpose: `what` ("add host route") and `subject` ("10.0.0.5") appear in errors.

    `ignore_errnos`: errors that mean that the step's end state already holds.
    """

    what: str
    subject: str
    message: bytes
    ignore_errnos: frozenset[int] = field(default=frozenset())


class Refusals:
    """Counts the kernel's errors since the process's start, by name ("EBUSY"); from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, number: int) -> None:
        with self._lock:
            self._counts[errno.errorcode.get(number, str(number))] += 1

    def counts(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counts)


REFUSALS = Refusals()


def _refused(step: NetlinkRequest, number: int, said: str) -> DataPlaneError:
    REFUSALS.add(number)
    return DataPlaneError(step.what, step.subject, number, said)


class NetlinkSocket:
    """A netlink socket, opened here (`family`) or duplicated from `descriptor`, which its owner keeps."""

    def __init__(self, family: int = socket.NETLINK_ROUTE, descriptor: int | None = None) -> None:
        """Raises DataPlaneError, also when the descriptor is no socket."""
        try:
            self._socket = _opened(family) if descriptor is None else _duplicated(descriptor)
            self._socket.settimeout(PATIENCE)
            for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
                self._socket.setsockopt(SOL_NETLINK, option, 1)
        except OSError as error:
            raise DataPlaneError("open", "a netlink socket", error.errno or errno.EIO) from error
        self._next = 1

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def execute(self, steps: Sequence[NetlinkRequest]) -> None:
        """Sends all steps in one batch.

        The kernel executes every message even after a failure, so steps that depend on each other's success (creating a
        link, then using it) belong in separate calls. Only the last message requests an acknowledgement: failures are
        always answered.

        Raises DataPlaneError for the first step that failed with an errno outside its `ignore_errnos`.
        """
        first = self._next
        self._next += len(steps)
        batch = bytearray()
        for offset, step in enumerate(steps):
            start = len(batch)
            batch += step.message
            _SEQUENCE.pack_into(batch, start + 8, first + offset)
            if offset == len(steps) - 1:
                batch[start + 6] |= NLM_F_ACK
        self._send(batch, steps[0])
        failures: dict[int, tuple[int, str]] = {}
        for kind, sequence, flags, payload in self._answers(steps[-1]):
            if kind != NLMSG_ERROR or sequence < first:  # an answer to an earlier batch that timed out
                continue
            code, said = _verdict(flags, payload)
            if code:
                failures[sequence - first] = (code, said)
            if sequence == first + len(steps) - 1:
                break
        for offset, (code, said) in sorted(failures.items()):
            if code not in steps[offset].ignore_errnos:
                raise _refused(steps[offset], code, said)

    def ask(self, step: NetlinkRequest, reader: Callable[[bytes], T]) -> T | None:
        """One object by name or index; None if it doesn't exist (ENODEV, ENOENT)."""
        sequence = self._start(step)
        for kind, answered, flags, payload in self._answers(step):
            if answered != sequence:
                continue
            if kind == NLMSG_ERROR:
                code, said = _verdict(flags, payload)
                if code in {errno.ENODEV, errno.ENOENT}:
                    return None
                raise _refused(step, code, said)
            return reader(payload)
        raise AssertionError  # _answers is endless

    def dump(self, step: NetlinkRequest, reader: Callable[[bytes], T]) -> list[T]:
        """All objects of a table, consistent at one moment.

        Repeated if the table changed meanwhile (NLM_F_DUMP_INTR): an interrupted dump may lack existing objects. Raises
        DataPlaneError(EAGAIN) if every attempt is interrupted.
        """
        for attempt in range(DUMP_ATTEMPTS):
            found, whole = self._dump_once(step, reader)
            if whole:
                return found
            time.sleep(DUMP_PAUSE * attempt)
        raise _refused(step, errno.EAGAIN, f"the table changed during each of {DUMP_ATTEMPTS} readings")

    def _dump_once(self, step: NetlinkRequest, reader: Callable[[bytes], T]) -> tuple[list[T], bool]:
        sequence = self._start(step)
        found: list[T] = []
        whole = True
        for kind, answered, flags, payload in self._answers(step):
            if answered != sequence:
                continue
            whole = whole and not flags & NLM_F_DUMP_INTR
            if kind == NLMSG_DONE:
                return found, whole
            if kind == NLMSG_ERROR:
                raise _refused(step, *_verdict(flags, payload))
            found.append(reader(payload))
        raise AssertionError  # _answers is endless

    def _start(self, step: NetlinkRequest) -> int:
        sequence = self._next
        self._next += 1
        message = bytearray(step.message)
        _SEQUENCE.pack_into(message, 8, sequence)
        self._send(message, step)
        return sequence

    def _send(self, batch: bytearray, step: NetlinkRequest) -> None:
        try:
            self._socket.send(batch)
        except OSError as error:
            raise _refused(step, error.errno or errno.EIO, "sending to the kernel") from error

    def _answers(self, step: NetlinkRequest) -> _Answers:
        return _Answers(self._socket, step)


def _opened(family: int) -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)


def _duplicated(descriptor: int) -> socket.socket:
    own = os.dup(descriptor)
    try:
        return socket.socket(fileno=own)
    except OSError:
        os.close(own)
        raise


class _Answers:
    """Iterates endlessly over the (type, sequence, flags, payload) of received messages."""

    def __init__(self, source: socket.socket, step: NetlinkRequest) -> None:
        self._source = source
        self._step = step
        self._data = b""
        self._offset = 0

    def __iter__(self) -> _Answers:
        return self

    def __next__(self) -> tuple[int, int, int, bytes]:
        if self._offset >= len(self._data):
            try:
                self._data, self._offset = self._source.recv(BUFFER), 0
            except OSError as error:  # ENOBUFS and the timeout included
                number = error.errno or errno.ETIMEDOUT
                raise _refused(self._step, number, "the kernel's answer") from error
        length, kind, flags, sequence, _ = NLMSGHDR.unpack_from(self._data, self._offset)
        payload = self._data[self._offset + 16 : self._offset + length]
        self._offset += (length + 3) & ~3
        return kind, sequence, flags, payload


def _verdict(flags: int, payload: bytes) -> tuple[int, str]:
    """The errno and the kernel's message, from struct nlmsgerr {s32 error; nlmsghdr request} and its attributes."""
    (code,) = struct.unpack_from("=i", payload)
    if not code or not flags & NLM_F_ACK_TLVS:
        return -code, ""
    (length,) = _SEQUENCE.unpack_from(payload, 4)
    start = 4 + (16 if flags & NLM_F_CAPPED else (length + 3) & ~3)
    said = dict(attributes(payload, start)).get(NLMSGERR_ATTR_MSG, b"")
    return -code, said.rstrip(b"\0").decode(errors="replace")
