"""The nftables ruleset of the fabric: drops and their counters.

Text only; loaded once. Afterwards only set elements and the chains of `plan.Plan.chains` change. Every drop goes
through one chain per reason, which counts it and records port, source and destination in a set of the same name, so
that a test can find out why its packet was dropped. Reasons:

- `mac`          frame with a source MAC that isn't the NIC's
- `source`       source address that isn't configured on the sending NIC
- `unowned`      no NIC holds the destination
- `unreachable`  a NIC holds it, in a VNet that the sender isn't peered with, or of a machine that is stopped
- `route`        a user-defined route drops it, or leads to a missing appliance
- `security`     a security group forbids it
- `outbound`     to the internet (or ARM) from an address that has no way out
- `inbound`      from the internet, and no reply to any flow
- `metadata`     to 169.254.169.254 or 168.63.129.16 from another address than the primary one of the primary NIC
- `endpoint`     to the storage service from a subnet without service endpoint, from an address that has no way out
"""

from __future__ import annotations

REASONS = (
    "mac",
    "source",
    "unowned",
    "unreachable",
    "route",
    "security",
    "outbound",
    "inbound",
    "metadata",
    "endpoint",
)
NOTED = 4096
"""Number of different (port, source, destination) remembered per reason."""

METADATA = "169.254.169.254"
WIRESERVER = "168.63.129.16"
STORAGE = "20.60.0.10"
"""A service that can be reached through a service endpoint."""


_JUDGING = f"""
  chain services {{
    type filter hook input priority filter; policy accept;
    ct state established,related accept
    iifname != "p*" accept
    ip daddr {{ {METADATA}, {WIRESERVER} }} iifname . ip saddr != @hosts goto drop_metadata
    ip daddr {{ {METADATA}, {WIRESERVER} }} accept
    iifname vmap @leaving
    ip daddr {STORAGE} meta mark @endpoints accept
    ip daddr {STORAGE} iifname . ip saddr != @outbound goto drop_endpoint
    iifname . ip saddr != @outbound goto drop_outbound
  }}
  chain probing {{
    type filter hook output priority filter; policy accept;
    ip saddr {WIRESERVER} ct state new oifname vmap @entering
  }}
  chain delivery {{
    type filter hook forward priority filter; policy accept;
    oifname "void" ip daddr @held goto drop_unreachable
    oifname "void" goto drop_unowned
    oifname "none" goto drop_route
    iifname "desk" accept
    oifname "desk" accept
    ct state established,related accept
    iifname "inet" oifname "p*" ct status & dnat != dnat goto drop_inbound
    iifname "p*" oifname "inet" iifname . ip saddr != @outbound goto drop_outbound
    iifname vmap @leaving
    oifname vmap @entering
  }}
"""
"""Accepted packets: to the fabric's own hosts, from the health probes, forwarded."""


def text(declarations: list[str]) -> str:
    """The whole table, without elements; `declarations` are the sets and maps that it refers to."""
    return f"""
table ip fabric {{
}}
{"".join(f"add {line}{chr(10)}" for line in declarations)}
table ip fabric {{
{"".join(map(_reason, REASONS))}
  chain balance {{
  }}
  chain sender {{
    type filter hook prerouting priority raw; policy accept;
    iifname "p*" jump port
    iifname "desk" meta mark set 1
    iifname "inet" meta mark set 2
    iifname "onprem" meta mark set 3
  }}
  chain port {{
    iifname . ether saddr != @macs goto drop_mac
    iifname != @forwarders iifname . ip saddr != @owned goto drop_source
    meta mark set iifname map @marks
  }}
  chain inward {{
    type nat hook prerouting priority dstnat; policy accept;
    jump balance
    iifname != "p*" dnat to ip daddr map @public
  }}
  chain outward {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname "inet" snat to ip saddr map @egress
  }}
{_JUDGING}
}}
"""


def _reason(name: str) -> str:
    return f"""
  counter {name} {{}}
  set noted_{name} {{ type ifname . ipv4_addr . ipv4_addr; size {NOTED}; flags dynamic; counter; }}
  chain drop_{name} {{
    counter name {name}
    add @noted_{name} {{ iifname . ip saddr . ip daddr }}
    drop
  }}"""
