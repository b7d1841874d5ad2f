"""What this process has done to a node's NICs and seen of them: by that a read is told to be older. Pure.

A read of ARM may be minutes old, and the next one may be older than the one before. Two things never come back, so they
tell what a read can't be:
- a NIC's etag: once another was read, or a write has replaced it, a body that carries it is of the past;
- the name of an entry that was released and is gone: it is random, so whatever shows it once more is of the past, too,
  or somebody has written an old list of entries. No pod gets its address, whatever is read.

One Trail per node, in its NodeState; it outlives a boot of the machine. After a restart of the operator nothing is
known: then an entry of ours that the pool does not list is doubted until a write of what was read has succeeded, which
it does only if the read was not late (docs/architecture.md).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from vnetpods_api import NodeIPPool
from vnetpods_operator.planning.machine import Nic
from vnetpods_operator.planning.model import Change

PATIENCE = 600.0
"""Seconds. If Azure says nothing but old things for so long, what it says is taken for what is the case."""
ETAGS = 64
"""Remembered per NIC."""
NAMES = 4096
"""Remembered per node: sixteen times what its NICs can have."""

_NEWER = ""
"""Stands for the etag of what a write has made of a NIC, until that is read."""


@dataclass(slots=True)
class Trail:
    """What is known not to come back."""

    removed: dict[str, None] = field(default_factory=dict)
    """Names of entries that were released and are gone, in lower case."""
    proven: dict[str, None] = field(default_factory=dict)
    """Names of entries, in lower case, that a write of ours carried: Azure took it, so they were there."""
    _etags: dict[str, dict[str, None]] = field(default_factory=dict)
    """By NIC: those read, the last one last; after a write none that is known is the last."""
    _old_since: float | None = None

    def wrote(self, nic: Nic, change: Change, carried: Iterable[str] = ()) -> None:
        """The write of what was read as `nic` worked; `carried`: names of the entries in it."""
        self.gone(change.remove)
        _keep(self.proven, carried)
        if nic.fenced and (change.add or change.blocks or change.restore or change.remove):
            known = self._etags.setdefault(nic.id.lower(), {})
            known.pop(_NEWER, None)
            known[_NEWER] = None

    def gone(self, names: Iterable[str]) -> None:
        """Entries that were released are gone."""
        _keep(self.removed, (name.lower() for name in names))

    def doubted(self, nics: Collection[Nic], pool: NodeIPPool) -> set[str]:
        """Names of entries of ours, in lower case, that may be of the past: neither does the pool list them nor has
        this process written them. A former process may have removed them, and the read be from before.
        """
        listed, addresses = set[str](), set[str]()
        for interface in pool.status.interfaces:
            listed |= {name.lower() for name in interface.ip_configurations}
            addresses |= set() if interface.ip_configurations else {*interface.addresses}  # of an operator of before
        ours = (e for nic in nics for e in nic.entries if e.ours and e.address and e.address not in addresses)
        return {e.name.lower() for e in ours} - listed - self.proven.keys()

    def older(self, nics: Collection[Nic], now: float) -> str:
        """Which of the NICs is read as it was before something that is known; "" if none is."""
        old = [nic.name for nic in nics if nic.etag in self._known(nic) and not self.current(nic)]
        if not old:
            self._old_since = None
            return ""
        if self._old_since is None:
            self._old_since = now
        if now - self._old_since <= PATIENCE:
            return old[0]
        self._etags.clear()
        return ""

    def saw(self, nics: Collection[Nic]) -> None:
        """They were read, and are believed."""
        for nic in nics:
            if nic.etag:
                known = self._etags.setdefault(nic.id.lower(), {})
                known[nic.etag] = None
                for etag in list(known)[:-ETAGS]:
                    del known[etag]

    def current(self, nic: Nic) -> bool:
        """Whether it is as it was read last."""
        return next(reversed(self._known(nic)), None) == nic.etag

    def _known(self, nic: Nic) -> dict[str, None]:
        return self._etags.get(nic.id.lower(), {})


def _keep(known: dict[str, None], names: Iterable[str]) -> None:
    """Remembers the names, the last ones longest."""
    for name in names:
        known.pop(name, None)
        known[name] = None
    for name in list(known)[:-NAMES]:
        del known[name]
