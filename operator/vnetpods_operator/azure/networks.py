"""Cache of virtual networks: subnet prefixes and direct CIDRs.

Pods reach the VNet's address space and that of its peers under their own address; the peerings carry the peers' space,
so the peers needn't be readable. A VNet is read on first use and then on a schedule, as long as a pool names it; the
last good read stays valid while ARM does not answer or the answer is malformed. A role that may read only the subnet is
enough: then only the subnet's prefixes are known, plus the configured CIDRs. IPv4 only. Nothing survives a restart.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any

import structlog

from vnetpods_operator.azure.client import Arm
from vnetpods_operator.azure.sdk_errors import translated
from vnetpods_operator.azure.virtual_machine import body
from vnetpods_operator.errors import AzureError, Forbidden

log = structlog.get_logger()

_SUBNET = re.compile(
    "/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft[.]Network/virtualNetworks/[^/]+/subnets/[^/]+",
    re.IGNORECASE,
)
RETRY_SECONDS = 60.0
"""Delay before an unreadable subnet is read again."""


@dataclass(frozen=True, slots=True)
class Network:
    """Address prefixes of a VNet, of its connected peers, and of its subnets by lower-case id. All empty for a VNet
    that the role may not read.
    """

    own: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    subnets: tuple[tuple[str, tuple[str, ...]], ...] = ()


class Networks:
    """Networks by subnet id; used from the event loop only. No method raises an Azure error: unknown is a result."""

    def __init__(self, arm: Arm) -> None:
        self._arm = arm
        self._by_vnet: dict[str, Network] = {}
        self._subnets: dict[str, tuple[str, ...]] = {}
        self._failed: dict[str, float] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def prefixes(self, subnet: str) -> tuple[str, ...]:
        """The subnet's prefixes, read on first use; empty if that fails."""
        if not _SUBNET.fullmatch(subnet):
            return ()
        async with self._locks.setdefault(_vnet(subnet).lower(), asyncio.Lock()):
            now = asyncio.get_running_loop().time()
            if subnet.lower() not in self._subnets and self._failed.get(subnet.lower(), 0.0) <= now:
                await self._read(subnet)
                if subnet.lower() not in self._subnets:
                    self._failed[subnet.lower()] = now + RETRY_SECONDS
        return self._subnets.get(subnet.lower(), ())

    def direct(self, subnet: str) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        """Address space of the subnet's VNet and of its peers; the subnet's own if the role may not read the VNet.
        None if unknown.
        """
        network = self._by_vnet.get(_vnet(subnet).lower()) if _SUBNET.fullmatch(subnet) else None
        if network is None:
            return None
        own = network.own or self._subnets.get(subnet.lower())
        return (own, network.peers) if own else None

    async def left(self, subnet: str) -> int | None:
        """Number of free addresses as Azure reports it, possibly late; None if unknown."""
        if not _SUBNET.fullmatch(subnet):
            return None
        subscription, group, name = _parts(_vnet(subnet))
        try:
            with translated(f"reading usages of virtual network {name} in {group}"):
                usages = self._arm.network(subscription).virtual_networks.list_usage(
                    group, name, **self._arm.network_arguments()
                )
                async for usage in usages:
                    if (usage.id or "").lower() == subnet.lower() and usage.limit is not None:
                        return max(0, int(usage.limit) - int(usage.current_value or 0))
        except AzureError as error:
            log.info("usages unknown", subnet=subnet, error=str(error))
        return None

    async def refresh(self, used: Iterable[str]) -> set[str]:
        """Reads the VNets of these subnets again and forgets all others; returns the subnets (in lower case) whose VNet
        changed. Skips anything that isn't a subnet id: pools may hold any string.
        """
        subnets = {subnet.lower(): subnet for subnet in used if _SUBNET.fullmatch(subnet)}
        one_per_vnet = {_vnet(subnet).lower(): subnet for subnet in subnets.values()}
        for known in (self._by_vnet, self._subnets, self._failed, self._locks):
            for key in [key for key in known if key.partition("/subnets/")[0] not in one_per_vnet]:
                del known[key]
        changed = set()
        for vnet, subnet in one_per_vnet.items():
            before = self._by_vnet.get(vnet)
            await self._read(subnet)
            if self._by_vnet.get(vnet) != before:
                changed |= {other for other in subnets if _vnet(other) == vnet}
        return changed

    async def _read(self, subnet: str) -> None:
        """Reads the subnet's VNet with all its subnets; if the subnet's prefixes are unknown after that, the subnet."""
        try:
            network = await self._read_vnet(_vnet(subnet))
            self._by_vnet[_vnet(subnet).lower()] = network
            self._subnets |= {key: prefixes for key, prefixes in network.subnets if prefixes}
        except Forbidden as error:
            self._by_vnet.setdefault(_vnet(subnet).lower(), Network())
            log.info("VNet not readable, its subnet will do", subnet=subnet, error=str(error))
        except AzureError as error:
            log.warning("VNet unknown", subnet=subnet, error=str(error))
        if not self._subnets.get(subnet.lower()):
            try:
                self._subnets[subnet.lower()] = await self._read_subnet(subnet)
            except AzureError as error:
                log.warning("subnet unknown", subnet=subnet, error=str(error))

    async def _read_vnet(self, vnet: str) -> Network:
        subscription, group, name = _parts(vnet)
        with translated(f"reading virtual network {name} in {group}"):
            found: Any = await self._arm.network(subscription).virtual_networks.get(
                group, name, cls=body, **self._arm.network_arguments()
            )
            properties = found["properties"]
            return Network(
                own=_ipv4(properties["addressSpace"]["addressPrefixes"]),  # every VNet has them
                peers=_peers(properties.get("virtualNetworkPeerings") or []),
                subnets=tuple((s["id"].lower(), _subnet_prefixes(s)) for s in properties.get("subnets") or []),
            )

    async def _read_subnet(self, subnet: str) -> tuple[str, ...]:
        subscription, group, name = _parts(_vnet(subnet))
        with translated(f"reading subnet {subnet.rpartition('/')[2]} of {name} in {group}"):
            found: Any = await self._arm.network(subscription).subnets.get(
                group, name, subnet.rpartition("/")[2], cls=body, **self._arm.network_arguments()
            )
            return _subnet_prefixes(found)


def _peers(peerings: list[dict[str, Any]]) -> tuple[str, ...]:
    """Address space of connected peers; other peerings carry no traffic."""
    found: list[str] = []
    for peering in peerings:
        properties = peering.get("properties") or {}
        if properties.get("peeringState") == "Connected":
            space = properties.get("remoteVirtualNetworkAddressSpace") or properties.get("remoteAddressSpace") or {}
            found += space.get("addressPrefixes") or []
    return _ipv4(found)


def _subnet_prefixes(subnet: dict[str, Any]) -> tuple[str, ...]:
    properties = subnet.get("properties") or {}
    one = properties.get("addressPrefix")
    return _ipv4(properties.get("addressPrefixes") or ([one] if one else []))


def _ipv4(prefixes: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(IPv4Network(prefix)) for prefix in prefixes if ":" not in prefix))


def _vnet(subnet: str) -> str:
    return subnet[: subnet.lower().index("/subnets/")]


def _parts(vnet: str) -> tuple[str, str, str]:
    parts = vnet.strip("/").split("/")
    return parts[1], parts[3], parts[7]
