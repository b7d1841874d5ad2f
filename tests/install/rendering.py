"""The chart rendered by the real helm, for tests. Values are what a user would put into a file."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.kube import binaries

CHART = Path(__file__).parents[2] / "helm" / "vnetpods"


class RenderError(Exception):
    """helm refused; its words."""


def render_text(values: dict[str, Any] | None = None, *arguments: str, namespace: str = "kube-system") -> str:
    """`helm template` of the chart."""
    helm = binaries.program("helm")
    command = [str(helm), "template", "vnetpods", str(CHART), f"--namespace={namespace}", "--values=-", *arguments]
    done = subprocess.run(command, input=json.dumps(values or {}), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RenderError(done.stderr)
    return done.stdout


def templates(*names: str) -> str:
    """These of the chart's templates, with default values."""
    return render_text(None, *(f"--show-only=templates/{name}.yaml" for name in names))


def operator_rights() -> str:
    """The operator's ServiceAccount and RBAC, as a user gets them."""
    return templates("serviceaccounts", "rbac-operator")


def render(
    values: dict[str, Any] | None = None, *arguments: str, namespace: str = "kube-system"
) -> list[dict[str, Any]]:
    """The objects."""
    text = render_text(values, *arguments, namespace=namespace)
    return [each for each in yaml.safe_load_all(text) if each]
