"""Marks of our objects in the kernel, for all parts of the data plane."""

from __future__ import annotations

TABLE = "vnetpods"
"""The name of our nftables tables."""
FIRST_INDEX = 0x40000000
"""Our links' indexes start here; the kernel numbers other links from 1."""

UNTRANSLATED = 0x766E7073
"""The device group ("vnps") of the host ends of pods without SNAT. The rule set matches the group, so no such pod
changes it, and a starting agent needs no memory of them.
"""
