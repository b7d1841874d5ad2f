"""Chooses which of a machine's NICs carry pod addresses. Pure.

An unreadable NIC is ignored if it isn't one of them. If it is, or may be (the pool lists it), the pass fails with its
error: skipping the NIC would unlist its addresses merely because it could not be read.
"""

from __future__ import annotations

from collections.abc import Collection

from vnetpods_operator.config import Interfaces
from vnetpods_operator.errors import NoInterface
from vnetpods_operator.planning.machine import Nic, Nics


def chosen(nics: Nics, rule: Interfaces, listed: Collection[str]) -> tuple[Nic, ...]:
    """The NICs selected by the configuration; `listed`: lower-case names of those in the pool."""
    for one in nics.unreadable:
        if rule.chosen(one.name, one.primary, {}) or one.name.lower() in listed:
            raise one.error
    found = tuple(nic for nic in nics.found if rule.chosen(nic.name, nic.primary, nic.tags) and nic.subnet and nic.mac)
    if not found:
        raise NoInterface("none of the machine's NICs is one of the configured interfaces")
    names = [nic.name.lower() for nic in found]
    for name in names:
        if names.count(name) > 1:
            text = f"two of the machine's NICs, in different resource groups, are named {name}; choose one by its tags"
            raise NoInterface(text)
    return found
