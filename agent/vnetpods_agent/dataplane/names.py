"""What marks objects in the kernel as ours, for all parts of the data plane."""

from __future__ import annotations

TABLE = "vnetpods"
"""The name of our nftables tables."""
FIRST_INDEX = 0x40000000
"""Our links' indexes begin here; the kernel counts others' from 1."""
