"""The chart as it renders: what must be there, what must be refused, and that nothing depends on chance."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.install.rendering import CHART, RenderError, render, render_text
from tests.kube import binaries

REPOSITORY = Path(__file__).parents[2]


def only(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    found = [each for each in objects if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    assert len(found) == 1, f"{len(found)} {kind} {name}"
    return found[0]


def pod_of(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    return dict(only(objects, kind, name)["spec"]["template"]["spec"])


def environment(pod: dict[str, Any]) -> dict[str, Any]:
    return {each["name"]: each.get("value") for each in pod["containers"][0]["env"]}


ALL_ON = {
    "podMonitor": {"enabled": True},
    "prometheusRule": {"enabled": True},
    "dashboard": {"enabled": True},
    "networkPolicy": {"enabled": True},
    "operator": {"hostNetwork": False},
}


def test_what_is_made_from_elsewhere_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, REPOSITORY / "helm" / "generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}: run `python helm/generate.py`"


def test_the_crd_of_the_chart_is_the_one_in_crds() -> None:
    crd = only(render(), "CustomResourceDefinition", "nodeippools.vnetpods.io")
    alone = yaml.safe_load((REPOSITORY / "crds" / "nodeippool.yaml").read_text())
    assert crd["spec"] == alone["spec"]
    assert crd["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_without_crds_there_is_none_and_an_annotation_is_added_to_the_one_there_is() -> None:
    assert not [each for each in render({"crds": {"install": False}}) if each["kind"] == "CustomResourceDefinition"]
    annotated = render({"crds": {"annotations": {"argocd.argoproj.io/sync-options": "Prune=false"}}})
    crd = only(annotated, "CustomResourceDefinition", "nodeippools.vnetpods.io")
    assert set(crd["metadata"]["annotations"]) == {"helm.sh/resource-policy", "argocd.argoproj.io/sync-options"}


@pytest.mark.parametrize("values", [{}, ALL_ON], ids=["defaults", "everything on"])
def test_helm_has_nothing_to_complain_about(values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "values.yaml").write_text(json.dumps(values))
    command = [str(binaries.program("helm")), "lint", "--strict", str(CHART), f"--values={tmp_path}/values.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("values", [{}, ALL_ON], ids=["defaults", "everything on"])
def test_two_renders_are_equal_byte_by_byte(values: dict[str, Any]) -> None:
    assert render_text(values) == render_text(values)


@pytest.mark.parametrize("values", [{}, ALL_ON], ids=["defaults", "everything on"])
def test_no_object_has_an_empty_map_of_labels_or_annotations(values: dict[str, Any]) -> None:
    for each in render(values):
        for key in ("labels", "annotations"):
            assert each["metadata"].get(key, {"x": "y"}), f"{each['kind']} {each['metadata']['name']}: empty {key}"


def test_selectors_carry_neither_version_nor_chart() -> None:
    objects = render()
    for kind, name in (("Deployment", "vnetpods-operator"), ("DaemonSet", "vnetpods-agent")):
        labels = only(objects, kind, name)["spec"]["selector"]["matchLabels"]
        assert set(labels) == {f"app.kubernetes.io/{key}" for key in ("name", "instance", "component")}


def test_the_agent_has_the_least_that_lets_it_work() -> None:
    pod = pod_of(render(), "DaemonSet", "vnetpods-agent")
    container = pod["containers"][0]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
    }
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["hostNetwork"]
    assert not pod.get("hostPID")
    assert pod["priorityClassName"] == "system-node-critical"
    assert pod["tolerations"] == [{"operator": "Exists"}]
    assert {each["hostPath"]["path"] for each in pod["volumes"] if "hostPath" in each} == {
        "/opt/cni/bin",
        "/etc/cni/net.d",
        "/var/lib/vnetpods",
        "/run/vnetpods",
        "/proc/sys/net",  # its own is read-only
    }
    for probe in ("livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["host"] == "127.0.0.1"


def test_only_what_installs_the_plugin_can_write_where_it_is() -> None:
    """A program put there is run as root by the next pod's start."""

    def writable(container: dict[str, Any]) -> bool:
        (mount,) = [each for each in container["volumeMounts"] if each["name"] == "cni-bin"]
        return not mount.get("readOnly", False)

    pod = pod_of(render(), "DaemonSet", "vnetpods-agent")
    (installs,), (agent,) = pod["initContainers"], pod["containers"]
    assert (writable(installs), writable(agent)) == (True, False)
    assert installs["command"] == ["vnetpods-agent", "install"]
    assert installs["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert {each["name"] for each in installs["volumeMounts"]} == {"config", "cni-bin", "tmp"}
    (uninstalls,) = pod_of(render({"agent": {"uninstall": True}}), "DaemonSet", "vnetpods-agent")["initContainers"]
    assert writable(uninstalls)


@pytest.mark.parametrize(
    ("component", "kind"), [("operator", "Deployment"), ("agent", "DaemonSet")], ids=["operator", "agent"]
)
def test_volumes_and_security_settings_of_ones_own(component: str, kind: str) -> None:
    linux = {"seLinuxOptions": {"type": "spc_t"}}
    volume, mount = {"name": "c", "secret": {"secretName": "c"}}, {"name": "c", "mountPath": "/c", "readOnly": True}
    values = {"extraVolumes": [volume], "extraVolumeMounts": [mount]}
    values |= {"podSecurityContext": linux, "securityContext": linux}
    pod = pod_of(render({component: values}), kind, f"vnetpods-{component}")
    before = pod_of(render(), kind, f"vnetpods-{component}")
    (container,), (plain,) = pod["containers"], before["containers"]
    assert volume in pod["volumes"]
    assert mount in container["volumeMounts"]
    assert pod["securityContext"] == before["securityContext"] | linux
    assert container["securityContext"] == plain["securityContext"] | linux
    with pytest.raises(RenderError, match="privileged"):
        render({component: {"securityContext": {"privileged": True}}})


def test_the_operator_starts_where_there_is_no_network_yet_but_lets_drains_end() -> None:
    objects = render()
    pod = pod_of(objects, "Deployment", "vnetpods-operator")
    keys = {each["key"] for each in pod["tolerations"]}
    assert {"node.kubernetes.io/not-ready", "node.kubernetes.io/network-unavailable"} <= keys
    assert "node.kubernetes.io/unschedulable" not in keys
    assert all(each.get("key") for each in pod["tolerations"])
    assert (pod["hostNetwork"], pod["dnsPolicy"]) == (True, "Default")
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert only(objects, "PodDisruptionBudget", "vnetpods-operator")["spec"]["maxUnavailable"] == 1
    assert only(objects, "Deployment", "vnetpods-operator")["spec"]["replicas"] == 2


def test_one_operator_has_no_budget_that_would_block_drains() -> None:
    objects = render({"operator": {"replicas": 1}})
    assert not [each for each in objects if each["kind"] == "PodDisruptionBudget"]


@pytest.mark.parametrize(
    ("credentials", "expected", "absent"),
    [
        pytest.param({}, {"AZURE_TOKEN_CREDENTIALS": "ManagedIdentityCredential"}, {"AZURE_CLIENT_ID"}, id="system"),
        pytest.param(
            {"clientId": "c-1"},
            {"AZURE_TOKEN_CREDENTIALS": "ManagedIdentityCredential", "AZURE_CLIENT_ID": "c-1"},
            {"AZURE_TENANT_ID"},
            id="user-assigned",
        ),
        pytest.param(
            {"type": "workloadIdentity", "clientId": "c-1", "tenantId": "t-1"},
            {
                "AZURE_TOKEN_CREDENTIALS": "WorkloadIdentityCredential",
                "AZURE_CLIENT_ID": "c-1",
                "AZURE_TENANT_ID": "t-1",
                "AZURE_FEDERATED_TOKEN_FILE": "/var/run/secrets/azure/token",
            },
            set(),
            id="workload",
        ),
        pytest.param(
            {"type": "secret", "secretName": "azure", "authorityHost": "https://login.example.test"},
            {"AZURE_TOKEN_CREDENTIALS": "EnvironmentCredential", "AZURE_AUTHORITY_HOST": "https://login.example.test"},
            {"AZURE_CLIENT_ID"},
            id="secret",
        ),
    ],
)
def test_each_kind_of_credentials(credentials: dict[str, str], expected: dict[str, str], absent: set[str]) -> None:
    pod = pod_of(render({"azure": {"credentials": credentials}}), "Deployment", "vnetpods-operator")
    found = environment(pod)
    assert {key: found.get(key) for key in expected} == expected
    assert not absent & set(found)
    if credentials.get("type") == "secret":
        assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "azure"}}]
    if credentials.get("type") == "workloadIdentity":
        token = next(each for each in pod["volumes"] if each["name"] == "azure-token")["projected"]["sources"][0]
        assert token["serviceAccountToken"]["audience"] == "api://AzureADTokenExchange"


