"""What stands in the status, and above all in the conditions."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from vnetpods_api import Condition, Interface, Metadata, NodeIPPool, Reason, Status, Usage
from vnetpods_operator.planning import model
from vnetpods_operator.planning.machine import Entry, Nic
from vnetpods_operator.planning.model import Observed, Problem, Wanted
from vnetpods_operator.planning.planner import plan
from vnetpods_operator.reconcile import status as report
from vnetpods_operator.reconcile.status import Findings

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SUBNET = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets/pods"


def pool(**status: Any) -> NodeIPPool:
    return NodeIPPool(metadata=Metadata(name="n", generation=3), status=Status(**status))


def findings(
    have: int, usage: Usage | None = None, *, problem: Problem | None = None, paused: bool = False, **more: Any
) -> Findings:
    listed = tuple(f"10.0.0.{i}" for i in range(5, 5 + have))
    names = {address: f"vnetpods-{address}" for address in listed}
    slots, ours = 255 - have, frozenset(listed)
    view = model.Nic(name="nic", addresses=listed, names=names, removable=ours, slots=slots, **more)
    wanted = Wanted(minimum=4, warm=4, batch=4, maximum=250, paused=paused)
    made = plan(Observed(nics=(view,), usage=usage), wanted, 100.0)
    entries = (Entry("ipconfig1", "10.0.0.4", "Succeeded", primary=True),)
    nic = Nic("/nic", "nic", "00:0d:3a:00:00:01", SUBNET, "e", "Succeeded", primary=True, entries=entries)
    return Findings(made, (nic,), (view,), ("10.0.0.0/8",), problem)


def conditions(found: Status) -> dict[str, tuple[str, str]]:
    return {c.type: (c.status, c.reason) for c in found.conditions}


CASES = [
    # id, findings, Ready, Reconciling, Stalled
    ("unseen", Findings(), ("Unknown", "Pending"), ("True", "Pending"), ("False", "Idle")),
    ("empty", findings(0), ("False", "Growing"), ("True", "Growing"), ("False", "Idle")),
    ("enough", findings(8, Usage(assigned=2, free=6)), ("True", "PoolReady"), ("False", "Idle"), ("False", "Idle")),
    ("growing", findings(4, Usage(assigned=4)), ("True", "PoolReady"), ("True", "Growing"), ("False", "Idle")),
    (
        "waiting",
        findings(4, Usage(assigned=4, waiting=1)),
        ("False", "Growing"),
        ("True", "Growing"),
        ("False", "Idle"),
    ),
    (
        "c14-full-subnet-new-node",
        findings(0, grow_after=200.0),
        ("False", "SubnetFull"),
        ("False", "Idle"),
        ("False", "Idle"),
    ),
    (
        "full-subnet-with-free-ones",
        findings(4, Usage(assigned=1, free=3), grow_after=200.0),
        ("True", "SubnetFull"),
        ("False", "Idle"),
        ("False", "Idle"),
    ),
    (
        "forbidden",
        findings(0, problem=Problem(Reason.FORBIDDEN, "needs X on Y", stalled=True)),
        ("False", "Forbidden"),
        ("False", "Forbidden"),
        ("True", "Forbidden"),
    ),
    (
        "throttled-with-free-ones",
        findings(4, Usage(assigned=1, free=3), problem=Problem(Reason.THROTTLED, "wait")),
        ("True", "Throttled"),
        ("False", "Throttled"),
        ("False", "Idle"),
    ),
    (
        "paused-while-pods-wait",
        findings(4, Usage(assigned=4, waiting=2), paused=True),
        ("False", "Paused"),
        ("False", "Paused"),
        ("False", "Idle"),
    ),
    (
        "paused-with-free-ones",
        findings(4, Usage(assigned=1, free=3), paused=True),
        ("True", "Paused"),
        ("False", "Paused"),
        ("False", "Idle"),
    ),
    (
        "no-provider",
        Findings(problem=Problem(Reason.NO_PROVIDER_ID, "which machine?", stalled=True)),
        ("False", "NoProviderID"),
        ("False", "Pending"),
        ("True", "NoProviderID"),
    ),
]


@pytest.mark.parametrize(
    ("found", "ready", "reconciling", "stalled"), [row[1:] for row in CASES], ids=[row[0] for row in CASES]
)
def test_conditions(found: Findings, ready: Any, reconciling: Any, stalled: Any) -> None:
    usage = None if found.plan is None else Usage(waiting=int(ready[0] == "False"))
    status = report.status(pool(usage=usage), found, NOW)
    expected = {"Ready": ready, "Reconciling": reconciling, "Stalled": stalled}
    assert conditions(status) == expected
    assert all(c.observed_generation == 3 and c.message for c in status.conditions)


def test_ready_does_not_promise_what_no_agent_has_said() -> None:
    silent, heard = (report.status(pool(usage=usage), findings(8), NOW) for usage in (None, Usage(free=8)))
    assert "once the node's agent reports, which none has yet" in silent.conditions[0].message
    assert heard.conditions[0].message == "pods can be given addresses"
    assert conditions(silent)["Ready"] == conditions(heard)["Ready"] == ("True", "PoolReady")


def test_a_nic_that_cannot_be_read_is_told_unless_something_worse_is() -> None:
    left_out = "NIC extra is left out: 403"
    status = report.status(pool(usage=Usage(free=8)), replace(findings(8), unreadable=left_out), NOW)
    assert conditions(status)["Ready"] == ("True", "NicUnreadable")
    assert status.conditions[0].message == left_out
    waiting = replace(findings(4, Usage(assigned=4, waiting=1)), unreadable=left_out)
    assert conditions(report.status(pool(usage=Usage(waiting=1)), waiting, NOW))["Ready"] == ("False", "Growing")


def test_prefixes_are_bounded_and_those_in_use_come_first() -> None:
    many = (*(f"10.{number}.0.0/24" for number in range(1, 201)), "10.0.0.0/24")
    (interface,) = report.status(pool(), findings(8, prefixes=many), NOW).interfaces
    assert len(interface.prefixes) == 128
    assert interface.prefixes[0] == "10.0.0.0/24"
    (few,) = report.status(pool(), findings(8, prefixes=many[:128]), NOW).interfaces
    assert few.prefixes == many[:128]


def test_totals_and_interfaces() -> None:
    status = report.status(pool(), findings(8, Usage(free=8)), NOW)
    assert (status.capacity, status.allocated, status.subnet, status.observed_generation) == (255, 8, "pods", 3)
    assert status.interfaces[0].primary_address == "10.0.0.4"
    assert status.direct_cidrs == ("10.0.0.0/8",)


def test_nothing_new_is_not_written() -> None:
    found = findings(8, Usage(free=8))
    first = report.status(pool(usage=Usage(free=8)), found, NOW)
    agents = Condition(
        type="AgentReady", status="True", reason="AgentServing", message="", last_transition_time="2026-01-01T00:00:00Z"
    )
    written = NodeIPPool(
        metadata=Metadata(name="n", generation=3),
        status=Status(
            **{name: getattr(first, name) for name in first.__struct_fields__}
            | {
                "usage": Usage(free=8),
                "released": ("10.0.0.5",),
                "missing": ("10.9.9.9",),
                "conditions": (agents, *first.conditions),
            }
        ),
    )
    later = report.status(written, found, NOW.replace(hour=9))
    assert not report.differs(written, later)


def test_what_is_not_known_stays() -> None:
    before = Interface(name="nic", mac="00:0d:3a:00:00:01", subnet=SUBNET, addresses=("10.0.0.5",), capacity=255)
    known = pool(interfaces=(before,), direct_cidrs=("10.0.0.0/8",))
    problem = Problem(Reason.MACHINE_NOT_FOUND, "gone", stalled=True)
    status = report.status(known, Findings(problem=problem), NOW)
    assert status.interfaces == (before,)
    assert status.direct_cidrs == ("10.0.0.0/8",)


def test_a_release_begins_without_a_look_at_the_nic_but_not_while_azure_refuses() -> None:
    listed = ("10.0.0.5", "10.0.0.6", "10.0.0.7")
    before = pool(
        interfaces=(
            Interface(name="nic", mac="00:0d:3a:00:00:01", subnet=SUBNET, addresses=listed, releasing=listed[:2]),
        )
    )
    made = plan(Observed(nics=(), usage=None), Wanted(minimum=4, warm=4, batch=4, maximum=250), 100.0)
    blind = Findings(replace(made, releasing=frozenset(listed[1:])))
    assert report.status(before, blind, NOW).interfaces[0].releasing == listed[1:]
    refused = replace(blind, problem=Problem(Reason.FORBIDDEN, "no"))
    assert report.status(before, refused, NOW).interfaces[0].releasing == listed[1:2]


def test_direct_cidrs_are_ordered_and_bounded() -> None:
    assert report.direct(("10.0.0.0/8",), ("10.9.0.0/16", "10.1.0.0/16"), ("10.9.0.0/16",)) == (
        "10.0.0.0/8",
        "10.1.0.0/16",
        "10.9.0.0/16",
    )
    assert len(report.direct((), [f"10.{i}.0.0/24" for i in range(600)], ())) == 512
