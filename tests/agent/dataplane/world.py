"""A small world of namespaces for one test: a VM ("host") with an uplink, its pods, and what lies behind the uplink
("outside").

The test's own thread lives inside the host's namespace, so that the code under test opens its sockets and starts its
threads and programs there. Sockets for traffic are opened inside the other namespaces and then used from anywhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests import pace
from vnetpods_agent.attachment import Address, Attachment, AttachmentKey, Pod, SandboxHandles

CLONE_NEWNET = 0x40000000
PRIMARY = Address("10.240.0.4")
GATEWAY = "10.240.0.1"
NIC_MAC = "00:0d:3a:1b:c7:21"
INTERNET, PEER, IMDS, AZURE_DNS = "203.0.113.9", "10.9.0.9", "169.254.169.254", "168.63.129.16"
POOL = (*(f"10.240.0.{last}" for last in range(5, 16)), "10.240.0.16/28")
DIRECT = ("10.240.0.0/16", "10.9.0.0/16")

_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count(1)


def setns(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """The calling thread is in the named namespace meanwhile."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        setns(there)
        yield
    finally:
        setns(before)
        os.close(there)
        os.close(before)


def run(command: str, check: bool = True) -> str:
    """Runs a program in the namespace of the calling thread."""
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"{command}: {done.stdout}{done.stderr}")
    return done.stdout


def run_in(namespace: str, command: str, check: bool = True) -> str:
    return run(f"nsenter --net=/run/netns/{namespace} {command}", check)


@dataclass
class World:
    """Names of the namespaces, and what was opened in them."""

    tag: str = field(default_factory=lambda: f"w{next(_numbers)}")
    namespaces: list[str] = field(default_factory=list)
    handles: list[SandboxHandles] = field(default_factory=list)

    @property
    def host(self) -> str:
        return f"{self.tag}-host"

    @property
    def outside(self) -> str:
        return f"{self.tag}-outside"

    def namespace(self, name: str) -> str:
        run(f"ip netns add {self.tag}-{name}")
        self.namespaces.append(f"{self.tag}-{name}")
        return f"{self.tag}-{name}"

    def build(self) -> None:
        """eth0 on the host, its other end outside, where everything answers that pods might call."""
        for name in ("host", "outside"):
            run_in(self.namespace(name), "ip link set lo up")
            run_in(f"{self.tag}-{name}", "sysctl -qw net.ipv6.conf.default.disable_ipv6=1")  # no packets but the test's
        run_in(self.host, f"ip link add eth0 address {NIC_MAC} type veth peer name nic0 netns {self.outside}")
        for command in (f"addr add {PRIMARY}/16 dev eth0", "link set eth0 up", f"route add default via {GATEWAY}"):
            run_in(self.host, f"ip {command}")
        for command in (
            f"addr add {GATEWAY}/16 dev nic0",
            "link set nic0 up",
            f"route add 10.240.0.0/26 via {PRIMARY}",
        ):
            run_in(self.outside, f"ip {command}")
        run_in(self.outside, f"ip route replace {PRIMARY}/32 dev nic0")
        run_in(self.host, "ip link show eth0")  # asking settles the carrier; else it appears in the middle of a test
        for address in (INTERNET, PEER, IMDS, AZURE_DNS):
            run_in(self.outside, f"ip addr add {address}/32 dev lo")

    def pod(self, address: str, name: str = "web-0", container: str = "", ifname: str = "eth0") -> PodHandle:
        container = container or f"c{next(_numbers)}"
        namespace = self.namespace(container)
        attachment = Attachment(
            key=AttachmentKey("vnetpods", container, ifname),
            address=Address(address),
            netns=f"/run/netns/{namespace}",
            nic_mac=NIC_MAC,
            mtu=1500,
            boot_id="boot",
            created=0.0,
            pod=Pod("default", name),
        )
        return PodHandle(namespace, attachment, self.open_doors(namespace))

    def open_doors(self, namespace: str) -> SandboxHandles:
        """What the shim does: the namespace's descriptor and a NETLINK_ROUTE socket made inside it."""
        with inside(namespace):
            netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        handles = SandboxHandles(os.open(f"/run/netns/{namespace}", os.O_RDONLY), netlink.detach())
        self.handles.append(handles)
        return handles

    def close(self) -> None:
        for handles in self.handles:
            os.close(handles.netns_fd)
            os.close(handles.netlink_fd)
        for namespace in self.namespaces:
            run(f"ip netns del {namespace}")


