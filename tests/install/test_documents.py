"""docs/install.md against what it speaks of: values that exist, a role with the actions it explains."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from tests.install.rendering import CHART, render

REPOSITORY = Path(__file__).parents[2]
INSTALL = (REPOSITORY / "docs" / "install.md").read_text()
ROLE: dict[str, Any] = json.loads((REPOSITORY / "docs" / "azure-role.json").read_text())


def schema_knows(path: str) -> bool:
    """Whether the chart accepts a value of this name."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    for part in path.split("."):
        if part not in schema.get("properties", {}):
            return False
        schema = schema["properties"][part]
    return True


def test_every_value_that_is_named_exists() -> None:
    named = set(re.findall(r"`((?:operator|agent|azure|crds|image)\.[A-Za-z.]+)", INSTALL))
    assert len(named) > 5
    assert {path for path in named if not schema_knows(path.rstrip("."))} == set()


def test_every_example_of_values_renders() -> None:
    examples = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", INSTALL, re.DOTALL)]
    assert {example["azure"]["credentials"]["type"] for example in examples} == {
        "managedIdentity",
        "workloadIdentity",
        "secret",
    }
    for example in examples:
        assert render(example)


def test_the_role_is_a_role_that_az_takes_and_has_nothing_broad() -> None:
    assert set(ROLE) >= {"Name", "Actions", "NotActions", "AssignableScopes"}
    assert len(ROLE["Actions"]) == len(set(ROLE["Actions"]))
    for action in ROLE["Actions"]:
        assert re.fullmatch(r"Microsoft\.(Compute|Network)/[A-Za-z/]+/(read|write|action)", action)
        assert not action.endswith("/delete")


def test_every_kind_of_resource_in_the_role_is_explained() -> None:
    table = INSTALL[INSTALL.index("| actions |") : INSTALL.index("role definition create")]
    for action in ROLE["Actions"]:
        assert action.split("/")[1] in table, action
