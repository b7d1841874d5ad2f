"""The command's output on standard output: one JSON object, or the same as text. Pure.

The JSON's shape is documented (docs/operator.md) and only ever gains keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from vnetpods_api import Reason
from vnetpods_kit.wording import some
from vnetpods_operator.nic.order import held, ours
from vnetpods_operator.planning.machine import Entry, Nic
from vnetpods_operator.planning.model import BLOCK, Change, Problem, count

HINTS = {
    Reason.FORBIDDEN: "give that identity a role with this action (docs/azure-role.json has all that are needed)",
    Reason.SIGN_IN_REFUSED: "sign in by `az login` or azure-identity's variables (docs/operator.md)",
    Reason.MACHINE_NOT_FOUND: "see whether the machine is there, and --machine is right: `az resource show --ids ID`",
    Reason.NO_INTERFACE: "choose one by --nic, or by `interfaces` in the file of --config",
    Reason.SUBNET_FULL: "enlarge the subnet, or ask for fewer",
    Reason.AT_CAPACITY: "Azure allows 256 ipConfigurations on a NIC, and on all NICs of a machine: ask for fewer",
    Reason.CONFLICT: "see who else writes the NIC (activity log), then run this again",
    Reason.THROTTLED: "run this again then: what is there is not added twice",
    Reason.AZURE_UNAVAILABLE: "run this again: what is there is not added twice",
    Reason.NIC_FAILED: "see what the NIC's activity log says",
}
"""Remedies, by reason, for messages that don't contain one."""
SOME = 8
"""Number of entries named in the text; the JSON has them all."""


class Configuration(msgspec.Struct, frozen=True):
    """An ipConfiguration of ours; the address of a /28 block is such as `10.0.0.16/28`, a half-made entry has none."""

    name: str
    address: str | None


class Card(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """One NIC. Counts are in addresses; a block counts 16."""

    name: str
    id: str
    subnet: str
    subnet_left: int | None = None
    """Free addresses in the subnet as Azure reports them, where relevant and readable."""
    others: int
    """Number of ipConfigurations of others; they are left alone."""
    before: int
    add: int
    blocks: int
    """Number of /28 blocks in `add`."""
    remove: tuple[Configuration, ...]
    after: int
    rewrite: bool
    """Whether the NIC is Failed and rewritten unchanged."""
    addresses: tuple[Configuration, ...]
    """Our ipConfigurations with an address at the time of the report."""


class Failure(msgspec.Struct, frozen=True):
    """Why the order is not met: one of the reasons in docs/operator.md, and a sentence."""

    reason: str
    message: str


class Result(msgspec.Struct, rename="camel", frozen=True, kw_only=True):
    """The whole result."""

    machine: str
    count: int
    written: bool
    """Whether `add` and `remove` were done; if false, they are only planned."""
    nics: tuple[Card, ...] = ()
    error: Failure | None = None


def planned(nic: Nic, change: Change | None, left: int | None) -> Card:
    """The card of a dry run."""
    change = change or Change(nic.name)
    going = [entry for entry in nic.entries if entry.name in change.remove | change.sweep]
    before, add = held((nic,)), change.add + BLOCK * change.blocks
    after = before + add - count(entry.address for entry in going if entry.address)
    return _card(nic, going, left, before=before, add=add, blocks=change.blocks, after=after, rewrite=change.rewrite)


def done(before: Nic, after: Nic, left: int | None) -> Card:
    """The card after the writes."""
    names = {entry.name for entry in after.entries}
    had = {entry.name for entry in before.entries}
    going = [entry for entry in before.entries if entry.ours and entry.name not in names]
    added = [entry.address or "" for entry in ours(after) if entry.name not in had]
    blocks = sum("/" in address for address in added)
    rewrite = before.state == "Failed" and not added and not going
    counts = {"before": held((before,)), "add": count(added), "blocks": blocks, "after": held((after,))}
    return _card(after, going, left, **counts, rewrite=rewrite)


def _card(nic: Nic, going: Sequence[Entry], left: int | None, *, rewrite: bool, **counts: int) -> Card:
    return Card(
        name=nic.name,
        id=nic.id,
        subnet=nic.subnet,
        subnet_left=left,
        others=sum(not entry.ours for entry in nic.entries),
        remove=_configurations(going),
        rewrite=rewrite,
        addresses=_configurations(ours(nic)),
        **counts,
    )


def failure(problem: Problem) -> Failure:
    hint = HINTS.get(problem.reason)
    return Failure(problem.reason.value, f"{problem.message}; {hint}" if hint else problem.message)


def text(result: Result, *, release: bool) -> str:
    """The result as text."""
    lines = [line for card in result.nics for line in _words(card, result)]
    surplus = sum(card.after for card in result.nics) - result.count
    if result.nics and surplus > 0 and result.error is None:
        why = "they are in /28 blocks, which can't be divided" if release else "--release removes them"
        lines.append(f"{surplus} more than the {result.count} that are asked for: {why}")
    if not result.written and any(card.remove for card in result.nics):
        lines.append("Nobody is asked whether containers use what would be removed: stop them first.")
        lines.append("Nothing was written; --write --yes does it.")
    elif not result.written and any(card.add or card.rewrite for card in result.nics):
        lines.append("Nothing was written; --write does it.")
    return "".join(line + "\n" for line in lines)


def _words(card: Card, result: Result) -> Iterator[str]:
    written = result.written
    would, end = ("", "now") if written else ("would ", "then")
    place = "/".join(card.subnet.split("/")[-3::2])
    there = f"{_number(card.before, 'address')} of ours, {_number(card.others, 'ipConfiguration')} of others"
    yield f"NIC {card.name} in subnet {place}: {there}"
    if card.remove:
        verb = "removed" if written else "would remove"
        named = some([f"{one.address or 'without address'} ({one.name})" for one in card.remove], SOME)
        yield f"  {verb} {_number(len(card.remove), 'ipConfiguration')}: {named}"
    if card.add:
        blocks = f", {_number(card.blocks, '/28 block')} among them" if card.blocks else ""
        yield f"  {'added' if written else 'would add'} {_number(card.add, 'address')}{blocks}"
    if card.rewrite:
        yield f"  in state Failed: {'was' if written else would + 'be'} written again as it is"
    if card.subnet_left is not None:
        fewer = "" if written or card.subnet_left >= card.add else ": no more than these can be added"
        yield f"  {_number(card.subnet_left, 'address')} left in the subnet, Azure says{fewer}"
    if card.add or card.remove:
        yield f"  {_number(card.after, 'address')} of ours {end}"
    elif not card.rewrite:
        yield "  nothing to do" if result.error is None else "  nothing was changed"


def _number(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 'es' if what.endswith('s') else 's'}"


def _configurations(entries: Sequence[Entry]) -> tuple[Configuration, ...]:
    return tuple(Configuration(entry.name, entry.address) for entry in entries)
