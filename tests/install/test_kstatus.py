"""What Flux, Helm 4, Argo CD and `kubectl wait` make of a NodeIPPool: kstatus's rules over what the operator really
writes.

The rules are sigs.k8s.io/cli-utils pkg/kstatus/status (generic.go, status.go), in their order. Argo CD's own check
is the Lua in docs/gitops, which must come to the same answers.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from tests.install.rendering import render
from vnetpods_api import Interface, NodeIPPool, Reason, Status, Usage, to_object
from vnetpods_api.nodeippool import Metadata
from vnetpods_operator.planning.model import Plan, Problem
from vnetpods_operator.reconcile import status as report
from vnetpods_operator.reconcile.status import Findings

GITOPS = Path(__file__).parents[2] / "docs" / "gitops"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
ARGO = {"Current": "Healthy", "InProgress": "Progressing", "Failed": "Degraded"}


def kstatus(document: dict[str, Any]) -> str:
    """The library's verdict on an object of a kind it doesn't know."""
    metadata, status = document["metadata"], document.get("status", {})
    if metadata.get("deletionTimestamp"):
        return "Terminating"
    if "observedGeneration" in status and status["observedGeneration"] != metadata.get("generation", 0):
        return "InProgress"
    conditions = {each["type"]: each["status"] for each in status.get("conditions", [])}
    if conditions.get("Reconciling") == "True":
        return "InProgress"
    if conditions.get("Stalled") == "True":
        return "Failed"
    if "Ready" in conditions:
        return "Current" if conditions["Ready"] == "True" else "InProgress"
    return "Current"


def plan(reason: Reason, *, free: int, limit: Reason | None = None) -> Plan:
    return Plan(
        changes=(),
        releasing=frozenset(),
        reason=reason,
        limit=limit,
        detail="as the case says",
        free=free,
        surplus=False,
        overdue=frozenset(),
        look_again=None,
    )


def written(findings: Findings, *, have: int, waiting: int = 0) -> dict[str, Any]:
    """The object as it stands after the operator has written what it found."""
    addresses = tuple(f"10.0.0.{number + 5}" for number in range(have))
    nic = Interface(name="nic", mac="00:0d:3a:00:00:01", subnet="/s/pods", addresses=addresses)
    usage = Usage(assigned=have, waiting=waiting)
    before = NodeIPPool(
        metadata=Metadata(name="worker-1", generation=3), status=Status(interfaces=(nic,) if have else (), usage=usage)
    )
    return document(msgspec.structs.replace(before, status=report.status(before, findings, NOW)))


def document(pool: NodeIPPool) -> dict[str, Any]:
    return dict(to_object(pool))


def problem(reason: Reason, *, stalled: bool) -> Problem:
    return Problem(reason, "as the case says", stalled=stalled)


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "first sight": (written(Findings(), have=0), "InProgress"),
    "first addresses on their way": (written(Findings(plan=plan(Reason.GROWING, free=0)), have=0), "InProgress"),
    "enough": (written(Findings(plan=plan(Reason.IDLE, free=4)), have=8), "Current"),
    "growing": (written(Findings(plan=plan(Reason.GROWING, free=4)), have=8), "InProgress"),
    "releasing": (written(Findings(plan=plan(Reason.RELEASING, free=40)), have=64), "InProgress"),
    "paused": (written(Findings(plan=plan(Reason.PAUSED, free=4)), have=8), "Current"),
    "subnet full, some left": (
        written(Findings(plan=plan(Reason.IDLE, free=1, limit=Reason.SUBNET_FULL)), have=8),
        "Current",
    ),
    "subnet full, pods wait": (
        written(Findings(plan=plan(Reason.IDLE, free=0, limit=Reason.SUBNET_FULL)), have=8, waiting=2),
        "InProgress",
    ),
    "Azure away, pods live on": (
        written(Findings(problem=problem(Reason.AZURE_UNAVAILABLE, stalled=False)), have=8),
        "Current",
    ),
    "no machine": (written(Findings(problem=problem(Reason.MACHINE_NOT_FOUND, stalled=True)), have=0), "Failed"),
    "forbidden": (written(Findings(problem=problem(Reason.FORBIDDEN, stalled=True)), have=8), "Failed"),
}


@pytest.mark.parametrize(("found", "verdict"), CASES.values(), ids=CASES.keys())
def test_a_pool_means_to_kstatus_what_it_means_to_people(found: dict[str, Any], verdict: str) -> None:
    assert kstatus(found) == verdict


def test_a_change_that_the_operator_has_not_seen_is_in_progress() -> None:
    found = written(Findings(plan=plan(Reason.IDLE, free=4)), have=8)
    found["metadata"]["generation"] = 4
    assert kstatus(found) == "InProgress"


def test_a_pool_that_is_being_deleted_is_terminating() -> None:
    found = written(Findings(plan=plan(Reason.IDLE, free=4)), have=8)
    found["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert kstatus(found) == "Terminating"


def lua(found: dict[str, Any]) -> dict[str, str]:
    """What Argo CD's check says, run by a real Lua 5.1 (Argo CD's version of the language)."""
    config = yaml.safe_load((GITOPS / "argocd-health.yaml").read_text())
    (check,) = config["data"].values()
    program = f"""
    local obj = {table(found)}
    local function check() {check} end
    local answer = check()
    io.write(answer.status, "\\n", answer.message)
    """
    done = subprocess.run(["lua5.1", "-"], input=program, capture_output=True, text=True, check=True)
    status, _, message = done.stdout.partition("\n")
    return {"status": status, "message": message}


def table(value: Any) -> str:
    """A Lua literal."""
    match value:
        case dict():
            return "{" + ", ".join(f"[{json.dumps(key)}] = {table(each)}" for key, each in value.items()) + "}"
        case list() | tuple():
            return "{" + ", ".join(map(table, value)) + "}"
        case _:
            return json.dumps(value)


@pytest.mark.skipif(shutil.which("lua5.1") is None, reason="apt-get install lua5.1")
@pytest.mark.parametrize(("found", "verdict"), CASES.values(), ids=CASES.keys())
def test_argo_cd_says_the_same(found: dict[str, Any], verdict: str) -> None:
    said = lua(found)
    assert said["status"] == ARGO[verdict]
    assert said["message"]


@pytest.mark.skipif(shutil.which("lua5.1") is None, reason="apt-get install lua5.1")
def test_argo_cd_waits_for_a_pool_without_status_and_for_one_that_changed() -> None:
    assert lua({"metadata": {"name": "x"}})["status"] == "Progressing"
    found = written(Findings(plan=plan(Reason.IDLE, free=4)), have=8)
    found["metadata"]["generation"] = 4
    assert lua(found)["status"] == "Progressing"


def test_the_examples_for_gitops_are_valid_and_name_values_that_exist() -> None:
    argo = yaml.safe_load((GITOPS / "argocd-application.yaml").read_text())
    flux = list(yaml.safe_load_all((GITOPS / "flux-helmrelease.yaml").read_text()))
    assert argo["spec"]["source"]["path"] == flux[1]["spec"]["chart"]["spec"]["chart"] == "helm/vnetpods"
    for values in (argo["spec"]["source"]["helm"]["valuesObject"], flux[1]["spec"]["values"]):
        assert {each["kind"] for each in render(values)} >= {"DaemonSet", "Deployment"}
