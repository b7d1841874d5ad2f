"""Every rendered object against Kubernetes' own description of it, for the oldest and the newest version supported."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.install.rendering import render

SCHEMAS = Path(__file__).parent / "schemas"
FOREIGN = {"PodMonitor", "PrometheusRule"}
"""Kinds of the Prometheus operator."""
VALUES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "everything on": {
        "networkPolicy": {"enabled": True},
        "dashboard": {"enabled": True},
        "operator": {"hostNetwork": False, "extraEnv": [{"name": "A", "value": "b"}], "podAnnotations": {"a": "b"}},
        "agent": {"podLabels": {"a": "b"}, "affinity": {"nodeAffinity": {}}},
        "image": {"pullSecrets": [{"name": "registry"}]},
        "k8sServiceHost": "10.0.0.1",
    },
    "workload identity": {"azure": {"credentials": {"type": "workloadIdentity", "clientId": "c", "tenantId": "t"}}},
    "secret": {"azure": {"credentials": {"type": "secret", "secretName": "s"}}},
    "volumes and security": {
        component: {
            "extraVolumes": [{"name": "certificate", "secret": {"secretName": "c"}}],
            "extraVolumeMounts": [{"name": "certificate", "mountPath": "/etc/azure", "readOnly": True}],
            "podSecurityContext": {"seLinuxOptions": {"type": "spc_t"}},
            "securityContext": {"seLinuxOptions": {"type": "spc_t"}, "appArmorProfile": {"type": "Unconfined"}},
        }
        for component in ("operator", "agent")
    },
    "uninstall": {"agent": {"uninstall": True}},
}


@functools.cache
def definitions(version: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((SCHEMAS / f"kubernetes-{version}.json").read_text())
    return found


def complaints(version: str, manifest: dict[str, Any]) -> list[str]:
    name = f"{manifest['apiVersion']}/{manifest['kind']}".replace("/", ".")
    schema = definitions(version) | {"$ref": f"#/$defs/{name}"}
    validator = jsonschema.Draft202012Validator(schema)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]


@pytest.mark.parametrize("version", ["1.30", "1.37"])
@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES.keys())
def test_every_object_is_as_kubernetes_describes_it(version: str, values: dict[str, Any]) -> None:
    objects = [each for each in render(values, f"--kube-version={version}.0") if each["kind"] not in FOREIGN]
    assert len(objects) > 10
    found = {f"{each['kind']} {each['metadata']['name']}": complaints(version, each) for each in objects}
    assert {name: said for name, said in found.items() if said} == {}


@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_a_misspelt_key_would_be_seen(version: str) -> None:
    agent = next(each for each in render() if each["kind"] == "DaemonSet")
    agent["spec"]["template"]["spec"]["hostnetwork"] = True
    assert any("hostnetwork" in said for said in complaints(version, agent))
