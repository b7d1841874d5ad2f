"""The addresses of this node: which one the next pod gets, who waits, and which ones go back to the subnet.

Pure: no I/O, no clock; `now` is seconds since the epoch and always an argument. The event loop owns the only instance.
Nothing here is durable: what must survive (who holds what, when an address came free, what was withdrawn) is in the
ledger, and `restore` takes it from there. The rules are those of docs/architecture.md.

A *unit* is an entry of `interfaces[].addresses` as the operator wrote it: one address or a /28 block. The release
handshake speaks of units, pods get addresses. An address is
    held      by a pod, or by an ADD that is under way;
    idle      listed and not held; of these the one unused for longest comes first, those never used before all others;
    cooling   idle, released less than `cooldown` ago: others may still send to its former pod;
    blocked   in a unit that is releasing or withdrawn: out of use, whatever else it is;
    withdrawn promised back: out of use until the source has confirmed that the promise is taken back;
    unusable  on one of the host's own interfaces, of a NIC that the machine doesn't have, or leaving: on a former
              pod's that is not yet gone from the kernel;
    missing   held, but no longer listed: the pod is left alone, and the operator asks Azure for it again.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import lru_cache

from vnetpods_agent.attachment import Address, AttachmentKey
from vnetpods_api import Interface, Usage

_LARGEST_BLOCK = 28  # Azure's block size for a NIC; anything wider is somebody's mistake


@lru_cache(maxsize=4096)
def expand(unit: str) -> tuple[Address, ...]:
    """The addresses of a unit; none when it isn't an IPv4 address or a block of at most sixteen."""
    try:
        network = ipaddress.IPv4Network(unit, strict=False)
    except ValueError:
        return ()
    if network.prefixlen < _LARGEST_BLOCK:
        return ()
    return tuple(Address(str(address)) for address in network)


