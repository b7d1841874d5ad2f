"""What the network has to look like, read out of the cloud: ports, networks, who reaches whom.

Pure: `read(cloud)` is called after every write and gives plain values that can be compared; `plan.py` turns them into
kernel objects. Azure's rules: a VNet reaches itself and the VNets whose peering is Connected on both sides; peering
isn't transitive; only a NIC's primary address has a way out; instance metadata answers the primary address of the
primary NIC.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from tests.azure.arm import machines, networks, nics, scalesets
from tests.azure.arm.cloud import Cloud
from tests.azure.arm.ids import key, parse
from tests.azure.arm.store import Resource


@dataclass(frozen=True, slots=True)
class Port:
    """One NIC of one machine. `ifname` is its name in the machine (eth0, eth1); addresses are single ones, blocks
    expanded."""

    nic: str
    machine: str
    ifname: str
    mac: str
    subnet: str
    primary: str
    prefix_length: int
    gateway: str
    addresses: frozenset[str]
    first: bool
    """Whether it is the machine's primary NIC."""


@dataclass(frozen=True, slots=True)
class Network:
    """One VNet: its prefixes and the VNets it reaches, by key."""

    vnet: str
    prefixes: tuple[str, ...]
    peers: tuple[str, ...]
    subnets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Topology:
    ports: dict[str, Port]
    """By key of the NIC."""
    networks: dict[str, Network]

    @property
    def machines(self) -> set[str]:
        return {port.machine for port in self.ports.values()}


def read(cloud: Cloud) -> Topology:
    """The network as the cloud has it now."""
    ports: dict[str, Port] = {}
    named = [(vm, vm.id.name) for vm in cloud.store.of_kind(machines.TYPE)]
    named += [(instance, scalesets.computer_name(instance)) for instance in cloud.store.of_kind(scalesets.INSTANCE)]
    for vm, name in named:
        for position, reference in enumerate(machines.nic_ids(vm.body)):
            nic = cloud.store.get(parse(reference))
            if nic is not None:
                ports[nic.id.key] = _port(cloud, nic, name, position)
    found = {}
    for vnet in cloud.store.of_kind(networks.TYPE):
        subnets = tuple(subnet.id.key for subnet in cloud.store.below(vnet.id.text, networks.SUBNET))
        peers = tuple(sorted(networks.connected(cloud, vnet.id.text)))
        found[vnet.id.key] = Network(vnet.id.key, tuple(networks.prefixes(vnet)), peers, subnets)
    return Topology(ports, found)


def _port(cloud: Cloud, nic: Resource, machine: str, position: int) -> Port:
    parts = nics.configurations(nic)
    first = next(part for part in parts if part["properties"]["primary"])
    primary = first["properties"]["privateIPAddress"]
    subnet = key(first["properties"]["subnet"]["id"])
    network = next(net for net in cloud.spaces[subnet].networks if ipaddress.IPv4Address(primary) in net)
    addresses = {
        str(address)
        for part in parts
        if part["properties"]["privateIPAddressVersion"] == "IPv4"
        for address in ipaddress.IPv4Network(part["properties"]["privateIPAddress"], strict=False)
    }
    return Port(
        nic=nic.id.key,
        machine=machine,
        ifname=f"eth{position}",
        mac=nic.properties["macAddress"].replace("-", ":").lower(),
        subnet=subnet,
        primary=primary,
        prefix_length=network.prefixlen,
        gateway=str(network[1]),
        addresses=frozenset(addresses),
        first=position == 0,
    )
