"""What containers ask for besides an address: by runtimeConfig or CNI_ARGS, within what the configuration allows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.agent.machine import Machine, machine
from vnetpods_agent.attachment import Address, Pod
from vnetpods_agent.cni.frames import Command
from vnetpods_agent.cni.protocol import Call, CniError, Code
from vnetpods_agent.cni.wishes import SNAT, Wishes, wishes
from vnetpods_agent.config import Annotations
from vnetpods_agent.dataplane.names import UNTRANSLATED
from vnetpods_agent.ipam.pool import Wish

POD = Pod("shop", "web-0", "5e8c1a3b-0000-4000-8000-000000000001")
ARGS = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0"
NERDCTL = "IgnoreUnknown=1;NERDCTL_CNI_DHCP_HOSTNAME=web"
ADDRESSES = ("10.240.0.5", "10.240.0.6", "10.240.0.7")


def add(annotations: dict[str, str], pod: Pod | None = POD, ips: tuple[str, ...] = ()) -> Call:
    return Call(Command.ADD, "1.1.0", pod=pod, annotations=annotations, ips=ips)


def handed(annotations: Any) -> dict[str, Any]:
    return {"runtimeConfig": {"io.kubernetes.cri.pod-annotations": annotations}}


@pytest.mark.parametrize(
    ("call", "namespaces", "wanted"),
    [
        pytest.param(add({}), (), Wishes(), id="nothing"),
        pytest.param(add({"vnetpods.io/other": "x", "a": "b"}), (), Wishes(), id="others'"),
        pytest.param(add({SNAT: "never"}), ("shop",), Wishes(snat=False), id="named"),
        pytest.param(add({SNAT: "never"}), ("*",), Wishes(snat=False), id="all"),
        pytest.param(add({SNAT: "never"}, None), ("*",), Wishes(snat=False), id="no-pod"),
        pytest.param(add({}, None, ("10.0.0.9",)), (), Wishes(Wish(address=Address("10.0.0.9"))), id="ip"),
        pytest.param(add({}, POD, ("10.0.0.9",)), ("shop",), Wishes(Wish(address=Address("10.0.0.9"))), id="pod-ip"),
        pytest.param(add({}, None, ("10.0.0.9/24",)), (), Wishes(Wish(address=Address("10.0.0.9"))), id="cidr"),
    ],
)
def test_what_is_granted(call: Call, namespaces: tuple[str, ...], wanted: Wishes) -> None:
    assert wishes(call, Annotations(snat=namespaces, ips=namespaces)) == wanted


@pytest.mark.parametrize(
    ("call", "namespaces", "said"),
    [
        pytest.param(add({SNAT: "never"}), (), "namespace shop may not ask for it", id="nobody-may"),
        pytest.param(add({SNAT: "never"}), ("sho", "shop2"), "configuration: sho, shop2", id="others-may"),
        pytest.param(add({SNAT: "never"}, None), ("shop",), "a container that names no pod may not", id="no-pod"),
        pytest.param(add({SNAT: "Never"}), ("*",), "'Never' is not understood: the only value is never", id="case"),
        pytest.param(add({SNAT: ""}), ("*",), "'' is not understood", id="empty"),
        pytest.param(add({}, None, ("10.0.0.9", "10.0.0.8")), (), "'10.0.0.9, 10.0.0.8' can't be given", id="two"),
        pytest.param(add({}, POD, ("10.0.0.9",)), ("sho",), "ips: namespace shop may not ask for it", id="pod-ip"),
        pytest.param(add({}, None, ("fd00::9",)), (), "one address, and that of IPv4", id="ipv6"),
        pytest.param(add({}, None, ("web",)), (), "'web' can't be given", id="name"),
    ],
)
def test_what_is_refused(call: Call, namespaces: tuple[str, ...], said: str) -> None:
    with pytest.raises(CniError) as raised:
        wishes(call, Annotations(snat=namespaces, ips=namespaces))
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


@pytest.mark.parametrize("way", ["ips", "CNI_ARGS"])
async def test_a_named_address_is_given_again_and_again_as_nerdctl_restarts_its_container(
    tmp_path: Path, way: str
) -> None:
    """nerdctl deletes before it adds, and names no namespace when it deletes; the address need not cool down."""
    async with machine(tmp_path, cooldown=3600) as node:
        node.pool(ADDRESSES)
        await node.start()
        conf = {"runtimeConfig": {"ips": ["10.240.0.6/16"]}} if way == "ips" else {}
        args = NERDCTL if conf else f"{NERDCTL};IP=10.240.0.6"
        for number in range(3):
            container = f"c{number}"
            await node.delete(container, args=args)
            netns = node.sandbox()
            assert await node.add(container, netns, conf=conf, args=args) == "10.240.0.6"
            assert await node.add(container, netns, conf=conf, args=args) == "10.240.0.6"
            await node.delete(container, args=args)
            await node.delete(container, args=args)
        assert not node.routes()


async def test_a_named_address_that_is_not_to_be_had_is_refused_at_once(tmp_path: Path) -> None:
    async with machine(tmp_path) as node:
        node.pool(ADDRESSES)
        await node.start()
        netns = node.sandbox()
        assert await node.add("c1", netns) == "10.240.0.5"
        for named, said in (
            ("10.240.0.5", "10.240.0.5 is in use, by c1/eth0"),
            ("10.240.0.99", "10.240.0.99 is none of the addresses that this machine may use"),
            ("10.240.0.4", "10.240.0.4 is none of the addresses that this machine may use"),
        ):
            outcome = await node.call("ADD", "c2", node.sandbox(), args=f"{NERDCTL};IP={named}")
            assert (outcome.json["code"], outcome.json["details"]) == (Code.CONFIG, said)
        outcome = await node.call("ADD", "c1", netns, args=f"{NERDCTL};IP=10.240.0.6")
        assert outcome.json["details"] == "it is attached already, with the address 10.240.0.5"
        assert node.routes() == {"10.240.0.5"}
        assert await node.add("c3", node.sandbox(), args=f"{NERDCTL};IP=10.240.0.7") == "10.240.0.7"


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