@pytest.mark.parametrize(
    ("key", "variable"),
    [("clientSecretKey", "AZURE_CLIENT_SECRET_PATH"), ("certificateKey", "AZURE_CLIENT_CERTIFICATE_PATH")],
)
def test_a_secret_is_mounted_where_a_rotation_shall_be_seen(key: str, variable: str) -> None:
    credentials = {"type": "secret", "secretName": "azure", key: "mine"}
    pod = pod_of(render({"azure": {"credentials": credentials}}), "Deployment", "vnetpods-operator")
    (container,) = pod["containers"]
    entries = {each["name"]: each for each in container["env"]}
    (mount,) = [each for each in container["volumeMounts"] if each["name"] == "azure-token"]
    (volume,) = [each for each in pod["volumes"] if each["name"] == "azure-token"]
    assert volume["secret"] == {"secretName": "azure", "items": [{"key": "mine", "path": "mine"}]}
    assert entries[variable]["value"] == f"{mount['mountPath']}/mine"
    for name in ("AZURE_TENANT_ID", "AZURE_CLIENT_ID"):
        assert entries[name]["valueFrom"] == {"secretKeyRef": {"name": "azure", "key": name}}
    assert "envFrom" not in container, "what is mounted is no environment variable"


def test_a_proxy_is_not_asked_for_the_api_server() -> None:
    values = {"operator": {"httpsProxy": "http://proxy:3128", "noProxy": ".example.com"}, "k8sServiceHost": "10.0.0.1"}
    found = pod_of(render(values), "Deployment", "vnetpods-operator")["containers"][0]["env"]
    names = [each["name"] for each in found]
    assert {each["name"]: each.get("value") for each in found}.items() >= {
        ("HTTPS_PROXY", "http://proxy:3128"),
        ("NO_PROXY", "$(KUBERNETES_SERVICE_HOST),.example.com"),
    }
    assert names.index("KUBERNETES_SERVICE_HOST") < names.index("NO_PROXY"), "only what stands before is inserted"
    assert "HTTPS_PROXY" not in environment(pod_of(render(), "Deployment", "vnetpods-operator"))


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        pytest.param({"azure": {"credentials": {"type": "workloadIdentity"}}}, "tenantId is needed", id="no tenant"),
        pytest.param({"azure": {"credentials": {"type": "secret"}}}, "secretName is needed", id="no secret"),
        pytest.param({"azure": {"credentials": {"certificateKey": "a"}}}, "need type: secret", id="key of no secret"),
        pytest.param(
            {
                "azure": {
                    "credentials": {"type": "secret", "secretName": "s", "certificateKey": "a", "clientSecretKey": "b"}
                }
            },
            "exclude each other",
            id="two keys",
        ),
        pytest.param({"operator": {"noProxy": "a"}}, "needs operator.httpsProxy", id="exception of no rule"),
        pytest.param(
            {"azure": {"credentials": {"type": "magic"}}}, "azure/credentials/type|azure.credentials.type", id="kind"
        ),
        pytest.param({"agnet": {}}, "agnet", id="unknown key"),
        pytest.param({"agent": {"confg": {}}}, "confg", id="unknown key below"),
        pytest.param({"operator": {"replicas": "two"}}, "replicas", id="wrong type"),
        pytest.param({"operator": {"replicas": 0}}, "replicas", id="too few"),
        pytest.param({"operator": {"config": {"grups": []}}}, "grups", id="unknown key of the operator's file"),
        pytest.param({"operator": {"config": {"audit": "5 minutes"}}}, "audit", id="a duration in words"),
        pytest.param({"operator": {"config": {"release": {"batch": 0}}}}, "batch", id="out of bounds"),
        pytest.param({"operator": {"config": {"directCIDRs": ["10.0.0.0"]}}}, "directCIDRs", id="no CIDR"),
        pytest.param({"agent": {"config": {"cooldown": "soon"}}}, "cooldown", id="the agent's file"),
        pytest.param(
            {"operator": {"hostNetwork": False, "config": {"listen": "127.0.0.1:9461"}}},
            "listen on 0.0.0.0",
            id="probes that nobody answers",
        ),
        pytest.param({"agent": {"hostPaths": {"cniBin": "opt/cni"}}}, "cniBin", id="no absolute path"),
        pytest.param({"image": {"digest": "sha256:1"}}, "digest", id="no digest"),
        pytest.param(
            {"networkPolicy": {"enabled": True}}, "operator.hostNetwork=false", id="policy that reaches nobody"
        ),
    ],
)
def test_what_cannot_work_is_refused_with_the_key(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RenderError, match=complaint):
        render(values)


