"""Scale to zero: addresses cool down, the surplus goes back in two steps; NIC, NodeIPPool and ledger agree."""

from __future__ import annotations

from tests.demo.report import Report
from tests.demo.world import WARM, World

TITLE = "5. Scale to zero: cooling down, then two-step release"


def run(world: World, report: Report) -> None:
    """Follows one node from 60 pods down, reads what its pool said on the way, and compares the three truths."""
    node = world.nodes[0]
    full = len(world.nic_addresses(node))
    before = len(world.history(node))
    world.scale("burst", 0)
    report.until("the pods are gone", lambda: not world.pods("burst"), within=120)
    alive = {p.address for p in world.pods("web") if p.node == node}
    most = len(alive) + 2 * WARM
    report.until(
        "the surplus is gone from the NIC and the handshake is over",
        lambda: len(world.nic_addresses(node)) <= most and world.settled(node),
        within=210,
    )
    since = world.history(node)[before:]
    cooling = max((moment.cooling for moment in since), default=0)
    report.expect("addresses that cooled down at once, at the most", "some", cooling, ok=cooling > 0)
    report.expect("the operator asked for some back", True, any(moment.releasing for moment in since))
    nic, pool, ledger = world.nic_addresses(node), world.pool_addresses(node), world.ledger_addresses(node)
    report.expect(f"addresses on the NIC, of {full}", f"at most {most}", len(nic), ok=len(nic) <= most)
    report.expect("addresses in the NodeIPPool but not on the NIC", set(), pool - nic)
    report.expect("addresses on the NIC but not in the NodeIPPool", set(), nic - pool)
    report.expect("addresses assigned in the ledger but not to a pod, or the reverse", set(), ledger ^ alive)
