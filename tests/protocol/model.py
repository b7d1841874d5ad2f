"""The protocol between operator and agent (docs/architecture.md), small enough to try every order of events.

One node, one address. The machine's NIC carries the address under an ipConfiguration's name, or not at all. A step is
one message, one durable write or one fault. Each of `SAFEGUARDS` can be taken out of the design: then the search must
find an order of events that breaks an invariant. Names and tokens are small integers, handed out once.

Invariants: an address that a pod holds never leaves the NIC by our own hand, and no pod is given an address that is not
on the NIC.

The API server forgets (a backup is restored), and since a restored server may count its versions anew, a write thought
out before may pass the check of its version. The disk forgets together with a boot (a snapshot is restored), for no
process outlives the disk that it runs on. A read of ARM may show an earlier state; its writes are fenced by If-Match.

Its structs are told to keep their hash and to stay out of garbage collection, which is most of what a search costs.

Not covered, and known: an operator that dies, a new disk, a restored etcd and a late read of ARM, all within minutes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from enum import Enum

import msgspec
from msgspec.structs import replace

NAMES = 2
"""Lives of the address that are tried."""
TOKENS = 3
"""Requests for release, and views, that are made at most (each)."""

FAULTS = (
    OPERATOR_DIES := "operator dies",
    AGENT_DIES := "agent dies",
    BACKUP := "etcd is backed up",
    RESTORE := "etcd is restored",
    DELETE := "the pool is deleted",
    SNAPSHOT := "a snapshot of the disk is made",
    BOOT := "the machine boots",
    NEW_DISK := "the disk is new",
    ROLLBACK := "the disk is rolled back",
)

REQUEST = "a release counts only with the request repeated"
RETIRED = "names stay retired"
DURABLE = "the ledger knows before anybody is told"
PROMISE = "what the pool says was released is retired by an agent that doesn't know"
VIEW = "a list is used only when it was confirmed for the agent's view"
PROOF = "what surprises is proved by a write before it is listed"
REMOVED = "a process never lists again what it has removed"
SAFEGUARDS = frozenset({REQUEST, RETIRED, DURABLE, PROMISE, VIEW, PROOF, REMOVED})


class Copy(Enum):
    """Whether a write that is based on what was read passes the version check."""

    CURRENT = "current"
    STALE = "stale"
    EITHER = "either"


class Pool(msgspec.Struct, frozen=True, cache_hash=True, gc=False):
    """The NodeIPPool's status."""

    listed: int = 0
    """Name of the entry that the list says carries the address; 0: the list is empty."""
    releasing: bool = False
    request: int = 0
    confirmed: int = 0
    view: int = 0
    answer: int = 0
    """agent.releaseRequest."""
    released: bool = False


class Operator(msgspec.Struct, frozen=True, cache_hash=True, gc=False):
    """The process's memory."""

    pool: Pool
    copy: Copy = Copy.CURRENT
    asked: tuple[int, int] = (0, 0)
    """The request made by this process, and the name that it stands for."""
    removed: frozenset[int] = frozenset()
    read: int | None = None
    """The name found on the NIC, in a read that has not been acted on yet."""
    fenced: bool = True
    """Whether the NIC is still as read."""
    proved: bool = False
    """Whether a write has shown that it was."""


class Ledger(msgspec.Struct, frozen=True, cache_hash=True, gc=False):
    """What is on the node's disk, the last known list included."""

    held: bool = False
    retired: frozenset[int] = frozenset()
    view: int = 0
    trusted: int = 0


class Agent(msgspec.Struct, frozen=True, cache_hash=True, gc=False):
    """The process's memory beside the ledger's."""

    pool: Pool
    copy: Copy = Copy.CURRENT
    retired: frozenset[int] = frozenset()
    """As the process believes; the ledger may lag behind."""


class World(msgspec.Struct, frozen=True, cache_hash=True, gc=False):
    nic: int = 0
    before: frozenset[int] = frozenset({0})
    """What a late read of the NIC may still find."""
    names: int = 0
    requests: int = 0
    views: int = 1
    pool: Pool = Pool()
    backup: Pool | None = None
    operator: Operator | None = None
    agent: Agent | None = None
    disk: Ledger = Ledger(view=1)
    snapshot: Ledger | None = None
    faults: int = 0
    broken: str = ""


