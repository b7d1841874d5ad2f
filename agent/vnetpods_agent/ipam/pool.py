"""The node's addresses: which one the next pod gets, which ADDs wait, and which units return to the subnet.

Pure: no I/O, no clock; `now` is always an argument, in seconds since the machine's boot (a clock that nobody sets). The
event loop owns the only instance. Nothing here is durable: the ledger keeps what must survive (holders, release times,
promises) and `restore` takes it over. The rules are those of docs/architecture.md.

A *unit* is an entry of `interfaces[].addresses` as the operator wrote it: one address or a /28 block. The release
handshake uses units and the names of their ipConfigurations, pods get addresses. An address is
    held      by a pod, or by an ADD in progress;
    idle      listed and not held; never-used ones first, then the one unused for longest;
    cooling   idle, released less than `cooldown` ago: peers may still send to its former pod;
    blocked   in a unit that is releasing or promised back: out of use, whatever else applies;
    promised  back: in a unit whose ipConfiguration is retired. The same unit under another name is usable again. A unit
              promised while the list had no names is out of use until it leaves the list or gets a name;
    unusable  on one of the host's own interfaces, of a NIC that the machine doesn't have, or leaving: on a former pod's
              interface that is not yet gone from the kernel;
    missing   held, but no longer listed: the pod is left alone, and the operator requests it from Azure again.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from vnetpods_agent.attachment import Address, AttachmentKey, expand
from vnetpods_api import Interface, Usage
from vnetpods_api.names import IP_CONFIGURATION_PREFIX


@dataclass(frozen=True, slots=True)
class _Entry:
    """A listed unit's NIC and ipConfiguration; the name is empty when the list has none."""

    mac: str
    name: str

    @property
    def ours(self) -> bool:
        """Only names that the operator made are never reused."""
        return self.name.startswith(IP_CONFIGURATION_PREFIX)


def _entries(interfaces: Iterable[Interface]) -> dict[str, _Entry]:
    return {
        unit: _Entry(interface.mac, names.get(unit, ""))
        for interface in interfaces
        for names in [interface.names]
        for unit in interface.addresses
    }


@lru_cache(maxsize=4096)
def _within(address: Address, network: str) -> bool:
    return ipaddress.IPv4Address(address) in ipaddress.IPv4Network(network)


@dataclass(frozen=True, slots=True)
class Wish:
    """What the address has to be: one in `network`, unless that is empty; or exactly `address`, which is assigned
    without a cool-down: a caller that names it accepts what may still arrive for the holder before.
    """

    network: str = ""
    address: Address | None = None

    def fits(self, address: Address) -> bool:
        return not self.network or _within(address, self.network)


ANY = Wish()


