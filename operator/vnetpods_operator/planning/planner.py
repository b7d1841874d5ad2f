"""What to do next for one node: grow, release, repair or nothing, and why.

`plan()` is pure and total: plain data in, plain data out, no clock of its own (times are seconds on the caller's
clock), no I/O, no log. The reconciler calls it twice: with what the NodeIPPool says, to see whether anything is to be
done at all, and with what was read from Azure a moment ago, to decide what is done. Nothing here survives a crash; a
plan is made anew from the three truths.

The rules are a chain, each adding its part to at most one write per NIC, in this order:
1. settle         a NIC that Azure is working on is left alone, and looked at again soon.
2. repair         half-made entries of ours (without an address) go, a Failed NIC is written again as it is.
3. restore        addresses that pods hold and that vanished from the NIC are asked for by value.
4. finish release what the agent has acknowledged is removed, always; what it will never use again although nobody
                  asked is asked for; what isn't ours is no longer asked for.
5. cancel release what it has not acknowledged is kept when addresses are short, when a pod holds it, or when it is
                  asked for too long; excluded addresses stay asked for until their pods end.
6. grow           to `minimum`, and when free + on the way < warm or pods wait.
7. prove          what may be of the past is written again as it was read, unless another write does that already.
8. start release  when more than 2 x warm was free long enough, down to 2 x warm, so that the next pod changes nothing.

The one law: never shrink on absence. An entry is removed only if it is ours, this process asked for it by name, the
agent has acknowledged that very request, and no other node counts on the address. One that the agent has released is
not taken back into use either: what we read of the NIC may be from before our own last write, and the address another
node's since.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from vnetpods_api import Reason
from vnetpods_operator.planning.model import BLOCK, Change, Nic, Observed, Plan, Wanted, count

HOPELESS = 3
"""After so many vain repairs a person should look."""
VAIN = 3
"""When so many times what is needed came in excluded addresses alone, no more are asked for."""
SETTLE_SECONDS = 2.0
"""How soon to look again at a NIC that Azure is working on."""


@dataclass(slots=True)
class _Draft:
    observed: Observed
    wanted: Wanted
    now: float
    changes: dict[str, dict[str, object]] = field(default_factory=dict)
    releasing: set[str] = field(default_factory=set)
    overdue: set[str] = field(default_factory=set)
    reason: Reason = Reason.IDLE
    limit: Reason | None = None
    detail: str = ""
    surplus: bool = False
    needed: bool = False
    """Addresses on their way out were needed after all."""
    times: list[float] = field(default_factory=list)
    present: set[str] = field(default_factory=set)
    leaving: set[str] = field(default_factory=set)
    free: int = 0
    restored: int = 0
    slots: dict[str, int] = field(default_factory=dict)

    def change(self, nic: str, reason: Reason, **what: object) -> None:
        self.changes.setdefault(nic, {}).update(what)
        self.because(reason)

    def because(self, reason: Reason) -> None:
        if self.reason is Reason.IDLE:
            self.reason = reason

    def blocked(self, limit: Reason, detail: str) -> None:
        if self.limit is None:
            self.limit, self.detail = limit, detail

    @property
    def writable(self) -> list[Nic]:
        return [nic for nic in self.observed.nics if not nic.busy]

    @property
    def held(self) -> int:
        """Addresses on the NICs that stay, as far as is decided yet."""
        return count(self.present - self.releasing)

    @property
    def short(self) -> int:
        """Addresses that pods will want soon and that are neither free nor on the way."""
        waiting = self.observed.usage.waiting if self.observed.usage else 0
        return self.wanted.warm + waiting - self.free - self.way

    @property
    def way(self) -> int:
        """Addresses on the way."""
        return sum(nic.pending for nic in self.observed.nics)


def plan(observed: Observed, wanted: Wanted, now: float) -> Plan:
    """Decides; see the module's text for the rules and their order."""
    draft = _Draft(observed, wanted, now)
    draft.present = {address for nic in observed.nics for address in nic.addresses}
    draft.releasing = set(observed.releasing & draft.present)
    draft.free = _free(observed, draft.present, draft.releasing)
    draft.slots = {nic.name: nic.slots for nic in observed.nics}
    if wanted.paused:
        draft.reason = Reason.PAUSED
    else:
        for rule in (_settle, _repair, _restore, _finish_release, _cancel_release, _grow, _prove, _start_release):
            rule(draft)
    return Plan(
        changes=tuple(Change(nic, **what) for nic, what in draft.changes.items()),  # type: ignore[arg-type]
        releasing=frozenset(draft.releasing),
        reason=draft.reason,
        limit=draft.limit,
        detail=draft.detail,
        free=draft.free,
        surplus=draft.surplus,
        overdue=frozenset(draft.overdue),
        look_again=min((t for t in draft.times if t > now), default=None),
    )


