"""What the operator knows of virtual networks: subnet prefixes and direct CIDRs.

A VNet's own address space and that of its peers (its peerings carry them, so the peers needn't be readable) are what
pods reach under their own address. A VNet is read when it is first met and again on a schedule; what was read stays
valid while ARM does not answer. A role that may read only the subnet is enough: then the subnet's prefixes are all that
is known, and the configured CIDRs come on top. IPv4 only. Nothing survives a restart.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from vnetpods_operator.azure.client import Arm
from vnetpods_operator.azure.errors import translated
from vnetpods_operator.azure.virtual_machine import body
from vnetpods_operator.cloud import AzureError, Forbidden


@dataclass(frozen=True, slots=True)
class Network:
    """A VNet's address prefixes, its peers', and those of its subnets by lower-case id."""

    own: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    subnets: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def prefixes(self, subnet: str) -> tuple[str, ...]:
        return dict(self.subnets).get(subnet.lower(), ())


class Networks:
    """Networks by subnet id; used from the event loop only."""

    def __init__(self, arm: Arm) -> None:
        self._arm = arm
        self._known: dict[str, Network] = {}
        self._ids: dict[str, str] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    def known(self, subnet: str) -> Network | None:
        """What was read last of the VNet that the subnet is in."""
        return self._known.get(self._key(subnet))

    async def of(self, subnet: str) -> Network:
        """What is known of the subnet's VNet; read if need be. AzureError when it can't be."""
        found = self.known(subnet)
        if found is not None and found.prefixes(subnet):
            return found
        async with self._locks.setdefault(_vnet(subnet).lower(), asyncio.Lock()):
            found = self.known(subnet)
            if found is not None and found.prefixes(subnet):
                return found
            return await self.read(subnet)

    async def read(self, subnet: str) -> Network:
        """Reads the subnet's VNet anew."""
        try:
            network, key = await self._read_vnet(_vnet(subnet)), _vnet(subnet).lower()
        except Forbidden:
            network, key = await self._read_subnet(subnet), subnet.lower()
        self._known[key], self._ids[key] = network, subnet
        return network

    async def refresh(self) -> list[str]:
        """Reads every known VNet anew; returns the keys of those that have changed. Failures leave what was known."""
        changed = []
        for key, before in list(self._known.items()):
            try:
                subnet = self._ids[key]
                after = await (self._read_subnet(subnet) if key == subnet.lower() else self._read_vnet(_vnet(subnet)))
            except AzureError:
                continue
            if after != before:
                self._known[key] = after
                changed.append(key)
        return changed

    @staticmethod
    def concerns(key: str, subnet: str) -> bool:
        """Whether a key returned by `refresh` is about this subnet."""
        return key in (subnet.lower(), _vnet(subnet).lower())

    def _key(self, subnet: str) -> str:
        return subnet.lower() if subnet.lower() in self._known else _vnet(subnet).lower()

    async def _read_vnet(self, vnet: str) -> Network:
        subscription, group, name = _parts(vnet)
        with translated(f"reading virtual network {name} in {group}"):
            found: Any = await self._arm.network(subscription).virtual_networks.get(
                group, name, cls=body, **self._arm.network_arguments()
            )
        properties = found.get("properties", {})
        return Network(
            own=_ipv4(properties.get("addressSpace", {}).get("addressPrefixes", [])),
            peers=_peers(properties.get("virtualNetworkPeerings", [])),
            subnets=tuple((s["id"].lower(), _subnet_prefixes(s)) for s in properties.get("subnets", [])),
        )

    async def _read_subnet(self, subnet: str) -> Network:
        subscription, group, name = _parts(_vnet(subnet))
        with translated(f"reading subnet {subnet.rpartition('/')[2]} of {name} in {group}"):
            found: Any = await self._arm.network(subscription).subnets.get(
                group, name, subnet.rpartition("/")[2], cls=body, **self._arm.network_arguments()
            )
        prefixes = _subnet_prefixes(found)
        return Network(own=prefixes, subnets=((subnet.lower(), prefixes),))


def _peers(peerings: list[dict[str, Any]]) -> tuple[str, ...]:
    """Address space of connected peers; a peering that is not connected carries no traffic."""
    found: list[str] = []
    for peering in peerings:
        properties = peering.get("properties", {})
        if properties.get("peeringState") == "Connected":
            space = properties.get("remoteVirtualNetworkAddressSpace") or properties.get("remoteAddressSpace") or {}
            found += space.get("addressPrefixes", [])
    return _ipv4(found)


def _subnet_prefixes(subnet: dict[str, Any]) -> tuple[str, ...]:
    properties = subnet.get("properties", {})
    one = properties.get("addressPrefix")
    return _ipv4(properties.get("addressPrefixes") or ([one] if one else []))


def _ipv4(prefixes: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(prefix for prefix in prefixes if ":" not in prefix))


def _vnet(subnet: str) -> str:
    return subnet[: subnet.lower().index("/subnets/")]


def _parts(vnet: str) -> tuple[str, str, str]:
    parts = vnet.strip("/").split("/")
    return parts[1], parts[3], parts[7]
