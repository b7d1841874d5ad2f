"""What must be true of addresses, as the runtime and the NIC see it: the soak's judge.

Plain data, told of every event by the players. Times are of one monotonic clock. A container counts as a holder from
the moment its ADD has succeeded until its DEL begins or its sandbox ends; in between nobody else may be given its
address, and for the cool-down after it neither. An ADD whose outcome nobody knows (its shim was killed) holds nothing
here; what the agent makes of it is seen at the end, when ledger, kernel and pool are compared with `holders`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from vnetpods_agent.attachment import Address, expand

CLOCKS = 0.05
"""Seconds by which the agent's wall clock and our monotonic one may differ over a cool-down."""


class Violation(AssertionError):  # noqa: N818 - what it is called in a report
    """Something that must never happen has happened."""


@dataclass
class Model:
    cooldown: float
    nic: dict[str, str] = field(default_factory=dict)  # unit -> its ipConfiguration, in the order in which they came
    holders: dict[str, str] = field(default_factory=dict)  # container -> address
    rests: dict[str, float] = field(default_factory=dict)  # address -> when it was given back at the earliest

    def addresses(self) -> set[Address]:
        return {address for unit in self.nic for address in expand(unit)}

    def added(self, container: str, address: str, now: float) -> None:
        """An ADD has returned `address`."""
        if address not in self.addresses():
            raise Violation(f"{container} got {address}, which is not on the NIC")
        if holder := next((other for other, held in self.holders.items() if held == address), None):
            raise Violation(f"{container} got {address}, which {holder} holds")
        if now + CLOCKS < self.rests.get(address, float("-inf")) + self.cooldown:
            raise Violation(f"{container} got {address} {now - self.rests[address]:.3f} s after it was given back")
        self.holders[container] = address

    def leaving(self, container: str, now: float) -> None:
        """Its DEL begins, or its sandbox ends; a container that holds nothing is fine."""
        if address := self.holders.pop(container, None):
            self.rests[address] = now

    def power_lost(self, now: float) -> None:
        """No pod outlives a boot."""
        for container in list(self.holders):
            self.leaving(container, now)

    def rolled_back(self) -> None:
        """The node has forgotten who left of late, and nobody else knows."""
        self.rests.clear()

    def granted(self, units: Mapping[str, str]) -> None:
        """These are about to be on the NIC."""
        self.nic |= units

    def removed(self, units: Iterable[str]) -> None:
        """The node has released these, and they are about to leave the NIC."""
        for unit in units:
            for address in expand(unit):
                if holder := next((c for c, held in self.holders.items() if held == address), None):
                    raise Violation(f"{unit} was released by the node while {holder} holds {address}")
            self.nic.pop(unit, None)  # gone already, if the write that says so was lost