def _free(observed: Observed, present: set[str], releasing: set[str]) -> int:
    """Addresses that the next pods can have: what the agent says, and what it didn't know yet when it said so.

    An agent that doesn't say how many it knew accounts for them all the same: each is assigned, cooling, free or
    acknowledged; those that pods hold and the NICs don't (missing) must not count.
    """
    usage = observed.usage
    if usage is None:
        return count(present - releasing)
    if isinstance(usage.known, int):
        known = usage.known - count(observed.released - present)
    else:
        acknowledged = count(observed.released & present)
        known = usage.assigned + usage.cooling + usage.free + acknowledged - len(observed.missing)
    return usage.free + max(0, count(present) - known)


def _settle(draft: _Draft) -> None:
    if any(nic.busy or (nic.pending and not nic.failed) for nic in draft.observed.nics):
        draft.times.append(draft.now + SETTLE_SECONDS)


def _repair(draft: _Draft) -> None:
    for nic in draft.writable:
        if nic.broken:
            draft.change(nic.name, Reason.REPAIRING, sweep=nic.broken)
            draft.slots[nic.name] += len(nic.broken)
        if nic.failed:
            if draft.observed.repairs >= HOPELESS:
                again = f"{draft.observed.repairs} times"
                draft.blocked(Reason.NIC_FAILED, f"NIC {nic.name} stays Failed although it was written again {again}")
            if draft.now >= draft.observed.repair_after:
                draft.change(nic.name, Reason.REPAIRING, rewrite=True)
            else:
                draft.times.append(draft.observed.repair_after)


def _restore(draft: _Draft) -> None:
    there = draft.present.union(*(nic.unusable for nic in draft.observed.nics))
    lost = [address for address in draft.observed.missing if address not in there]
    never = [address for address in lost if address not in draft.observed.lost]
    taken = [address for address in lost if address in draft.observed.contested and address not in never]
    left = [address for address in lost if address not in {*never, *taken}]
    room = max(0, draft.wanted.maximum - count(draft.present) - draft.way)
    for nic in draft.writable:
        mine = tuple(address for address in left if nic.covers(address))[: min(room, draft.slots[nic.name])]
        if mine:
            left, room = [address for address in left if address not in mine], room - len(mine)
            draft.slots[nic.name] -= len(mine)
            draft.restored += len(mine)
            draft.change(nic.name, Reason.REPAIRING, restore=mine)
    if lost:
        homeless = left if len(draft.writable) == len(draft.observed.nics) else []
        draft.blocked(Reason.ADDRESS_LOST, _lost_text(lost, never, taken, homeless))


def _lost_text(lost: list[str], never: list[str], taken: list[str], homeless: list[str]) -> str:
    """Each address that is not asked for stays lost to its pod until a person restarts that: so the text says why."""
    reasons = (
        (never, "nothing is asked for {}, which this pool never listed or the configuration excludes"),
        (taken, "Azure does not give {} back, another NIC has it by now"),
        (homeless, "{} can't be added: not of a NIC's subnet, or no room within maximum and on the NIC"),
    )
    why = "".join(f"; {text.format(_some(which))}" for which, text in reasons if which)
    cure = ": restart those pods" if why else ""
    return f"pods hold {_some(lost)}, which somebody removed from the NIC{why}{cure}"


def _finish_release(draft: _Draft) -> None:
    observed = draft.observed
    ours = {a for nic in observed.nics for a in nic.removable}
    draft.releasing &= ours
    draft.releasing |= observed.released & ours
    for nic in draft.writable:
        gone = observed.acknowledged & nic.removable - nic.claimed
        if gone:
            draft.change(nic.name, Reason.RELEASING, remove=frozenset(nic.names[a] for a in gone))
            draft.leaving |= gone
            draft.slots[nic.name] += len(gone)


def _cancel_release(draft: _Draft) -> None:
    """An acknowledged release of ours is finished, never cancelled: the agent will not use the address before it was
    gone.
    """
    observed, retired = draft.observed, _excluded(draft)
    # acknowledged ones stay asked for: by what we read they may just have left, and the other node has them from Azure
    draft.releasing -= {a for nic in observed.nics for a in nic.claimed if a not in observed.released}
    waiting = draft.releasing - observed.released
    if draft.short > 0 and (back := waiting - observed.kept - retired):
        draft.releasing -= back
        draft.free += count(back)
        draft.needed = True
        waiting -= back
    since = draft.now if observed.releasing_since is None else observed.releasing_since
    due = since + draft.wanted.release_patience
    kept = waiting if draft.now >= due and observed.agent_ready else waiting & observed.kept
    if kept - retired:
        draft.releasing -= kept - retired
        draft.overdue |= kept - retired
        draft.times.append(draft.now + SETTLE_SECONDS)
    if silent := (waiting - kept) | (draft.releasing & observed.released - observed.acknowledged):
        draft.because(Reason.RELEASING)
        draft.times.append(due)
        if draft.now >= due:
            earlier = "" if observed.answers else "; it is of an earlier version, which can't: upgrade it"
            text = f"the node's agent has not acknowledged the release of {_some(silent)}{earlier}"
            draft.blocked(Reason.AGENT_SILENT, text)


