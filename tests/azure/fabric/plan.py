"""From a topology to kernel objects, as plain values that can be compared: routes, neighbours, rules, set elements,
chains.

Pure. `Numbers` assigns ports, subnets and VNets the small numbers that the kernel requires, each only once. A packet's
path: its ingress port sets a mark (the subnet); the mark's rules look up the user routes of the subnet, then the table
of its VNet and those of its peers (each address there is one route to one port with one permanent neighbour), then
on-premises, then `PUBLIC`; the rest goes to the device `void`, where it is counted and dropped.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.azure.fabric import routing, security, translation
from tests.azure.fabric.topology import Network, Port, Topology

DESK_MARK = 1
INTERNET_MARK = 2
ONPREMISES_MARK = 3
FIRST_MARK = 10
FIRST_TABLE = 1000
USER_TABLE = 100_000
"""The table of a subnet's user routes is this plus its mark."""
PUBLIC_TABLE = 900
ONPREMISES_TABLE = 950
DESK_NETWORK = "198.18.0.0/24"
INTERNET_NETWORK = "203.0.113.0/24"
ONPREMISES_NETWORK = "192.168.0.0/16"

USER_RULE = 900
SYSTEM_RULES = 1000
"""Preference of the first rule of a mark; those of the desk come before all."""

MAPS = {
    "macs": "set {name} {{ type ifname . ether_addr; }}",
    "owned": "set {name} {{ type ifname . ipv4_addr; }}",
    "outbound": "set {name} {{ type ifname . ipv4_addr; }}",
    "hosts": "set {name} {{ type ifname . ipv4_addr; }}",
    "held": "set {name} {{ type ipv4_addr; }}",
    "forwarders": "set {name} {{ type ifname; }}",
    "endpoints": "set {name} {{ type mark; }}",
    "marks": "map {name} {{ type ifname : mark; }}",
    "public": "map {name} {{ type ipv4_addr : ipv4_addr; }}",
    "egress": "map {name} {{ type ipv4_addr : ipv4_addr; }}",
    "leaving": "map {name} {{ type ifname : verdict; }}",
    "entering": "map {name} {{ type ifname : verdict; }}",
}
"""Sets and maps of the ruleset that follow the topology. Others come and go: `vnet1` (prefixes), `asg1` (addresses)."""
ADDRESSES = "set {name} {{ type ipv4_addr; }}"
PREFIXES = "set {name} {{ type ipv4_addr; flags interval; }}"


@dataclass(slots=True)
class Numbers:
    """Small numbers for long names."""

    _given: dict[str, dict[str, int]] = field(default_factory=dict)

    def of(self, kind: str, name: str, start: int = 1) -> int:
        given = self._given.setdefault(kind, {})
        return given.setdefault(name, start + len(given))

    def port(self, nic: str) -> str:
        """Name of the fabric's end of a NIC."""
        return f"p{self.of('port', nic)}"

    def mark(self, subnet: str) -> int:
        return self.of("mark", subnet, FIRST_MARK)

    def table(self, vnet: str) -> int:
        return self.of("table", vnet, FIRST_TABLE)


@dataclass(slots=True)
class Plan:
    """The state of the fabric's namespace. Keys identify an object to the kernel, values may change in place."""

    routes: dict[tuple[int, str], tuple[str, str]] = field(default_factory=dict)
    """(table, destination) → (type of route, rest of the line)."""
    neighbours: dict[tuple[str, str], str] = field(default_factory=dict)
    """(device, address) → MAC."""
    rules: set[tuple[int, str]] = field(default_factory=set)
    """(preference, selector and action)."""
    elements: dict[str, set[str]] = field(default_factory=lambda: {name: set() for name in MAPS})
    """Set or map of the ruleset → its elements."""
    chains: dict[str, tuple[str, ...]] = field(default_factory=lambda: {"balance": ()})
    """Chain → its lines."""


def make(topology: Topology, numbers: Numbers) -> Plan:
    """All kernel objects of a topology."""
    plan = Plan()
    plan.elements["held"].update(topology.stopped)
    for port in topology.ports.values():
        _port(plan, port, numbers, numbers.table(topology.subnets[port.subnet].vnet))
    for network in topology.networks.values():
        _network(plan, topology, network, numbers)
    everything = [numbers.table(vnet) for vnet in topology.networks]
    for mark in (DESK_MARK, INTERNET_MARK):
        _rules(plan, mark, [*everything, ONPREMISES_TABLE])
    _rules(plan, ONPREMISES_MARK, [numbers.table(n.vnet) for n in topology.networks.values() if n.onpremises])
    _translation(plan, topology, numbers)
    _security(plan, topology, numbers)
    return plan


def _rules(plan: Plan, mark: int, tables: list[int]) -> None:
    for position, table in enumerate([*tables, PUBLIC_TABLE]):
        plan.rules.add((SYSTEM_RULES + position, f"fwmark {mark} lookup {table}"))


def _port(plan: Plan, port: Port, numbers: Numbers, table: int) -> None:
    device = numbers.port(port.nic)
    elements = plan.elements
    elements["macs"].add(f"{device} . {port.mac}")
    elements["marks"].add(f"{device} : {numbers.mark(port.subnet)}")
    elements["outbound"].add(f"{device} . {port.primary}")
    if port.first:
        elements["hosts"].add(f"{device} . {port.primary}")
    if port.forwarding:
        elements["forwarders"].add(device)
    for address in port.addresses:
        plan.routes[(table, address)] = ("unicast", f"dev {device}")
        plan.neighbours[(device, address)] = port.mac
        elements["owned"].add(f"{device} . {address}")
        elements["held"].add(address)


