"""What a pod can't do to its node, and what a node's settings don't do to a pod."""

from __future__ import annotations

import errno
import socket
import struct

import pytest

from tests.agent.dataplane.keeper import NIC, STATE, Keeper
from tests.agent.dataplane.world import (
    AZURE_DNS,
    DIRECT,
    IMDS,
    INTERNET,
    PEER,
    PRIMARY,
    PodHandle,
    World,
    caller_seen,
    eventually,
    inside,
    run,
    run_in,
)
from vnetpods_agent.dataplane import HostState
from vnetpods_agent.dataplane.pod.transparent import Transparent

HARDENED = (
    "forwarding=0",
    "rp_filter=1",
    "proxy_arp=1",
    "accept_redirects=1",
    "send_redirects=1",
    "accept_source_route=1",
    "route_localnet=1",
)
OURS = (
    "forwarding=1",
    "rp_filter=0",
    "proxy_arp=0",
    "accept_redirects=0",
    "send_redirects=0",
    "accept_source_route=0",
    "route_localnet=0",
)
"""Of every host end, whatever new interfaces get by default."""


def ask_by_arp(pod: PodHandle, wanted: str, times: int) -> int:
    """Requests for `wanted` under as many addresses; how many answers came."""
    with inside(pod.namespace):
        packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
    with packets:
        packets.bind(("eth0", 0x0806))
        packets.settimeout(0.3)
        mac = bytes.fromhex(pod.attachment.pod_mac.replace(":", ""))
        for number in range(times):
            source = f"10.77.{number // 250}.{number % 250 + 1}"
            body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + socket.inet_aton(source)
            packets.send(b"\xff" * 6 + mac + b"\x08\x06" + body + bytes(6) + socket.inet_aton(wanted))
        answers = 0
        try:
            while True:
                answers += packets.recv(64)[20:22] == b"\x00\x02"
        except TimeoutError:
            return answers


@pytest.mark.parametrize("wanted", [PRIMARY, "169.254.1.1", "10.240.0.1"])
def test_forged_arp_requests_make_no_neighbours_and_get_no_answer(world: World, pod: PodHandle, wanted: str) -> None:
    """The limit of the neighbour table is the machine's: one pod could cost all others theirs."""
    run(f"sysctl -qw net.ipv4.conf.{pod.host_ifname}.proxy_arp=1")
    run("ip route add 10.77.0.0/16 dev " + pod.host_ifname)  # else reverse path filtering would do
    before = run(f"ip neigh show dev {pod.host_ifname}")
    assert ask_by_arp(pod, wanted, 150) == 0
    assert run(f"ip neigh show dev {pod.host_ifname}") == before
    assert caller_seen(pod.namespace, world.outside, PEER) == pod.address


def test_an_end_of_an_earlier_version_becomes_deaf_and_goes_on(world: World, pod: PodHandle) -> None:
    run(f"ip link set {pod.host_ifname} arp on")
    eventually(lambda: "NOARP" in run(f"ip link show {pod.host_ifname}"))
    eventually(lambda: pod.attachment.pod_mac in run(f"ip neigh show dev {pod.host_ifname} nud permanent"))
    assert caller_seen(pod.namespace, world.outside, PEER) == pod.address
    assert caller_seen(world.outside, pod.namespace, pod.address) is not None


def test_host_ends_have_settings_of_their_own(world: World, keeper: Keeper, plane: Transparent) -> None:
    keeper.declare(STATE)
    for setting in HARDENED:
        run(f"sysctl -qw net.ipv4.conf.default.{setting}")
    keeper.reconciler.close()  # from the first moment on
    pod = world.pod("10.240.0.5")
    plane.attach(pod.attachment, pod.handles)
    conf = f"net.ipv4.conf.{pod.host_ifname}."
    assert {f"{name}={run('sysctl -n ' + conf + name).strip()}" for name in (o.split("=")[0] for o in OURS)} == set(
        OURS
    )
    assert plane.check(pod.attachment, pod.handles) == []
    assert caller_seen(pod.namespace, world.outside, PEER) == pod.address
    assert caller_seen(world.outside, pod.namespace, pod.address) is not None


