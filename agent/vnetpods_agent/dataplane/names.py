"""What marks objects in the kernel as ours, for all parts of the data plane."""

from __future__ import annotations

TABLE = "vnetpods"
"""The name of our nftables tables."""
FIRST_INDEX = 0x40000000
"""Our links' indexes begin here; the kernel counts others' from 1."""

UNTRANSLATED = 0x766E7073
"""The device group ("vnps") of the host ends of pods that asked for no SNAT. The rule set matches the group, so it does
not change with such a pod, and an agent that starts has nothing to remember.
"""
