"""What a person orders for one machine, put into the planner's words. Pure."""

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
    """`count`: addresses of ours that the NICs are to have in the end; a /28 block counts 16."""

    count: int
    release: bool = False
    """Whether those in excess are removed."""
    blocks: bool = False
    """Whether /28 blocks are asked for where 16 or more are needed."""


@dataclass(frozen=True, slots=True)
class Repairs:
    """How often a Failed NIC was written again in vain, and when it may be written next."""

    vain: int = 0
    after: float = 0.0


def ours(nic: Nic) -> list[Entry]:
    """The entries of ours that have an address."""
    return [entry for entry in nic.entries if entry.ours and entry.address]


def failed(nic: Nic) -> bool:
    """Whether a write is due to mend it, or an entry of ours."""
    return nic.state == "Failed" or any(entry.ours and entry.state == "Failed" for entry in nic.entries)


def held(nics: Sequence[Nic]) -> int:
    """How many addresses of ours there are."""
    return model.count(entry.address or "" for nic in nics for entry in ours(nic))


def picked(nics: Nics, name: str | None, rule: Interfaces) -> tuple[Nic, ...]:
    """The NIC of that name; without name those that the configuration chooses."""
    if name is None:
        return chosen(nics, rule, ())
    found = tuple(nic for nic in nics.found if nic.name.lower() == name.lower())
    unreadable = tuple(nic for nic in nics.unreadable if nic.name.lower() == name.lower())
    if not found and not unreadable:
        there = ", ".join([*(nic.name for nic in nics.found), *(nic.name for nic in nics.unreadable)])
        raise NoInterface(f"the machine has no NIC named {name}; it has {there}")
    return chosen(Nics(found, unreadable), Interfaces(primary=True, names=("*",)), ())


def plan(nics: Sequence[Nic], order: Order, limits: Callable[[str], Limits], repairs: Repairs, now: float) -> Plan:
    """What is to be written. Whatever has an address counts as there, whatever state Azure gives it."""
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
    """Which addresses go: the last that were added first. A block that is larger than what is left to go stays."""
    leaving = set()
    for nic in reversed(nics):
        for entry in reversed(ours(nic)):
            size = model.count((entry.address or "",))
            if size <= surplus:
                leaving.add(entry.address or "")
                surplus -= size
    return frozenset(leaving)