@pytest.mark.parametrize("setting", [setting for setting in HARDENED if not setting.startswith("route_localnet")])
@pytest.mark.parametrize("who", ["it", "all"])
def test_and_keep_them(pod: PodHandle, who: str, setting: str) -> None:
    """Tools that harden a host write them to every interface, with or without the kernel's telling."""
    name = setting.partition("=")[0]
    run(f"sysctl -qw net.ipv4.conf.{pod.host_ifname if who == 'it' else 'all'}.{setting}")
    run(f"sysctl -qw net.ipv4.conf.{pod.host_ifname}.{setting}")
    ours = next(each for each in OURS if each.startswith(name)).partition("=")[2]
    eventually(lambda: run(f"sysctl -n net.ipv4.conf.{pod.host_ifname}.{name}").strip() == ours, 15)


def test_but_leave_portmap_its_own(pod: PodHandle, plane: Transparent, keeper: Keeper) -> None:
    keeper.declare(STATE)
    conf = f"net.ipv4.conf.{pod.host_ifname}"
    run(f"sysctl -qw {conf}.route_localnet=1")
    run(f"sysctl -qw {conf}.proxy_arp=1")
    eventually(lambda: run(f"sysctl -n {conf}.proxy_arp").strip() == "0", 15)
    assert run(f"sysctl -n {conf}.route_localnet").strip() == "1"
    assert plane.check(pod.attachment, pod.handles) == []


def test_ipv6_from_a_pod_goes_nowhere(world: World, pod: PodHandle) -> None:
    """Pods have no IPv6 address: whatever comes under one is forged."""
    for namespace, device in ((world.host, pod.host_ifname), (world.host, "eth0"), (world.outside, "nic0")):
        run_in(namespace, f"sysctl -qw net.ipv6.conf.{device}.disable_ipv6=0")
    run("sysctl -qw net.ipv6.conf.all.forwarding=1")
    run_in(pod.namespace, "sysctl -qw net.ipv6.conf.eth0.disable_ipv6=0")
    run_in(pod.namespace, "ip -6 addr add fd00:1::5/64 dev eth0 nodad")
    run(f"ip -6 addr add fd00:1::1/64 dev {pod.host_ifname} nodad")
    mac = pod.attachment.host_mac
    run_in(pod.namespace, f"ip -6 neigh replace fd00:1::1 lladdr {mac} dev eth0 nud permanent")
    run(f"ip -6 neigh replace fd00:1::5 lladdr {pod.attachment.pod_mac} dev {pod.host_ifname} nud permanent")

    def reaches() -> bool:
        with inside(world.host):
            listener = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        with inside(pod.namespace):
            caller = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        with listener, caller:
            listener.bind(("fd00:1::1", 7))
            listener.settimeout(0.4)
            caller.sendto(b"hello", ("fd00:1::1", 7))
            try:
                return listener.recv(16) == b"hello"
            except TimeoutError:
                return False

    assert not reaches()
    run("nft add rule ip6 vnetpods from_pods accept")  # the way itself is open
    run("nft flush chain ip6 vnetpods from_pods")
    assert reaches()


def reached_by_udp(client: str, server: str, address: str, port: int) -> str | None:
    """The source that a UDP server in `server` sees; None when nothing arrives, or no answer comes back."""
    with inside(server):
        listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with inside(client):
        caller = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with listener, caller:
        listener.bind((address, port))
        listener.settimeout(0.4)
        caller.settimeout(0.4)
        try:
            caller.sendto(b"question", (address, port))
            _, peer = listener.recvfrom(16)
            listener.sendto(b"answer", peer)
            assert caller.recv(16) == b"answer"
        except OSError:
            return None
        return str(peer[0])


def pinged(client: str, address: str) -> bool:
    with inside(client):
        caller = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with caller:
        caller.settimeout(0.4)
        echo = struct.pack("!BBHHH", 8, 0, ~(0x0800 + 1 + 1) & 0xFFFF, 1, 1)
        caller.sendto(echo, (address, 0))
        try:
            return caller.recv(64)[20] == 0
        except TimeoutError:
            return False


