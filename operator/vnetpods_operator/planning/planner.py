"""Decides what to do next for one node: grow, release, repair or nothing, and why.

`plan()` is pure and total: plain data in, plain data out, no clock of its own (times are seconds on the caller's
clock), no I/O, no log. The reconciler calls it twice: with the NodeIPPool's content, to see whether there is anything
to do, and with a fresh read from Azure, to decide what. Nothing here survives a crash; each plan is derived from the
three truths.

The rules form a chain; each adds its part to at most one write per NIC, in this order:
1. settle         A NIC that Azure is updating is not written; the node is requeued soon.
2. repair         Our half-made entries (without an address) are removed; a Failed NIC is rewritten unchanged.
3. restore        Addresses that pods hold and that vanished from the NIC are requested by value.
4. finish release Acknowledged addresses are removed, always; released ones that were not requested are requested;
                  requests for addresses that aren't ours are withdrawn.
5. cancel release An unacknowledged release is cancelled if addresses are short, if a pod holds the address, or if a
                  serving agent has not acknowledged it in time; excluded addresses stay requested until their pods end.
6. grow           To `minimum`, and if free + pending < warm + waiting pods.
7. prove          A NIC with doubted entries is rewritten as it was read, unless another write does that already.
8. start release  If more than 2 x warm was free long enough, down to 2 x warm, so that the next pod changes nothing.

The one law: never shrink on absence. An entry is removed only if it is ours, this process requested it by name, the
agent has acknowledged that very request, and no other node counts on the address. Nor is a released address taken back
into use: our read of the NIC may predate our last write, and the address may be another node's since.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

from vnetpods_api import Reason
from vnetpods_kit.wording import some
from vnetpods_operator.planning.model import BLOCK, Change, Nic, Observed, Plan, Wanted, count

HOPELESS = 3
"""Vain repairs after which a person should investigate."""
VAIN = 3
"""Growth stops once Azure has returned this many times the need in excluded addresses alone."""
SETTLE_SECONDS = 2.0
"""Delay before the next pass over a NIC that Azure is updating."""


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
    """Whether a release was cancelled because addresses are short."""
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
        """Number of addresses that stay on the NICs, as decided so far."""
        return count(self.present - self.releasing)

    @property
    def short(self) -> int:
        """Number of addresses that warm and waiting pods need beyond those free or pending."""
        waiting = self.observed.usage.waiting if self.observed.usage else 0
        return self.wanted.warm + waiting - self.free - self.way

    @property
    def way(self) -> int:
        """Number of pending addresses."""
        return sum(nic.pending for nic in self.observed.nics)


def plan(observed: Observed, wanted: Wanted, now: float) -> Plan:
    """Decides; see the module docstring for the rules and their order."""
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
    """Number of addresses for the next pods: those that the agent reports free, plus those it didn't know then.

    If the report lacks the number of known addresses, it follows from the counts: each known address is assigned,
    cooling, free or acknowledged; those that pods hold and the NICs lack (missing) must not count.
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
    """An address that is not requested stays lost until a person restarts its pod: so the text says why."""
    reasons = (
        (never, "nothing is asked for {}, which this pool never listed or the configuration excludes"),
        (taken, "Azure does not give {} back, another NIC has it by now"),
        (homeless, "{} can't be added: not of a NIC's subnet, or no room within maximum and on the NIC"),
    )
    why = "".join(f"; {text.format(some(sorted(which)))}" for which, text in reasons if which)
    cure = ": restart those pods" if why else ""
    return f"pods hold {some(sorted(lost))}, which somebody removed from the NIC{why}{cure}"


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
    """Never cancels an acknowledged release of ours: the agent won't use the address again before it was removed."""
    observed, retired = draft.observed, _excluded(draft)
    # released ones stay requested: they may just have left the NIC, and the other node has them from Azure
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
            text = f"the node's agent has not acknowledged the release of {some(sorted(silent))}{earlier}"
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
    """Adds as much of `need` on this NIC as it can take; returns how much that is."""
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
    fresh = retired - draft.releasing  # the agent must report first how many of them are free
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
    """Our addresses that the configuration now excludes: never to be used again, whichever pod holds them."""
    return {address for nic in draft.observed.nics for address in nic.excluded & nic.removable - nic.claimed}


def _surplus(draft: _Draft, most: int) -> set[str]:
    """Chooses addresses to release, the last NIC's first: none that a pod kept recently; those kept earlier come last.

    Ties are broken by hash: the planner doesn't know which addresses pods hold, and an order by age or value would pick
    those of long-lived pods again and again.
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
