"""Policy routing for VMs with several NICs: Azure drops what leaves by a NIC that doesn't own its source address.

Pure. With one NIC there is nothing to do. With several, or when the only one of the pool isn't the one by which the
host's default route leaves, each of the pool's has a table with its subnet and its gateway, and packets
of pods carry the mark of the NIC by which they must leave (set by `ruleset`, also for answers to what came in by
another NIC, such as a NodePort). Before that table, rule 11800 looks for host routes in main: pods on this node, and
what DHCP routes singly (168.63.129.16).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from vnetpods_agent.dataplane.kernel import Uplink
from vnetpods_agent.dataplane.rtnetlink import ANY, RT_TABLE_MAIN, Route, Rule
from vnetpods_agent.dataplane.ruleset import MARK_MASK, NIC_LIMIT, nic_mark, numbered

PRIORITY_HOST_ROUTES = 11800
PRIORITY_NIC = 11801
TABLE_BASE = 11800
TABLES = range(TABLE_BASE + 1, TABLE_BASE + 1 + NIC_LIMIT)


def wanted(uplinks: Sequence[Uplink], elsewhere: str = "") -> tuple[list[Rule], list[Route]]:
    """Rules and routes; a NIC whose subnet isn't known (no prefix contains its primary address) gets none."""
    rules: list[Rule] = []
    routes: list[Route] = []
    for number, uplink in numbered(uplinks, elsewhere):
        subnet = _subnet(uplink)
        if subnet is None:
            continue
        table, mark, index = TABLE_BASE + number, nic_mark(number), uplink.link.index
        rules.append(Rule(PRIORITY_HOST_ROUTES, mark, MARK_MASK, RT_TABLE_MAIN, suppress_prefix=31))
        rules.append(Rule(PRIORITY_NIC, mark, MARK_MASK, table))
        gateway = str(subnet.network_address + 1)
        routes.append(Route(str(subnet.network_address), subnet.prefixlen, index, table=table))
        routes.append(Route(ANY, 0, index, gateway, table=table, onlink=True))  # the OS may have given eth1 no address
    return rules, routes


def _subnet(uplink: Uplink) -> ipaddress.IPv4Network | None:
    """Azure's gateway is always the subnet's first address."""
    primary = ipaddress.IPv4Address(uplink.nic.primary_address)
    networks = (ipaddress.IPv4Network(prefix, strict=False) for prefix in uplink.nic.prefixes)
    return next((network for network in networks if primary in network), None)
