"""Small facts about this machine that the data plane and its callers ask for.

`uplinks` is pure; the others only read. They block for less than a millisecond per hundred interfaces.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vnetpods_agent.attachment import GSO_MAX_SIZE, Address, Limits
from vnetpods_agent.dataplane import Nic
from vnetpods_agent.dataplane.netlink.messages import Link, links_dump, read_link
from vnetpods_agent.dataplane.netlink.socket import NetlinkRequest, NetlinkSocket
from vnetpods_agent.dataplane.netlink.tables import HeldAddress


def boot_id() -> str:
    """Changes with every boot: attachments of another boot id are void."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def links(netlink: NetlinkSocket) -> list[Link]:
    return netlink.dump(NetlinkRequest("list links of", "the host", links_dump()), read_link)


@dataclass(frozen=True, slots=True)
class Uplink:
    """A NIC of the pool together with the interface that carries it."""

    nic: Nic
    link: Link


def uplinks(nics: Iterable[Nic], links: Sequence[Link], held: Sequence[HeldAddress]) -> list[Uplink]:
    """The interface of every NIC that has one.

    Several interfaces may have the NIC's MAC: with accelerated networking the virtual function is enslaved to the
    synthetic interface and repeats its MAC, and a bridge repeats that of its port. The one that holds the primary
    address is meant; else one that is nobody's port.
    """
    found = []
    for nic in nics:
        candidates = [link for link in links if link.mac == nic.mac.lower()]
        holders = {address.index for address in held if address.address == nic.primary_address}
        candidates.sort(key=lambda link: (link.index not in holders, link.master != 0, link.index))
        if candidates:
            found.append(Uplink(nic, candidates[0]))
    return found


def uplink_limits(mac: str) -> Limits | None:
    """Those of the interface with this MAC, as pods on that NIC should have them; None when there is no such interface.

    More than the usual for TCP (BIG TCP, which somebody has to switch on) stays the NIC's own.
    """
    with NetlinkSocket() as netlink:
        found = uplinks([Nic(mac, Address(""), (), ())], links(netlink), [])
    if not found:
        return None
    link = found[0].link
    return Limits(link.mtu, min(link.gso_max_size, GSO_MAX_SIZE) or GSO_MAX_SIZE)
