"""Record of this process's reads and writes of a node's NICs, to detect stale reads. Pure.

A read of ARM may be minutes old, and the next one may be older than the one before. Two things never come back, so they
expose a stale read:
- a NIC's etag: once another was read, or a write has replaced it, a body with it is stale;
- the name of an entry that was released and removed: it is random, so a body with it is stale, too, or another writer
  has restored an old list of entries. No pod gets the entry's address, whatever is read.

One Trail per node, in its NodeState; it survives a reboot of the machine. It is empty after a restart of the operator:
then an entry of ours that the pool does not list is doubted until a write of the NIC as read has succeeded, which it
does only if the read was not stale (docs/architecture.md).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from vnetpods_api import NodeIPPool
from vnetpods_operator.planning.machine import Nic
from vnetpods_operator.planning.model import Change

PATIENCE = 600.0
"""Seconds. If every read is stale for this long, reads are believed again."""
ETAGS = 64
"""Remembered per NIC."""
NAMES = 4096
"""Remembered per node: sixteen times what its NICs can hold."""

_NEWER = ""
"""Placeholder for the etag after a write, until the NIC is read."""


@dataclass(slots=True)
class Trail:
    """Everything known that never comes back."""

    removed: dict[str, None] = field(default_factory=dict)
    """Lower-case names of entries that were released and removed."""
    proven: dict[str, None] = field(default_factory=dict)
    """Lower-case names of entries in a write of ours that Azure accepted: so they existed."""
    _etags: dict[str, dict[str, None]] = field(default_factory=dict)
    """By NIC: etags read, the latest last; after a write the placeholder is last."""
    _old_since: float | None = None

    def wrote(self, nic: Nic, change: Change, carried: Iterable[str] = ()) -> None:
        """Records a successful write of the NIC read as `nic`; `carried`: names of the entries in the write."""
        self.gone(change.remove)
        _keep(self.proven, carried)
        if nic.fenced and (change.add or change.blocks or change.restore or change.remove):
            known = self._etags.setdefault(nic.id.lower(), {})
            known.pop(_NEWER, None)
            known[_NEWER] = None

    def gone(self, names: Iterable[str]) -> None:
        """Records that released entries were removed."""
        _keep(self.removed, (name.lower() for name in names))

    def doubted(self, nics: Collection[Nic], pool: NodeIPPool) -> set[str]:
        """Lower-case names of our entries that may be outdated: the pool does not list them, and no write of this
        process carried them. A previous process may have removed them, and the read may predate that.
        """
        listed, addresses = set[str](), set[str]()
        for interface in pool.status.interfaces:
            listed |= {name.lower() for name in interface.ip_configurations}
            addresses |= set() if interface.ip_configurations else {*interface.addresses}  # of an earlier version
        ours = (e for nic in nics for e in nic.entries if e.ours and e.address and e.address not in addresses)
        return {e.name.lower() for e in ours} - listed - self.proven.keys()

    def older(self, nics: Collection[Nic], now: float) -> str:
        """Name of the first NIC whose read is stale; "" if none is."""
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
        """Records the etags of reads that are believed."""
        for nic in nics:
            if nic.etag:
                known = self._etags.setdefault(nic.id.lower(), {})
                known[nic.etag] = None
                for etag in list(known)[:-ETAGS]:
                    del known[etag]

    def current(self, nic: Nic) -> bool:
        """Whether the NIC's etag is the last one read, with no write of ours since."""
        return next(reversed(self._known(nic)), None) == nic.etag

    def _known(self, nic: Nic) -> dict[str, None]:
        return self._etags.get(nic.id.lower(), {})


def _keep(known: dict[str, None], names: Iterable[str]) -> None:
    """Remembers the names; beyond NAMES, forgets the oldest."""
    for name in names:
        known.pop(name, None)
        known[name] = None
    for name in list(known)[:-NAMES]:
        del known[name]
