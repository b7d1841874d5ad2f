"""60 more pods on one node: more than there are addresses. The pool grows by itself, early pods wait, nothing fails."""

from __future__ import annotations

from tests.demo.history import growths
from tests.demo.report import Report
from tests.demo.world import World

TITLE = "4. 60 pods at once on one node: the pool grows by itself"
REPLICAS = 60
MOST_GROWTHS = 6
"""NIC writes that 0 → 250 pods may cost; 60 pods cost fewer."""


def run(world: World, report: Report) -> None:
    """Counts how often the pool grew, each time by one NIC write, and looks for any pod whose sandbox could not be
    created. Other writes may give back what was too much.
    """
    node = world.nodes[0]
    before = len(world.history(node)) - 1
    report.say(f"{node} has {len(world.pool_addresses(node))} addresses")
    world.create_burst(REPLICAS, node)
    most_waiting = 0

    def all_running() -> object:
        nonlocal most_waiting
        most_waiting = max(most_waiting, world.usage(node).get("waiting", 0))
        return world.running("burst", REPLICAS)

    pods = report.until(f"{REPLICAS} pods Running", all_running, within=180)
    report.say(f"most pods seen waiting at once: {most_waiting}")
    times = growths(world.history(node)[before:])
    report.expect("times that the pool grew", f"1..{MOST_GROWTHS}", times, ok=1 <= times <= MOST_GROWTHS)
    addresses = [p.address for p in pods]  # type: ignore[attr-defined]
    report.expect("different addresses", REPLICAS, len(set(addresses)))
    report.expect("addresses that the NIC doesn't hold", set(), set(addresses) - world.nic_addresses(node))
    report.expect("pods whose sandbox failed", [], world.failed_sandboxes())
    report.show(world.kubectl("get", "nodeippools"))
