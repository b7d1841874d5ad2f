"""Times per step, ADD latency as the agents saw it, ARM requests by kind."""

from __future__ import annotations

from statistics import quantiles

from tests.demo.report import Report
from tests.demo.world import World

TITLE = "7. Summary"


def run(world: World, report: Report) -> None:
    """Reads the agents' logs and the cloud's list of requests."""
    served = sorted(world.add_milliseconds(waited=False))
    waited = world.add_milliseconds(waited=True)
    report.expect("ADDs seen", "some", len(served), ok=len(served) > 1)
    cuts = quantiles(served, n=100)
    rows = {"ADD p50 / p99 (agent, address at hand)": f"{cuts[49]:.2f} / {cuts[98]:.2f} ms over {len(served)} calls"}
    if waited:
        rows["ADD that had to wait for an address"] = f"{len(waited)}, at most {max(waited) / 1000:.1f} s"
    for kind, count in sorted(world.arm_requests().items()):
        rows[f"ARM {kind}"] = str(count)
    report.summary(rows)
