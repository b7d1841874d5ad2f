"""What pods ask for by annotation: by runtimeConfig or CNI_ARGS, within what the configuration allows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.agent.machine import Machine, machine
from vnetpods_agent.attachment import Pod
from vnetpods_agent.cni.annotations import SNAT, Wishes, wishes
from vnetpods_agent.cni.protocol import CniError, Code
from vnetpods_agent.config import Annotations
from vnetpods_agent.dataplane.names import UNTRANSLATED

POD = Pod("shop", "web-0", "5e8c1a3b-0000-4000-8000-000000000001")
ARGS = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0"
ADDRESSES = ("10.240.0.5", "10.240.0.6")


def handed(annotations: Any) -> dict[str, Any]:
    return {"runtimeConfig": {"io.kubernetes.cri.pod-annotations": annotations}}


@pytest.mark.parametrize(
    ("annotations", "pod", "namespaces", "wanted"),
    [
        pytest.param({}, POD, (), Wishes(), id="nothing"),
        pytest.param({"vnetpods.io/other": "x", "a": "b"}, POD, (), Wishes(), id="others'"),
        pytest.param({SNAT: "never"}, POD, ("shop",), Wishes(snat=False), id="named"),
        pytest.param({SNAT: "never"}, POD, ("*",), Wishes(snat=False), id="all"),
        pytest.param({SNAT: "never"}, None, ("*",), Wishes(snat=False), id="no-pod"),
    ],
)
def test_what_is_granted(
    annotations: dict[str, str], pod: Pod | None, namespaces: tuple[str, ...], wanted: Wishes
) -> None:
    assert wishes(annotations, pod, Annotations(snat=namespaces)) == wanted


@pytest.mark.parametrize(
    ("value", "pod", "namespaces", "said"),
    [
        pytest.param("never", POD, (), "namespace shop may not ask for it", id="nobody-may"),
        pytest.param("never", POD, ("sho", "shop2"), "configuration: sho, shop2", id="others-may"),
        pytest.param("never", None, ("shop",), "a container that names no pod may not", id="no-pod"),
        pytest.param("Never", POD, ("*",), "'Never' is not understood: the only value is never", id="case"),
        pytest.param("", POD, ("*",), "'' is not understood", id="empty"),
    ],
)
def test_what_is_refused(value: str, pod: Pod | None, namespaces: tuple[str, ...], said: str) -> None:
    with pytest.raises(CniError) as raised:
        wishes({SNAT: value}, pod, Annotations(snat=namespaces))
    assert raised.value.code == Code.CONFIG
    assert said in f"{raised.value.message}: {raised.value.details}"


def groups(node: Machine) -> set[int]:
    """Of the host ends."""
    links = node._show("-details link show")
    return {int(link["group"]) if link["group"] != "default" else 0 for link in links if link["ifname"][:3] == "azv"}


@pytest.mark.parametrize("way", ["runtimeConfig", "CNI_ARGS"])
async def test_an_allowed_pod_is_exempt_until_it_ends_whichever_agent_serves(tmp_path: Path, way: str) -> None:
    async with machine(tmp_path, annotations={"snat": ["shop"]}) as node:
        node.pool(ADDRESSES)
        await node.start()
        netns = node.sandbox()
        conf = handed({SNAT: "never"}) if way == "runtimeConfig" else {}
        args = ARGS if conf else f"{ARGS};{SNAT}=never"
        address = await node.add("c1", netns, conf=conf, args=args)
        assert groups(node) == {UNTRANSLATED}
        await node.kill()
        await node.start()
        assert groups(node) == {UNTRANSLATED}
        assert await node.add("c1", netns, conf=conf, args=args) == address  # repeated by the runtime
        assert groups(node) == {UNTRANSLATED}
        await node.delete("c1", netns)
        await node.add("c2", node.sandbox(), args=ARGS)
        assert groups(node) == {0}


async def test_a_refused_pod_costs_no_address_and_its_annotations_hold_up_no_deletion(tmp_path: Path) -> None:
    async with machine(tmp_path) as node:
        node.pool(ADDRESSES)
        await node.start()
        netns = node.sandbox()
        outcome = await node.call("ADD", "c1", netns, conf=handed({SNAT: "never"}), args=ARGS)
        assert outcome.json["code"] == Code.CONFIG
        assert "namespace shop may not ask for it" in outcome.json["msg"]
        (event,) = node.events("event reported")
        assert (event["reason"], event["pod"]) == ("AnnotationRefused", "shop/web-0")
        for malformed in (handed(["snat"]), handed({SNAT: 1}), {"runtimeConfig": 7}):
            outcome = await node.call("ADD", "c1", netns, conf=malformed, args=ARGS)
            assert outcome.json["code"] == Code.CONFIG, outcome
            assert "runtimeConfig" in outcome.json["msg"]
            await node.delete("c1", netns, conf=malformed)
        assert not node.routes()
        assert await node.add("c2", netns, conf=handed({}), args=ARGS) == ADDRESSES[0]


async def test_all_the_annotations_that_kubernetes_takes_are_not_too_many(tmp_path: Path) -> None:
    """256 KiB (k8s.io/apimachinery, TotalAnnotationSizeLimitB)."""
    many = {f"example.com/{number}": "\\" * 4000 for number in range(63)}
    assert 250_000 < len("".join([*many, *many.values()])) < 262_144
    async with machine(tmp_path, annotations={"snat": ["*"]}) as node:
        node.pool(ADDRESSES)
        await node.start()
        netns = node.sandbox()
        conf = handed(many | {SNAT: "never"})
        assert len(json.dumps(conf)) > 500_000  # each is escaped
        await node.add("c1", netns, conf=conf, args=ARGS)
        assert groups(node) == {UNTRANSLATED}
        await node.delete("c1", netns, conf=conf)
