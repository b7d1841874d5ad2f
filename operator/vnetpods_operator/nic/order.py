"""Translates a person's order for one machine into the planner's input. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vnetpods_operator.config import Interfaces
from vnetpods_operator.errors import NoInterface
from vnetpods_operator.planning import model, planner
from vnetpods_operator.planning.machine import Entry, Naming, Nic, Nics, usable_by_pods
from vnetpods_operator.planning.model import Observed, Plan, Wanted
from vnetpods_operator.planning.nic_choice import chosen
from vnetpods_operator.planning.subnets import Limits


@dataclass(frozen=True, slots=True)
class Order:
    """`count`: desired number of our addresses on the NICs; a /28 block counts 16."""

    count: int
    release: bool = False
    """Whether excess addresses are removed."""
    blocks: bool = False
    """Whether /28 blocks are requested where 16 or more addresses are needed."""


@dataclass(frozen=True, slots=True)
class Repairs:
    """Number of vain rewrites of a Failed NIC, and the earliest time of the next."""

    vain: int = 0
    after: float = 0.0


def ours(nic: Nic) -> list[Entry]:
    """Our entries that have an address."""
    return [entry for entry in nic.entries if entry.ours and entry.address]


def failed(nic: Nic) -> bool:
    """Whether the NIC, or an entry of ours on it, is Failed and needs a write."""
    return nic.state == "Failed" or any(entry.ours and entry.state == "Failed" for entry in nic.entries)


def held(nics: Sequence[Nic]) -> int:
    """Number of our addresses on these NICs."""
    return model.count(entry.address or "" for nic in nics for entry in ours(nic))


def picked(nics: Nics, name: str | None, rule: Interfaces) -> tuple[Nic, ...]:
    """The NIC of that name; without a name, those that the configuration selects."""
    if name is None:
        return chosen(nics, rule, ())
    found = tuple(nic for nic in nics.found if nic.name.lower() == name.lower())
    unreadable = tuple(nic for nic in nics.unreadable if nic.name.lower() == name.lower())
    if not found and not unreadable:
        there = ", ".join([*(nic.name for nic in nics.found), *(nic.name for nic in nics.unreadable)])
        raise NoInterface(f"the machine has no NIC named {name}; it has {there}")
    return chosen(Nics(found, unreadable), Interfaces(primary=True, names=("*",)), ())


def plan(nics: Sequence[Nic], order: Order, limits: Callable[[str], Limits], repairs: Repairs, now: float) -> Plan:
    """The plan for the order. Every entry with an address counts as present, regardless of Azure's state for it."""
    present = [entry.address or "" for nic in nics for entry in ours(nic)]
    hopeful = repairs.vain < planner.HOPELESS
    views = usable_by_pods(nics, present, Naming(), {}, hopeful=hopeful)
    leaving = _excess(nics, held(nics) - order.count) if order.release else frozenset()
    observed = Observed(
        nics=tuple(limits(nic.subnet).on(view) for view, nic in zip(views, nics, strict=True)),
        released=leaving,
        acknowledged=leaving,
        repairs=repairs.vain,
        repair_after=repairs.after,
    )
    wanted = Wanted(minimum=order.count, warm=0, batch=1, maximum=order.count, blocks=order.blocks)
    return planner.plan(observed, wanted, now)


def _excess(nics: Sequence[Nic], surplus: int) -> frozenset[str]:
    """Chooses the addresses to remove, most recently added first. A block larger than the remaining excess stays."""
    leaving = set()
    for nic in reversed(nics):
        for entry in reversed(ours(nic)):
            size = model.count((entry.address or "",))
            if size <= surplus:
                leaving.add(entry.address or "")
                surplus -= size
    return frozenset(leaving)
