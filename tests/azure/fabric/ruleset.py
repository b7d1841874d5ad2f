"""The nftables ruleset of the fabric: what is dropped, and how it is counted.

Text only; loaded once, afterwards only set elements change. Every drop goes through one chain per reason, which counts
it and notes port, source and destination in a set of the same name, so that a test can ask why its packet is gone.
Reasons:

- `mac`          frame with a source MAC that isn't the NIC's
- `source`       source address that isn't configured on the sending NIC
- `unowned`      no NIC holds the destination
- `unreachable`  a NIC holds it, in a VNet that the sender isn't peered with, or of a machine that is stopped
- `outbound`     to the internet (or ARM) from an address that isn't its NIC's primary one
- `inbound`      from the internet, and no answer to anything
- `metadata`     to 169.254.169.254 or 168.63.129.16 from another address than the primary one of the primary NIC
"""

from __future__ import annotations

REASONS = ("mac", "source", "unowned", "unreachable", "outbound", "inbound", "metadata")
NOTED = 4096
"""How many different (port, source, destination) are remembered per reason."""

METADATA = "169.254.169.254"
WIRESERVER = "168.63.129.16"


def text() -> str:
    """The whole table, without elements."""
    noted = "\n".join(
        f"""
  counter {reason} {{}}
  set noted_{reason} {{ type ifname . ipv4_addr . ipv4_addr; size {NOTED}; flags dynamic; counter; }}
  chain drop_{reason} {{
    counter name {reason}
    add @noted_{reason} {{ iifname . ip saddr . ip daddr }}
    drop
  }}"""
        for reason in REASONS
    )
    return f"""
table ip fabric {{
  set macs {{ type ifname . ether_addr; }}
  set owned {{ type ifname . ipv4_addr; }}
  set outbound {{ type ifname . ipv4_addr; }}
  set hosts {{ type ifname . ipv4_addr; }}
  set held {{ type ipv4_addr; }}
  map marks {{ type ifname : mark; }}
{noted}
  chain sender {{
    type filter hook prerouting priority raw; policy accept;
    iifname "p*" jump port
    iifname "desk" meta mark set 1
    iifname "inet" meta mark set 2
  }}
  chain port {{
    iifname . ether saddr != @macs goto drop_mac
    iifname . ip saddr != @owned goto drop_source
    meta mark set iifname map @marks
  }}
  chain services {{
    type filter hook input priority filter; policy accept;
    iifname != "p*" accept
    ip daddr {{ {METADATA}, {WIRESERVER} }} iifname . ip saddr != @hosts goto drop_metadata
    ip daddr {{ {METADATA}, {WIRESERVER} }} accept
    iifname . ip saddr != @outbound goto drop_outbound
  }}
  chain delivery {{
    type filter hook forward priority filter; policy accept;
    oifname "void" ip daddr @held goto drop_unreachable
    oifname "void" goto drop_unowned
    ct state established,related accept
    iifname "inet" oifname "p*" goto drop_inbound
    iifname "p*" oifname "inet" iifname . ip saddr != @outbound goto drop_outbound
  }}
}}
"""
