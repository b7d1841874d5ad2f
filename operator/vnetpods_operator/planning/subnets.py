"""Request limits of nearly full subnets, learned from refusals and successes, shared by all nodes in a subnet. Pure.

`SubnetIsFull` is authoritative: Azure's usage lists are incomplete on large subnets. After a refusal the next request
is for the number that Azure reports as left, else for half; once not even one address is left, no request is sent until
a pause has passed or addresses of the subnet were released.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vnetpods_operator.planning import model
from vnetpods_operator.planning.machine import ENTRIES_PER_NIC

FIRST_PAUSE, LONGEST_PAUSE = 30.0, 600.0
"""Seconds; the pause doubles while the subnet stays full."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How many addresses one request may ask for, and from when on."""

    grow_after: float = 0.0
    grow_most: int = ENTRIES_PER_NIC
    refusals: int = 0
    blocks_after: float = 0.0

    def on(self, view: model.Nic) -> model.Nic:
        """The view of a NIC with the limits of its subnet."""
        return replace(view, grow_after=self.grow_after, grow_most=self.grow_most, blocks_after=self.blocks_after)


class Subnets:
    """Limits by case-insensitive subnet id. Times are on the caller's clock."""

    def __init__(self) -> None:
        self._limits: dict[str, Limits] = {}

    def limits(self, subnet: str) -> Limits:
        return self._limits.get(subnet.lower(), Limits())

    def refused(self, subnet: str, asked: int, left: int | None, now: float) -> Limits:
        """Records that the subnet lacked `asked` free addresses; `left`: how many Azure reports as free, if known."""
        most = asked // 2 if not left or left >= asked else left
        before = self.limits(subnet)
        if most > 0 and left != 0:
            found = Limits(0.0, most, before.refusals, before.blocks_after)
        elif now < before.grow_after:  # requested before an earlier refusal was known: the same round
            found = before
        else:
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(before.refusals, 10))
            found = Limits(now + pause, 1, before.refusals + 1, before.blocks_after)
        self._limits[subnet.lower()] = found
        return found

    def no_blocks(self, subnet: str, now: float) -> None:
        """Records that no aligned block was free: only single addresses for LONGEST_PAUSE seconds."""
        self._limits[subnet.lower()] = replace(self.limits(subnet), blocks_after=now + LONGEST_PAUSE)

    def granted(self, subnet: str) -> None:
        """Records that a request was granted: the next may be larger."""
        before = self._limits.get(subnet.lower())
        if before is None:
            return
        if before.grow_most * 2 >= ENTRIES_PER_NIC and not before.blocks_after:
            del self._limits[subnet.lower()]
        else:
            self._limits[subnet.lower()] = replace(
                before, grow_after=0.0, grow_most=min(ENTRIES_PER_NIC, before.grow_most * 2)
            )

    def given_back(self, subnet: str) -> bool:
        """Records that addresses were released; returns whether the subnet had limits, so that nodes may wait."""
        return self._limits.pop(subnet.lower(), None) is not None
