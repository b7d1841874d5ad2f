"""Decides which pool addresses may be removed from the host's own interfaces: never one that the node itself needs.

Pure. A NodeIPPool may be another machine's (a disk image booted twice) or outdated (a NIC whose primary address has
changed), and then lists the node's own address for pods. So the pool alone removes nothing; the kernel has to confirm
it. An address is removed only

- from the interface of a NIC that this machine has, and only if the pool lists it for that very NIC: addresses on
  docker0 are Docker's;
- if that interface also holds the NIC's primary address according to the pool, and the kernel confirms it as primary:
  it is the source of a route (DHCP clients set it on the default route), or the interface's first. Being first isn't
  the only criterion, since systemd-networkd configures static addresses before the DHCP lease arrives;
- if no route of the host has it as its source.

So an interface never loses its primary or last address.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vnetpods_agent.attachment import HOST_PREFIX
from vnetpods_agent.dataplane.host.ruleset import collapsed
from vnetpods_agent.dataplane.kernel_facts import Uplink
from vnetpods_agent.dataplane.netlink.messages import RTPROT_KERNEL, Link, Route
from vnetpods_agent.dataplane.netlink.tables import HeldAddress


@dataclass(frozen=True, slots=True)
class Found:
    """A pool address on one of the host's interfaces, and why it has to stay there; empty: it may be removed."""

    held: HeldAddress
    interface: str
    stays: str = ""


def found(
    uplinks: Sequence[Uplink], links: Iterable[Link], held: Sequence[HeldAddress], routes: Iterable[Route]
) -> list[Found]:
    """All addresses of these NICs that the host holds, except primary ones."""
    names = {link.index: link.name for link in links}
    pool = collapsed(address for uplink in uplinks for address in uplink.nic.addresses)
    primaries = {uplink.nic.primary_address for uplink in uplinks}
    # the source of the kernel's route to an interface's subnet is its first address, whichever that is
    sources = {route.source for route in routes if route.source and route.protocol != RTPROT_KERNEL}
    own = {uplink.link.index: uplink for uplink in uplinks}
    judged = []
    for address in held:
        name = names.get(address.index, "")
        if address.address in primaries or name.startswith(HOST_PREFIX) or not _within(address.address, pool):
            continue
        judged.append(Found(address, name, _stays(address, name, own.get(address.index), held, sources)))
    return judged


def _stays(
    address: HeldAddress, name: str, uplink: Uplink | None, held: Sequence[HeldAddress], sources: set[str]
) -> str:
    if uplink is None or not _within(address.address, collapsed(uplink.nic.addresses)):
        return f"{name} isn't the interface of the NIC that the pool lists it for; give {name} other addresses"
    if address.address in sources:
        return "a route of the node has it as its source, so it is the node's own; is the NodeIPPool outdated?"
    primary = uplink.nic.primary_address
    there = [other for other in held if other.index == address.index]
    if primary not in {other.address for other in there}:
        return f"{name} lacks the primary address {primary} of the pool's NIC; is the NodeIPPool outdated?"
    first = next((other.address for other in there if not other.secondary), "")
    if primary not in {first, *sources}:
        return (
            f"nothing confirms that {primary} is the primary address of {name}: it is neither the first there nor the"
            " source of a route; is the NodeIPPool outdated?"
        )
    return ""


def _within(address: str, networks: Iterable[ipaddress.IPv4Network]) -> bool:
    return any(ipaddress.IPv4Address(address) in network for network in networks)