@pytest.mark.parametrize(("scraped", "listens"), [(False, None), (True, "0.0.0.0:9462")])
def test_metrics_are_open_only_where_they_are_scraped(scraped: bool, listens: str | None) -> None:
    found = render({"podMonitor": {"enabled": scraped}})
    config = yaml.safe_load(only(found, "ConfigMap", "vnetpods-operator")["data"]["operator.yaml"])
    assert config.get("metricsListen") == listens
    (container,) = pod_of(found, "Deployment", "vnetpods-operator")["containers"]
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {"health": 9461, "metrics": 9462}
    assert {container[probe]["httpGet"]["port"] for probe in ("livenessProbe", "readinessProbe")} == {"health"}


def test_the_operators_probes_ask_where_it_listens() -> None:
    def hosts(values: dict[str, Any]) -> set[str | None]:
        (container,) = pod_of(render(values), "Deployment", "vnetpods-operator")["containers"]
        return {container[probe]["httpGet"].get("host") for probe in ("livenessProbe", "readinessProbe")}

    assert hosts({}) == hosts({"operator": {"config": {"listen": ":9461"}}}) == {None}
    assert hosts({"operator": {"config": {"listen": "127.0.0.1:9461"}}}) == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("config", "restart"),
    [
        ({"election": {"name": "other"}}, True),
        ({"workers": 5}, True),
        ({"listen": "0.0.0.0:9999"}, True),
        ({"azure": {"endpoint": "https://arm.example.test"}}, True),
        ({"azure": {"networks": "5m"}}, False),
        ({"groups": [{"warm": 3}], "audit": "5m"}, False),
    ],
    ids=str,
)
def test_what_the_operator_reads_at_its_start_only_restarts_it(config: dict[str, Any], restart: bool) -> None:
    def template(values: dict[str, Any]) -> Any:
        return only(render(values), "Deployment", "vnetpods-operator")["spec"]["template"]

    assert (template({"operator": {"config": config}}) != template({})) == restart


