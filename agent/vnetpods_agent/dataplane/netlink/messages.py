"""Packs and parses, byte by byte, the rtnetlink messages of ADD and DEL.

Pure: no sockets here (see `netlink.socket`). By hand, since every ADD sends 15 of these messages: packing them takes
0.1 ms, with pyroute2 2 ms; parsing a link takes 0.03 ms, against 0.25. `tables` has the messages off that path. The
tests decode our messages with pyroute2, and parse pyroute2's. Each function shows the equivalent `ip` command.

Every request starts with `struct nlmsghdr {u32 len; u16 type; u16 flags; u32 seq; u32 pid}` and a family header,
shown beside its format below (include/uapi/linux/rtnetlink.h, if_link.h, if_addr.h, neighbour.h, fib_rules.h). The
sequence number is 0 here and filled in when the message is sent. All numbers are in host order, except
addresses.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

NLMSGHDR = struct.Struct("=IHHII")
IFINFOMSG = struct.Struct("=BxHiII")  # u8 family; u16 type; s32 index; u32 flags; u32 change
IFADDRMSG = struct.Struct("=BBBBi")  # u8 family; u8 prefixlen; u8 flags; u8 scope; u32 index
RTMSG = struct.Struct("=BBBBBBBBI")  # u8 family, dst_len, src_len, tos, table, protocol, scope, type; u32 flags
NDMSG = struct.Struct("=BxxxiHBB")  # u8 family; s32 ifindex; u16 state; u8 flags; u8 type
FIB_RULE_HDR = struct.Struct("=BBBBBxxBI")  # u8 family, dst_len, src_len, tos, table; u8 action; u32 flags
NLATTR = struct.Struct("=HH")  # u16 len; u16 type
U32 = struct.Struct("=I")

NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR = 0x1, 0x4, 0x10
NLM_F_CAPPED, NLM_F_ACK_TLVS = 0x100, 0x200
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x100, 0x200, 0x400, 0x800
NLM_F_DUMP = 0x300

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 16, 17, 18, 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE, RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 24, 25, 26, 28, 29, 30
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
RTM_NEWLINKPROP = 108

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER = 1, 3, 4, 5, 10
IFLA_LINKINFO, IFLA_IFALIAS, IFLA_AF_SPEC, IFLA_GROUP = 18, 20, 26, 27
IFLA_NET_NS_FD, IFLA_EXT_MASK, IFLA_NUM_TX_QUEUES, IFLA_NUM_RX_QUEUES, IFLA_GSO_MAX_SIZE = 28, 29, 31, 32, 41
IFLA_PROP_LIST, IFLA_ALT_IFNAME, NLA_F_NESTED = 52, 53, 0x8000
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE = 8, 1
IFLA_INET_CONF = 1
# IPV4_DEVCONF_*, include/uapi/linux/ip.h: the settings in /proc/sys/net/ipv4/conf/LINK, same names
FORWARDING, PROXY_ARP, ACCEPT_REDIRECTS, SEND_REDIRECTS, RP_FILTER, ACCEPT_SOURCE_ROUTE = 1, 3, 4, 6, 8, 9
ROUTE_LOCALNET = 26
RTEXT_FILTER_SKIP_STATS = 8
IFF_UP, IFF_NOARP = 0x1, 0x80
IFA_ADDRESS, IFA_LOCAL = 1, 2
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_TABLE = 1, 4, 5, 15
NDA_DST, NDA_LLADDR = 1, 2
NUD_PERMANENT = 0x80
FRA_SRC, FRA_PRIORITY, FRA_FWMARK, FRA_SUPPRESS_PREFIXLEN, FRA_TABLE, FRA_FWMASK, FRA_PROTOCOL = (
    2,
    6,
    10,
    14,
    15,
    16,
    21,
)
FR_ACT_TO_TBL, RTN_UNICAST = 1, 1
RT_TABLE_MAIN, RTNH_F_ONLINK, RTPROT_KERNEL = 254, 4, 2
IFA_F_SECONDARY = 0x1
SCOPE_UNIVERSE, SCOPE_LINK = 0, 253

PROTOCOL = 118
"""The protocol number of all our routes and rules (`ip route show proto 118`); unassigned in /etc/iproute2/rt_protos,
and no routing daemon uses it."""

ANY = "0.0.0.0"  # noqa: S104 - the default route's destination, not an address to bind to
LOOPBACK = 1
"""lo's index in every network namespace (LOOPBACK_IFINDEX in the kernel)."""


