"""Receives the kernel's notifications about links, addresses, routes, rules and nftables.

Used by the host reconciler's thread alone. NetlinkMonitor only returns the areas that may have changed; their state is
always read anew. If the buffers overflow (a burst of pods), everything may have changed. Parsed by hand: each ADD
causes seven of these messages, for which pyroute2 takes fifteen times as long (1.5 ms), and it lacks RTM_NEWNETCONF.
"""

from __future__ import annotations

import contextlib
import enum
import os
import selectors
import socket
import sys
from collections.abc import Callable, Iterator

from vnetpods_agent.attachment import HOST_PREFIX
from vnetpods_agent.dataplane.names import FIRST_INDEX, TABLE
from vnetpods_agent.dataplane.netlink.messages import (
    IFINFOMSG,
    IFLA_IFNAME,
    NLMSGHDR,
    PROTOCOL,
    RT_TABLE_MAIN,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELROUTE,
    RTM_DELRULE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTMSG,
    attributes,
)
from vnetpods_agent.dataplane.netlink.socket import BUFFER, NETLINK_ADD_MEMBERSHIP, SOL_NETLINK


class Area(enum.Enum):
    """A part of the host's state that is checked as a unit."""

    ADDRESSES = "addresses on the host's own interfaces"
    SETTINGS = "sysctls"
    ROUTING = "policy routing"
    RULESET = "nftables"
    FORWARDING = "the FORWARD policy of iptables-nft"
    LEGACY_FORWARDING = "the FORWARD policy of iptables-legacy"
    FIREWALL = "what nftables' other tables do to pods"
    PODS = "pods' host ends"


_NETLINK_NETFILTER = 12
_ROUTE_GROUPS = (1, 5, 7, 8, 24)  # RTNLGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_RULE, _IPV4_NETCONF
_NFNLGRP_NFTABLES = 7
_SUBSYS_NFTABLES = 10
_SERVICES = frozenset({b"nat", b"mangle", b"raw", b"kube-proxy"})
"""Tables that change with every Service."""
_RTM_NEWNETCONF, _NETCONFA_IFINDEX = 80, 1
_SO_RCVBUFFORCE = 33
_ROOM = 1 << 21
_AREAS = {
    RTM_NEWADDR: {Area.ADDRESSES},
    RTM_DELADDR: {Area.ADDRESSES, Area.ROUTING},
    RTM_DELROUTE: {Area.ROUTING, Area.PODS},
    RTM_DELRULE: {Area.ROUTING},
}


class NetlinkMonitor:
    """Two multicast sockets and a wake-up pipe; `wait` returns the areas that may have changed."""

    def __init__(self) -> None:
        self._route = _listener(socket.NETLINK_ROUTE, _ROUTE_GROUPS)
        self._netfilter = _listener(_NETLINK_NETFILTER, (_NFNLGRP_NFTABLES,))
        self._woken, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        for source in (self._route, self._netfilter, self._woken):
            self._selector.register(source, selectors.EVENT_READ)

    def close(self) -> None:
        self._selector.close()
        self._route.close()
        self._netfilter.close()
        os.close(self._woken)
        os.close(self._waker)

    def wake(self) -> None:
        """Ends a `wait`; from any thread."""
        with contextlib.suppress(BlockingIOError):  # the pipe is full: `wait` ends anyway
            os.write(self._waker, b"!")

    def wait(self, seconds: float) -> set[Area]:
        """Waits for notifications, `wake`, or the end of `seconds`."""
        found: set[Area] = set()
        for key, _ in self._selector.select(max(seconds, 0)):
            if key.fileobj is self._route:
                found |= _drained(self._route, _route_areas)
            elif key.fileobj is self._netfilter:
                found |= _drained(self._netfilter, _netfilter_areas)
            else:
                os.read(self._woken, 4096)
        return found


def _listener(family: int, groups: tuple[int, ...]) -> socket.socket:
    listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, family)
    listener.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM)
    listener.bind((0, 0))
    for group in groups:
        listener.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
    return listener


def _drained(source: socket.socket, areas_of: Callable[[int, bytes], set[Area]]) -> set[Area]:
    found: set[Area] = set()
    while True:
        try:
            data = source.recv(BUFFER)
        except BlockingIOError:
            return found
        except OSError:  # ENOBUFS: some were lost
            return set(Area)
        for kind, payload in _messages(data):
            found |= areas_of(kind, payload)


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + NLMSGHDR.size <= len(data):
        length, kind, _, _, _ = NLMSGHDR.unpack_from(data, offset)
        yield kind, data[offset + NLMSGHDR.size : offset + length]
        offset += (length + 3) & ~3


def _route_areas(kind: int, payload: bytes) -> set[Area]:
    if kind in {RTM_NEWLINK, RTM_DELLINK}:
        return _link_areas(kind, payload)
    if kind == _RTM_NEWNETCONF:
        return _setting_areas(payload)
    if kind in {RTM_NEWROUTE, RTM_DELROUTE} and RTMSG.unpack_from(payload)[5] != PROTOCOL:
        return _foreign_route_areas(payload)
    return _AREAS.get(kind, set())


def _link_areas(kind: int, payload: bytes) -> set[Area]:
    name = dict(attributes(payload, IFINFOMSG.size)).get(IFLA_IFNAME, b"")
    if name.startswith(HOST_PREFIX.encode()):
        return {Area.PODS} if kind == RTM_NEWLINK else set()
    # an uplink may have come, gone, been renamed or got another MTU
    return {Area.ADDRESSES, Area.SETTINGS, Area.ROUTING, Area.RULESET, Area.PODS}


def _foreign_route_areas(payload: bytes) -> set[Area]:
    """Foreign routes may misroute pods' packets (see `routing`), and a route's source shows the primary address."""
    _, prefix, _, _, table, *_ = RTMSG.unpack_from(payload)
    if table != RT_TABLE_MAIN or prefix == 32:
        return set()
    return {Area.ADDRESSES, Area.SETTINGS, Area.ROUTING, Area.RULESET}


def _setting_areas(payload: bytes) -> set[Area]:
    """Settings of one interface, or (negative index) of all. Each new pod's interface sends its own."""
    raw = dict(attributes(payload, 4)).get(_NETCONFA_IFINDEX, b"")
    index = int.from_bytes(raw, sys.byteorder, signed=True)
    return {Area.PODS} if index >= FIRST_INDEX else {Area.SETTINGS, Area.PODS}


def _netfilter_areas(kind: int, payload: bytes) -> set[Area]:
    """In every nftables message except the generation's, attribute 1 is the table's name."""
    if kind >> 8 != _SUBSYS_NFTABLES:
        return set()
    name = next((value for number, value in attributes(payload, 4) if number == 1), b"").rstrip(b"\0")
    if not name or name in _SERVICES:
        return set()
    return {TABLE.encode(): {Area.RULESET}, b"filter": {Area.FORWARDING}}.get(name, {Area.FIREWALL})
