"""What is understood of a call's environment and standard input."""

from __future__ import annotations

import json

import pytest

from vnetpods_agent.cni import protocol
from vnetpods_agent.cni.frames import Command, Request
from vnetpods_agent.cni.protocol import CniError, Code

ENVIRONMENT = {"CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": "/run/netns/n1"}
RESULT = {"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.5/32", "later": 1}], "interfaces": [], "newer": {"x": 1}}


ALL = ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME")
NEEDED = {
    # CNI spec section 2, "CNI operations": environment, and what must be in the configuration
    Command.ADD: (ALL, {"cniVersion", "name"}),
    # but a DEL without them is done as well: refused, it would keep a pod Terminating for ever
    Command.DEL: (("CNI_CONTAINERID", "CNI_IFNAME"), set[str]()),
    Command.CHECK: (ALL, {"cniVersion", "name", "prevResult"}),
    Command.GC: ((), {"cniVersion", "name"}),
    Command.STATUS: ((), {"cniVersion", "name"}),
    Command.VERSION: ((), set[str]()),
}
CONF = {"cniVersion": "1.1.0", "name": "vnetpods", "type": "vnetpods", "prevResult": RESULT}


def parse(verb: Command, env: dict[str, str], stdin: bytes) -> protocol.Call:
    env = env | {"CNI_COMMAND": verb.name}
    return protocol.parse(Request(verb=verb, env=env, stdin=stdin, handles=None, deadline=0.0))


def call(verb: Command, **conf: object) -> protocol.Call:
    return parse(verb, ENVIRONMENT, json.dumps(CONF | conf).encode())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("verb", NEEDED)
def test_a_variable_is_looked_at_where_it_is_needed(verb: Command, name: str) -> None:
    needed, _ = NEEDED[verb]
    stdin = json.dumps(CONF).encode()
    others = {key: value for key, value in ENVIRONMENT.items() if key != name}
    for env in (others, others | {name: ""}, others | {name: "\udcff" * 5000}):
        if name in needed:
            with pytest.raises(CniError, match=name) as caught:
                parse(verb, env, stdin)
            assert caught.value.code == Code.ENVIRONMENT
        else:
            assert parse(verb, env, stdin).verb is verb


@pytest.mark.parametrize("verb", NEEDED)
def test_nothing_else_is_needed(verb: Command) -> None:
    env, keys = NEEDED[verb]
    least = json.dumps({key: value for key, value in CONF.items() if key in keys}).encode()
    assert parse(verb, {name: ENVIRONMENT[name] for name in env}, least).verb is verb


@pytest.mark.parametrize("key", ["cniVersion", "name", "prevResult"])
@pytest.mark.parametrize("verb", NEEDED)
def test_a_key_is_missed_where_it_is_needed(verb: Command, key: str) -> None:
    stdin = json.dumps({name: value for name, value in CONF.items() if name != key}).encode()
    if key in NEEDED[verb][1]:
        with pytest.raises(CniError, match=key) as caught:
            parse(verb, ENVIRONMENT, stdin)
        assert caught.value.code == (Code.VERSION if key == "cniVersion" else Code.CONFIG)
    else:
        assert parse(verb, ENVIRONMENT, stdin).verb is verb


@pytest.mark.parametrize("listed", [1, "x", [1], [{"containerID": "c1"}], {}])
@pytest.mark.parametrize("verb", NEEDED)
def test_a_broken_list_of_attachments_is_gcs_alone(verb: Command, listed: object) -> None:
    conf = {"cni.dev/valid-attachments": listed, "cni.dev/later": listed}
    if verb is Command.GC:
        with pytest.raises(CniError, match=r"cni\.dev/valid-attachments") as caught:
            call(verb, **conf)
        assert caught.value.code == Code.CONFIG
    else:
        assert call(verb, **conf).valid is None


@pytest.mark.parametrize("name", ["eth%d", "%", "a%b"])
def test_a_name_that_the_kernel_would_make_another_of_is_refused(name: str) -> None:
    with pytest.raises(CniError, match="CNI_IFNAME") as caught:
        parse(Command.ADD, ENVIRONMENT | {"CNI_IFNAME": name}, json.dumps(CONF).encode())
    assert caught.value.code == Code.ENVIRONMENT


@pytest.mark.parametrize("key", ["NAMESPACE", "NAME", "UID"])
def test_what_kubernetes_could_not_have_named_is_no_pod(key: str) -> None:
    pairs = {"NAMESPACE": "default", "NAME": "web-0", "UID": "u1"}
    for size, known in ((253, True), (254, False)):
        args = ";".join(f"K8S_POD_{k}={'x' * size if k == key else v}" for k, v in pairs.items())
        found = parse(Command.ADD, ENVIRONMENT | {"CNI_ARGS": args}, json.dumps(CONF).encode())
        assert (found.pod is not None) is known


@pytest.mark.parametrize(
    ("stdin", "version"),
    [
        pytest.param(b'{"cniVersion": "0.4.0", "name": ["x"]}', "0.4.0", id="the-rest-is-broken"),
        pytest.param(b'{"cniVersion": "9.9.9"}', "9.9.9", id="unknown"),
        pytest.param(b'{"cniVersion": 1}', "1.1.0", id="a-number"),
        pytest.param(b'{"cniVersion": "' + b"9" * 300_000 + b'"}', "1.1.0", id="endless"),
        pytest.param(b'{"cniVersion": "\xff"}', "1.1.0", id="not-utf-8"),
        pytest.param(b"[" * 100_000, "1.1.0", id="deep"),
        pytest.param(b"", "1.1.0", id="empty"),
    ],
)
def test_the_version_to_answer_in(stdin: bytes, version: str) -> None:
    assert protocol.asked_version(stdin) == version
    assert parse(Command.VERSION, {}, stdin).version == version


@pytest.mark.parametrize(
    "previous",
    [pytest.param(RESULT, id="a-result"), pytest.param(None, id="null"), pytest.param("nonsense", id="nonsense")],
)
def test_a_del_takes_any_prev_result(previous: object) -> None:
    assert call(Command.DEL, prevResult=previous).key.container_id == "c1"


@pytest.mark.parametrize("verb", [Command.ADD, Command.CHECK])
def test_prev_result_is_passed_on_whole(verb: Command) -> None:
    assert call(verb, prevResult=RESULT).previous == RESULT


@pytest.mark.parametrize("previous", ["nonsense", {"ips": 3}, [1]])
def test_an_add_refuses_a_broken_prev_result(previous: object) -> None:
    with pytest.raises(CniError, match="prevResult") as caught:
        call(Command.ADD, prevResult=previous)
    assert caught.value.code == protocol.Code.CONFIG
