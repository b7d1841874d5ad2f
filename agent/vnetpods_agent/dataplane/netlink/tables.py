"""Reads the kernel's addresses, routes, rules and neighbours with pyroute2's message classes.

For the host's state and CHECK, which read them a few times per minute; from any thread, over the caller's socket. Links
are not included: every ADD and DEL queries some, so `messages` parses them by hand. pyroute2 decodes ten times slower
(70 us per entry), so unneeded entries aren't decoded, and no route twice: a listing of 250 pods' routes mostly repeats
the previous one. Each function shows the equivalent `ip` command; all raise DataPlaneError.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from vnetpods_agent.dataplane.netlink.codec import fibmsg, ifaddrmsg, ndmsg, rtmsg
from vnetpods_agent.dataplane.netlink.messages import (
    ANY,
    IFA_F_SECONDARY,
    NDMSG,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSGHDR,
    NUD_PERMANENT,
    RT_TABLE_MAIN,
    RTM_DELADDR,
    RTM_GETADDR,
    RTM_GETNEIGH,
    RTM_GETROUTE,
    RTM_GETRULE,
    RTNH_F_ONLINK,
    Route,
    Rule,
)
from vnetpods_agent.dataplane.netlink.socket import NetlinkRequest, NetlinkSocket

_HOST = "the host"
_NOT_SUPPRESSED = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class HeldAddress:
    """An IPv4 address on an interface; `secondary`: the interface has an earlier one of the same subnet."""

    index: int
    address: str
    prefix: int
    secondary: bool = False


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A permanent entry of the neighbour table."""

    index: int
    address: str
    mac: str


def addresses(netlink: NetlinkSocket, of: str = _HOST, index: int = 0) -> list[HeldAddress]:
    """`ip -4 addr show [dev INDEX]` (the filter needs a socket with strict checking)."""
    listing = _packed(ifaddrmsg(), RTM_GETADDR, NLM_F_DUMP, index=index)
    return netlink.dump(NetlinkRequest("list addresses of", of, listing), _address)


def routes(netlink: NetlinkSocket, of: str = _HOST, table: int = RT_TABLE_MAIN, index: int = 0) -> list[Route]:
    """`ip route show table TABLE [dev INDEX]` (likewise)."""
    filters = {"RTA_TABLE": table} | ({"RTA_OIF": index} if index else {})
    listing = _packed(rtmsg(), RTM_GETROUTE, NLM_F_DUMP, filters)
    return netlink.dump(NetlinkRequest("list routes of", of, listing), _route)


def neighbours(netlink: NetlinkSocket, of: str = _HOST, index: int = 0) -> list[Neighbour]:
    """`ip -4 neigh show [dev INDEX] nud permanent` (likewise)."""
    listing = _packed(ndmsg(), RTM_GETNEIGH, NLM_F_DUMP, {"NDA_IFINDEX": index} if index else {})
    found = netlink.dump(NetlinkRequest("list neighbours of", of, listing), _neighbour)
    return [neighbour for neighbour in found if neighbour]


def rules(netlink: NetlinkSocket) -> list[Rule]:
    """`ip -4 rule show`."""
    return netlink.dump(NetlinkRequest("list rules of", _HOST, _packed(fibmsg(), RTM_GETRULE, NLM_F_DUMP)), _rule)


def address_removal(held: HeldAddress) -> bytes:
    """`ip addr del ADDRESS/PREFIX dev INDEX`."""
    attributes = {"IFA_LOCAL": held.address}
    return _packed(ifaddrmsg(), RTM_DELADDR, 0, attributes, index=held.index, prefixlen=held.prefix)


def _packed(message: Any, kind: int, flags: int, attributes: dict[str, Any] | None = None, **fields: int) -> bytes:
    message.update(fields, family=socket.AF_INET, attrs=list((attributes or {}).items()))
    message["header"].update(type=kind, flags=NLM_F_REQUEST | flags)
    message.encode()
    return bytes(message.data)


def _decoded(kind: Callable[[bytes], Any], payload: bytes) -> Any:
    message = kind(NLMSGHDR.pack(NLMSGHDR.size + len(payload), 0, 0, 0, 0) + payload)
    message.decode()
    return message


def _address(payload: bytes) -> HeldAddress:
    found = _decoded(ifaddrmsg, payload)
    secondary = bool(found["flags"] & IFA_F_SECONDARY)
    return HeldAddress(found["index"], found.get_attr("IFA_LOCAL"), found["prefixlen"], secondary)


@lru_cache(maxsize=4096)
def _route(payload: bytes) -> Route:
    """Routes of other kinds (several next hops, blackholes) get index 0."""
    found = _decoded(rtmsg, payload)
    return Route(
        destination=found.get_attr("RTA_DST", ANY),
        prefix=found["dst_len"],
        index=found.get_attr("RTA_OIF", 0),
        gateway=found.get_attr("RTA_GATEWAY", ""),
        table=found.get_attr("RTA_TABLE"),
        protocol=found["proto"],
        onlink=bool(found["flags"] & RTNH_F_ONLINK),
        source=found.get_attr("RTA_PREFSRC", ""),
    )


def _neighbour(payload: bytes) -> Neighbour | None:
    """None if it isn't permanent: a node may have thousands of others."""
    _, index, state, _, _ = NDMSG.unpack_from(payload)
    if not state & NUD_PERMANENT:
        return None
    found = _decoded(ndmsg, payload)
    return Neighbour(index, found.get_attr("NDA_DST", ANY), found.get_attr("NDA_LLADDR", ""))


def _rule(payload: bytes) -> Rule:
    found = _decoded(fibmsg, payload)
    suppress = found.get_attr("FRA_SUPPRESS_PREFIXLEN")
    return Rule(
        priority=found.get_attr("FRA_PRIORITY", 0),
        mark=found.get_attr("FRA_FWMARK", 0),
        mask=found.get_attr("FRA_FWMASK", 0),
        table=found.get_attr("FRA_TABLE"),
        suppress_prefix=-1 if suppress == _NOT_SUPPRESSED else suppress,
        protocol=found.get_attr("FRA_PROTOCOL"),
    )
