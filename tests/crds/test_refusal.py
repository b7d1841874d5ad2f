"""What people and programs write wrongly is refused by a real API server, with a sentence they understand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kube.api import KubeError
from tests.kube.apiserver import ApiServer

pytestmark = pytest.mark.apiserver

CRD = Path(__file__).parents[2] / "crds" / "nodeippool.yaml"
VM = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/n"
SUBNET = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets/p"


@pytest.fixture(scope="module")
def served(apiserver: ApiServer) -> Iterator[ApiServer]:
    apiserver.apply(CRD.read_text())
    apiserver.apply(manifest({"spec": {"machine": VM}}))
    yield apiserver
    apiserver.kubectl("delete", "nip", "crd-test")


def manifest(more: dict[str, Any]) -> str:
    head = {"apiVersion": "vnetpods.io/v1alpha1", "kind": "NodeIPPool", "metadata": {"name": "crd-test"}}
    return json.dumps(head | more)


def interface(**more: Any) -> dict[str, Any]:
    return {"name": "nic", "mac": "00:0d:3a:00:00:01", "subnet": SUBNET} | more


BAD_SPECS = [
    ("no-machine-id", {"machine": "worker-1"}, "machine must be the Azure resource id of a virtual machine"),
    ("a-disk", {"machine": VM.replace("virtualMachines", "disks")}, "machine must be the Azure resource id"),
    ("negative", {"sizing": {"warm": -1}}, "spec.sizing.warm"),
    ("too-many", {"sizing": {"maximum": 5000}}, "should be less than or equal to 4096"),
    ("a-word", {"sizing": {"batch": "many"}}, "must be of type integer"),
    ("zero-batch", {"sizing": {"batch": 0}}, "should be greater than or equal to 1"),
    ("minimum-beyond", {"sizing": {"minimum": 9, "maximum": 8}}, "minimum must not be greater than sizing.maximum"),
    ("warm-beyond", {"sizing": {"warm": 9, "maximum": 8}}, "warm must not be greater than sizing.maximum"),
    ("paused-maybe", {"paused": "maybe"}, "must be of type boolean"),
]


@pytest.mark.parametrize(("spec", "words"), [row[1:] for row in BAD_SPECS], ids=[row[0] for row in BAD_SPECS])
def test_bad_specs(served: ApiServer, spec: dict[str, Any], words: str) -> None:
    with pytest.raises(KubeError) as refused:
        served.kubectl("patch", "nip", "crd-test", "--type=merge", "-p", json.dumps({"spec": spec}))
    assert words in str(refused.value)


BAD_STATUS = [
    ("not-an-address", {"interfaces": [interface(addresses=["10.0.0"])]}, "addresses[0]"),
    ("a-high-octet", {"interfaces": [interface(addresses=["10.0.0.256"])]}, "addresses[0]"),
    ("a-high-primary", {"interfaces": [interface(primaryAddress="10.0.0.999")]}, "primaryAddress"),
    ("a-long-prefix", {"directCIDRs": ["10.0.0.0/8", "10.0.0.0/33"]}, "directCIDRs[1]"),
    ("a-long-subnet", {"interfaces": [interface(prefixes=["10.0.0.0/40"])]}, "prefixes[0]"),
    ("a-29", {"interfaces": [interface(addresses=["10.0.0.0/29"])]}, "addresses[0]"),
    ("mac-with-dashes", {"interfaces": [interface(mac="00-0D-3A-00-00-01")]}, "mac"),
    (
        "releasing-a-stranger",
        {"interfaces": [interface(addresses=["10.0.0.4"], releasing=["10.0.0.5"])]},
        "every address in releasing must be one of addresses",
    ),
    ("the-same-nic-twice", {"interfaces": [interface(), interface()]}, "Duplicate value"),
    ("usage-in-part", {"usage": {"assigned": 1}}, "status.usage.cooling"),
    ("a-lost-block", {"missing": ["10.0.0.0/28"]}, "missing[0]"),
    ("a-condition-without-reason", {"conditions": [{"type": "Ready", "status": "True"}]}, "reason"),
]


@pytest.mark.parametrize(("status", "words"), [row[1:] for row in BAD_STATUS], ids=[row[0] for row in BAD_STATUS])
def test_bad_status(served: ApiServer, status: dict[str, Any], words: str) -> None:
    patch = json.dumps({"status": status})
    with pytest.raises(KubeError) as refused:
        served.kubectl("patch", "nip", "crd-test", "--subresource=status", "--type=merge", "-p", patch)
    assert words in str(refused.value)


def test_good_ones_pass(served: ApiServer) -> None:
    uniform = (
        "/SUBSCRIPTIONS/s/resourcegroups/g/providers/microsoft.compute/virtualMachineScaleSets/v/virtualMachines/3"
    )
    spec = {"machine": uniform, "sizing": {"minimum": 0, "warm": 16, "maximum": 16}, "paused": True}
    served.kubectl("patch", "nip", "crd-test", "--type=merge", "-p", json.dumps({"spec": spec}))
    listed = [f"10.0.{i // 256}.{i % 256}" for i in range(256)]
    status = {
        "interfaces": [interface(addresses=[*listed[:255], "10.0.4.0/28"], releasing=[listed[0], "10.0.4.0/28"])],
        "released": [listed[0]],
        "missing": ["10.0.9.9"],
        "usage": {"assigned": 0, "cooling": 0, "free": 0, "waiting": 0, "known": 271},
    }
    patch = json.dumps({"status": status})
    served.kubectl("patch", "nip", "crd-test", "--subresource=status", "--type=merge", "-p", patch)
    assert served.kubectl("explain", "nip.status.interfaces.releasing")