@pytest.mark.parametrize("imds", [False, True])
def test_of_azures_own_address_pods_get_dns_alone(world: World, pod: PodHandle, keeper: Keeper, imds: bool) -> None:
    """Its other ports give whoever comes under the node's address what is the node's alone."""
    keeper.declare(HostState((NIC,), (*DIRECT, "168.63.0.0/16"), imds))
    assert caller_seen(pod.namespace, world.outside, AZURE_DNS, port=53) == PRIMARY
    assert reached_by_udp(pod.namespace, world.outside, AZURE_DNS, 53) == PRIMARY
    for port in (80, 32526, 443):
        assert caller_seen(pod.namespace, world.outside, AZURE_DNS, port=port) is None
    assert reached_by_udp(pod.namespace, world.outside, AZURE_DNS, 80) is None
    assert pinged(pod.namespace, PEER)
    assert not pinged(pod.namespace, AZURE_DNS)
    assert caller_seen(world.host, world.outside, AZURE_DNS, port=80) == PRIMARY, "the node's own agent goes on"


def test_and_are_told_so_at_once(world: World, pod: PodHandle) -> None:
    with inside(pod.namespace):
        caller = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with caller:
        caller.settimeout(5)
        with pytest.raises(OSError, match="No route to host") as refused:
            caller.connect((AZURE_DNS, 80))
    assert refused.value.errno == errno.EHOSTUNREACH


def test_azures_health_probes_are_answered(world: World, pod: PodHandle) -> None:
    assert caller_seen(world.outside, pod.namespace, pod.address, source=AZURE_DNS) == AZURE_DNS


@pytest.mark.parametrize(("address", "port"), [(AZURE_DNS, 80), (AZURE_DNS, 32526), (IMDS, 80)])
def test_a_service_is_no_way_around(world: World, pod: PodHandle, address: str, port: int) -> None:
    """Whoever may write EndpointSlices names any address as a Service's."""
    run("nft add table ip kube")
    run("nft add chain ip kube services { type nat hook prerouting priority dstnat ; }")
    run(f"nft add rule ip kube services ip daddr 10.96.0.9 tcp dport 8080 dnat to {address}:{port}")
    assert caller_seen(pod.namespace, world.outside, "10.96.0.9", port=port, dialled=8080) is None
    run(f"nft add rule ip kube services ip daddr 10.96.0.10 tcp dport 8080 dnat to {INTERNET}:{port}")
    assert caller_seen(pod.namespace, world.outside, "10.96.0.10", port=port, dialled=8080) == PRIMARY


@pytest.mark.parametrize("flags", [0x11, 0x04, 0x14], ids=["FIN", "RST", "RST+ACK"])
@pytest.mark.parametrize(("address", "arrives"), [(INTERNET, False), (AZURE_DNS, False), (PEER, True)])
def test_the_end_of_a_forgotten_connection_shows_nobody_a_pods_address(
    world: World, pod: PodHandle, flags: int, address: str, arrives: bool
) -> None:
    """conntrack has no entry, and makes none for what ends a connection: nothing is translated."""
    with inside(world.outside):
        seen = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
    with inside(pod.namespace):
        sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    with seen, sender:
        seen.bind(("nic0", 0x0800))
        for destination in (address, PEER):  # what is direct comes last, and through
            sender.sendto(segment(pod.address, destination, flags), (destination, 0))
        found: list[tuple[str, str]] = []
        seen.settimeout(5)
        while not found or found[-1] != (pod.address, PEER):
            packet = seen.recv(128)
            if packet[23] == socket.IPPROTO_TCP:
                found.append((socket.inet_ntoa(packet[26:30]), socket.inet_ntoa(packet[30:34])))
    assert ((pod.address, address) in found) == arrives


def segment(source: str, destination: str, flags: int) -> bytes:
    """A TCP header with a right checksum."""
    head = struct.pack("!HHIIBBHHH", 40000, 443, 1, 1, 5 << 4, flags, 1024, 0, 0)
    pseudo = socket.inet_aton(source) + socket.inet_aton(destination) + struct.pack("!BBH", 0, 6, len(head))
    total = sum(struct.unpack(f"!{(len(pseudo) + len(head)) // 2}H", pseudo + head))
    total = (total & 0xFFFF) + (total >> 16)
    return head[:16] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + head[18:]