def explore(faults: Sequence[str], safeguards: frozenset[str] = SAFEGUARDS) -> tuple[int, list[str]]:
    """Every world that can be reached while these faults (of `FAULTS`) happen in this order, each at any moment or not
    at all: how many there are, and the way to a broken one.
    """
    start = World()
    came: dict[World, tuple[World | None, str]] = {start: (None, "")}
    queue = deque([start])
    while queue:
        world = queue.popleft()
        for step, after in steps(world, faults, safeguards):
            if after in came:
                continue
            came[after] = (world, step)
            if after.broken:
                return len(came), [*_way(came, after), after.broken]
            queue.append(after)
    return len(came), []


def _way(came: dict[World, tuple[World | None, str]], world: World) -> list[str]:
    way = []
    at: World | None = world
    while at is not None:
        at, step = came[at]
        way.append(step)
    return way[-2::-1]


def steps(w: World, faults: Sequence[str], safe: frozenset[str]) -> Iterator[tuple[str, World]]:
    """All that may happen next."""
    yield from _operator(w, safe)
    yield from _agent(w, safe)
    for name, after in _faults(w) if w.faults < len(faults) else ():
        if name in faults[w.faults :]:
            yield name, replace(after, faults=faults.index(name, w.faults) + 1)


def _operator(w: World, safe: frozenset[str]) -> Iterator[tuple[str, World]]:
    o = w.operator
    if o is None:
        yield "operator starts", replace(w, operator=Operator(w.pool))
        return
    if o.pool != w.pool or o.copy is not Copy.CURRENT:
        yield "operator reads the pool", replace(w, operator=replace(o, pool=w.pool, copy=Copy.CURRENT))
    if o.read is None:
        for found in {w.nic, *w.before}:
            if found in o.removed and REMOVED in safe:
                continue  # older than an own write
            late = " late" if found != w.nic else ""
            yield (
                f"operator reads the NIC{late}",
                replace(w, operator=replace(o, read=found, fenced=found == w.nic, proved=False)),
            )
        return
    found = o.read
    if found == 0 and o.fenced and w.names < NAMES:
        name = w.names + 1
        grown = replace(o, read=name, proved=True)
        yield "operator adds the address", replace(w, nic=name, before=w.before | {w.nic}, names=name, operator=grown)
    if found and o.fenced and _may_leave(o, found, safe):
        broken = "an address that a pod holds left the NIC" if w.disk.held else ""
        gone = replace(o, read=0, proved=True, removed=o.removed | {found})
        yield "operator removes the address", replace(w, nic=0, before=w.before | {w.nic}, operator=gone, broken=broken)
    if PROOF in safe and found and found != o.pool.listed and not o.proved:
        # not what the pool lists, nor written by this process: new, or long gone and read late
        proof = replace(o, proved=True) if o.fenced else replace(o, read=None)
        yield "operator writes the NIC as read", replace(w, operator=proof)
        return
    yield from _status(w, o, found, safe)


def _may_leave(o: Operator, found: int, safe: frozenset[str]) -> bool:
    if not (o.pool.releasing and o.pool.released):
        return False
    request, name = o.asked
    repeated = request != 0 and o.pool.answer == request
    return (repeated or REQUEST not in safe) and name == found


def _status(w: World, o: Operator, found: int, safe: frozenset[str]) -> Iterator[tuple[str, World]]:
    """The read ends with the pool being written, if its version is what was read."""
    acknowledged = o.pool.released and o.pool.listed == found
    for wish in (False, True):
        releasing = bool(found) and (wish or acknowledged)
        if wish and not releasing:
            continue
        requests, asked = w.requests, o.asked
        if releasing and asked[1] != found:
            if requests >= TOKENS:
                continue
            requests += 1
            asked = requests, found
        mine = asked[0] if releasing else 0
        wanted = replace(o.pool, listed=found, releasing=releasing, request=mine, confirmed=o.pool.view)
        verb = "lists and asks back" if releasing else "lists"
        done = replace(o, read=None, fenced=True, proved=False)
        if o.copy is not Copy.STALE:
            # an apply: the agent's fields stay as they are on the server
            written = replace(wanted, view=w.pool.view, answer=w.pool.answer, released=w.pool.released)
            mind = replace(done, pool=written, copy=Copy.CURRENT, asked=asked)
            yield (
                f"operator {verb} what it read",
                replace(_changed(w, written, "operator"), requests=requests, operator=mind),
            )
        if o.copy is not Copy.CURRENT:
            yield "operator's write is refused", replace(w, operator=done)


