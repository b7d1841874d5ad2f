"""A virtual machine and its NICs, independent of the kind of machine.

`MachineId` is parsed from a Node's providerID. `Nic` and `Entry` hold what was read from Azure; `usable_by_pods` sorts
a NIC's entries (ipConfigurations) into ours, adopted and foreign and builds the planner's view. `Machine` is the
protocol that vnetpods_operator.azure implements, one module per kind. Everything but the protocol is pure.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any, Protocol

from vnetpods_api.names import IP_CONFIGURATION_PREFIX
from vnetpods_operator.errors import AzureError, Refused
from vnetpods_operator.planning import model

ENTRIES_PER_NIC = 256
"""ipConfigurations that Azure allows on a NIC, and on all NICs of a machine together."""

_PROVIDER_ID = re.compile(
    r"^azure://(?P<id>/subscriptions/(?P<subscription>[^/]+)/resourceGroups/(?P<group>[^/]+)"
    r"/providers/Microsoft[.]Compute/(?:virtualMachines/(?P<name>[^/]+)"
    r"|virtualMachineScaleSets/(?P<scale_set>[^/]+)/virtualMachines/(?P<instance>[^/]+)))$",
    re.IGNORECASE,
)


class UnsupportedProvider(Exception):  # noqa: N818 - named after what happened
    """The providerID does not name an Azure virtual machine."""


@dataclass(frozen=True, slots=True)
class MachineId:
    """A virtual machine's resource id and its parts; `scale_set` only for instances of a uniform scale set."""

    id: str
    subscription: str
    group: str
    name: str
    scale_set: str | None = None

    @property
    def place(self) -> str:
        """`subscription/resource group` in lower case."""
        return f"{self.subscription}/{self.group}".lower()

    @classmethod
    def from_provider_id(cls, provider_id: str) -> MachineId:
        found = _PROVIDER_ID.match(provider_id)
        if found is None:
            raise UnsupportedProvider(provider_id)
        return cls(
            id=found["id"],
            subscription=found["subscription"],
            group=found["group"],
            name=found["name"] or found["instance"],
            scale_set=found["scale_set"],
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """One ipConfiguration. `address` is a single IPv4 address, a /28 block, or None if it has none yet (or is IPv6)."""

    name: str
    address: str | None
    state: str
    primary: bool

    @property
    def ours(self) -> bool:
        return self.name.lower().startswith(IP_CONFIGURATION_PREFIX) and not self.primary


@dataclass(frozen=True, slots=True)
class Nic:
    """A NIC as read. `body` is ARM's response, kept only during a pass over the node. A write fails if `etag` is
    outdated; if `fenced`, the etag covers the entries.
    """

    id: str
    name: str
    mac: str
    subnet: str
    etag: str
    state: str
    primary: bool
    entries: tuple[Entry, ...]
    tags: dict[str, str] = field(default_factory=dict)
    fenced: bool = True
    body: Any = None
    carries: frozenset[str] = frozenset()
    """Lower-case names of the entries that a write of this NIC would carry; in a write's result, those it carried."""

    @property
    def primary_address(self) -> str | None:
        return next((entry.address for entry in self.entries if entry.primary), None)


@dataclass(frozen=True, slots=True)
class UnreadableNic:
    """A NIC of the machine that can't be read; `error` is the cause. `primary` as the machine reports it."""

    id: str
    name: str
    primary: bool
    error: AzureError


@dataclass(frozen=True, slots=True)
class Nics:
    """A machine's NICs, the primary first, and those that can't be read; never both empty."""

    found: tuple[Nic, ...]
    unreadable: tuple[UnreadableNic, ...] = ()


class Machine(Protocol):
    """One kind of virtual machine. Both methods raise the errors of vnetpods_operator.errors only."""

    async def nics(self) -> Nics:
        """Reads the machine's NICs. An unreadable NIC doesn't keep the others from being used."""

    async def write(self, nic: Nic, change: model.Change) -> Nic:
        """Makes the change in one write, which fails if the NIC has changed since; returns the NIC as read back."""


def fence(nic: Nic) -> str:
    """The etag for a write's If-Match. Raises Refused if there is none: the write could silently undo another's."""
    if nic.etag in ("", "*"):
        text = (
            f"Azure gives no etag for {nic.name}, so a write could undo what others write at the same time; set "
            "azure.computeApiVersion in the operator's configuration to 2024-03-01 or later (docs/operator.md)"
        )
        raise Refused(text, "NoEtag")
    return nic.etag


@dataclass(frozen=True, slots=True)
class Naming:
    """Rules for which entries pods may use."""

    adopt: tuple[str, ...] = ()
    """Patterns for names of entries created by others."""
    exclude: tuple[tuple[int, int], ...] = ()
    """Ranges of addresses that are never handed out."""

    def adopted(self, entry: Entry) -> bool:
        return not entry.primary and any(fnmatch.fnmatchcase(entry.name.lower(), p.lower()) for p in self.adopt)

    def excluded(self, address: str) -> bool:
        if not self.exclude:
            return False
        bare, _, block = address.partition("/")
        first = int(IPv4Address(bare))
        last = first + (model.BLOCK - 1 if block else 0)
        return any(first <= high and low <= last for low, high in self.exclude)


def usable_by_pods(
    nics: Collection[Nic],
    published: Collection[str],
    naming: Naming,
    prefixes: dict[str, tuple[str, ...]],
    gone: Collection[str] = (),
    doubted: Collection[str] = (),
    *,
    hopeful: bool = True,
) -> tuple[model.Nic, ...]:
    """Builds the planner's view of the NICs.

    `published`: addresses that the pool lists or pods hold, kept regardless of Azure's state for them.
    `prefixes`: of each subnet, by lower-case id.
    `gone`: names (lower case) of removed entries; if they reappear, no pod gets them.
    `doubted`: names (lower case) of entries that no pod gets until a write has proven that they exist; they count as
    pending, except those that no write would carry.
    `hopeful`: whether Failed entries are expected to recover; if so they count as pending, like those that Azure is
    still configuring.

    An unfenced list of entries that lacks a published address never justifies sweeping: an entry without address may be
    the missing one.
    """
    listed = {entry.address for nic in nics for entry in nic.entries}
    lagging = not listed.issuperset(published)
    free = max(0, ENTRIES_PER_NIC - sum(len(nic.entries) for nic in nics))
    views = []
    for nic in nics:
        back = {e.name for e in nic.entries if e.ours and e.name.lower() in gone}
        ours = [entry for entry in nic.entries if entry.ours and entry.name not in back]
        unproven = {e.name for e in ours if e.address and e.name.lower() in doubted}
        provable = {name for name in unproven if name.lower() in nic.carries}
        barred = back | unproven
        found = [e for e in nic.entries if e.address and e.name not in barred and (e.ours or naming.adopted(e))]
        # Azure marks working entries Updating or Failed: what pods may hold stays theirs
        good = [e for e in found if e.state == "Succeeded" or e.address in published]
        kept = [e for e in good if not naming.excluded(_address(e)) or _address(e) in published]
        # a pod may hold any entry with an address without our knowing yet: repair it, don't sweep it
        half = {e.name for e in ours if e.state == "Failed" and e.address is None}
        # an unfenced list may predate their removal, and the write would be in vain
        broken = frozenset((half if nic.fenced or not lagging else set()) | (back if nic.fenced else set()))
        views.append(
            model.Nic(
                name=nic.name,
                addresses=tuple(_address(entry) for entry in kept),
                names={_address(entry): entry.name for entry in kept},
                removable=frozenset(_address(entry) for entry in kept if entry.ours),
                excluded=frozenset(_address(entry) for entry in kept if naming.excluded(_address(entry))),
                barred=_barred([e for e in ours if e in good], kept),
                unusable=frozenset(e.address for e in nic.entries if e.address and e not in kept),
                slots=min(free, ENTRIES_PER_NIC - len(nic.entries)),
                prefixes=prefixes.get(nic.subnet.lower(), ()),
                pending=model.count(
                    e.address or ""
                    for e in ours
                    if e not in good
                    and e.name not in broken | (unproven - provable)
                    and (e.state != "Failed" or e.name in half or hopeful)
                ),
                broken=broken,
                failed=nic.state == "Failed" or any(e.state == "Failed" for e in found),
                busy=nic.state == "Updating",
                doubted=bool(provable),
            )
        )
    return tuple(views)


def _barred(ours: list[Entry], kept: list[Entry]) -> int:
    """Number of addresses at the end of the list (the most recent ones) that pods can't use."""
    usable = [place for place, entry in enumerate(ours, 1) if entry in kept]
    return model.count(entry.address or "" for entry in ours[usable[-1] if usable else 0 :])


def _address(entry: Entry) -> str:
    assert entry.address is not None
    return entry.address
