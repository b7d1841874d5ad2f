"""What refusals and successes taught about subnets that are nearly full, shared by all nodes in them. Pure.

`SubnetIsFull` is the authority: Azure's lists of what is used are incomplete on large subnets. After a refusal the next
request asks for as many as are said to be left, else for half; when not even one is to be had, nobody asks until a
pause has passed or addresses of the subnet were given back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vnetpods_operator.planning import model
from vnetpods_operator.planning.machine import ENTRIES_PER_NIC

FIRST_PAUSE, LONGEST_PAUSE = 30.0, 600.0
"""Seconds; doubled while the subnet stays full."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may be asked for at once, and from when on."""

    grow_after: float = 0.0
    grow_most: int = ENTRIES_PER_NIC
    refusals: int = 0
    blocks_after: float = 0.0

    def on(self, view: model.Nic) -> model.Nic:
        """A NIC in such a subnet."""
        return replace(view, grow_after=self.grow_after, grow_most=self.grow_most, blocks_after=self.blocks_after)


class Subnets:
    """Limits by subnet id, regardless of case. Times are the caller's."""

    def __init__(self) -> None:
        self._limits: dict[str, Limits] = {}

    def limits(self, subnet: str) -> Limits:
        return self._limits.get(subnet.lower(), Limits())

    def refused(self, subnet: str, asked: int, left: int | None, now: float) -> Limits:
        """The subnet did not have `asked` addresses; `left` is what Azure says it has, if it says so."""
        most = asked // 2 if not left or left >= asked else left
        before = self.limits(subnet)
        if most > 0 and left != 0:
            found = Limits(0.0, most, before.refusals, before.blocks_after)
        elif now < before.grow_after:  # asked before the others heard of it: the same round
            found = before
        else:
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(before.refusals, 10))
            found = Limits(now + pause, 1, before.refusals + 1, before.blocks_after)
        self._limits[subnet.lower()] = found
        return found

    def no_blocks(self, subnet: str, now: float) -> None:
        """No aligned block was to be had: single addresses for a while."""
        self._limits[subnet.lower()] = replace(self.limits(subnet), blocks_after=now + LONGEST_PAUSE)

    def granted(self, subnet: str) -> None:
        """A request was met: the next may be larger."""
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
        """Addresses have become free; whether anybody waits for them."""
        return self._limits.pop(subnet.lower(), None) is not None