class Pool:
    """See the module's docstring. No method waits."""

    def __init__(
        self,
        cooldown: float,
        elsewhere: Callable[[], frozenset[Address]] = frozenset,
        leaving: Callable[[], Collection[Address]] = frozenset,
        absent: Callable[[], Collection[str]] = frozenset,
    ) -> None:
        """Called for every decision: `elsewhere` (addresses that this node must not assign), `leaving`, and `absent`
        (MACs of listed NICs that this machine doesn't have).
        """
        self.cooldown = cooldown
        self.request: str | None = None  # the request that `released` and `kept` answer
        self._elsewhere = elsewhere
        self._leaving = leaving
        self._absent = absent
        self._mac: dict[Address, str] = {}  # every listed address and its NIC
        self._heard = False
        self._entries: dict[str, _Entry] = {}
        self._read: dict[str, _Entry] = {}
        self._releasing: tuple[str, ...] = ()
        self._retired: dict[str, str] = {}  # name -> unit
        self._withdrawn: dict[str, str] = {}  # unit -> name, as in the ledger
        self._blocked: frozenset[Address] = frozenset()
        self._held: dict[Address, AttachmentKey] = {}
        self._idle: dict[Address, None] = {}  # in the order of last use
        self._since: dict[Address, float] = {}  # time of an address's last release, in that order
        self._queue: dict[AttachmentKey, Wish] = {}

    # ledger and list

    def restore(
        self,
        held: Mapping[Address, AttachmentKey],
        since: Mapping[Address, float],
        withdrawn: Mapping[str, str],
        retired: Mapping[str, str],
    ) -> None:
        """Takes over the ledger's content, before any address is assigned; `since` in the order of release."""
        self._held.update(held)
        self._since.update(since)
        self._withdrawn.update(withdrawn)
        self._retired.update(retired)
        self._arrange()

    def read(self, interfaces: Iterable[Interface]) -> None:
        """Takes a list, trusted or not: either way it can be reported which of its units are promised back."""
        self._read = _entries(interfaces)

    def supply(self, interfaces: Iterable[Interface], request: str | None = None) -> None:
        """Takes the operator's present list and the id of its release request. Addresses that left the list are
        forgotten, unless a pod holds them; a list without interfaces changes nothing.
        """
        interfaces = tuple(interfaces)
        self.read(interfaces)
        if not interfaces:
            return
        self._heard = True
        primaries = {interface.primary_address for interface in interfaces}
        self.request = request
        self._entries = self._read
        self._releasing = tuple(u for interface in interfaces for u in interface.releasing if u in self._entries)
        self._mac = {
            address: interface.mac
            for interface in interfaces
            for unit in interface.addresses
            for address in expand(unit)
            if address not in primaries
        }
        self._arrange()

    # pods

    def take(self, key: AttachmentKey, now: float, wish: Wish = ANY) -> Address | None:
        """An address for `key`; without one, `key` queues until `serve` names it or it leaves. First come, first
        served, among the addresses that fit its wish.
        """
        if not self._queue:
            address = self._first(now, wish)
            if address is not None:
                self._hold(address, key)
                return address
        self._queue[key] = wish
        return None

    def hopeless(self, wish: Wish) -> str:
        """Why waiting for the named address is useless; empty when it isn't."""
        if wish.address is None:
            return ""
        if (holder := self._held.get(wish.address)) is not None:
            return f"{wish.address} is in use, by {holder}"
        return "" if wish.address in self._mac else f"{wish.address} is none of the addresses that this machine may use"

    def serve(self, now: float) -> list[tuple[AttachmentKey, Address]]:
        """Assigns addresses to the queue, in the order of arrival."""
        served = []
        vain: set[Wish] = set()
        for key, wish in list(self._queue.items()):
            if wish in vain:
                continue
            address = self._first(now, wish)
            if address is None:
                vain.add(wish)
                continue
            del self._queue[key]
            self._hold(address, key)
            served.append((key, address))
        return served

    def leave(self, key: AttachmentKey) -> None:
        """Leaves the queue."""
        self._queue.pop(key, None)

    def untake(self, address: Address) -> None:
        """Frees an address that no pod ever had; it is the first to be used again."""
        del self._held[address]
        if address in self._mac:
            self._idle = {address: None, **self._idle}

    def release(self, address: Address, now: float) -> None:
        """Frees a pod's address; it cools down from `now`."""
        del self._held[address]
        self._since.pop(address, None)  # keeps the order of release
        self._since[address] = now
        if address in self._mac:
            self._idle[address] = None

    def adopt(self, address: Address, key: AttachmentKey) -> None:
        """Marks an address as held that a pod already has or claims from its reservation."""
        self._idle.pop(address, None)
        self._held[address] = key

    # the release handshake

    def retirable(self, now: float) -> list[tuple[str, str]]:
        """(name, unit) to `retire`, in memory and in the ledger: requested back, or promised before it had a name; not
        held, with the former pods gone and cooled down.
        """
        leaving, absent = self._leaving(), self._absent()
        asked = dict.fromkeys((*self._releasing, *(u for u, name in self._withdrawn.items() if not name)))
        return [
            (entry.name, unit)
            for unit in asked
            if (entry := self._entries.get(unit)) and entry.ours and entry.mac not in absent
            if entry.name not in self._retired
            and not any(a in self._held or a in leaving or self._cooling(a, now) for a in expand(unit))
        ]

    def retire(self, entries: Collection[tuple[str, str]]) -> None:
        """Takes these ipConfigurations out of use for good."""
        self._retired.update((name, unit) for name, unit in entries if name)
        self._withdrawn.update((unit, name) for name, unit in entries)
        self._arrange()

    def unretire(self, entries: Iterable[tuple[str, str]]) -> None:
        """Undoes `retire` when the ledger refused; nothing was reported yet."""
        for name, unit in entries:
            self._retired.pop(name, None)
            self._withdrawn.pop(unit, None)
        self._arrange()

    def believe(self, interfaces: Iterable[Interface], units: Iterable[str]) -> list[tuple[str, str]]:
        """Retires units that the source records as promised back and the ledger lacks; returns their (name, unit)."""
        entries = _entries(interfaces)
        lost = [
            (entry.name, unit)
            for unit in units
            if (entry := entries.get(unit)) and (entry.ours or not entry.name)
            if entry.name not in self._retired and unit not in self._withdrawn and not self.holds(unit)
        ]
        self.retire(lost)
        return lost

    def settle(self) -> tuple[list[tuple[str, str]], list[str]]:
        """Updates `withdrawn`, for versions without names; returns what the ledger must record: (name, unit) of listed
        units that are promised back, and units that no longer are.
        """
        promised = [
            (entry.name, unit)
            for unit, entry in self._entries.items()
            if entry.name in self._retired and self._withdrawn.get(unit) != entry.name and not self.holds(unit)
        ]
        void = [unit for unit, name in self._withdrawn.items() if not self._stands(unit, name)]
        for unit in void:
            del self._withdrawn[unit]
        self._withdrawn.update((unit, name) for name, unit in promised)
        if void:
            self._arrange()
        return promised, void

    def released(self) -> tuple[str, ...]:
        """The report's `released`: all retired units of the list as read, requested or not."""
        absent = self._absent()
        return tuple(
            unit
            for unit, entry in self._read.items()
            if entry.name in self._retired and entry.mac not in absent and not self.holds(unit)
        )

    def kept(self) -> tuple[str, ...]:
        """Requested units that can't be released: pods hold them, possibly for months."""
        absent = self._absent()
        return tuple(
            u for u in self._releasing if u in self._read and self._read[u].mac not in absent and self.holds(u)
        )

    def promises(self) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
        """(name, unit) of everything retired, and of the listed units that are promised back."""
        return tuple(self._retired.items()), tuple((name, unit) for unit, name in self._withdrawn.items())

    def holds(self, unit: str) -> bool:
        """Whether a pod has an address of the unit."""
        return any(address in self._held for address in expand(unit))

    # state

    def missing(self) -> tuple[Address, ...]:
        return tuple(sorted(a for a in self._held if a not in self._mac)) if self._heard else ()

    def holder(self, address: Address) -> AttachmentKey | None:
        return self._held.get(address)

    def mac(self, address: Address) -> str:
        """The NIC of a listed address; empty for others."""
        return self._mac.get(address, "")

    def of(self, macs: Collection[str]) -> frozenset[Address]:
        """The listed addresses of these NICs."""
        return frozenset(address for address, mac in self._mac.items() if mac in macs) if macs else frozenset()

    def listed(self, without: Collection[str] = ()) -> int:
        """Number of addresses that pods may get, now or later, `without` those of some NICs; at 0 no ADD succeeds."""
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
        """When the next idle address has cooled down; None when none is cooling."""
        return min((self._since[a] + self.cooldown for a in self._idle if self._cooling(a, now)), default=None)

    def cold(self, now: float) -> list[Address]:
        """Unlisted, unheld addresses that have cooled down: the ledger may forget them."""
        return [a for a in self._since if a not in self._mac and a not in self._held and not self._cooling(a, now)]

    def forget(self, addresses: Iterable[Address]) -> None:
        for address in addresses:
            self._since.pop(address, None)

    # internal

    def _unusable(self) -> frozenset[Address]:
        return self._elsewhere().union(self._leaving())

    def _first(self, now: float, wish: Wish) -> Address | None:
        unusable = self._unusable()
        if (named := wish.address) is not None:
            return named if named in self._idle and named not in self._blocked and named not in unusable else None
        for address in self._idle:
            if address in self._blocked or address in unusable or not wish.fits(address):
                continue
            # in the order of release: if this one is cooling, so are all that follow
            return None if self._cooling(address, now) else address
        return None

    def _cooling(self, address: Address, now: float) -> bool:
        """Also for a `now` before the release: the caller may have read the clock before it waited for something."""
        since = self._since.get(address)
        return since is not None and since + self.cooldown > now

    def _hold(self, address: Address, key: AttachmentKey) -> None:
        del self._idle[address]
        self._held[address] = key

    def _stands(self, unit: str, name: str) -> bool:
        """Whether the promise concerns the unit's present listing. (A unit promised without a name that has one now is
        about to be retired.)
        """
        if not self._heard:
            return True
        entry = self._entries.get(unit)
        if entry is None or self.holds(unit):
            return False
        return entry.name == name or (not name and entry.ours)

    def _arrange(self) -> None:
        out = [
            unit
            for unit, entry in self._entries.items()
            if entry.name in self._retired or self._withdrawn.get(unit) == ""
        ]
        self._blocked = frozenset(a for unit in (*self._releasing, *out) for a in expand(unit))
        never = (address for address in self._mac if address not in self._since)
        used = (address for address in self._since if address in self._mac)
        self._idle = {address: None for address in (*never, *used) if address not in self._held}
