"""Scale to zero: addresses cool down, the surplus goes back in two steps; NIC, NodeIPPool and ledger agree."""

from __future__ import annotations

from tests.demo.report import Report
from tests.demo.world import World

TITLE = "5. Scale to zero: cooling down, then two-step release"


def run(world: World, report: Report) -> None:
    """Follows one node from 60 pods down, and compares the three truths at the end."""
    node = world.nodes[0]
    full = len(world.nic_addresses(node))
    world.scale("burst", 0)
    report.until("the pods are gone", lambda: not world.pods("burst"), within=120)
    report.until("addresses cool down", lambda: world.usage(node).get("cooling", 0) > 0, within=15)
    report.say(f"{world.usage(node)['cooling']} addresses cooling")
    report.until("the operator asks for some back", lambda: world.releasing(node), within=60)
    report.until(
        "the surplus is gone from the NIC and the handshake is over",
        lambda: len(world.nic_addresses(node)) < full and world.settled(node),
        within=150,
    )
    nic, pool, ledger = world.nic_addresses(node), world.pool_addresses(node), world.ledger_addresses(node)
    alive = {p.address for p in world.pods("web") if p.node == node}
    report.say(f"NIC: {full} → {len(nic)} addresses; {len(alive)} pods left on {node}")
    report.expect("addresses in the NodeIPPool but not on the NIC", set(), pool - nic)
    report.expect("addresses on the NIC but not in the NodeIPPool", set(), nic - pool)
    report.expect("addresses assigned in the ledger", alive, ledger)
