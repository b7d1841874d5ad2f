"""Our nftables tables as text: `ip vnetpods` and `ip6 vnetpods`, complete, and identical for the same state.

Pure. Nothing in it depends on existing pods: pods' addresses are the pool's, and the routing table tells whether a pod
uses its own. So no rule and no set element changes when a pod comes or goes, and a packet traverses the same few rules
with one pod and with 250. Every packet traverses two rules; the other decisions are made once per connection (chains of
type nat see nothing else), which saves 0.5 us of a 24 us round trip between pods.

- `from_pods` (raw, before conntrack): drops packets from a pod whose source isn't routed to that very pod.
- `refused` (nat, before Services are resolved): rejects IMDS for pods unless allowed, and everything of 168.63.129.16
  but DNS: its other ports give the node's certificates and settings to any client with a primary address. It rejects at
  once, so that a program that looks for an identity there needs no timeout. Health probes come from there: replies to
  them begin no connection. Access by way of a Service is dropped in `source`.
- `forgotten` (forward): packets that conntrack assigns to no connection (a late FIN or RST) are never translated, so
  they pass only to direct destinations and other pods.
- `entry` (mangle; only when packets need marks): records the NIC by which a connection came in, and marks pods' packets
  with the NIC by which they must leave: the NIC of entry for replies, otherwise that of the pod's address (see
  `routing`).
- `source` (nat): connections that leave by a NIC to neither a direct nor a pool address get that NIC's primary address;
  those that leave by any other interface (a VPN, a storage network, the default route's interface if that is none of
  the pool's) get that interface's, for any destination. It decides after Services are resolved, and only for pods. A
  pod without SNAT (by its host end's group) keeps its address when it leaves by a NIC, except to destinations that
  answer primary addresses only.
- `ip6 from_pods`: pods have no IPv6 address, so all their IPv6 packets are forged.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from vnetpods_agent.attachment import HOST_PREFIX
from vnetpods_agent.dataplane import HostState
from vnetpods_agent.dataplane.kernel_facts import Uplink
from vnetpods_agent.dataplane.names import TABLE, UNTRANSLATED

IMDS = "169.254.169.254"
AZURE_SERVICE = "168.63.129.16"
"""Azure's DNS and health probes ("wireserver"): it answers only primary addresses, so it is never direct."""

MARK_MASK = 0x00000F00
"""Bits of packet and connection mark that identify a NIC; disjoint from kube-proxy's (0x4000, 0x8000) and Calico's
(0xffff0000).
"""
NIC_LIMIT = 14
FOREIGN = 15
"""Marks connections that came in by an interface that is neither a NIC of the pool nor a pod's."""

_FROM_POD, _TO_POD = f'iifname "{HOST_PREFIX}*"', f'oifname "{HOST_PREFIX}*"'
_NOT_DNS = (
    f"ip daddr {AZURE_SERVICE} meta l4proto {{ tcp, udp }} th dport != 53",
    f"ip daddr {AZURE_SERVICE} meta l4proto != {{ tcp, udp }}",
)
_FORGOTTEN = f'ct state invalid {_FROM_POD} oifname != "{HOST_PREFIX}*" ip daddr != @direct drop'


def nic_mark(number: int) -> int:
    """The mark of the nth NIC (from 1)."""
    return number << 8


def collapsed(networks: Iterable[str]) -> list[ipaddress.IPv4Network]:
    """Sorted, without overlaps; host bits are cut off: "10.0.0.7/8" means 10.0.0.0/8."""
    return list(ipaddress.collapse_addresses(ipaddress.IPv4Network(network, strict=False) for network in networks))


def numbered(uplinks: Sequence[Uplink], *, astray: bool) -> list[tuple[int, Uplink]]:
    """The NICs that need marks and tables, with their numbers; none if the main table routes everything correctly:
    with a single NIC whose packets don't leave by another interface.
    """
    return list(enumerate(uplinks[:NIC_LIMIT], start=1)) if len(uplinks) > 1 or astray else []