def test_the_programs_get_what_the_user_wrote_over_what_the_chart_says() -> None:
    values = {
        "operator": {"config": {"groups": [{"warm": 8}], "election": {"duration": "20s"}}},
        "agent": {"config": {"cooldown": 5, "paths": {"cniConf": "/x"}}},
    }
    objects = render(values, namespace="network")
    operator = yaml.safe_load(only(objects, "ConfigMap", "vnetpods-operator")["data"]["operator.yaml"])
    agent = yaml.safe_load(only(objects, "ConfigMap", "vnetpods-agent")["data"]["agent.yaml"])
    labels = only(objects, "DaemonSet", "vnetpods-agent")["spec"]["template"]["metadata"]["labels"]
    assert operator == {
        "groups": [{"warm": 8}],
        "election": {"duration": "20s", "namespace": "network"},
        "agents": {"namespace": "network", "selector": {"matchLabels": labels}},
    }
    paths = {"cniConf": "/x", "shim": "/usr/libexec/vnetpods/shim", "sysctl": "/host/proc/sys/net"}
    lease = {"namespace": "network", "lease": "vnetpods-operator"}
    assert agent == {"cooldown": 5, "paths": paths, "operator": lease}


def test_agents_may_read_the_lease_that_the_operators_hold_and_look_for_no_other() -> None:
    values = {"operator": {"config": {"election": {"namespace": "elsewhere", "name": "ours"}}}}
    objects = render(values, namespace="network")
    agent = yaml.safe_load(only(objects, "ConfigMap", "vnetpods-agent")["data"]["agent.yaml"])
    assert agent["operator"] == {"namespace": "elsewhere", "lease": "ours"}
    role = only(objects, "Role", "vnetpods-agent")
    assert role["metadata"]["namespace"] == "elsewhere"
    lease = {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "resourceNames": ["ours"], "verbs": ["get"]}
    assert role["rules"] == [lease]