def attribute(kind: int, payload: bytes) -> bytes:
    """One struct nlattr with its payload, padded to four bytes."""
    return NLATTR.pack(4 + len(payload), kind) + payload + bytes(-len(payload) & 3)


def request(kind: int, flags: int, payload: bytes) -> bytes:
    """A whole message; sequence number and port id are 0."""
    return NLMSGHDR.pack(16 + len(payload), kind, NLM_F_REQUEST | flags, 0, 0) + payload


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, U32.pack(value))


def _mac(value: str) -> bytes:
    return bytes.fromhex(value.replace(":", ""))


@dataclass(frozen=True, slots=True)
class VethEnd:
    """One end of a veth pair to create."""

    name: str
    index: int
    mac: str
    mtu: int
    gso_max_size: int

    def attributes(self) -> bytes:
        """One queue per end: by default the kernel creates one per possible CPU, each with sysfs entries."""
        return (
            _text(IFLA_IFNAME, self.name)
            + attribute(IFLA_ADDRESS, _mac(self.mac))
            + _number(IFLA_MTU, self.mtu)
            + _number(IFLA_GSO_MAX_SIZE, self.gso_max_size)
            + _number(IFLA_NUM_TX_QUEUES, 1)
            + _number(IFLA_NUM_RX_QUEUES, 1)
        )


def veth_create(here: VethEnd, there: VethEnd, netns_fd: int | None) -> bytes:
    """`ip link add HERE index I address MAC mtu M gso_max_size G type veth peer name THERE index J address MAC mtu M
    gso_max_size G [netns FD]`.
    """
    peer = IFINFOMSG.pack(0, 0, there.index, 0, 0) + there.attributes()
    peer += b"" if netns_fd is None else _number(IFLA_NET_NS_FD, netns_fd)
    info = _text(IFLA_INFO_KIND, "veth") + attribute(IFLA_INFO_DATA, attribute(VETH_INFO_PEER, peer))
    payload = IFINFOMSG.pack(0, 0, here.index, 0, 0) + here.attributes() + attribute(IFLA_LINKINFO, info)
    return request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, payload)


def link_set(index: int, *attributes: bytes, up: bool | None = None, arp: bool | None = None) -> bytes:
    """`ip link set dev INDEX [up|down] [arp on|off] …`."""
    flags = (IFF_UP if up else 0) | (IFF_NOARP if arp is False else 0)
    change = (0 if up is None else IFF_UP) | (0 if arp is None else IFF_NOARP)
    head = IFINFOMSG.pack(0, 0, index, flags, change)
    return request(RTM_NEWLINK, 0, head + b"".join(attributes))


def link_alias(alias: str) -> bytes:
    """`… alias TEXT`."""
    return _text(IFLA_IFALIAS, alias)


def link_altname_add(index: int, name: str) -> bytes:
    """`ip link property add dev INDEX altname NAME`; EEXIST if it exists."""
    properties = attribute(IFLA_PROP_LIST | NLA_F_NESTED, _text(IFLA_ALT_IFNAME, name))
    return request(RTM_NEWLINKPROP, NLM_F_CREATE | NLM_F_EXCL, IFINFOMSG.pack(0, 0, index, 0, 0) + properties)


def link_name(name: str) -> bytes:
    """`… name NAME`; before kernel 6.2 EBUSY while the link is up."""
    return _text(IFLA_IFNAME, name)


def link_mac(mac: str) -> bytes:
    """`… address MAC`."""
    return attribute(IFLA_ADDRESS, _mac(mac))


def link_group(group: int) -> bytes:
    """`… group N`."""
    return _number(IFLA_GROUP, group)


def link_without_ipv6_address() -> bytes:
    """`… addrgenmode none`: no link-local address, hence no DAD, MLD and router solicitations."""
    mode = attribute(IFLA_INET6_ADDR_GEN_MODE, bytes([IN6_ADDR_GEN_MODE_NONE]))
    return attribute(IFLA_AF_SPEC, attribute(socket.AF_INET6, mode))


