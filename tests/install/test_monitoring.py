"""Alerts and dashboard speak of metrics that the programs have."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.install.rendering import CHART, render
from vnetpods_api import Reason

REPOSITORY = Path(__file__).parents[2]
SOURCES = {
    "operator": REPOSITORY / "operator" / "vnetpods_operator" / "metrics.py",
    "agent": REPOSITORY / "agent" / "vnetpods_agent" / "metrics.py",
}
GAUGES = REPOSITORY / "agent" / "vnetpods_agent" / "app.py"
"""Where most of the agent's gauges are named."""
SUFFIX = re.compile(r"_(total|bucket|count|sum)$")


def expressions() -> dict[str, str]:
    """Where it stands → the PromQL."""
    alerts = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
    dashboard = json.loads((CHART / "files" / "dashboard.json").read_text())
    found = {rule["alert"]: rule["expr"] for group in alerts["groups"] for rule in group["rules"]}
    for panel in dashboard["panels"]:
        found |= {f"{panel['title']} {target['refId']}": target["expr"] for target in panel["targets"]}
    return found


def metrics() -> set[str]:
    """The names in the programs' own text; a counter's `_total` is added by the client library."""
    named = {name for path in SOURCES.values() for name in re.findall(r'"(vnetpods_[a-z_]+)"', path.read_text())}
    gauges = GAUGES.read_text().partition("def _gauges")[2].partition("\n    # ")[0]
    return named | {f"vnetpods_agent_{name}" for name in re.findall(r'^ +"([a-z_]+)": \(', gauges, re.MULTILINE)}


@pytest.mark.parametrize("expression", expressions().values(), ids=expressions().keys())
def test_every_metric_in_it_exists(expression: str) -> None:
    named = set(re.findall(r"vnetpods_[a-z_]+", expression))
    assert named
    assert {name for name in named if name not in metrics() and SUFFIX.sub("", name) not in metrics()} == set()


def only(objects: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = [each for each in objects if each["kind"] == "PrometheusRule"]
    return found


def test_whatever_a_person_must_act_on_raises_an_alert_while_pods_can_go_on() -> None:
    """Ready stays True for long then: without it, expired credentials page nobody until pods wait."""
    expression = expressions()["VnetpodsNodesNeedAttention"]
    assert "ready" not in expression
    (pattern,) = re.findall(r'reason=~"([^"]+)"', expression)
    reasons = list(Reason)
    stalled = reasons[reasons.index(Reason.NO_PROVIDER_ID) :]
    assert set(pattern.split("|")) == {*stalled, Reason.AZURE_UNAVAILABLE}


def test_pods_that_wait_raise_an_alert_without_an_operator() -> None:
    """Its own metrics go with it."""
    agents = {"vnetpods_agent_waiting", "vnetpods_agent_operator_silent_seconds"}
    for alert in ("VnetpodsPodsWaiting", "VnetpodsOperatorSilent"):
        assert agents & set(re.findall(r"vnetpods_[a-z_]+", expressions()[alert]))


def test_every_alert_says_what_it_means_and_where_to_read_what_to_do() -> None:
    runbooks = (REPOSITORY / "docs" / "operator.md").read_text()
    rules = only(render({"prometheusRule": {"enabled": True, "runbooks": "https://example.test/operator.md"}}))
    for rule in rules["spec"]["groups"][0]["rules"]:
        anchor = rule["alert"].lower()
        assert rule["annotations"]["runbook_url"] == f"https://example.test/operator.md#{anchor}"
        assert f"### {rule['alert']}\n" in runbooks
        assert re.fullmatch(r"Vnetpods[A-Z][A-Za-z]+", rule["alert"])
        assert rule["annotations"]["summary"].endswith(".")
        assert rule["labels"]["severity"] in {"warning", "critical"}
