"""Address allocation in a subnet: static and dynamic addresses, reserved addresses, /28 blocks.

Pure. One SubnetSpace per subnet, owned by the model, which calls it while it decides on a write. `Claim` collects the
addresses of one write and commits them at once, so that a refused write changes nothing. Rules: a subnet's first four
addresses and its last are reserved; SubnetIsFull is the authority; a removed address may stay taken for a while.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from tests.azure.arm.errors import ArmError

RESERVED_AT_START = 4
BLOCK = 28
"""The only prefix length that `privateIPAddressPrefixLength` may have."""
BLOCK_SIZE = 16

Holder = tuple[str, str]
"""(key of the resource, name of its ipConfiguration)."""


@dataclass(slots=True)
class SubnetSpace:
    """One subnet's addresses. `taken` maps an address to its holder; `lingering` holds removed ones until a moment."""

    name: str
    networks: list[ipaddress.IPv4Network]
    taken: dict[int, Holder] = field(default_factory=dict)
    lingering: dict[int, float] = field(default_factory=dict)
    _low: int = 0
    """Every address below is taken or reserved: the search for a free one starts here."""

    def __post_init__(self) -> None:
        self.networks.sort()

    @property
    def capacity(self) -> int:
        return sum(max(0, network.num_addresses - RESERVED_AT_START - 1) for network in self.networks)

    def contains(self, address: int) -> bool:
        return any(int(network[0]) <= address <= int(network[-1]) for network in self.networks)

    def reserved(self, address: int) -> bool:
        for network in self.networks:
            first, last = int(network[0]), int(network[-1])
            if first <= address <= last:
                return address < first + RESERVED_AT_START or address == last
        return False

    def free(self, address: int, now: float) -> bool:
        return address not in self.taken and self.lingering.get(address, 0.0) <= now

    def lowest(self, now: float, besides: set[int]) -> int | None:
        """The lowest free address, or None."""
        untaken = None
        for network in self.networks:
            first, last = int(network[0]) + RESERVED_AT_START, int(network[-1])
            for address in range(max(first, self._low), last):
                if address in self.taken:
                    continue
                untaken = untaken or address
                if address not in besides and self.free(address, now):
                    self._low = untaken
                    return address
        return None

    def lowest_block(self, now: float, besides: set[int]) -> int | None:
        for network in self.networks:
            for first in range(int(network[0]) + BLOCK_SIZE, int(network[-1]) - BLOCK_SIZE + 1, BLOCK_SIZE):
                block = range(first, first + BLOCK_SIZE)
                if all(address not in besides and self.free(address, now) for address in block):
                    return first
        return None

    def take(self, addresses: range, holder: Holder) -> None:
        for address in addresses:
            self.taken[address] = holder

    def release(self, addresses: range, until: float) -> None:
        for address in addresses:
            self.taken.pop(address, None)
            if until:
                self.lingering[address] = until
        self._low = min(self._low, addresses.start)


def addresses_of(text: str) -> range:
    """The addresses behind `10.0.0.5` or `10.0.0.16/28` (host bits may be set), as integers."""
    network = ipaddress.IPv4Network(text, strict=False)
    return range(int(network[0]), int(network[-1]) + 1)


@dataclass(slots=True)
class Claim:
    """The addresses that one write wants from one subnet: `keep`, `static`, `dynamic`; then `commit`."""

    space: SubnetSpace
    owner: str
    now: float
    previous: dict[str, str]
    """ipConfiguration (lower case) → address text it holds before the write."""
    wanted: dict[str, str] = field(default_factory=dict)
    _claimed: dict[int, str] = field(default_factory=dict)

    def static(self, name: str, text: str) -> str:
        """Raises ARM's error if the address is not available."""
        try:
            addresses = addresses_of(text)
        except ValueError as error:
            raise ArmError(400, "InvalidIPAddress", f"The IP address {text} is not valid: {error}.") from error
        for address in addresses:
            self._check(address, name)
        return self._claim(name, text, addresses)

    def dynamic(self, name: str, block: bool = False) -> str:
        held = self.previous.get(name.lower())
        if held is not None and ("/" in held) == block and not self._claimed.keys() & addresses_of(held):
            return self._claim(name, held, addresses_of(held))
        # Addresses that this very write gives up are not offered again within it: the service frees them when it is
        # done.
        besides = set(self._claimed)
        found = self.space.lowest_block(self.now, besides) if block else self.space.lowest(self.now, besides)
        if found is None:
            raise self.full()
        text = str(ipaddress.IPv4Address(found)) + (f"/{BLOCK}" if block else "")
        return self._claim(name, text, addresses_of(text))

    def commit(self, linger: float) -> None:
        """Frees addresses no longer wanted and takes the new ones; a freed address stays taken for `linger` seconds."""
        for name, text in self.previous.items():
            if self.wanted.get(name) != text:
                self.space.release(addresses_of(text), self.now + linger if linger else 0.0)
        for name, text in self.wanted.items():
            self.space.take(addresses_of(text), (self.owner, name))

    def full(self) -> ArmError:
        prefixes = ", ".join(map(str, self.space.networks))
        return ArmError(
            400,
            "SubnetIsFull",
            f"Subnet {self.space.name} with address prefix {prefixes} does not have enough capacity for 1 IP "
            "addresses.",
        )

    def _claim(self, name: str, text: str, addresses: range) -> str:
        self.wanted[name.lower()] = text
        self._claimed.update(dict.fromkeys(addresses, name))
        return text

    def _check(self, address: int, name: str) -> None:
        text, where = ipaddress.IPv4Address(address), ", ".join(map(str, self.space.networks))
        if not self.space.contains(address):
            raise ArmError(
                400,
                "PrivateIPAddressNotInSubnet",
                f"Private static IP address {text} does not belong to the range of subnet prefix {where}.",
            )
        if self.space.reserved(address):
            raise ArmError(
                400,
                "PrivateIPAddressInReservedRange",
                f"Private static IP address {text} falls within reserved IP range of subnet prefix {where}.",
            )
        holder = self.space.taken.get(address)
        if address in self._claimed or (holder is not None and holder[0] != self.owner) or self._lingers(address):
            raise self._allocated(text, holder, name)
        # A static value may move between configurations of one NIC only when its old holder gives it up in the same
        # write.

    def _lingers(self, address: int) -> bool:
        return address not in self.space.taken and not self.space.free(address, self.now)

    def _allocated(self, text: ipaddress.IPv4Address, holder: Holder | None, name: str) -> ArmError:
        by = f"{holder[0]}/ipConfigurations/{holder[1]}" if holder else f"{self.owner}/ipConfigurations/{name}"
        return ArmError(
            400,
            "PrivateIPAddressIsAllocated",
            f"IP configuration {by} is using the private IP address {text} which is already allocated.",
        )
