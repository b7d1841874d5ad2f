"""A host reconciler in a hurry, and what it said."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.agent.dataplane.world import DIRECT, NIC_MAC, POOL, PRIMARY
from tests.pace import stretched
from vnetpods_agent.dataplane import HostState, Nic
from vnetpods_agent.dataplane.host.reconciler import HostReconciler

NIC = Nic(NIC_MAC, PRIMARY, ("10.240.0.0/16",), POOL)
STATE = HostState((NIC,), DIRECT)
HURRY = 0.1


@dataclass
class Keeper:
    reconciler: HostReconciler
    events: list[tuple[str, str]] = field(default_factory=list)

    def declare(self, state: HostState) -> None:
        self.reconciler.declare(state)
        assert self.reconciler.wait(stretched(5)), self.events

    def kinds(self) -> set[str]:
        return {kind for kind, _ in self.events}
