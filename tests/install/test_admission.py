"""The policy that confines agents, on real API servers, with tokens as kubelets mount them: the oldest supported
version of Kubernetes, the newest, and the one that all other tests use.
"""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.install.rendering import render_text
from tests.kube import binaries
from tests.kube.api import KubeError
from tests.kube.apiserver import running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.kube.apiserver import ApiServer

pytestmark = pytest.mark.apiserver

MACHINE = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/"
NIC = {"name": "nic", "mac": "00:0d:3a:00:00:01", "subnet": "/s/pods", "prefixes": ["10.0.0.0/24", "10.2.0.0/15"]}
NIC |= {"addresses": ["10.0.0.5", "10.0.0.6", "10.0.0.7"], "releasing": ["10.0.0.6", "10.0.0.7"]}


def condition(type_: str, status: str = "True", message: str = "") -> dict[str, Any]:
    stamp = "2026-01-01T00:00:00Z"
    return {"type": type_, "status": status, "reason": "Idle", "message": message, "lastTransitionTime": stamp}


OPERATORS = {"interfaces": [NIC], "capacity": 255, "allocated": 2, "observedGeneration": 1}
OPERATORS |= {"conditions": [condition("Ready"), condition("Reconciling", "False")]}


BUILT = [program for program in binaries.ENDS if binaries.present(program)]


@pytest.fixture(scope="module", params=["", *BUILT], ids=["pinned", *(binaries.ENDS[program] for program in BUILT)])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """The session's API server, and one of the oldest and the newest version that is supported."""
    if not request.param:
        yield request.getfixturevalue("apiserver")
        return
    with running(tmp_path_factory.mktemp(request.param), program=request.param) as found:
        yield found


@pytest.fixture(scope="module")
def installed(server: ApiServer) -> ApiServer:
    """CRD, rights and policy from the chart; Nodes ada and bob with a pool each, written by the operator."""
    templates = ("crds", "serviceaccounts", "rbac-operator", "rbac-agent", "admission-policy")
    server.apply(render_text({}, *(f"--show-only=templates/{name}.yaml" for name in templates)))
    for node in ("ada", "bob"):
        server.apply(json.dumps({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}}))
        server.apply(json.dumps(pool(node, spec={"machine": MACHINE + node})))
        apply_as(server, server.admin_kubeconfig, pool(node, status=OPERATORS), manager="vnetpods-operator")
    server.apply(json.dumps(agent_pod("ada")))

    # a policy takes effect some moments after it was written
    def confined() -> bool:
        try:
            apply_as(server, agent_of(server), pool("bob", status={"released": []}))
        except KubeError as refused:
            return "may not write" in str(refused)
        return False

    server.wait("the policy to take effect", confined, 20)
    return server


@pytest.fixture(scope="module")
def ada(installed: ApiServer) -> Path:
    """The agent of node ada."""
    return agent_of(installed)


def agent_of(server: ApiServer) -> Path:
    return server.kubeconfig_for("vnetpods-agent", pod_name="vnetpods-agent-ada")


