"""kill -9 of agent and operator in the middle of a scale-up: no duplicate, no leak, all pods Running."""

from __future__ import annotations

from tests.demo.report import Report
from tests.demo.world import World

TITLE = "6. kill -9 of agent and operator in the middle of a scale-up"
REPLICAS = 60


def run(world: World, report: Report) -> None:
    """Kills when the first pods and when half of them have addresses (what supervises both starts them again), and
    compares all truths.
    """
    node = world.nodes[0]
    before = len(world.ledger_addresses(node))
    world.scale("burst", REPLICAS)
    for some in (3, REPLICAS // 2):
        report.until(
            f"{some} pods have addresses",
            lambda n=some: len(world.ledger_addresses(node)) >= before + n,  # type: ignore[misc]
            within=120,
            every=0.02,
        )
        processes = world.process_ids(node)
        report.say(f"kill -9 agent of {node} and operator; {len(world.running('burst') or [])} pods Running")
        world.kill_agent(node)
        world.kill_operator()
        report.until(
            "both are started again",
            lambda old=processes: not set(old) & set(world.process_ids(node)),  # type: ignore[misc]
            within=60,
        )
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
