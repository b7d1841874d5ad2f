"""Address translation: public IPs, NAT gateways, load balancer frontends.

Pure: `read` takes the cloud's state and which backends are healthy, `balance` makes the lines of the chain that
distributes connections. A public IP on an ipConfiguration is that configuration's, both ways. A subnet's NAT gateway,
or an outbound rule of a balancer for its members, gives outbound access under another address. A frontend keeps the
client's address, as Azure's balancer does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.azure.arm import balancers, nics, scalesets
from tests.azure.arm.cloud import Cloud
from tests.azure.arm.ids import key, parse
from tests.azure.arm.store import Body, Resource

Healthy = Callable[[str, str], bool]
"""(id of a probe, address of a backend) → whether the probe succeeds."""


@dataclass(frozen=True, slots=True)
class Frontend:
    """One balancing rule with its healthy backends; port 0 is all ports."""

    address: str
    protocol: str
    port: int
    backend_port: int
    backends: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Check:
    """One health probe of one backend."""

    probe: str
    address: str
    protocol: str
    port: int
    path: str


@dataclass(frozen=True, slots=True)
class Translation:
    public: dict[str, str]
    """Public address → private address, 1:1."""
    egress: dict[str, str]
    """Private address → public address for outbound connections."""
    frontends: tuple[Frontend, ...]
    checks: frozenset[Check]


def read(cloud: Cloud, healthy: Healthy) -> Translation:
    public: dict[str, str] = {}
    egress: dict[str, str] = {}
    for kind in (nics.TYPE, scalesets.NIC):
        for nic in cloud.store.of_kind(kind):
            gateway = _nat_gateway(cloud, nic)
            for part in nics.configurations(nic):
                properties = part["properties"]
                reference = properties.get("publicIPAddress")
                if reference:
                    public[_public_address(cloud, reference)] = properties["privateIPAddress"]
                elif gateway and "/" not in properties["privateIPAddress"]:
                    egress[properties["privateIPAddress"]] = gateway
    frontends: list[Frontend] = []
    checks: set[Check] = set()
    for balancer in cloud.store.of_kind(balancers.TYPE):
        _balancer(cloud, balancer, healthy, frontends, checks)
        egress = _outbound(cloud, balancer) | egress
    egress |= {private: address for address, private in public.items()}
    return Translation(public, egress, tuple(frontends), frozenset(checks))


def balance(frontends: tuple[Frontend, ...]) -> tuple[str, ...]:
    """Lines of the chain `balance`: a hash of the client chooses the backend."""
    lines = []
    for front in frontends:
        count = len(front.backends)
        if not count:
            continue
        if front.port:
            members = ", ".join(f"{n} : {a} . {front.backend_port}" for n, a in enumerate(front.backends))
            match = f"ip daddr {front.address} {front.protocol} dport {front.port}"
            choice = f"jhash ip saddr . {front.protocol} sport mod {count}"
        else:
            members = ", ".join(f"{n} : {a}" for n, a in enumerate(front.backends))
            match = f"ip daddr {front.address}"
            choice = f"jhash ip saddr mod {count}"
        lines.append(f"{match} dnat ip to {choice} map {{ {members} }}")
    return tuple(lines)


def _balancer(
    cloud: Cloud, balancer: Resource, healthy: Healthy, frontends: list[Frontend], checks: set[Check]
) -> None:
    properties = balancer.properties
    addresses = {key(part["id"]): _front_address(cloud, part) for part in properties["frontendIPConfigurations"]}
    probes = {key(part["id"]): part["properties"] for part in properties["probes"]}
    for rule in properties["loadBalancingRules"]:
        inner = rule["properties"]
        address = addresses.get(key((inner.get("frontendIPConfiguration") or {}).get("id", "")))
        pool = cloud.store.get(key((inner.get("backendAddressPool") or {}).get("id", "")))
        if not address or pool is None:
            continue
        probe = key((inner.get("probe") or {}).get("id", ""))
        members = sorted(set(_members(cloud, pool)))
        if probe in probes:
            about = probes[probe]
            checks |= {
                Check(probe, member, about["protocol"].lower(), about["port"], about.get("requestPath") or "/")
                for member in members
            }
            members = [member for member in members if healthy(probe, member)]
        ports = inner["frontendPort"], inner["backendPort"]
        frontends.append(Frontend(address, inner["protocol"].lower(), *ports, tuple(members)))


def _members(cloud: Cloud, pool: Resource) -> Iterator[str]:
    yield from balancers.addresses(pool)
    for text in cloud.links(pool.id.key):
        nic = cloud.store.get(parse(text).parent)
        for part in nics.configurations(nic) if nic else ():
            if key(part["id"]) == key(text):
                yield part["properties"]["privateIPAddress"]


def _outbound(cloud: Cloud, balancer: Resource) -> dict[str, str]:
    found: dict[str, str] = {}
    fronts = {key(part["id"]): part for part in balancer.properties["frontendIPConfigurations"]}
    for rule in balancer.properties["outboundRules"]:
        inner = rule["properties"]
        pool = cloud.store.get(key((inner.get("backendAddressPool") or {}).get("id", "")))
        named = [fronts.get(key(entry["id"])) for entry in inner.get("frontendIPConfigurations") or ()]
        public = next((_front_address(cloud, front) for front in named if front), "")
        if pool is not None and public:
            found |= dict.fromkeys(_members(cloud, pool), public)
    return found


def _nat_gateway(cloud: Cloud, nic: Resource) -> str:
    """The public address of the NAT gateway of a NIC's subnet."""
    subnet = cloud.store.get(key(nics.configurations(nic)[0]["properties"]["subnet"]["id"]))
    reference = subnet.properties.get("natGateway") if subnet else None
    gateway = cloud.store.get(reference["id"]) if reference else None
    addresses = gateway.properties.get("publicIpAddresses") if gateway else None
    return _public_address(cloud, addresses[0]) if addresses else ""


def _front_address(cloud: Cloud, part: Body) -> str:
    properties = part["properties"]
    reference = properties.get("publicIPAddress")
    return _public_address(cloud, reference) if reference else str(properties.get("privateIPAddress", ""))


def _public_address(cloud: Cloud, reference: Body) -> str:
    found = cloud.store.get(reference["id"])
    return str(found.properties["ipAddress"]) if found else ""
