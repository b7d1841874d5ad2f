"""What is understood of a call's environment and standard input."""

from __future__ import annotations

import json

import pytest

from vnetpods_agent import cni
from vnetpods_agent.cni import CniError
from vnetpods_agent.wire import Request, Verb

ENVIRONMENT = {"CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": "/run/netns/n1"}
RESULT = {"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.5/32", "later": 1}], "interfaces": [], "newer": {"x": 1}}


def call(verb: Verb, **conf: object) -> cni.Call:
    stdin = json.dumps({"cniVersion": "1.1.0", "name": "vnetpods", "type": "vnetpods", **conf}).encode()
    env = ENVIRONMENT | {"CNI_COMMAND": verb.name}
    return cni.understand(Request(verb=verb, env=env, stdin=stdin, doors=None, deadline=0.0))


@pytest.mark.parametrize(
    "previous",
    [pytest.param(RESULT, id="a-result"), pytest.param(None, id="null"), pytest.param("nonsense", id="nonsense")],
)
def test_a_del_takes_any_prev_result(previous: object) -> None:
    assert call(Verb.DEL, prevResult=previous).key.container_id == "c1"


@pytest.mark.parametrize("verb", [Verb.ADD, Verb.CHECK])
def test_prev_result_is_passed_on_whole(verb: Verb) -> None:
    assert call(verb, prevResult=RESULT).previous == RESULT


@pytest.mark.parametrize("previous", ["nonsense", {"ips": 3}, [1]])
def test_an_add_refuses_a_broken_prev_result(previous: object) -> None:
    with pytest.raises(CniError, match="prevResult") as caught:
        call(Verb.ADD, prevResult=previous)
    assert caught.value.code == cni.Code.CONFIG