def _grow(draft: _Draft) -> None:
    wanted, usage = draft.wanted, draft.observed.usage
    lacking = wanted.minimum - draft.held - draft.way
    short = draft.short
    if short > 0:
        assigned = usage.assigned if usage else 0
        lacking = max(lacking, short, wanted.batch, assigned // 2)
    if lacking <= 0:
        return
    room = wanted.maximum - count(draft.present - draft.leaving) - draft.way - draft.restored
    need = min(lacking, room)
    if need <= 0:
        draft.blocked(Reason.AT_CAPACITY, f"{draft.held} addresses are the most that this node may have")
        return
    for nic in draft.writable:
        need -= _grow_on(draft, nic, need)
    if need > 0 and all(draft.slots[nic.name] <= 0 for nic in draft.writable):
        draft.blocked(Reason.AT_CAPACITY, "no ipConfiguration can be added to the machine's NICs")


def _grow_on(draft: _Draft, nic: Nic, need: int) -> int:
    """Asks this NIC for as much of `need` as it can give; returns how much that is."""
    slots = draft.slots[nic.name]
    if need <= 0 or slots <= 0:
        return 0
    if nic.grow_after > draft.now:
        draft.blocked(Reason.SUBNET_FULL, f"the subnet of {nic.name} has no address left")
        draft.times.append(nic.grow_after)
        return 0
    if nic.barred >= VAIN * max(need, draft.wanted.batch):
        cure = "exclude less, or use another subnet"
        draft.blocked(Reason.SUBNET_FULL, f"Azure gives NIC {nic.name} only addresses that are excluded: {cure}")
        return 0
    if nic.grow_most < need:
        draft.blocked(Reason.SUBNET_FULL, f"the subnet of {nic.name} is nearly full")
    need = min(need, nic.grow_most)
    blocks = min(need // BLOCK, slots) if draft.wanted.blocks and draft.now >= nic.blocks_after else 0
    add = min(need - BLOCK * blocks, slots - blocks)
    draft.slots[nic.name] -= blocks + add
    draft.change(nic.name, Reason.GROWING, add=add, blocks=blocks)
    return BLOCK * blocks + add


def _prove(draft: _Draft) -> None:
    for nic in draft.writable:
        if nic.doubted and nic.name not in draft.changes:
            draft.change(nic.name, Reason.REPAIRING, rewrite=True)


def _start_release(draft: _Draft) -> None:
    wanted, usage = draft.wanted, draft.observed.usage if draft.observed.answers else None
    retired = _excluded(draft) - draft.observed.released
    fresh = retired - draft.releasing  # how many of them are free, the agent has to say first
    if fresh:
        draft.releasing |= retired
        draft.because(Reason.RELEASING)
        draft.times.append(draft.now + wanted.release_patience)
    if usage is None or draft.needed or draft.short > 0 or draft.limit is Reason.ADDRESS_LOST:
        return
    surplus = min(draft.free - 2 * wanted.warm, draft.held - wanted.minimum)
    if surplus <= 0:
        return
    draft.surplus = True
    due = (draft.now if draft.observed.surplus_since is None else draft.observed.surplus_since) + wanted.release_after
    if draft.now < due:
        draft.times.append(due)
    elif not draft.releasing - retired and not draft.overdue and not draft.changes and not fresh:
        chosen = _surplus(draft, min(surplus, wanted.release_batch))
        draft.releasing |= chosen
        if chosen:
            draft.free -= count(chosen)
            draft.because(Reason.RELEASING)
            draft.times.append(draft.now + wanted.release_patience)
        elif draft.observed.refused:
            draft.times.append(min(draft.observed.refused.values()) + wanted.release_patience)


def _excluded(draft: _Draft) -> set[str]:
    """Addresses of ours that are excluded by now: never to be used again, whoever holds them."""
    return {address for nic in draft.observed.nics for address in nic.excluded & nic.removable - nic.claimed}


def _surplus(draft: _Draft, most: int) -> set[str]:
    """Which to give back: none that a pod kept a moment ago, others that pods kept last; the last NIC's first.

    Among equals in no order that means anything: which addresses pods hold is not known here, and by age or value those
    of long-lived pods would be met again and again.
    """
    refused, lately = draft.observed.refused, draft.now - draft.wanted.release_patience
    candidates = [
        (refused.get(address, 0.0), -place, zlib.crc32(address.encode()), address)
        for place, nic in enumerate(draft.observed.nics)
        for address in nic.addresses
        if address in nic.removable and address not in nic.claimed
        if address not in draft.observed.released and address not in draft.releasing
        if address not in refused or refused[address] <= lately
    ]
    chosen: set[str] = set()
    for *_, address in sorted(candidates):
        if count((address,)) <= most:
            chosen.add(address)
            most -= count((address,))
    return chosen


def _some(addresses: Iterable[str]) -> str:
    ordered = sorted(addresses)
    return ", ".join(ordered[:5]) + (f" and {len(ordered) - 5} more" if len(ordered) > 5 else "")
