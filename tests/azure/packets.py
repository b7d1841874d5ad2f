"""Sending real packets between namespaces, for tests of the fabric and of what runs on it."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.azure.fabric import namespaces


@contextmanager
def own(machine: str, address: str) -> Iterator[None]:
    """Lets a machine use an address itself, as a pod on it would."""
    subprocess.run(["ip", "-n", machine, "addr", "add", f"{address}/32", "dev", "lo"], check=True)
    try:
        yield
    finally:
        subprocess.run(["ip", "-n", machine, "addr", "del", f"{address}/32", "dev", "lo"], check=True)


def says(source: tuple[str, str], target: tuple[str, str]) -> str | None:
    """Sends a datagram from (machine, address) to (machine, address); returns the source that the receiver saw."""
    with (
        namespaces.open_socket(target[0], kind=socket.SOCK_DGRAM) as receiver,
        namespaces.open_socket(source[0], kind=socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind((target[1], 5555))
        receiver.settimeout(0.3)
        sender.bind((source[1], 0))
        sender.sendto(b"hello", (target[1], 5555))
        try:
            return str(receiver.recvfrom(100)[1][0])
        except TimeoutError:
            return None


def get(machine: str, url: str, *options: str) -> str:
    command = ["ip", "netns", "exec", machine, "curl", "-sS", "-m", "2", *options, url]
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()


@contextmanager
def serving(machine: str, address: str, port: int, words: str = "hello") -> Iterator[None]:
    """Serves HTTP on a machine's address; the response is `words`, then the caller's address."""
    listener = namespaces.open_socket(machine)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    listener.listen()
    thread = threading.Thread(target=_answer, args=(listener, words), daemon=True)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


def _answer(listener: socket.socket, words: str) -> None:
    while True:
        try:
            link, (caller, _) = listener.accept()
        except OSError:
            return
        with link:
            link.recv(4096)
            body = f"{words} {caller}"
            link.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode())