class Pool:
    """See the module's docstring. Every method is a decision without waiting in between."""

    def __init__(
        self,
        cooldown: float,
        elsewhere: Callable[[], frozenset[Address]] = frozenset,
        leaving: Callable[[], Collection[Address]] = frozenset,
    ) -> None:
        """`elsewhere`, what isn't this node's to give out, and `leaving` are asked at every decision."""
        self.cooldown = cooldown
        self._elsewhere = elsewhere
        self._leaving = leaving
        self._mac: dict[Address, str] = {}  # every listed address and its NIC
        self._heard = False
        self._units: frozenset[str] = frozenset()
        self._releasing: tuple[str, ...] = ()
        self._withdrawn: dict[str, None] = {}
        self._blocked: frozenset[Address] = frozenset()
        self._held: dict[Address, AttachmentKey] = {}
        self._idle: dict[Address, None] = {}  # in the order of last use
        self._since: dict[Address, float] = {}  # when an address was released last
        self._queue: dict[AttachmentKey, None] = {}

    # what others know

    def restore(
        self, held: Mapping[Address, AttachmentKey], since: Mapping[Address, float], withdrawn: Iterable[str]
    ) -> None:
        """Takes over what the ledger remembers, before any address is given out."""
        self._held.update(held)
        self._since.update(since)
        self._withdrawn.update(dict.fromkeys(withdrawn))
        self._arrange()

    def supply(self, interfaces: Iterable[Interface]) -> None:
        """What the operator lists now. Addresses that are gone are forgotten, unless a pod holds them; no interface at
        all says nothing.
        """
        interfaces = tuple(interfaces)
        if not interfaces:
            return
        self._heard = True
        primaries = {interface.primary_address for interface in interfaces}
        self._units = frozenset(unit for interface in interfaces for unit in interface.addresses)
        self._releasing = tuple(unit for interface in interfaces for unit in interface.releasing if unit in self._units)
        self._mac = {
            address: interface.mac
            for interface in interfaces
            for unit in interface.addresses
            for address in expand(unit)
            if address not in primaries
        }
        self._arrange()

    # pods

    def take(self, key: AttachmentKey, now: float) -> Address | None:
        """An address for `key`; else it stands in the queue, until `serve` names it or it leaves. The first to come is
        the first to get.
        """
        self._notice(now)
        if not self._queue:
            address = self._first(now)
            if address is not None:
                self._hold(address, key)
                return address
        self._queue[key] = None
        return None

    def serve(self, now: float) -> list[tuple[AttachmentKey, Address]]:
        """Who of the queue gets an address now, in the order of arrival."""
        self._notice(now)
        served = []
        while self._queue and (address := self._first(now)) is not None:
            key = next(iter(self._queue))
            del self._queue[key]
            self._hold(address, key)
            served.append((key, address))
        return served

    def leave(self, key: AttachmentKey) -> None:
        """Gives back the place in the queue."""
        self._queue.pop(key, None)

    def untake(self, address: Address) -> None:
        """The address was taken and no pod ever had it: it is the first to be used again."""
        del self._held[address]
        if address in self._mac:
            self._idle = {address: None, **self._idle}

    def release(self, address: Address, now: float) -> None:
        """A pod has given the address back; it cools down from now on."""
        del self._held[address]
        self._since[address] = now
        if address in self._mac:
            self._idle[address] = None

    def adopt(self, address: Address, key: AttachmentKey) -> None:
        """A pod was found to have the address already."""
        self._idle.pop(address, None)
        self._held[address] = key

    # the release handshake

    def withdrawable(self, now: float) -> list[str]:
        """Units asked back that no pod holds, and whose former pods are gone and have cooled down; `withdraw` them once
        the ledger has it.
        """
        leaving = self._leaving()
        return [
            unit
            for unit in self._releasing
            if unit not in self._withdrawn
            and not any(a in self._held or a in leaving or self._cooling(a, now) for a in expand(unit))
        ]

    def withdraw(self, units: Iterable[str]) -> None:
        """The ledger has it: these are out of use until they are reinstated."""
        self._withdrawn.update(dict.fromkeys(units))
        self._arrange()

    def returning(self) -> list[str]:
        """Withdrawn units that nobody asks for any more. They may be reinstated when the source has confirmed a report
        without them.
        """
        releasing = set(self._releasing)
        return [unit for unit in self._withdrawn if unit not in releasing]

    def reinstate(self, units: Iterable[str]) -> None:
        """Confirmed and in the ledger: usable again, if listed; else forgotten."""
        for unit in units:
            self._withdrawn.pop(unit, None)
        self._arrange()

    def released(self) -> tuple[str, ...]:
        """What the report lists under `released`."""
        return tuple(unit for unit in self._releasing if unit in self._withdrawn)

    def kept(self) -> tuple[str, ...]:
        """Units asked back that can't be given: pods hold them, and may for months."""
        return tuple(unit for unit in self._releasing if self.holds(unit))

    def withdrawn(self) -> tuple[str, ...]:
        return tuple(self._withdrawn)

    def is_withdrawn(self, unit: str) -> bool:
        return unit in self._withdrawn

    def holds(self, unit: str) -> bool:
        """Whether a pod has an address of the unit."""
        return any(address in self._held for address in expand(unit))

    # what is the case

    def missing(self) -> tuple[Address, ...]:
        return tuple(sorted(a for a in self._held if a not in self._mac)) if self._heard else ()

    def holder(self, address: Address) -> AttachmentKey | None:
        return self._held.get(address)

    def mac(self, address: Address) -> str:
        """The NIC of a listed address; empty for one that isn't listed."""
        return self._mac.get(address, "")

    def of(self, macs: Collection[str]) -> frozenset[Address]:
        """The listed addresses of these NICs."""
        return frozenset(address for address, mac in self._mac.items() if mac in macs) if macs else frozenset()

    def listed(self, without: Collection[str] = ()) -> int:
        """Addresses that are ours to use, now or later, `without` those of some NICs: none means that no ADD can be
        served.
        """
        return sum(1 for address, mac in self._mac.items() if address not in self._blocked and mac not in without)

    def waiting(self) -> int:
        return len(self._queue)

    def usage(self, now: float) -> Usage:
        cooling = free = 0
        unusable = self._unusable()
        for address in self._idle:
            if self._cooling(address, now):
                cooling += 1
            elif address not in self._blocked and address not in unusable:
                free += 1
        return Usage(assigned=len(self._held), cooling=cooling, free=free, waiting=len(self._queue))

    def next_change(self, now: float) -> float | None:
        """When the next idle address will have cooled down; None when none is cooling."""
        return min((self._since[a] + self.cooldown for a in self._idle if self._cooling(a, now)), default=None)

    def cold(self, now: float) -> list[Address]:
        """Unlisted addresses whose release is only history by now: the ledger may forget them."""
        return [a for a in self._since if a not in self._mac and a not in self._held and not self._cooling(a, now)]

    def forget(self, addresses: Iterable[Address]) -> None:
        for address in addresses:
            self._since.pop(address, None)

    # within

    def _unusable(self) -> frozenset[Address]:
        return self._elsewhere().union(self._leaving())

    def _first(self, now: float) -> Address | None:
        unusable = self._unusable()
        for address in self._idle:
            if address in self._blocked or address in unusable:
                continue
            # ordered by release: when this one still cools down, so do all that follow
            return None if self._cooling(address, now) else address
        return None

    def _cooling(self, address: Address, now: float) -> bool:
        """Also by a `now` from before the release, for who asks may have waited for something since it looked."""
        since = self._since.get(address)
        return since is not None and since + self.cooldown > now

    def _notice(self, now: float) -> None:
        """A clock that was set back: cool-downs begin anew rather than wait for the old time to come round."""
        latest = next(reversed(self._idle), None)  # released last of all that are idle
        if latest is not None and self._since.get(latest, now) > now:
            self._since = {address: min(since, now) for address, since in self._since.items()}

    def _hold(self, address: Address, key: AttachmentKey) -> None:
        del self._idle[address]
        self._held[address] = key

    def _arrange(self) -> None:
        self._blocked = frozenset(a for unit in (*self._releasing, *self._withdrawn) for a in expand(unit))
        idle = [address for address in self._mac if address not in self._held]
        idle.sort(key=lambda address: self._since.get(address, 0.0))
        self._idle = dict.fromkeys(idle)
