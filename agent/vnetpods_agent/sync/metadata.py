"""Parses instance metadata's answer about a VM's NICs, and combines two consecutive answers. Pure.

`read` parses `GET /metadata/instance/network`. The first address of each NIC is its primary one, the others are for
pods; metadata has no names of ipConfigurations, so the interfaces have none. The form of a /28 block is undocumented:
both `"10.0.1.0/28"` and an address beside its prefix length are accepted. An invalid address is passed on unchanged,
since the code that screens the list reports it by name; a NIC without a valid MAC or an address (yet) is skipped.

`combine`: metadata lags behind the NIC by up to a minute, and an answer may be older than the previous one. So no
answer counts alone. An address in either of two consecutive answers is listed, so a pod that holds it keeps it; only an
address in both goes to a new pod, since one that left the NIC may already be in use elsewhere. A NIC that metadata no
longer names stays listed without addresses for as long as the machine has it: pods may still use it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from vnetpods_agent.attachment import Address, expand
from vnetpods_api import Interface

_LENGTHS = ("prefix", "prefixLength", "privateIpAddressPrefixLength", "privateIPAddressPrefixLength")
_MAC = re.compile(r"[0-9a-f]{12}")
_BLOCKS = ("28", "29", "30", "31")
_SINGLE = 32


class UnreadableAnswerError(ValueError):
    """The answer lists no addresses; the message names what it lacks."""


@dataclass(frozen=True, slots=True)
class Listing:
    """`withheld`: listed addresses that no new pod gets at present."""

    interfaces: tuple[Interface, ...] = ()
    withheld: frozenset[Address] = frozenset()


def read(document: Any) -> tuple[Interface, ...]:
    """The usable NICs, in the order of the answer. Raises UnreadableAnswerError."""
    if isinstance(document, dict) and "network" in document:
        document = document["network"]
    entries = document.get("interface") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise UnreadableAnswerError("it has no list `interface`")
    found = {nic.mac: nic for entry in entries if (nic := _interface(entry)) is not None}
    if not found:
        raise UnreadableAnswerError("it lists no interface with a macAddress and an IPv4 address")
    return tuple(found.values())


def combine(
    before: Sequence[Interface], now: Sequence[Interface], absent: Collection[str]
) -> tuple[Listing, tuple[Interface, ...]]:
    """The listing from an answer and the previous one (the very first answer is its own), and the `before` of the next
    call. `absent`: the MACs of NICs that the machine doesn't have.
    """
    former = {nic.mac: nic for nic in before or now}
    kept = tuple(
        msgspec.structs.replace(nic, addresses=())
        for nic in former.values()
        if nic.mac not in {other.mac for other in now} | set(absent)
    )
    current = (*now, *kept)
    taken = _all(now) | {nic.primary_address for nic in now}
    listed = tuple(
        msgspec.structs.replace(nic, addresses=(*nic.addresses, *_but(former[nic.mac].addresses, taken)))
        if nic.mac in former
        else nic
        for nic in current
    )
    # per NIC: an address that moved to another NIC is new there
    withheld = frozenset(
        address
        for nic in current
        for address in _all([nic]) ^ _all([former[nic.mac]] if nic.mac in former else [])
        if address not in taken or address in _all([nic])
    )
    return Listing(listed, withheld), current


def _all(interfaces: Iterable[Interface]) -> frozenset[Address]:
    return frozenset(address for nic in interfaces for unit in nic.addresses for address in expand(unit))


def _but(units: Iterable[str], taken: Collection[str | None]) -> Iterator[str]:
    """These units without the taken addresses."""
    for unit in units:
        left = [address for address in expand(unit) if address not in taken]
        yield from [unit] if len(left) == len(expand(unit)) and left else left


def _interface(entry: Any) -> Interface | None:
    if not isinstance(entry, dict) or not isinstance(ipv4 := entry.get("ipv4"), dict):
        return None
    mac = re.sub("[:.-]", "", str(entry.get("macAddress", ""))).lower()
    units = list(dict.fromkeys(filter(None, map(_unit, _list(ipv4, "ipAddress")))))
    primary = next((unit for unit in units if _is_address(unit)), None)
    if not _MAC.fullmatch(mac) or primary is None:
        return None
    units.remove(primary)
    mac = bytes.fromhex(mac).hex(":")
    prefixes = tuple(dict.fromkeys(filter(None, map(_prefix, _list(ipv4, "subnet")))))
    return Interface(
        name=mac,  # metadata has no other
        mac=mac,
        subnet=", ".join(prefixes),
        prefixes=prefixes,
        primary_address=primary,
        addresses=tuple(units),
    )


def _list(of: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = of.get(key)
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _unit(entry: dict[str, Any]) -> str:
    text = str(entry.get("privateIpAddress") or "").strip()
    length = next((str(entry[key]) for key in _LENGTHS if entry.get(key)), "")
    if length in _BLOCKS and "/" not in text:  # a shorter one is the subnet's
        text = f"{text}/{length}"
    try:
        network = ipaddress.IPv4Network(text, strict=False)
    except ValueError:
        return text
    return str(network.network_address) if network.prefixlen == _SINGLE else str(network)


def _is_address(unit: str) -> bool:
    return "/" not in unit and bool(expand(unit))


def _prefix(entry: dict[str, Any]) -> str:
    try:
        return str(ipaddress.IPv4Network(f"{entry.get('address')}/{entry.get('prefix')}", strict=False))
    except ValueError:
        return ""