def _network(plan: Plan, topology: Topology, network: Network, numbers: Numbers) -> None:
    peers = [topology.networks[peer] for peer in network.peers if peer in topology.networks]
    reached = [network, *peers]
    onpremises = [ONPREMISES_TABLE] if network.onpremises else []
    tables = [*(numbers.table(other.vnet) for other in reached), *onpremises]
    prefixes = [prefix for other in reached for prefix in other.prefixes]
    plan.elements[f"vnet{numbers.of('vnet', network.vnet)}"] = {
        *prefixes,
        *([ONPREMISES_NETWORK] if network.onpremises else []),
    }
    owners = {address: numbers.port(port.nic) for port in topology.ports.values() for address in port.addresses}
    for name in network.subnets:
        subnet, mark = topology.subnets[name], numbers.mark(name)
        _rules(plan, mark, tables)
        if "microsoft.storage" in subnet.endpoints:
            plan.elements["endpoints"].add(str(mark))
        if subnet.routes:
            plan.rules.add((USER_RULE, f"fwmark {mark} lookup {USER_TABLE + mark}"))
            for to, line in routing.table(subnet.routes, prefixes, owners.get).items():
                plan.routes[(USER_TABLE + mark, to)] = line


def _translation(plan: Plan, topology: Topology, numbers: Numbers) -> None:
    found = topology.translation
    plan.elements["public"] = {f"{public} : {private}" for public, private in found.public.items()}
    plan.elements["egress"] = {f"{private} : {public}" for private, public in found.egress.items()}
    for port in topology.ports.values():
        device = numbers.port(port.nic)
        plan.elements["outbound"] |= {f"{device} . {address}" for address in port.addresses if address in found.egress}
    plan.chains["balance"] = translation.balance(found.frontends)


def _security(plan: Plan, topology: Topology, numbers: Numbers) -> None:
    """One chain per security group, VNet and direction; a port jumps to the ones of its subnet and its own."""
    asg_set = {asg: f"asg{numbers.of('asg', asg)}" for asg in topology.security.members}
    for asg, members in topology.security.members.items():
        plan.elements[asg_set[asg]] = set(members)
    for port in topology.ports.values():
        vnet = topology.subnets[port.subnet].vnet
        vnet_set = f"vnet{numbers.of('vnet', vnet)}"
        groups = [group for group in port.security if group in topology.security.groups]
        for direction, inbound in (("entering", True), ("leaving", False)):
            names = []
            for group in groups:
                name = f"{direction}_{numbers.of('group', group)}_{vnet_set}"
                rules = topology.security.groups[group]
                plan.chains[name] = security.chain(rules, inbound, vnet_set, asg_set)
                names.append(name)
            if names:
                own = f"{direction}_{numbers.port(port.nic)}"
                plan.chains[own] = tuple(f"jump {name}" for name in names)
                plan.elements[direction].add(f"{numbers.port(port.nic)} : jump {own}")


def ip_batch(old: Plan, new: Plan, gone: set[str]) -> list[str]:
    """Lines for `ip -batch` from one plan to the next; `gone` are devices that no longer exist."""

    def lost(line: tuple[str, str]) -> bool:
        return not gone.isdisjoint(line[1].split())

    lines = [f"rule del pref {pref} {text}" for pref, text in sorted(old.rules - new.rules)]
    lines += [f"rule add pref {pref} {text}" for pref, text in sorted(new.rules - old.rules)]
    lines += [
        f"neigh replace {address} lladdr {mac} dev {device} nud permanent"
        for (device, address), mac in new.neighbours.items()
        if old.neighbours.get((device, address)) != mac or device in gone
    ]
    lines += [
        f"route replace {line[0]} {to} {line[1]} table {table}"
        for (table, to), line in new.routes.items()
        if old.routes.get((table, to)) != line or lost(line)
    ]
    lines += [
        f"route del {line[0]} {to} table {table}"
        for (table, to), line in old.routes.items()
        if (table, to) not in new.routes and not lost(line)
    ]
    lines += [
        f"neigh del {address} dev {device}"
        for device, address in old.neighbours
        if (device, address) not in new.neighbours and device not in gone
    ]
    return lines


def nft_script(old: Plan, new: Plan) -> str:
    """Commands for `nft -f`: one transaction. Referenced objects are created first; unused ones are emptied, not
    deleted."""
    lines = [f"add {declaration(name)}" for name in new.elements if name not in old.elements]
    lines += [f"add chain ip fabric {name}" for name in new.chains if name not in old.chains]
    removed, added = [], []
    for name in old.elements.keys() | new.elements.keys():
        before, after = old.elements.get(name, set()), new.elements.get(name, set())
        if before - after:
            removed.append(f"delete element ip fabric {name} {{ {', '.join(sorted(before - after))} }}")
        if after - before:
            added.append(f"add element ip fabric {name} {{ {', '.join(sorted(after - before))} }}")
    lines += removed
    for name in old.chains.keys() | new.chains.keys():
        if old.chains.get(name, ()) != new.chains.get(name, ()):
            lines.append(f"flush chain ip fabric {name}")
            lines += [f"add rule ip fabric {name} {line}" for line in new.chains.get(name, ())]
    return "\n".join(lines + added)


def declaration(name: str) -> str:
    """`set ip fabric owned { … }`."""
    known = MAPS.get(name) or (PREFIXES if name.startswith("vnet") else ADDRESSES)
    kind, _, rest = known.format(name=name).partition(" ")
    return f"{kind} ip fabric {rest}"
