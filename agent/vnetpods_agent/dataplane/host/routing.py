"""Policy routing for pods where the main table would misroute their packets: Azure drops packets that leave by a NIC
that doesn't own their source address, and packets with a pod's source on a VPN or a storage network are lost, too.

Pure. With one NIC that has the default route nothing is needed, unless a route by another interface lies within the
direct CIDRs. Otherwise pods' packets carry the mark of the NIC by which they must leave (set by `ruleset`, also for
replies on connections that came in by another NIC, such as a NodePort's), and the rules look up, in this order,
- host routes in main: pods on this node, and DHCP's host routes (168.63.129.16);
- the NIC's subnet and the direct CIDRs, in the NIC's own table: they leave by the NIC whatever main has;
- all of main but its default route: networks reached only by another interface. `ruleset` translates;
- the default route in the NIC's table.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from vnetpods_agent.dataplane.host.ruleset import MARK_MASK, NIC_LIMIT, collapsed, nic_mark, numbered
from vnetpods_agent.dataplane.kernel_facts import Uplink
from vnetpods_agent.dataplane.names import FIRST_INDEX
from vnetpods_agent.dataplane.netlink.messages import ANY, RT_TABLE_MAIN, Link, Route, Rule

PRIORITY_HOST_ROUTES, PRIORITY_DIRECT, PRIORITY_MAIN, PRIORITY_NIC = 11800, 11801, 11802, 11803
TABLE_BASE = 11800
TABLES = range(TABLE_BASE + 1, TABLE_BASE + 1 + NIC_LIMIT)


_HALVES = ("0.0.0.0/1", "128.0.0.0/1")


def default_interface(routes: Iterable[Route]) -> int:
    """The interface index of the host's default route; 0 without one. The kernel lists routes to one destination by
    metric, so the first counts.
    """
    return next((route.index for route in routes if not route.prefix), 0)


def beyond_bridges(
    direct: Iterable[str], uplinks: Sequence[Uplink], links: Iterable[Link], routes: Iterable[Route]
) -> list[str]:
    """Guessed direct CIDRs without the networks of the machine's own bridges, whose members are on this machine.
    (CIDRs that the VNet is known to have are never reduced by a bridge's network.)
    """
    own = {uplink.link.index for uplink in uplinks}
    bridges = {link.index for link in links if link.kind == "bridge"} - own
    beyond = collapsed(direct)
    for route in routes:
        if route.index in bridges and route.prefix and not route.gateway:
            local = ipaddress.IPv4Network((route.destination, route.prefix))
            beyond = [part for network in beyond for part in _without(network, local)]
    return [str(network) for network in beyond]


def _without(network: ipaddress.IPv4Network, local: ipaddress.IPv4Network) -> Iterable[ipaddress.IPv4Network]:
    if not network.overlaps(local):
        return [network]
    return network.address_exclude(local) if local.subnet_of(network) else []


def leads_astray(uplinks: Sequence[Uplink], direct: Iterable[str], routes: Sequence[Route]) -> bool:
    """Whether main routes pods' packets by another interface than their NIC: all of them, by the default route, or
    those to direct destinations, by a more specific one. Host routes don't count: they are deliberate.
    """
    own = {uplink.link.index for uplink in uplinks}
    if not own:
        return False
    effective: dict[tuple[str, int], int] = {}
    for route in routes:
        effective.setdefault((route.destination, route.prefix), route.index)
    ranges = collapsed([*direct, *(prefix for uplink in uplinks for prefix in uplink.nic.prefixes)])
    foreign = [
        ipaddress.IPv4Network(destination)
        for destination, index in effective.items()
        if 0 < destination[1] < 32 and 0 < index < FIRST_INDEX and index not in own
    ]
    return default_interface(routes) not in {0, *own} or any(each.overlaps(net) for net in foreign for each in ranges)


def wanted(
    uplinks: Sequence[Uplink], direct: Iterable[str] = (), *, astray: bool = False
) -> tuple[list[Rule], list[Route]]:
    """Rules and routes; none for a NIC of unknown subnet (no prefix contains its primary address)."""
    rules: list[Rule] = []
    routes: list[Route] = []
    ranges = [str(network) for network in collapsed(direct)]
    ranges = [*_HALVES] if ranges == ["0.0.0.0/0"] else ranges  # not as a default route, which the rule would skip
    for number, uplink in numbered(uplinks, astray=astray):
        subnet = _subnet(uplink)
        if subnet is None:
            continue
        table, mark, index = TABLE_BASE + number, nic_mark(number), uplink.link.index
        rules.append(Rule(PRIORITY_HOST_ROUTES, mark, MARK_MASK, RT_TABLE_MAIN, suppress_prefix=31))
        rules.append(Rule(PRIORITY_DIRECT, mark, MARK_MASK, table, suppress_prefix=0))
        rules.append(Rule(PRIORITY_MAIN, mark, MARK_MASK, RT_TABLE_MAIN, suppress_prefix=0))
        rules.append(Rule(PRIORITY_NIC, mark, MARK_MASK, table))
        gateway = str(subnet.network_address + 1)
        routes.append(Route(str(subnet.network_address), subnet.prefixlen, index, table=table))
        for network in (ipaddress.IPv4Network(each) for each in [*ranges, ANY + "/0"]):
            if network != subnet:  # onlink: eth1 may have no address from the OS
                to = str(network.network_address)
                routes.append(Route(to, network.prefixlen, index, gateway, table=table, onlink=True))
    return rules, routes


def _subnet(uplink: Uplink) -> ipaddress.IPv4Network | None:
    """The NIC's subnet; its first address is always Azure's gateway."""
    primary = ipaddress.IPv4Address(uplink.nic.primary_address)
    networks = (ipaddress.IPv4Network(prefix, strict=False) for prefix in uplink.nic.prefixes)
    return next((network for network in networks if primary in network), None)
