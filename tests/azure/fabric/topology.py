"""The desired network, derived from the cloud: ports, networks, reachability.

Pure: `read(cloud)` is called after every write and returns plain values that can be compared; `plan.py` turns them into
kernel objects. Azure's rules: a VNet reaches itself and the VNets whose peering is Connected on both sides; peering
isn't transitive; only a NIC's primary address has outbound access; instance metadata responds only to the primary
address of the primary NIC.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from tests.azure.arm import machines, networks, nics, power, scalesets
from tests.azure.arm.cloud import Cloud
from tests.azure.arm.ids import key, parse
from tests.azure.arm.store import Resource
from tests.azure.fabric import security, translation
from tests.azure.fabric.routing import Route
from tests.azure.fabric.security import Security
from tests.azure.fabric.translation import Healthy, Translation


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
    boot: int
    """Number of the machine's boot: a new one means a new namespace."""
    forwarding: bool
    """enableIPForwarding: it may send with others' addresses."""
    security: tuple[str, ...]
    """Security groups that filter its packets: the subnet's, then its own."""


@dataclass(frozen=True, slots=True)
class Network:
    """One VNet: its prefixes and the VNets it reaches, by key."""

    vnet: str
    prefixes: tuple[str, ...]
    peers: tuple[str, ...]
    onpremises: bool
    """Whether it has a gateway to the network on-premises."""
    subnets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Subnet:
    """A subnet's policy for its packets. `endpoints`: services that it has a service endpoint for, in lower case."""

    key: str
    vnet: str
    routes: tuple[Route, ...]
    endpoints: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Topology:
    ports: dict[str, Port]
    """NICs of running machines, by key."""
    networks: dict[str, Network]
    subnets: dict[str, Subnet]
    images: dict[str, int]
    """Machine → number of its disk's image."""
    stopped: frozenset[str]
    """Addresses of NICs without a running machine."""
    security: Security
    translation: Translation

    @classmethod
    def empty(cls) -> Topology:
        nothing = Translation({}, {}, (), frozenset())
        return cls({}, {}, {}, {}, frozenset(), Security({}, {}), nothing)

    @property
    def machines(self) -> set[str]:
        return {port.machine for port in self.ports.values()}


def read(cloud: Cloud, healthy: Healthy) -> Topology:
    """The network of the cloud's present state."""
    named = [(vm, vm.id.name) for vm in cloud.store.of_kind(machines.TYPE)]
    named += [(instance, scalesets.computer_name(instance)) for instance in cloud.store.of_kind(scalesets.INSTANCE)]
    ports: dict[str, Port] = {}
    for vm, name in named:
        for position, reference in enumerate(machines.nic_ids(vm.body) if power.running(vm) else ()):
            nic = cloud.store.get(parse(reference))
            if nic is not None:
                ports[nic.id.key] = _port(cloud, nic, name, position, power.boots(vm))
    found = {}
    for vnet in cloud.store.of_kind(networks.TYPE):
        subnets = tuple(subnet.id.key for subnet in cloud.store.below(vnet.id.text, networks.SUBNET))
        onpremises = vnet.id.key in cloud.gateways
        peers = tuple(sorted(networks.connected(cloud, vnet.id.text)))
        found[vnet.id.key] = Network(vnet.id.key, tuple(networks.prefixes(vnet)), peers, onpremises, subnets)
    stopped = {
        address
        for kind in (nics.TYPE, scalesets.NIC)
        for nic in cloud.store.of_kind(kind)
        if nic.id.key not in ports
        for address in addresses_of(nic)
    }
    return Topology(
        ports,
        found,
        {subnet.id.key: _subnet(cloud, subnet) for subnet in cloud.store.of_kind(networks.SUBNET)},
        {name: power.images(vm) for vm, name in named},
        frozenset(stopped),
        security.read(cloud),
        translation.read(cloud, healthy),
    )


def _subnet(cloud: Cloud, subnet: Resource) -> Subnet:
    reference = subnet.properties.get("routeTable")
    table = cloud.store.get(reference["id"]) if reference else None
    routes = tuple(
        Route(
            entry["properties"]["addressPrefix"],
            entry["properties"]["nextHopType"].lower(),
            entry["properties"].get("nextHopIpAddress") or "",
        )
        for entry in (table.properties.get("routes") or () if table else ())
    )
    endpoints = tuple(entry["service"].lower() for entry in subnet.properties.get("serviceEndpoints") or ())
    return Subnet(subnet.id.key, subnet.id.parent.key, routes, endpoints)


def addresses_of(nic: Resource) -> set[str]:
    """All IPv4 addresses of a NIC, blocks expanded."""
    return {
        str(address)
        for part in nics.configurations(nic)
        if part["properties"]["privateIPAddressVersion"] == "IPv4"
        for address in ipaddress.IPv4Network(part["properties"]["privateIPAddress"], strict=False)
    }


def _security(cloud: Cloud, nic: Resource, subnet: str) -> tuple[str, ...]:
    owners = (cloud.store.get(subnet), nic)
    groups = [owner.properties.get("networkSecurityGroup") for owner in owners if owner is not None]
    return tuple(key(group["id"]) for group in groups if group)


def _port(cloud: Cloud, nic: Resource, machine: str, position: int, boot: int) -> Port:
    parts = nics.configurations(nic)
    first = next(part for part in parts if part["properties"]["primary"])
    primary = first["properties"]["privateIPAddress"]
    subnet = key(first["properties"]["subnet"]["id"])
    network = next(net for net in cloud.spaces[subnet].networks if ipaddress.IPv4Address(primary) in net)
    return Port(
        nic=nic.id.key,
        machine=machine,
        ifname=f"eth{position}",
        mac=nic.properties["macAddress"].replace("-", ":").lower(),
        subnet=subnet,
        primary=primary,
        prefix_length=network.prefixlen,
        gateway=str(network[1]),
        addresses=frozenset(addresses_of(nic)),
        first=position == 0,
        boot=boot,
        forwarding=bool(nic.properties.get("enableIPForwarding")),
        security=_security(cloud, nic, subnet),
    )