def test_a_changed_configuration_rolls_the_agents() -> None:
    def annotations(values: dict[str, Any]) -> Any:
        return only(render(values), "DaemonSet", "vnetpods-agent")["spec"]["template"]["metadata"]["annotations"]

    assert annotations({}) != annotations({"agent": {"config": {"cooldown": 5}}})


def test_the_api_servers_address_reaches_both_programs() -> None:
    objects = render({"k8sServiceHost": "10.0.0.4", "k8sServicePort": 6443})
    for kind, name in (("Deployment", "vnetpods-operator"), ("DaemonSet", "vnetpods-agent")):
        found = environment(pod_of(objects, kind, name))
        assert (found["KUBERNETES_SERVICE_HOST"], found["KUBERNETES_SERVICE_PORT"]) == ("10.0.0.4", "6443")


def test_monitors_can_reach_the_agents_they_scrape() -> None:
    objects = render(ALL_ON)
    agent = yaml.safe_load(only(objects, "ConfigMap", "vnetpods-agent")["data"]["agent.yaml"])
    assert agent["http"]["address"] == "0.0.0.0"
    for name in ("vnetpods-operator", "vnetpods-agent"):
        monitor = only(objects, "PodMonitor", name)
        assert monitor["spec"]["podMetricsEndpoints"][0]["port"] == "metrics"


def test_the_dashboard_is_a_dashboard() -> None:
    data = only(render(ALL_ON), "ConfigMap", "vnetpods-dashboard")["data"]["vnetpods.json"]
    assert json.loads(data)["title"] == "vnetpods"


def test_every_value_is_documented() -> None:
    readme = (CHART / "README.md").read_text()

    def leaves(values: dict[str, Any], prefix: str = "") -> list[str]:
        found = []
        for key, value in values.items():
            path = f"{prefix}{key}"
            if isinstance(value, dict) and value and f"| `{path}` |" not in readme:
                found += leaves(value, f"{path}.")
            else:
                found.append(path)
        return found

    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert [path for path in leaves(values) if f"| `{path}` |" not in readme] == []