def agent_pod(node: str) -> dict[str, Any]:
    """As the DaemonSet controller makes it; its token names the node."""
    spec = {"nodeName": node, "serviceAccountName": "vnetpods-agent", "containers": [{"name": "agent", "image": "x"}]}
    metadata = {"name": f"vnetpods-agent-{node}", "namespace": "kube-system"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def pool(name: str, **parts: Any) -> dict[str, Any]:
    return {"apiVersion": "vnetpods.io/v1alpha1", "kind": "NodeIPPool", "metadata": {"name": name}, **parts}


def kubectl_as(server: ApiServer, kubeconfig: Path, *arguments: str, stdin: str | None = None) -> str:
    command = [str(server.kubectl_program), f"--kubeconfig={kubeconfig}", *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise KubeError(done.stderr)
    return done.stdout


def apply_as(server: ApiServer, kubeconfig: Path, body: dict[str, Any], manager: str = "vnetpods-agent") -> str:
    part = "/status" if "status" in body else ""
    token = json.loads(kubeconfig.read_text())["users"][0]["user"].get("token")
    path = f"/apis/vnetpods.io/v1alpha1/nodeippools/{body['metadata']['name']}{part}"
    return json.dumps(server.write(path, body, manager, token=token))


def can_i(server: ApiServer, kubeconfig: Path, *what: str) -> str:
    command = [str(server.kubectl_program), f"--kubeconfig={kubeconfig}", "auth", "can-i", *what]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


USAGE = {"assigned": 1, "cooling": 0, "free": 1, "waiting": 0}


@pytest.mark.parametrize("program", binaries.ENDS)
def test_the_policy_is_also_tested_with(program: str) -> None:
    if program not in BUILT:
        pytest.skip(f"not built, so left out here: python -m tests.kube build {program}")


def test_every_field_of_the_status_is_either_the_agents_or_kept_by_the_policy() -> None:
    """A field that comes later is nobody's to write by default."""
    crd = yaml.safe_load(render_text({}, "--show-only=templates/crds.yaml"))
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    policy = render_text({}, "--show-only=templates/admission-policy.yaml")
    kept = set(re.findall(r"object\.\?status\.\?(\w+) == oldObject\.\?status\.\?\1\b", policy))
    assert schema.keys() - kept == {"usage", "agent", "released", "kept", "missing", "conditions"}


def test_an_agent_reports_on_its_own_node(installed: ApiServer, ada: Path) -> None:
    status = {
        "usage": USAGE,
        "released": ["10.0.0.6"],
        "kept": ["10.0.0.7"],
        "missing": ["10.0.0.9", "10.3.255.255"],
        "agent": {"instance": "i", "report": 1, "view": "v", "releaseRequest": "r"},
        "conditions": [condition("AgentReady")],
    }
    apply_as(installed, ada, pool("ada", status=status))
    found = installed.get("nodeippool", "ada")["status"]
    assert found["usage"] == USAGE
    assert {each["type"] for each in found["conditions"]} == {"Ready", "Reconciling", "AgentReady"}
    # a second report, and one that takes fields back
    apply_as(installed, ada, pool("ada", status={"conditions": [condition("AgentReady", "False")]}))
    assert "released" not in installed.get("nodeippool", "ada")["status"]


@pytest.mark.parametrize(
    ("status", "complaint"),
    [
        pytest.param(
            {"interfaces": [NIC | {"addresses": ["10.0.0.9"], "releasing": []}]},
            "the rest is the operator's",
            id="addresses",
        ),
        pytest.param({"interfaces": [NIC | {"name": "other"}]}, "the rest is the operator's", id="another interface"),
        pytest.param({"capacity": 9}, "the rest is the operator's", id="capacity"),
        pytest.param({"directCIDRs": ["0.0.0.0/0"]}, "the rest is the operator's", id="direct CIDRs"),
        pytest.param({"observedGeneration": 7}, "the rest is the operator's", id="generation"),
        pytest.param({"releaseRequest": "r"}, "the rest is the operator's", id="release request"),
        pytest.param({"confirmedView": "v"}, "the rest is the operator's", id="confirmed view"),
        pytest.param({"lost": ["10.0.0.9"]}, "the rest is the operator's", id="lost"),
        pytest.param({"conditions": [condition("Ready", "False")]}, "the others are the operator's", id="Ready"),
        pytest.param({"conditions": [condition("Stalled")]}, "the others are the operator's", id="a new condition"),
    ],
)
def test_an_agent_may_not_write_the_operators_fields(
    installed: ApiServer, ada: Path, status: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(KubeError, match=complaint):
        apply_as(installed, ada, pool("ada", status=status))
    assert installed.get("nodeippool", "ada")["status"]["interfaces"] == [NIC]


MOST = [f"10.2.{number // 250}.{number % 250 + 4}" for number in range(256)]


@pytest.mark.parametrize(
    ("status", "complaint"),
    [
        pytest.param({"kept": ["10.0.0.5"]}, "under kept only addresses that are releasing", id="kept, not releasing"),
        pytest.param({"kept": ["10.0.0.77"]}, "under kept only addresses that are releasing", id="kept, of others"),
        pytest.param({"released": ["10.0.0.8"]}, "under released only addresses of its own", id="released, of others"),
        pytest.param({"missing": ["10.0.1.0"]}, "under missing only addresses of the subnets", id="behind a prefix"),
        pytest.param({"missing": ["10.0.0.9", "10.1.255.255"]}, "addresses of the subnets", id="before a prefix"),
        pytest.param({"missing": [*MOST, "10.2.9.9"]}, "at most 256 addresses under missing", id="too many"),
        pytest.param({"missing": [*MOST[:-1], "9.9.9.9"]}, "addresses of the subnets", id="one of many"),
    ],
)
def test_an_agent_may_not_say_of_others_addresses_what_it_says_of_its_own(
    installed: ApiServer, ada: Path, status: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(KubeError, match=complaint):
        apply_as(installed, ada, pool("ada", status=status))


def test_an_agent_whose_whole_nic_was_emptied_is_heard(installed: ApiServer, ada: Path) -> None:
    """As many as a machine can have: what the policy costs the API server stays within what that allows."""
    apply_as(installed, ada, pool("ada", status={"missing": MOST, "released": NIC["addresses"]}))
    assert installed.get("nodeippool", "ada")["status"]["missing"] == MOST


@pytest.mark.parametrize("interfaces", [[], [NIC | {"prefixes": []}]], ids=["no interface", "no prefix"])
def test_an_agent_is_heard_while_nobody_knows_its_subnets(
    installed: ApiServer, ada: Path, interfaces: list[dict[str, Any]]
) -> None:
    """A Node that names another machine now has its interfaces taken away first; its pods may hold addresses still."""
    operator = installed.kubeconfig_for("vnetpods-operator")
    apply_as(installed, operator, pool("ada", status=OPERATORS | {"interfaces": interfaces}), "vnetpods-operator")
    try:
        apply_as(installed, ada, pool("ada", status={"missing": ["10.9.9.9"]}))
    finally:
        apply_as(installed, operator, pool("ada", status=OPERATORS), "vnetpods-operator")


def test_an_agent_may_not_write_another_nodes_pool(installed: ApiServer, ada: Path) -> None:
    with pytest.raises(KubeError, match="the agent of node ada may not write the NodeIPPool of node bob"):
        apply_as(installed, ada, pool("bob", status={"usage": USAGE}))


def test_a_token_without_a_node_writes_nothing(installed: ApiServer) -> None:
    unbound = installed.kubeconfig_for("vnetpods-agent")
    with pytest.raises(KubeError, match="isn't bound to a node"):
        apply_as(installed, unbound, pool("ada", status={"usage": USAGE}))


FORBIDDEN: dict[str, Callable[[ApiServer, Path], str]] = {
    "delete its pool": lambda server, who: kubectl_as(server, who, "delete", "nodeippool", "ada"),
    "delete all pools": lambda server, who: kubectl_as(server, who, "delete", "nodeippools", "--all"),
    "write the spec": lambda server, who: apply_as(server, who, pool("ada", spec={"paused": True})),
    "make a pool": lambda server, who: apply_as(server, who, pool("eve", spec={})),
    "read Secrets": lambda server, who: kubectl_as(server, who, "get", "secrets", "-A"),
    "read Nodes": lambda server, who: kubectl_as(server, who, "get", "nodes"),
    "read pods": lambda server, who: kubectl_as(server, who, "get", "pods", "-A"),
}


@pytest.mark.parametrize("deed", FORBIDDEN.values(), ids=FORBIDDEN.keys())
def test_an_agent_may_do_nothing_else(installed: ApiServer, ada: Path, deed: Callable[[ApiServer, Path], str]) -> None:
    with pytest.raises(KubeError, match=r"[Ff]orbidden"):
        deed(installed, ada)


def test_the_policy_stands_even_when_somebody_gives_agents_more_rights(installed: ApiServer, ada: Path) -> None:
    """The policy alone, without RBAC's help: deleting and writing the spec are refused by it too."""
    who = "--serviceaccount=kube-system:vnetpods-agent"
    installed.kubectl("create", "clusterrolebinding", "too-much", "--clusterrole=cluster-admin", who)
    try:
        installed.wait("the binding", lambda: "yes" in can_i(installed, ada, "delete", "nodeippools"), 10)
        for deed in ("delete its pool", "write the spec", "make a pool"):
            with pytest.raises(KubeError, match="an agent writes the status of its node's NodeIPPool and nothing else"):
                FORBIDDEN[deed](installed, ada)
    finally:
        installed.kubectl("delete", "clusterrolebinding", "too-much")


def test_the_policy_is_silent_about_everybody_else(installed: ApiServer) -> None:
    operator = installed.kubeconfig_for("vnetpods-operator")
    apply_as(installed, operator, pool("bob", spec={"machine": MACHINE + "bob"}), manager="vnetpods-operator")
    apply_as(installed, operator, pool("bob", status=OPERATORS | {"capacity": 3}), manager="vnetpods-operator")
    assert installed.get("nodeippool", "bob")["status"]["capacity"] == 3
