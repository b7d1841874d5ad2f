"""Finds listed addresses that no pod may have, from any source: the second line of defence.

Pure; called by pool_sync for every state of the pool. The operator lists what Azure has on the NIC, and Azure assigns
none of these; a file, a defect or a writer of NodeIPPools may list them. A pod with 168.63.129.16 would get the DNS
queries of all others; a pod's traffic can't be translated if its NIC's primary address is unknown.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from vnetpods_agent.attachment import Address, expand
from vnetpods_api import Interface

_SPECIAL = {
    ipaddress.IPv4Network(network): what
    for network, what in {
        "168.63.129.16/32": "Azure's own address on every VNet",
        "169.254.0.0/16": "link-local: instance metadata and the pods' gateway are there",
        "127.0.0.0/8": "the loopback network",
        "0.0.0.0/8": "no host's address",
        "224.0.0.0/4": "multicast",
        "240.0.0.0/4": "reserved",
    }.items()
}
_FIRST = ("the network itself", "the subnet's gateway", "Azure's DNS", "Azure's DNS")


@dataclass(frozen=True, slots=True)
class Screened:
    """`refused`: addresses that no pod gets; `nics`: MACs of NICs whose addresses are all refused; `reasons` name them,
    and listed entries that are no addresses.
    """

    refused: frozenset[Address] = frozenset()
    nics: frozenset[str] = frozenset()
    reasons: tuple[str, ...] = ()


def screen(interfaces: Iterable[Interface]) -> Screened:
    refused: set[Address] = set()
    nics: set[str] = set()
    reasons: list[str] = []
    for interface in interfaces:
        if not interface.primary_address and interface.addresses:
            nics.add(interface.mac)
            refused.update(address for unit in interface.addresses for address in expand(unit))
            reasons.append(
                f"{interface.name} lists no primaryAddress, so its pods couldn't reach the internet: none of its"
                f" {len(interface.addresses)} addresses is used"
            )
            continue
        for unit in interface.addresses:
            if not (addresses := expand(unit)):
                reasons.append(f"{unit} on {interface.name}: neither an IPv4 address nor a block of at most 16")
            for address in addresses:
                if why := _unfit(address, interface.prefixes):
                    refused.add(address)
                    reasons.append(f"{address} on {interface.name}: {why}")
    return Screened(frozenset(refused), frozenset(nics), tuple(reasons))


@lru_cache(maxsize=4096)
def _unfit(address: Address, prefixes: tuple[str, ...]) -> str:
    ip = ipaddress.IPv4Address(address)
    if special := next((what for network, what in _SPECIAL.items() if ip in network), ""):
        return special
    for network in _networks(prefixes):
        if ip in network:
            offset = int(ip) - int(network.network_address)
            if offset < len(_FIRST):
                return f"{_FIRST[offset]} in {network}"
            if ip == network.broadcast_address:
                return f"the last address of {network}, which Azure keeps"
    return ""


def _networks(prefixes: Iterable[str]) -> Iterator[ipaddress.IPv4Network]:
    for prefix in prefixes:
        try:
            yield ipaddress.IPv4Network(prefix, strict=False)
        except ValueError:
            continue  # the data plane reports it
