"""Compares an attachment's interface with its declared end state (CNI's CHECK); returns deviations as sentences.

Reads only. Changes that chained plugins may make are accepted: further addresses and routes, a smaller MTU, statistics.
Called from the kernel's thread by `Transparent.check`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vnetpods_agent.attachment import Attachment
from vnetpods_agent.dataplane.names import UNTRANSLATED
from vnetpods_agent.dataplane.netlink import messages as rt
from vnetpods_agent.dataplane.netlink import tables
from vnetpods_agent.dataplane.netlink.socket import NetlinkRequest, NetlinkSocket
from vnetpods_agent.dataplane.pod import host_veth
from vnetpods_agent.dataplane.pod.host_veth import GATEWAY


def deviations(
    attachment: Attachment, host_link: rt.Link | None, host: NetlinkSocket, pod: NetlinkSocket
) -> Sequence[str]:
    """Every deviation on both sides; empty without any."""
    name = attachment.key.ifname
    pod_link = pod.ask(NetlinkRequest("look for", name, rt.link_get(name=name)), rt.read_link)
    return [*_host_side(attachment, host_link, host), *_pod_side(attachment, pod_link, host_link, pod)]


def _host_side(attachment: Attachment, link: rt.Link | None, host: NetlinkSocket) -> Iterator[str]:
    address = attachment.address
    if link is None or link.group == host_veth.DYING:
        yield f"the host has no interface of {attachment.key}"
        return
    yield from _link(link, f"the host's {link.name}", attachment.host_mac)
    if link.name != attachment.host_ifname:
        newer = "a newer sandbox of this pod name exists"
        yield f"the host's interface is called {link.name} instead of {attachment.host_ifname}: {newer}"
    if host_veth.owner(link) != (attachment.key, address):
        yield f"the host's {link.name} doesn't name {attachment.key} with {address} as its owner"
    if link.arp:
        yield f"the host's {link.name} answers ARP"
    if not attachment.snat and link.group != UNTRANSLATED:
        yield f"the host's {link.name} isn't exempt from SNAT"
    if link.lacks(host_veth.SETTINGS):
        yield f"net.ipv4.conf.{link.name} has other settings than pods need"
    routes = tables.routes(host, link.name, index=link.index)
    if not any((route.destination, route.prefix) == (address, 32) for route in routes):
        yield f"the host has no route to {address} through {link.name}"
    yield from _neighbour(host, link, address, attachment.pod_mac, f"the host's {link.name}")


def _pod_side(
    attachment: Attachment, link: rt.Link | None, host_link: rt.Link | None, pod: NetlinkSocket
) -> Iterator[str]:
    name, address = attachment.key.ifname, attachment.address
    loopback = pod.ask(NetlinkRequest("look for", "lo", rt.link_get(rt.LOOPBACK)), rt.read_link)
    if loopback is None or not loopback.up:
        yield "the pod's lo is down"
    if link is None:
        yield f"the pod has no {name}"
        return
    yield from _link(link, f"the pod's {name}", attachment.pod_mac)
    if host_link and link.mtu > host_link.mtu:
        yield f"the pod's {name} has MTU {link.mtu}, more than the host's end with {host_link.mtu}"
    if tables.HeldAddress(link.index, address, 32) not in tables.addresses(pod, name, link.index):
        yield f"the pod's {name} doesn't have {address}/32"
    routes = tables.routes(pod, "the pod")
    if not any((route.destination, route.prefix, route.index) == (GATEWAY, 32, link.index) for route in routes):
        yield f"the pod has no route to {GATEWAY}"
    if not any(route.prefix == 0 for route in routes):
        yield "the pod has no default route"
    yield from _neighbour(pod, link, GATEWAY, attachment.host_mac, f"the pod's {name}")


def _link(link: rt.Link, which: str, mac: str) -> Iterator[str]:
    if not link.up:
        yield f"{which} is down"
    if link.mac != mac:
        yield f"{which} has MAC {link.mac} instead of {mac}"


def _neighbour(netlink: NetlinkSocket, link: rt.Link, address: str, mac: str, which: str) -> Iterator[str]:
    wanted = tables.Neighbour(link.index, address, mac)
    if wanted not in tables.neighbours(netlink, link.name, link.index):
        yield f"{which} has no permanent neighbour {address} with {mac}"
