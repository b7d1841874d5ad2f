"""Talking to the kernel over one netlink socket: a batch of steps in one send, and the first failure by name.

The kernel works inside `send`: when it returns, all messages of the batch have been carried out and all answers lie
in the receive buffer. A NetlinkSocket belongs to one thread at a time. Nothing survives a crash, nothing needs to.
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
"""Seconds until the kernel's silence is an error. It never is silent: the agent's watchdog sees a stuck `send`."""
DUMP_ATTEMPTS = 10
DUMP_PAUSE = 0.002
"""Seconds, longer with every attempt: a burst of pods lets the table stand still between two of them."""
BUFFER = 1 << 16
_SEQUENCE = struct.Struct("=I")


@dataclass(frozen=True, slots=True)
class NetlinkRequest:
    """One message and what it is for: `what` ("add host route") and `subject` ("10.0.0.5") appear in errors.

    `ignore_errnos` are the errors that mean that the step's end state holds already.
    """

    what: str
    subject: str
    message: bytes
    ignore_errnos: frozenset[int] = field(default=frozenset())


class Refusals:
    """What the kernel refused since the start of the process, by the error's name ("EBUSY"); from any thread."""

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
    """A netlink socket, opened here (`family`) or handed over (`descriptor`, which stays its owner's: it is
    duplicated).
    """

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
        """Sends all steps in one go.

        The kernel carries out every message even after one failed, so steps that depend on each other's success
        (making a link, then using it) belong into separate calls. Only the last message asks for an acknowledgement:
        failures answer unasked.

        Raises DataPlaneError for the first step that failed and isn't ignore_errnos.
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
            if kind != NLMSG_ERROR or sequence < first:  # an answer to an earlier, timed out batch
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
        """One object by name or index; None when there is none (ENODEV, ENOENT)."""
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
        """All objects of a table, as it was at one moment.

        Started anew when the table changed meanwhile (NLM_F_DUMP_INTR): what is missing in an interrupted dump may be
        there. Raises DataPlaneError(EAGAIN) when it never stands still.
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
    """Iterates over (type, sequence, flags, payload) of what the socket receives, for ever."""

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
    """The errno and the kernel's own words, from struct nlmsgerr {s32 error; nlmsghdr request} and its attributes."""
    (code,) = struct.unpack_from("=i", payload)
    if not code or not flags & NLM_F_ACK_TLVS:
        return -code, ""
    (length,) = _SEQUENCE.unpack_from(payload, 4)
    start = 4 + (16 if flags & NLM_F_CAPPED else (length + 3) & ~3)
    said = dict(attributes(payload, start)).get(NLMSGERR_ATTR_MSG, b"")
    return -code, said.rstrip(b"\0").decode(errors="replace")
