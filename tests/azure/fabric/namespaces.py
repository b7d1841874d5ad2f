"""Named network namespaces (`/run/netns/<name>`): creating and entering them, opening sockets in them.

Called from the fabric's process and from tests. A thread that enters another namespace never returns to the former one
but ends there, so no code can run in the wrong one.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import threading
from pathlib import Path

CLONE_NEWNET = 0x40000000
FOLDER = Path("/run/netns")

_libc = ctypes.CDLL(None, use_errno=True)


def create(name: str) -> None:
    """`ip netns add`, with loopback up."""
    subprocess.run(["ip", "netns", "add", name], check=True)
    subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)


def delete(name: str) -> None:
    if exists(name):
        subprocess.run(["ip", "netns", "delete", name], check=True)


def exists(name: str) -> bool:
    return (FOLDER / name).exists()


def enter(name: str) -> None:
    """Moves the calling thread into a namespace; before threads exist, that is the process."""
    descriptor = os.open(FOLDER / name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(descriptor, CLONE_NEWNET) != 0:
            errno = ctypes.get_errno()
            raise OSError(errno, f"setns {name}: {os.strerror(errno)}")
    finally:
        os.close(descriptor)


def open_socket(
    name: str, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0
) -> socket.socket:
    """A socket that lives in a namespace; it may be used from anywhere."""
    result: list[socket.socket | BaseException] = []

    def work() -> None:
        try:
            enter(name)
            result.append(socket.socket(family, kind, protocol))
        except OSError as error:
            result.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if isinstance(result[0], BaseException):
        raise result[0]
    return result[0]
