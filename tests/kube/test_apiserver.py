"""The bare API server: objects, rights, tokens, outages."""

from __future__ import annotations

import base64
import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.kube.api import KubeError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kube.apiserver import ApiServer

pytestmark = pytest.mark.apiserver

WIDGETS = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.test.vnetpods.io}
spec:
  group: test.vnetpods.io
  scope: Cluster
  names: {plural: widgets, singular: widget, kind: Widget}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties: {low: {type: integer}, high: {type: integer}}
            x-kubernetes-validations: [{rule: "self.low <= self.high", message: "low must not be above high"}]
"""


def widget(low: int, high: int) -> str:
    document = {"apiVersion": "test.vnetpods.io/v1", "kind": "Widget", "metadata": {"name": "one"}}
    return json.dumps(document | {"spec": {"low": low, "high": high}})


def claims(kubeconfig: Path) -> dict[str, object]:
    token = json.loads(kubeconfig.read_text())["users"][0]["user"]["token"]
    payload = token.split(".")[1]
    return dict(json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))))


def can_i(apiserver: ApiServer, kubeconfig: Path, *what: str) -> str:
    command = [str(apiserver.kubectl_program), f"--kubeconfig={kubeconfig}", "auth", "can-i", *what]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def test_a_new_crd_is_served_when_apply_returns_and_its_rules_are_enforced(apiserver: ApiServer) -> None:
    apiserver.apply(WIDGETS)
    apiserver.apply(widget(1, 2))
    assert apiserver.get("widget", "one")["spec"] == {"low": 1, "high": 2}
    with pytest.raises(KubeError, match="low must not be above high"):
        apiserver.apply(widget(3, 2))


def test_a_service_account_has_no_rights_of_its_own(apiserver: ApiServer) -> None:
    kubeconfig = apiserver.kubeconfig_for("nobody")
    assert claims(kubeconfig)["sub"] == "system:serviceaccount:kube-system:nobody"
    assert can_i(apiserver, kubeconfig, "list", "nodes") == "no"
    apiserver.kubectl("create", "clusterrole", "node-reader", "--verb=list", "--resource=nodes")
    binding = ["create", "clusterrolebinding", "node-reader", "--clusterrole=node-reader"]
    apiserver.kubectl(*binding, "--serviceaccount=kube-system:nobody")
    apiserver.wait("the right to list nodes", lambda: can_i(apiserver, kubeconfig, "list", "nodes") == "yes", 5)


def test_a_token_bound_to_a_node_names_it(apiserver: ApiServer) -> None:
    apiserver.apply(json.dumps({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "bound-1"}}))
    kubeconfig = apiserver.kubeconfig_for("agent-1", node_name="bound-1")
    bound = claims(kubeconfig)["kubernetes.io"]
    assert isinstance(bound, dict)
    assert bound["node"]["name"] == "bound-1"
    command = [str(apiserver.kubectl_program), f"--kubeconfig={kubeconfig}", "auth", "whoami", "-o", "json"]
    who = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert who["status"]["userInfo"]["extra"]["authentication.kubernetes.io/node-name"] == ["bound-1"]


def test_objects_survive_an_outage(apiserver: ApiServer) -> None:
    apiserver.kubectl("create", "namespace", "outage")
    apiserver.stop()
    with pytest.raises(KubeError, match="refused"):
        apiserver.kubectl("get", "namespace", "outage", timeout=20)
    apiserver.start()
    assert apiserver.get("namespace", "outage")["metadata"]["name"] == "outage"


def test_a_frozen_server_answers_nobody_until_it_is_resumed(apiserver: ApiServer) -> None:
    apiserver.pause()
    try:
        with pytest.raises((KubeError, subprocess.TimeoutExpired)):
            apiserver.kubectl("get", "nodes", "--request-timeout=1s", timeout=5)
    finally:
        apiserver.resume()
    apiserver.kubectl("get", "nodes")


def test_waiting_in_vain_says_for_what(apiserver: ApiServer) -> None:
    with pytest.raises(KubeError, match=r"waited [0-9.]+ s in vain for a miracle"):
        apiserver.wait("a miracle", lambda: False, timeout=0.2)