def link_settings(settings: Mapping[int, int]) -> bytes:
    """`sysctl net.ipv4.conf.LINK.NAME=VALUE …`."""
    values = b"".join(_number(number, value) for number, value in settings.items())
    return attribute(IFLA_AF_SPEC, attribute(socket.AF_INET, attribute(IFLA_INET_CONF, values)))


def link_get(index: int = 0, name: str = "") -> bytes:
    """`ip link show dev NAME`, without statistics."""
    payload = IFINFOMSG.pack(0, 0, index, 0, 0) + _number(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
    return request(RTM_GETLINK, 0, payload + (_text(IFLA_IFNAME, name) if name else b""))


def link_delete(index: int = 0, group: int = 0) -> bytes:
    """`ip link del dev INDEX`, or `ip link del group N`: the whole group in one operation."""
    payload = IFINFOMSG.pack(0, 0, index, 0, 0)
    return request(RTM_DELLINK, 0, payload + (_number(IFLA_GROUP, group) if group else b""))


def address_add(address: str, prefix: int, index: int) -> bytes:
    """`ip addr replace ADDRESS/PREFIX dev INDEX`."""
    raw = socket.inet_aton(address)
    payload = IFADDRMSG.pack(socket.AF_INET, prefix, 0, SCOPE_UNIVERSE, index)
    return request(
        RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, payload + attribute(IFA_LOCAL, raw) + attribute(IFA_ADDRESS, raw)
    )


@dataclass(frozen=True, slots=True, order=True)
class Route:
    """`ip route add DESTINATION/PREFIX [via GATEWAY] dev INDEX [onlink] table TABLE proto PROTOCOL scope …`.

    The scope is link without a gateway, otherwise global. `onlink`: the gateway isn't checked against other routes.
    `source`: the source of the host's own packets (`src`); only read, never set.
    """

    destination: str
    prefix: int
    index: int
    gateway: str = ""
    table: int = RT_TABLE_MAIN
    protocol: int = PROTOCOL
    onlink: bool = False
    source: str = ""


def route_add(route: Route) -> bytes:
    """`ip route replace …`."""
    return request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, _route(route))


def route_append(route: Route) -> bytes:
    """`ip route append …`: beside another interface's to the same destination; EEXIST if it exists."""
    return request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_APPEND, _route(route))


def route_add_first(route: Route) -> bytes:
    """`ip route add …`; EEXIST if any interface has a route to that destination."""
    return request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, _route(route))


def route_delete(route: Route) -> bytes:
    """`ip route del …`: only the one with our protocol number."""
    return request(RTM_DELROUTE, 0, _route(route))


def _route(route: Route) -> bytes:
    scope = SCOPE_UNIVERSE if route.gateway else SCOPE_LINK
    table = route.table if route.table < 256 else 0
    flags = RTNH_F_ONLINK if route.onlink else 0
    head = RTMSG.pack(socket.AF_INET, route.prefix, 0, 0, table, route.protocol, scope, RTN_UNICAST, flags)
    payload = head + _number(RTA_TABLE, route.table) + _number(RTA_OIF, route.index)
    if route.prefix:
        payload += attribute(RTA_DST, socket.inet_aton(route.destination))
    if route.gateway:
        payload += attribute(RTA_GATEWAY, socket.inet_aton(route.gateway))
    return payload


def neighbour_add(address: str, mac: str, index: int) -> bytes:
    """`ip neigh replace ADDRESS lladdr MAC dev INDEX nud permanent`."""
    payload = NDMSG.pack(socket.AF_INET, index, NUD_PERMANENT, 0, RTN_UNICAST)
    payload += attribute(NDA_DST, socket.inet_aton(address)) + attribute(NDA_LLADDR, _mac(mac))
    return request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, payload)


def neighbour_delete(address: str, index: int) -> bytes:
    """`ip neigh del ADDRESS dev INDEX`."""
    payload = NDMSG.pack(socket.AF_INET, index, 0, 0, 0) + attribute(NDA_DST, socket.inet_aton(address))
    return request(RTM_DELNEIGH, 0, payload)


