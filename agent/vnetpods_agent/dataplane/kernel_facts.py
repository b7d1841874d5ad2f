"""Facts about this machine for the data plane and its callers.

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
    """The boot id, new with every boot: attachments of another one are void."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def links(netlink: NetlinkSocket) -> list[Link]:
    return netlink.dump(NetlinkRequest("list links of", "the host", links_dump()), read_link)


@dataclass(frozen=True, slots=True)
class Uplink:
    """A NIC of the pool with its interface."""

    nic: Nic
    link: Link


def uplinks(nics: Iterable[Nic], links: Sequence[Link], held: Sequence[HeldAddress]) -> list[Uplink]:
    """The interface of every NIC that has one.

    Several interfaces may have the NIC's MAC: with accelerated networking the virtual function is enslaved to the
    synthetic interface and repeats its MAC, and a bridge repeats its port's. The one with the primary address is
    chosen; otherwise one without a master.
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
    """Limits for pods on the NIC with this MAC, from its interface; None without one.

    A GSO size above the default (BIG TCP, which has to be switched on) is not passed on to pods.
    """
    with NetlinkSocket() as netlink:
        found = uplinks([Nic(mac, Address(""), (), ())], links(netlink), [])
    if not found:
        return None
    link = found[0].link
    return Limits(link.mtu, min(link.gso_max_size, GSO_MAX_SIZE) or GSO_MAX_SIZE)