def _agent(w: World, safe: frozenset[str]) -> Iterator[tuple[str, World]]:
    a, disk = w.agent, w.disk
    if a is None:
        yield "agent starts", replace(w, agent=Agent(Pool(), Copy.STALE, disk.retired))
        return
    confirmed = w.pool.confirmed == disk.view or VIEW not in safe
    heard = replace(disk, trusted=w.pool.listed) if confirmed else disk
    retired = a.retired
    if w.pool.released and not disk.held and PROMISE in safe:
        retired |= {w.pool.listed}
        heard = replace(heard, retired=heard.retired | {w.pool.listed})
    after = replace(w, agent=replace(a, pool=w.pool, copy=Copy.CURRENT, retired=retired), disk=heard)
    if after != w:
        yield "agent reads the pool", after
    name = disk.trusted
    asked = a.pool.releasing and a.pool.listed == name
    if name and not disk.held and not asked and name not in a.retired:
        broken = "a pod got an address that is not on the NIC" if w.nic == 0 else ""
        yield "a pod gets the address", replace(w, disk=replace(disk, held=True), broken=broken)
    if disk.held:
        yield "the pod ends", replace(w, disk=replace(disk, held=False))
    if name and asked and not disk.held and name not in a.retired:
        kept = disk.retired | {name} if DURABLE in safe else disk.retired
        yield (
            "agent retires the name",
            replace(w, agent=replace(a, retired=a.retired | {name}), disk=replace(disk, retired=kept)),
        )
    if a.retired != disk.retired:
        yield "agent's ledger catches up", replace(w, disk=replace(disk, retired=a.retired))
    if RETIRED not in safe and (gone := a.retired - {a.pool.listed}):
        kept = a.retired - gone
        yield (
            "agent forgets what is no longer listed",
            replace(w, agent=replace(a, retired=kept), disk=replace(disk, retired=kept)),
        )
    yield from _report(w, a)


def _report(w: World, a: Agent) -> Iterator[tuple[str, World]]:
    released = a.pool.listed == w.disk.trusted and w.disk.trusted in a.retired
    said = replace(w.pool, view=w.disk.view, answer=a.pool.request if released else 0, released=released)
    if a.copy is not Copy.STALE and said != w.pool:
        mind = replace(
            a, pool=replace(a.pool, view=said.view, answer=said.answer, released=released), copy=Copy.CURRENT
        )
        yield "agent reports", replace(_changed(w, said, "agent"), agent=mind)


def _changed(w: World, pool: Pool, by: str) -> World:
    """The pool is another one now: what others have read is old."""
    if pool == w.pool:
        return w
    operator, agent = w.operator, w.agent
    if operator is not None and by != "operator" and operator.copy is Copy.CURRENT:
        operator = replace(operator, copy=Copy.STALE)
    if agent is not None and by != "agent" and agent.copy is Copy.CURRENT:
        agent = replace(agent, copy=Copy.STALE)
    return replace(w, pool=pool, operator=operator, agent=agent)


def _faults(w: World) -> Iterator[tuple[str, World]]:
    if w.operator is not None:
        yield OPERATOR_DIES, replace(w, operator=None)
    if w.agent is not None:
        yield AGENT_DIES, replace(w, agent=None)
    if w.backup is None:
        yield BACKUP, replace(w, backup=w.pool)
    elif w.backup != w.pool:
        operator, agent = w.operator, w.agent
        operator = operator and replace(operator, copy=Copy.EITHER)
        agent = agent and replace(agent, copy=Copy.EITHER)
        yield RESTORE, replace(w, pool=w.backup, operator=operator, agent=agent)
    yield DELETE, _changed(w, Pool(), "")
    if w.snapshot is None:
        yield SNAPSHOT, replace(w, snapshot=w.disk)
    if w.views < TOKENS:
        fresh = w.views + 1
        booted = replace(w, views=fresh, agent=None)
        yield BOOT, replace(booted, disk=replace(w.disk, held=False, view=fresh, trusted=0))
        yield NEW_DISK, replace(booted, disk=Ledger(view=fresh))
        if w.snapshot is not None:
            old = replace(w.snapshot, held=False, view=fresh, trusted=0)
            yield ROLLBACK, replace(booted, disk=old)
