"""A Node becomes Ready only once its agent can serve."""

from __future__ import annotations

from tests.demo.report import Report
from tests.demo.world import World

TITLE = "1. Nodes become Ready only once their agent can serve"


def run(world: World, report: Report) -> None:
    """Operator first, then one agent after the other; each Node is looked at before and after."""
    nodes = world.until_nodes_exist()
    report.expect("Nodes without an agent that are Ready", [], [n for n in nodes if world.node_is_ready(n)])
    report.say("starting the operator under its own ServiceAccount, on the control plane's machine")
    world.start_operator()
    report.until("every pool has addresses", lambda: all(world.pool_addresses(n) for n in nodes), within=60)
    report.expect("Nodes with addresses but no agent that are Ready", [], [n for n in nodes if world.node_is_ready(n)])
    for node in nodes:
        report.say(f"starting the agent of {node}; it installs shim and conflist by itself")
        world.start_agent(node)
        report.until(f"{node} is Ready", lambda n=node: world.node_is_ready(n), within=60)  # type: ignore[misc]
        waiting = [n for n in nodes[nodes.index(node) + 1 :] if world.node_is_ready(n)]
        report.expect("Nodes Ready before their agent was started", [], waiting)
    report.until(
        "both sides of every pool say ready",
        lambda: all(world.pool_condition(n, t) == "True" for n in nodes for t in ("Ready", "AgentReady")),
        within=30,
    )
    output = world.kubectl("get", "nodeippools")
    report.show(output)
    columns = ["NAME", "READY", "CAPACITY", "ALLOCATED", "ASSIGNED", "FREE", "WAITING", "SUBNET", "AGE"]
    report.expect("columns", columns, output.splitlines()[0].split())