@dataclass(frozen=True)
class PodHandle:
    namespace: str
    attachment: Attachment
    handles: SandboxHandles

    @property
    def address(self) -> Address:
        return self.attachment.address

    @property
    def host_ifname(self) -> str:
        return self.attachment.host_ifname


def eventually(claim: Callable[[], object], seconds: float = 5.0) -> None:
    """The promise is five seconds, on a quiet machine."""
    deadline = time.monotonic() + pace.stretched(seconds)
    while not claim():
        assert time.monotonic() < deadline, "still not so"
        time.sleep(0.05)


def listening(port: int) -> socket.socket:
    """A TCP server in the namespace of the calling thread. Raises OSError.

    The listener of a call before is closed, but a program that another thread starts meanwhile holds a copy of it until
    its exec: then the port is in use for a moment longer.
    """
    deadline = time.monotonic() + pace.stretched(5.0)
    while True:
        try:
            return socket.create_server(("", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise
        time.sleep(0.02)


def caller_seen(
    client: str,
    server: str,
    address: str,
    port: int = 80,
    source: str = "",
    timeout: float = 0.4,
    dialled: int = 0,
) -> str | None:
    """The source address that a TCP server in `server` sees when `client` calls `address`.

    None when nothing got through. `dialled`: the port the client asks for, if something leads it to the server's.
    """
    with inside(server):
        listener = listening(port)
    with inside(client):
        caller = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with listener, caller:
        listener.settimeout(timeout)
        caller.settimeout(timeout)
        try:
            if source:
                caller.bind((source, 0))
            caller.connect((address, dialled or port))
            caller.sendall(b"hello")
            accepted, peer = listener.accept()
        except OSError:
            return None
        with accepted:
            accepted.settimeout(timeout)
            assert accepted.recv(5) == b"hello"
            return str(peer[0])


AMOUNT = 1 << 18


def carried(client: str, server: str, address: str, timeout: float = 2.0) -> int:
    """How many of AMOUNT bytes reach a TCP server in one go: full-sized packets, unlike a handshake."""
    with inside(server):
        listener = listening(80)
    with inside(client):
        caller = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with listener, caller:
        listener.settimeout(timeout)
        caller.settimeout(timeout)
        caller.connect((address, 80))
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(timeout)
            sending = threading.Thread(target=_send_all, args=(caller,))
            sending.start()
            received = 0
            with contextlib.suppress(TimeoutError):
                while data := accepted.recv(1 << 16):
                    received += len(data)
        sending.join()
    return received


def _send_all(caller: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the receiver counts what arrived
        caller.sendall(bytes(AMOUNT))
        caller.shutdown(socket.SHUT_WR)


def works(world: World, pod: PodHandle) -> bool:
    out = caller_seen(pod.namespace, world.outside, PEER) == pod.address
    return out and caller_seen(world.outside, pod.namespace, pod.address) is not None


def whole_picture(pod: PodHandle) -> str:
    """Everything of the host and of the pod, as ip shows it, but for what the kernel's link watch finds out later."""
    shown = [run("ip -d link"), run("ip route"), run("ip neigh show nud permanent")]
    shown += [run_in(pod.namespace, f"ip {what}") for what in ("-d link", "addr", "route", "neigh")]
    return re.sub(r"state (UP|UNKNOWN)|NO-CARRIER,", "", "\n".join(shown))