def ruleset(state: HostState, uplinks: Sequence[Uplink], *, astray: bool = False, ipv6: bool = True) -> str:
    """The input of `nft -f` that replaces the tables in one transaction, so no packet finds them missing."""
    several = numbered(uplinks, astray=astray)
    sets = [
        *_set("pool", (address for nic in state.nics for address in nic.addresses)),
        *_set("direct", state.direct),
        *(line for number, uplink in several for line in _set(f"pool_{number}", uplink.nic.addresses)),
    ]
    chains = [
        *_chain("from_pods", "filter hook prerouting priority raw", [f"{_FROM_POD} fib saddr . iif oif missing drop"]),
        *_chain("refused", "nat hook prerouting priority dstnat - 10", _refused(state)),
        *_chain("forgotten", "filter hook forward priority filter", [_FORGOTTEN]),
        *(_chain("entry", "filter hook prerouting priority mangle", _entry(several)) if several else ()),
        *_chain("source", "nat hook postrouting priority srcnat", _source(state, uplinks)),
    ]
    lines = _table("ip", [*sets, *chains])
    if ipv6:
        lines += _table("ip6", _chain("from_pods", "filter hook prerouting priority raw", [f"{_FROM_POD} drop"]))
    return "\n".join(lines) + "\n"


def deletion(*, ipv6: bool = True) -> str:
    """The input of `nft -f` that deletes the tables, also if there are none."""
    return "".join(f"table {family} {TABLE}\ndelete table {family} {TABLE}\n" for family in families(ipv6=ipv6))


def families(*, ipv6: bool) -> tuple[str, ...]:
    return ("ip", "ip6") if ipv6 else ("ip",)


def _table(family: str, content: Sequence[str]) -> list[str]:
    """Replaces the table in one transaction; the leading declaration lets `delete` succeed without a table."""
    name = f"table {family} {TABLE}"
    return [name, f"delete {name}", f"{name} {{", *content, "}"]


def _set(name: str, networks: Iterable[str]) -> list[str]:
    members = ", ".join(str(network) for network in collapsed(networks))
    elements = f" elements = {{ {members} }};" if members else ""
    return [f"  set {name} {{ type ipv4_addr; flags interval;{elements} }}"]


def _chain(name: str, hook: str, rules: Sequence[str]) -> list[str]:
    return [f"  chain {name} {{", f"    type {hook}; policy accept;", *(f"    {rule}" for rule in rules), "  }"]


def _unwanted(state: HostState) -> list[str]:
    """Destinations refused to pods, as matches."""
    return [*(() if state.imds else (f"ip daddr {IMDS}",)), *_NOT_DNS]


def _refused(state: HostState) -> list[str]:
    return [f"{_FROM_POD} {match} reject with icmp admin-prohibited" for match in _unwanted(state)]


def _entry(several: Sequence[tuple[int, Uplink]]) -> list[str]:
    keep = f"0x{0xFFFFFFFF ^ MARK_MASK:08x}"
    rules = []
    for number, uplink in several:
        mark = f"0x{nic_mark(number):08x}"
        rules.append(f'iifname "{uplink.link.name}" ct state new ct mark set ct mark and {keep} or {mark} accept')
    foreign = f"0x{nic_mark(FOREIGN):08x}"
    rules.append(f'iifname != "{HOST_PREFIX}*" ct state new ct mark set ct mark and {keep} or {foreign} accept')
    rules.append(f'iifname != "{HOST_PREFIX}*" accept')
    for number, _ in several:
        mark = f"0x{nic_mark(number):08x}"
        entered = f"ct direction reply ct mark and 0x{MARK_MASK:08x} == {mark}"
        rules.append(f"{entered} meta mark set meta mark and {keep} or {mark} accept")
    # came in by another interface: main has the way back
    rules.append(f"ct direction reply ct mark and 0x{MARK_MASK:08x} == {foreign} accept")
    rules.append("ct direction reply ct original ip daddr != @pool accept")  # a NodePort, before there were marks
    for number, _ in several:
        rules.append(f"ip saddr @pool_{number} meta mark set meta mark and {keep} or 0x{nic_mark(number):08x}")
    return rules


def _source(state: HostState, uplinks: Sequence[Uplink]) -> list[str]:
    primaries = ", ".join(f'"{uplink.link.name}" : {uplink.nic.primary_address}' for uplink in uplinks)
    own = ", ".join(f'"{uplink.link.name}"' for uplink in uplinks)
    translate = f"snat to oifname map {{ {primaries} }} fully-random"
    return [
        f'iifname != "{HOST_PREFIX}*" ip saddr != @pool accept',
        f"{_TO_POD} accept",
        *(f"{match} drop" for match in _unwanted(state)),
        f"{f'oifname != {{ {own} }} ' if own else ''}masquerade fully-random",
        *((f"ip daddr {{ {AZURE_SERVICE}, {IMDS} }} {translate}",) if own else ()),
        *(
            (f"iifgroup {UNTRANSLATED} accept", "ip daddr @pool accept", f"ip daddr != @direct {translate}")
            if own
            else ()
        ),
    ]
