"""A Deployment spreads over both nodes, and every pod's address is one that the NIC of that very node holds."""

from __future__ import annotations

from tests.demo.report import Report
from tests.demo.world import World

TITLE = "2. A Deployment of 12 pods: addresses of the VNet, on the right NIC"
REPLICAS = 12


def run(world: World, report: Report) -> None:
    """Creates the web pods that the later steps talk to."""
    world.create_web(REPLICAS)
    pods = report.until("12 pods Running", lambda: world.running("web", REPLICAS), within=90)
    by_node = {node: [p for p in pods if p.node == node] for node in world.nodes}
    report.expect("nodes that run some of them", sorted(world.nodes), sorted(n for n, ps in by_node.items() if ps))
    report.expect("different addresses", REPLICAS, len({p.address for p in pods}))
    for node, own in by_node.items():
        on_nic = world.nic_addresses(node)
        wrong = [f"{p.name} {p.address}" for p in own if p.address not in on_nic]
        report.expect(f"pods of {node} ({len(own)}) whose address its NIC doesn't hold", [], wrong)
