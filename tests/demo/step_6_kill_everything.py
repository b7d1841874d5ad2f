"""kill -9 of agent and operator in the middle of a scale-up: no duplicate, no leak, all pods Running."""

from __future__ import annotations

import time

from tests.demo.report import Report
from tests.demo.world import World

TITLE = "6. kill -9 of agent and operator in the middle of a scale-up"
REPLICAS = 60


def run(world: World, report: Report) -> None:
    """Kills at two moments, starts both again as a service manager would, and compares all truths."""
    node = world.nodes[0]
    world.scale("burst", REPLICAS)
    for moment in (0.8, 2.0):
        time.sleep(moment)
        report.say(f"kill -9 agent of {node} and operator; {len(world.running('burst') or [])} pods Running")
        world.kill_agent(node)
        world.kill_operator()
        world.start_operator()
        world.start_agent(node)
    pods = report.until(f"{REPLICAS} pods Running", lambda: world.running("burst", REPLICAS), within=240)
    everyone = pods + (world.running("web") or [])
    report.expect("different addresses", len(everyone), len({p.address for p in everyone}))
    here = {p.address for p in everyone if p.node == node}
    report.until("ledger and pods agree", lambda: world.ledger_addresses(node) == here, within=60)
    report.expect("assigned in the ledger", len(here), len(world.ledger_addresses(node)))
    report.expect("pods whose address the NIC doesn't hold", set(), here - world.nic_addresses(node))
    last = pods[-1]
    report.expect(
        "the last pod is reached from the peered VNet", world.peer_address, world.call_from_peer(last.address)
    )
    world.scale("burst", 0)
    report.until("the pods are gone", lambda: not world.pods("burst"), within=120)
    alive = {p.address for p in world.pods("web") if p.node == node}
    report.until("nothing is left of them in the ledger", lambda: world.ledger_addresses(node) == alive, within=60)
    report.until("no interface without a pod", lambda: world.pod_interfaces(node) == len(alive), within=60)
    report.expect("interfaces of pods", len(alive), world.pod_interfaces(node))