@dataclass(frozen=True, slots=True, order=True)
class Rule:
    """`ip rule add priority P [from SOURCE] fwmark MARK/MASK lookup TABLE [suppress_prefixlength N] protocol 118`."""

    priority: int
    mark: int
    mask: int
    table: int
    suppress_prefix: int = -1
    protocol: int = PROTOCOL
    source: str = ""  # only set, never read


def rule_add(rule: Rule) -> bytes:
    """`ip rule add …`; EEXIST if it exists."""
    return request(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, _rule(rule))


def rule_delete(rule: Rule) -> bytes:
    """`ip rule del …`."""
    return request(RTM_DELRULE, 0, _rule(rule))


def _rule(rule: Rule) -> bytes:
    table = rule.table if rule.table < 256 else 0
    payload = FIB_RULE_HDR.pack(socket.AF_INET, 0, 32 if rule.source else 0, 0, table, FR_ACT_TO_TBL, 0)
    payload += attribute(FRA_SRC, socket.inet_aton(rule.source)) if rule.source else b""
    payload += _number(FRA_PRIORITY, rule.priority) + _number(FRA_TABLE, rule.table)
    payload += _number(FRA_FWMARK, rule.mark) + _number(FRA_FWMASK, rule.mask)
    payload += attribute(FRA_PROTOCOL, bytes([rule.protocol]))
    if rule.suppress_prefix >= 0:
        payload += _number(FRA_SUPPRESS_PREFIXLEN, rule.suppress_prefix)
    return payload


def links_dump() -> bytes:
    """`ip link show`, without statistics."""
    return request(
        RTM_GETLINK, NLM_F_DUMP, IFINFOMSG.pack(0, 0, 0, 0, 0) + _number(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
    )


def attributes(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """The (type, payload) pairs of a sequence of struct nlattr; the type's flag bits are removed."""
    while offset + 4 <= len(data):
        length, kind = NLATTR.unpack_from(data, offset)
        if length < 4:
            return
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface as the kernel describes it. `peer`: the index of a veth's other end; `ipv4`: its settings, by
    IPV4_DEVCONF_* - 1.
    """

    index: int
    name: str
    up: bool
    mac: str
    mtu: int
    gso_max_size: int
    alias: str
    kind: str
    group: int
    master: int
    peer: int
    altnames: tuple[str, ...] = ()
    arp: bool = True
    ipv4: tuple[int, ...] = ()

    def lacks(self, settings: Mapping[int, int]) -> bool:
        """Whether any of the settings differs; False if the kernel reports none."""
        return bool(self.ipv4) and any(self.ipv4[number - 1] != value for number, value in settings.items())


def read_link(payload: bytes) -> Link:
    _, _, index, flags, _ = IFINFOMSG.unpack_from(payload)
    found = dict(attributes(payload, IFINFOMSG.size))
    info = dict(attributes(found.get(IFLA_LINKINFO, b"")))
    families = dict(attributes(found.get(IFLA_AF_SPEC, b"")))
    ipv4 = dict(attributes(families.get(socket.AF_INET, b""))).get(IFLA_INET_CONF, b"")
    return Link(
        index=index,
        name=_string(found.get(IFLA_IFNAME, b"")),
        up=bool(flags & IFF_UP),
        mac=found.get(IFLA_ADDRESS, b"").hex(":"),
        mtu=_value(found.get(IFLA_MTU)),
        gso_max_size=_value(found.get(IFLA_GSO_MAX_SIZE)),
        alias=_string(found.get(IFLA_IFALIAS, b"")),
        kind=_string(info.get(IFLA_INFO_KIND, b"")),
        group=_value(found.get(IFLA_GROUP)),
        master=_value(found.get(IFLA_MASTER)),
        peer=_value(found.get(IFLA_LINK)),
        altnames=tuple(_string(name) for _, name in attributes(found.get(IFLA_PROP_LIST, b""))),
        arp=not flags & IFF_NOARP,
        ipv4=struct.unpack(f"={len(ipv4) // 4}I", ipv4),
    )


def _string(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="replace")


def _value(raw: bytes | None) -> int:
    return int(U32.unpack(raw)[0]) if raw else 0
