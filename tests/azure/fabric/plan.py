"""From a topology to kernel objects, as plain dictionaries that can be compared: routes, neighbours, rules, set
elements.

Pure. `Numbers` gives ports, subnets and VNets the small numbers the kernel wants, and never gives one twice. How a
packet finds its way: the port it comes from gives it a mark (its subnet); the mark's rules look into the table of its
VNet, then into those of its peers (each address there is one route to one port with one permanent neighbour), then into
`PUBLIC`; what is left goes to the device `void`, where it is counted and dropped.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.azure.fabric.topology import Port, Topology

DESK_MARK = 1
INTERNET_MARK = 2
FIRST_MARK = 10
FIRST_TABLE = 1000
PUBLIC_TABLE = 900
DESK_NETWORK = "198.18.0.0/24"
INTERNET_NETWORK = "203.0.113.0/24"

RULES_AT = 1000
"""Preference of the first rule of a mark; those of the desk come before it."""


@dataclass(slots=True)
class Numbers:
    """Small numbers for long names."""

    _given: dict[str, dict[str, int]] = field(default_factory=dict)

    def of(self, kind: str, name: str, start: int) -> int:
        given = self._given.setdefault(kind, {})
        return given.setdefault(name, start + len(given))

    def port(self, nic: str) -> str:
        """Name of the fabric's end of a NIC."""
        return f"p{self.of('port', nic, 1)}"

    def mark(self, subnet: str) -> int:
        return self.of("mark", subnet, FIRST_MARK)

    def table(self, vnet: str) -> int:
        return self.of("table", vnet, FIRST_TABLE)


@dataclass(slots=True)
class Plan:
    """The state of the fabric's namespace. Keys are what identifies an object to the kernel, values what may change in
    place."""

    routes: dict[tuple[int, str], str] = field(default_factory=dict)
    """(table, destination) → device."""
    neighbours: dict[tuple[str, str], str] = field(default_factory=dict)
    """(device, address) → MAC."""
    rules: set[tuple[int, str]] = field(default_factory=set)
    """(preference, selector and action)."""
    elements: dict[str, set[str]] = field(default_factory=dict)
    """Set or map of the ruleset → its elements."""


SETS = ("macs", "owned", "outbound", "hosts", "held", "marks")


def make(topology: Topology, numbers: Numbers) -> Plan:
    """All kernel objects that follow from a topology."""
    plan = Plan(elements={name: set() for name in SETS})
    plan.elements["held"].update(topology.stopped)
    vnet_of = {subnet: network.vnet for network in topology.networks.values() for subnet in network.subnets}
    for port in topology.ports.values():
        _port(plan, port, numbers, numbers.table(vnet_of[port.subnet]))
    for network in topology.networks.values():
        reached = [network.vnet, *(peer for peer in network.peers if peer in topology.networks)]
        for subnet in network.subnets:
            _rules(plan, numbers.mark(subnet), [numbers.table(vnet) for vnet in reached])
    everything = [numbers.table(vnet) for vnet in topology.networks]
    for mark in (DESK_MARK, INTERNET_MARK):
        _rules(plan, mark, everything)
    return plan


def _rules(plan: Plan, mark: int, tables: list[int]) -> None:
    for position, table in enumerate([*tables, PUBLIC_TABLE]):
        plan.rules.add((RULES_AT + position, f"fwmark {mark} lookup {table}"))


def _port(plan: Plan, port: Port, numbers: Numbers, table: int) -> None:
    device = numbers.port(port.nic)
    elements = plan.elements
    elements["macs"].add(f"{device} . {port.mac}")
    elements["marks"].add(f"{device} : {numbers.mark(port.subnet)}")
    elements["outbound"].add(f"{device} . {port.primary}")
    if port.first:
        elements["hosts"].add(f"{device} . {port.primary}")
    for address in port.addresses:
        plan.routes[(table, address)] = device
        plan.neighbours[(device, address)] = port.mac
        elements["owned"].add(f"{device} . {address}")
        elements["held"].add(address)


def ip_batch(old: Plan, new: Plan, gone: set[str]) -> list[str]:
    """Lines for `ip -batch` that lead from one plan to the next; `gone` are devices that no longer exist."""
    lines = [f"rule del pref {pref} {text}" for pref, text in sorted(old.rules - new.rules)]
    lines += [f"rule add pref {pref} {text}" for pref, text in sorted(new.rules - old.rules)]
    lines += [
        f"neigh replace {address} lladdr {mac} dev {device} nud permanent"
        for (device, address), mac in new.neighbours.items()
        if old.neighbours.get((device, address)) != mac or device in gone
    ]
    lines += [
        f"route replace {to} dev {device} table {table}"
        for (table, to), device in new.routes.items()
        if old.routes.get((table, to)) != device or device in gone
    ]
    lines += [
        f"route del {to} dev {device} table {table}"
        for (table, to), device in old.routes.items()
        if (table, to) not in new.routes and device not in gone
    ]
    lines += [
        f"neigh del {address} dev {device}"
        for device, address in old.neighbours
        if (device, address) not in new.neighbours and device not in gone
    ]
    return lines


def nft_script(old: Plan, new: Plan) -> str:
    """Commands for `nft -f`: one transaction."""
    lines = []
    for name in new.elements:
        before, after = old.elements.get(name, set()), new.elements[name]
        if before - after:
            lines.append(f"delete element ip fabric {name} {{ {', '.join(sorted(before - after))} }}")
        if after - before:
            lines.append(f"add element ip fabric {name} {{ {', '.join(sorted(after - before))} }}")
    return "\n".join(lines)
