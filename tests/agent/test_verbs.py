"""The six verbs by their wire: environment and standard input in, exit code and JSON out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.agent.desk import Desk, desk
from vnetpods_agent.attachment import Doors
from vnetpods_agent.cni import VERSIONS
from vnetpods_agent.verbs import Verbs
from vnetpods_agent.wire import Request, Response, Verb

ARGS = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u1"


NESTED: list[Any] = []
for _ in range(900):
    NESTED = [NESTED]


@dataclass
class Plugin:
    """Calls the verbs as server and spool do."""

    desk: Desk
    verbs: Verbs
    unfit: str = ""
    outcomes: list[tuple[str, str]] = field(default_factory=list)

    async def call(self, verb: Verb, **more: Any) -> Response:
        """`env` and `conf` are laid over what a runtime sends; None takes a variable or key away."""
        conf = {"cniVersion": "1.1.0", "name": "vnetpods", "type": "vnetpods"} | more.get("conf", {})
        env = {
            "CNI_COMMAND": verb.name,
            "CNI_CONTAINERID": "c1",
            "CNI_NETNS": "/run/netns/n1",
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": ARGS,
        } | more.get("env", {})
        stdin = more.get("stdin", json.dumps({k: v for k, v in conf.items() if v is not None}).encode())
        request = Request(
            verb=verb,
            env={k: v for k, v in env.items() if v is not None},
            stdin=stdin,
            doors=more.get("doors", Doors(-1, -1)),
            deadline=asyncio.get_running_loop().time() + more.get("within", 5.0),
            spooled_at=more.get("spooled_at"),
        )
        return await self.verbs.handle(request)

    async def ok(self, verb: Verb, **more: Any) -> Any:
        response = await self.call(verb, **more)
        assert response.exit_code == 0, response.stdout
        return json.loads(response.stdout) if response.stdout else None

    async def refused(self, verb: Verb, **more: Any) -> tuple[int, str]:
        """Code and what it says."""
        response = await self.call(verb, **more)
        assert response.exit_code == 1
        body = json.loads(response.stdout)
        assert body["cniVersion"] in VERSIONS
        return body["code"], f"{body['msg']}: {body.get('details', '')}"


@asynccontextmanager
async def plugin(tmp_path: Path, *addresses: str) -> AsyncIterator[Plugin]:
    async with desk(tmp_path, *addresses) as made:
        verbs = Verbs(
            custody=made.custody,
            kernel=made.kernel,
            plane=made.plane,
            unfit=lambda: found.unfit,
            observe=lambda verb, outcome, _: found.outcomes.append((verb, outcome)),
        )
        found = Plugin(made, verbs)
        yield found


OLD_IP = {"version": "4", "interface": 1, "address": "10.0.0.5/32", "gateway": "169.254.1.1"}
NEW_IP = {"interface": 1, "address": "10.0.0.5/32", "gateway": "169.254.1.1"}


class TestVersions:
    @pytest.mark.parametrize(
        ("version", "ip", "mtu"),
        [
            pytest.param("0.3.0", OLD_IP, {}, id="0.3.0"),
            pytest.param("0.3.1", OLD_IP, {}, id="0.3.1"),
            pytest.param("0.4.0", OLD_IP, {}, id="0.4.0"),
            pytest.param("1.0.0", NEW_IP, {}, id="1.0.0"),
            pytest.param("1.1.0", NEW_IP, {"mtu": 1500}, id="1.1.0"),
        ],
    )
    async def test_result_of_add(self, tmp_path: Path, version: str, ip: dict[str, Any], mtu: dict[str, int]) -> None:
        """Specification, section 5: "Result Types"; the version key of ips went with 1.0.0, mtu came with 1.1.0."""
        async with plugin(tmp_path, "10.0.0.5") as cni:
            result = await cni.ok(Verb.ADD, conf={"cniVersion": version})
            attachment = next(iter(cni.desk.custody.attachments.values()))
            assert result == {
                "cniVersion": version,
                "interfaces": [
                    {"name": attachment.host_ifname, "mac": attachment.host_mac} | mtu,
                    {"name": "eth0", "mac": attachment.pod_mac, "sandbox": "/run/netns/n1"} | mtu,
                ],
                "ips": [ip],
                "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}],
                "dns": {},
            }

    @pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.5.0", "1.2.0", "2.0.0", "", "one", None])
    @pytest.mark.parametrize("verb", [Verb.ADD, Verb.DEL, Verb.CHECK, Verb.GC, Verb.STATUS])
    async def test_others_are_refused(self, tmp_path: Path, verb: Verb, version: str | None) -> None:
        async with plugin(tmp_path, "10.0.0.5") as cni:
            code, said = await cni.refused(verb, conf={"cniVersion": version})
            assert code == 1
            assert "1.1.0" in said

    @pytest.mark.parametrize(
        ("verb", "version", "allowed"),
        [
            *((Verb.CHECK, version, version >= "0.4.0") for version in VERSIONS),
            *((Verb.GC, version, version >= "1.1.0") for version in VERSIONS),
            *((Verb.STATUS, version, version >= "1.1.0") for version in VERSIONS),
            *((Verb.DEL, version, True) for version in VERSIONS),
        ],
    )
    async def test_verbs_came_with_versions(self, tmp_path: Path, verb: Verb, version: str, allowed: bool) -> None:
        async with plugin(tmp_path, "10.0.0.5") as cni:
            previous = await cni.ok(Verb.ADD, conf={"cniVersion": version})
            response = await cni.call(verb, conf={"cniVersion": version, "prevResult": previous})
            assert (response.exit_code == 0) is allowed, response.stdout

    @pytest.mark.parametrize("asked", [*VERSIONS, "0.1.0", "9.9.9"])
    async def test_version_answers_in_the_version_asked(self, tmp_path: Path, asked: str) -> None:
        async with plugin(tmp_path) as cni:
            answer = await cni.ok(Verb.VERSION, conf={"cniVersion": asked, "name": None}, env={"CNI_CONTAINERID": None})
            assert answer == {"cniVersion": asked, "supportedVersions": list(VERSIONS)}

    async def test_an_error_is_in_the_version_asked(self, tmp_path: Path) -> None:
        async with plugin(tmp_path) as cni:
            response = await cni.call(Verb.ADD, conf={"cniVersion": "0.4.0"}, within=0.01)
            assert json.loads(response.stdout)["cniVersion"] == "0.4.0"


class TestInput:
    @pytest.mark.parametrize(
        ("stdin", "code"),
        [
            pytest.param(b"", 6, id="empty"),
            pytest.param(b'{"cniVersion": "1.1.0", "na', 6, id="cut"),
            pytest.param(b"\x00" * 100, 6, id="nuls"),
            pytest.param(b"hello", 6, id="text"),
            pytest.param(b'{"name": "\xff\xfe"}', 6, id="not-utf-8"),
            pytest.param(b"[" * 100_000, 7, id="deep"),
            pytest.param(b'{"x":' * 100_000, 6, id="deep-objects"),
            pytest.param(b"[]", 7, id="a-list"),
            pytest.param(b'{"cniVersion": 1}', 7, id="version-a-number"),
            pytest.param(b'{"cniVersion": "1.1.0", "name": ["vnetpods"]}', 7, id="name-a-list"),
            pytest.param(b'{"cniVersion": "1.1.0"}', 7, id="no-name"),
            pytest.param(b'{"cniVersion": "1.1.0", "name": ""}', 7, id="empty-name"),
            pytest.param(b'{"cniVersion": "1.1.0", "name": "-x"}', 7, id="name-with-a-dash-first"),
            pytest.param(b'{"cniVersion": "1.1.0", "name": "../x"}', 7, id="name-a-path"),
            pytest.param(b'{"cniVersion": "1.1.0", "name": "n", "cni.dev/valid-attachments": 1}', 7, id="attachments"),
        ],
    )
    @pytest.mark.parametrize("verb", [Verb.ADD, Verb.DEL])
    async def test_garbage_gets_its_code_and_costs_nothing(
        self, tmp_path: Path, verb: Verb, stdin: bytes, code: int
    ) -> None:
        async with plugin(tmp_path, "10.0.0.5") as cni:
            assert (await cni.refused(verb, stdin=stdin))[0] == code
            assert cni.desk.pool.usage(0).free == 1

    @pytest.mark.parametrize(
        ("verb", "name", "value"),
        [
            (Verb.ADD, "CNI_CONTAINERID", None),
            (Verb.ADD, "CNI_CONTAINERID", ""),
            (Verb.ADD, "CNI_CONTAINERID", "a/b"),
            (Verb.ADD, "CNI_CONTAINERID", ".a"),
            (Verb.ADD, "CNI_CONTAINERID", "caf\xe9"),
            (Verb.ADD, "CNI_CONTAINERID", "a\udcff"),
            (Verb.ADD, "CNI_NETNS", None),
            (Verb.ADD, "CNI_NETNS", "/run/netns/\udcff"),
            (Verb.ADD, "CNI_IFNAME", None),
            (Verb.ADD, "CNI_IFNAME", "."),
            (Verb.ADD, "CNI_IFNAME", ".."),
            (Verb.ADD, "CNI_IFNAME", "eth0/1"),
            (Verb.ADD, "CNI_IFNAME", "eth:0"),
            (Verb.ADD, "CNI_IFNAME", "eth 0"),
            (Verb.ADD, "CNI_IFNAME", "sixteencharacter"),
            (Verb.ADD, "CNI_IFNAME", "\xe4" * 8),
            (Verb.ADD, "CNI_ARGS", "K8S_POD_NAMESPACE=default;K8S_POD_NAME=\udcff\udcfe"),
            (Verb.CHECK, "CNI_NETNS", None),
            (Verb.DEL, "CNI_CONTAINERID", None),
            (Verb.DEL, "CNI_IFNAME", None),
        ],
    )
    async def test_a_variable_that_is_missing_or_malformed_is_named(
        self, tmp_path: Path, verb: Verb, name: str, value: str | None
    ) -> None:
        async with plugin(tmp_path, "10.0.0.5") as cni:
            code, said = await cni.refused(verb, env={name: value})
            assert code == 4
            assert name in said
            assert cni.desk.pool.usage(0).free == 1

    @pytest.mark.parametrize(
        ("args", "pod"),
        [
            pytest.param(ARGS, ("default", "web-0", "u1"), id="containerd"),
            pytest.param("", None, id="none"),
            pytest.param("K8S_POD_NAMESPACE=default", None, id="no-pod-name"),
            pytest.param("K8S_POD_NAME=web-0;K8S_POD_NAMESPACE=", None, id="empty-namespace"),
            pytest.param("FOO;;BAR=1;=2;K8S_POD_NAMESPACE=a;K8S_POD_NAME=b", ("a", "b", ""), id="unknown-and-broken"),
            pytest.param("K8S_POD_NAMESPACE=a;K8S_POD_NAME=b=c=d", ("a", "b=c=d", ""), id="equals-in-value"),
            pytest.param(
                f"K8S_POD_NAMESPACE={'n' * 63};K8S_POD_NAME={'p.' * 126}p",
                ("n" * 63, "p." * 126 + "p", ""),
                id="253-characters",
            ),
        ],
    )
    async def test_names_of_pods(self, tmp_path: Path, args: str, pod: tuple[str, str, str] | None) -> None:
        """C54: spiderpool#1747, hybridnet#375."""
        async with plugin(tmp_path, "10.0.0.5") as cni:
            result = await cni.ok(Verb.ADD, env={"CNI_ARGS": args})
            found = next(iter(cni.desk.custody.attachments.values())).pod
            assert (found and (found.namespace, found.name, found.uid)) == pod
            assert len(result["interfaces"][0]["name"]) == 14  # IFNAMSIZ has 15
            await cni.ok(Verb.DEL, env={"CNI_ARGS": args})

    async def test_a_name_that_is_no_text_does_not_hold_up_a_deletion(self, tmp_path: Path) -> None:
        async with plugin(tmp_path, "10.0.0.5") as cni:
            await cni.ok(Verb.ADD)
            await cni.ok(Verb.DEL, env={"CNI_ARGS": "K8S_POD_NAMESPACE=\udcff;K8S_POD_NAME=\udcfe"})
            assert cni.desk.custody.attachments == {}

    async def test_an_unknown_verb(self, tmp_path: Path) -> None:
        async with plugin(tmp_path) as cni:
            code, said = await cni.refused(Verb.OTHER, env={"CNI_COMMAND": "FROB"})
            assert (code, "FROB" in said) == (4, True)

    async def test_a_namespace_that_the_shim_could_not_open(self, tmp_path: Path) -> None:
        async with plugin(tmp_path, "10.0.0.5") as cni:
            assert (await cni.refused(Verb.ADD, doors=None))[0] == 8


class TestChain:
    async def test_what_an_earlier_plugin_made_is_passed_on(self, tmp_path: Path) -> None:
        previous = {
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "net0", "sandbox": "/run/netns/n1", "later": True}],
            "ips": [{"address": "192.0.2.1/24", "interface": 0}],
            "dns": {"nameservers": ["192.0.2.53"]},
            "unknown": {"kept": 1},
        }
        async with plugin(tmp_path, "10.0.0.5") as cni:
            result = await cni.ok(Verb.ADD, conf={"prevResult": previous, "runtimeConfig": {"ips": ["10.9.9.9/32"]}})
            assert result["interfaces"][0] == {"name": "net0", "sandbox": "/run/netns/n1", "later": True}
            assert [ip["address"] for ip in result["ips"]] == ["192.0.2.1/24", "10.0.0.5/32"]
            assert result["ips"][1]["interface"] == 2
            assert result["interfaces"][2]["name"] == "eth0"
            assert (result["dns"], result["unknown"]) == ({"nameservers": ["192.0.2.53"]}, {"kept": 1})

    @pytest.mark.parametrize("previous", ["x", 3, {"ips": "x"}, {"interfaces": [1]}, {"ips": {"a": 1}}, NESTED])
    async def test_a_malformed_prev_result_of_an_add_is_named(self, tmp_path: Path, previous: Any) -> None:
        async with plugin(tmp_path, "10.0.0.5") as cni:
            code, said = await cni.refused(Verb.ADD, conf={"prevResult": previous})
            assert (code, "prevResult" in said) == (7, True)
            assert cni.desk.pool.usage(0).free == 1


class TestAdd:
    async def test_repeated_gives_the_same(self, tmp_path: Path) -> None:
        async with plugin(tmp_path, "10.0.0.5", "10.0.0.6") as cni:
            assert await cni.ok(Verb.ADD) == await cni.ok(Verb.ADD)

    async def test_two_interfaces_of_one_container(self, tmp_path: Path) -> None:
        async with plugin(tmp_path, "10.0.0.5", "10.0.0.6") as cni:
            first, second = await cni.ok(Verb.ADD), await cni.ok(Verb.ADD, env={"CNI_IFNAME": "net1"})
            assert {r["ips"][0]["address"] for r in (first, second)} == {"10.0.0.5/32", "10.0.0.6/32"}
            assert first["interfaces"][0]["name"] != second["interfaces"][0]["name"]

    async def test_without_an_address_says_why(self, tmp_path: Path) -> None:
        async with plugin(tmp_path) as cni:
            code, said = await cni.refused(Verb.ADD, within=0.01)
            assert code == 11
            assert "pod default/web-0" in said
            assert "SubnetFull: no address left in pods" in said

    async def test_an_interface_of_somebody_else_is_left_alone(self, tmp_path: Path) -> None:
        async with plugin(tmp_path, "10.0.0.5") as cni:
            cni.desk.plane.taken = {"/run/netns/n1"}
            assert (await cni.refused(Verb.ADD))[0] == 102

    async def test_a_kernel_that_refuses(self, tmp_path: Path) -> None:
        async with plugin(tmp_path, "10.0.0.5") as cni:
            cni.desk.plane.refuses = {"attach"}
            code, said = await cni.refused(Verb.ADD)
            assert (code, "Input/output error" in said) == (5, True)

    async def test_a_disk_that_refuses(self, tmp_path: Path) -> None:
        async with plugin(tmp_path, "10.0.0.5") as cni:
            cni.desk.ledger.full = True
            code, said = await cni.refused(Verb.ADD)
            assert (code, "disk full" in said) == (11, True)

    async def test_a_defect_is_999_and_no_silence(self, tmp_path: Path) -> None:
        async with plugin(tmp_path, "10.0.0.5") as cni:
            cni.desk.plane.taken = None  # type: ignore[assignment]
            assert (await cni.refused(Verb.ADD))[0] == 999
            assert cni.outcomes == [("ADD", "999")]


class TestDel:
    @pytest.mark.parametrize("env", [{"CNI_NETNS": ""}, {"CNI_NETNS": None}, {"CNI_ARGS": None}])
    async def test_needs_neither_namespace_nor_pod(self, tmp_path: Path, env: dict[str, str | None]) -> None:
        """C03: aws#1939."""
        async with plugin(tmp_path, "10.0.0.5") as cni:
            await cni.ok(Verb.ADD)
            await cni.ok(Verb.DEL, env=env, doors=None)
            assert (cni.desk.custody.attachments, cni.desk.plane.there) == ({}, {})

    @pytest.mark.parametrize("previous", [None, {}, "nonsense", [[[]]], {"interfaces": [{"vlanID": "x"}], "ips": 3}])
    async def test_does_not_care_for_prev_result(self, tmp_path: Path, previous: Any) -> None:
        """C10: aws#2321, a result that another version wrote."""
        async with plugin(tmp_path, "10.0.0.5") as cni:
            await cni.ok(Verb.ADD)
            await cni.ok(Verb.DEL, conf={"prevResult": previous, "newer": {"key": 1}})
            assert cni.desk.custody.attachments == {}

    async def test_of_the_unknown_and_again(self, tmp_path: Path) -> None:
        async with plugin(tmp_path) as cni:
            assert await cni.ok(Verb.DEL) is None
            assert await cni.ok(Verb.DEL) is None

    async def test_from_the_spool_spares_what_came_later(self, tmp_path: Path) -> None:
        async with plugin(tmp_path, "10.0.0.5") as cni:
            await cni.ok(Verb.ADD)
            await cni.ok(Verb.DEL, spooled_at=cni.desk.now[0] - 1)
            assert len(cni.desk.custody.attachments) == 1
            await cni.ok(Verb.DEL, spooled_at=cni.desk.now[0] + 1)
            assert cni.desk.custody.attachments == {}


class TestCheck:
    async def test_of_what_is_as_it_was_made(self, tmp_path: Path) -> None:
        async with plugin(tmp_path, "10.0.0.5") as cni:
            result = await cni.ok(Verb.ADD)
            changed = result | {
                "dns": {"nameservers": ["1.1.1.1"]},
                "ips": [*result["ips"], {"address": "192.0.2.1/24"}],
            }
            assert await cni.ok(Verb.CHECK, conf={"prevResult": changed}) is None

    async def test_names_every_deviation(self, tmp_path: Path) -> None:
        async with plugin(tmp_path, "10.0.0.5") as cni:
            result = await cni.ok(Verb.ADD)
            cni.desk.plane.there.clear()
            wrong = result | {"ips": [{"address": "10.0.0.50/32"}]}
            code, said = await cni.refused(Verb.CHECK, conf={"prevResult": wrong})
            assert code == 101
            assert "prevResult lacks 10.0.0.5" in said
            assert "there is no interface" in said

    async def test_of_the_unknown(self, tmp_path: Path) -> None:
        async with plugin(tmp_path) as cni:
            assert (await cni.refused(Verb.CHECK, conf={"prevResult": {}}))[0] == 100

    async def test_needs_prev_result(self, tmp_path: Path) -> None:
        async with plugin(tmp_path) as cni:
            assert (await cni.refused(Verb.CHECK))[0] == 7


class TestGc:
    async def test_gives_back_what_is_not_valid_any_more(self, tmp_path: Path) -> None:
        async with plugin(tmp_path, *(f"10.0.0.{n}" for n in range(5, 10))) as cni:
            for container in ("c1", "c2", "c3"):
                await cni.ok(Verb.ADD, env={"CNI_CONTAINERID": container})
            await cni.ok(Verb.ADD, conf={"name": "other"}, env={"CNI_CONTAINERID": "c4"})
            valid = [{"containerID": "c2", "ifname": "eth0"}, {"containerID": "c3", "ifname": "net1"}]
            await cni.ok(Verb.GC, conf={"cni.dev/valid-attachments": valid}, env={"CNI_CONTAINERID": None})
            assert {key.container_id for key in cni.desk.custody.attachments} == {"c2", "c4"}

    @pytest.mark.parametrize(("conf", "left"), [({}, 1), ({"cni.dev/valid-attachments": []}, 0)])
    async def test_no_list_is_not_an_empty_list(self, tmp_path: Path, conf: dict[str, Any], left: int) -> None:
        async with plugin(tmp_path, "10.0.0.5") as cni:
            await cni.ok(Verb.ADD)
            await cni.ok(Verb.GC, conf=conf)
            assert len(cni.desk.custody.attachments) == left

    async def test_goes_on_after_an_error_and_reports_all(self, tmp_path: Path) -> None:
        async with plugin(tmp_path, "10.0.0.5", "10.0.0.6") as cni:
            for container in ("c1", "c2"):
                await cni.ok(Verb.ADD, env={"CNI_CONTAINERID": container})
            cni.desk.plane.refuses = {"detach"}
            code, said = await cni.refused(Verb.GC, conf={"cni.dev/valid-attachments": []})
            assert code == 5
            assert "2 of 2" in said
            assert said.count("Input/output error") == 2

    async def test_spares_an_add_under_way(self, tmp_path: Path) -> None:
        async with plugin(tmp_path, "10.0.0.5") as cni:
            go_on = cni.desk.plane.hold("attach")
            add = asyncio.get_running_loop().create_task(cni.ok(Verb.ADD))
            await asyncio.to_thread(cni.desk.plane.reached["attach"].wait, 5)
            await cni.ok(Verb.GC, conf={"cni.dev/valid-attachments": []})
            go_on.set()
            assert (await add)["ips"][0]["address"] == "10.0.0.5/32"


class TestStatus:
    async def test_says_why_no_pod_can_be_added(self, tmp_path: Path) -> None:
        async with plugin(tmp_path) as cni:
            cni.unfit = "no address for pods is known: SubnetFull"
            assert await cni.refused(Verb.STATUS) == (
                50,
                "no pod can be added: no address for pods is known: SubnetFull",
            )

    async def test_is_fine_otherwise(self, tmp_path: Path) -> None:
        async with plugin(tmp_path) as cni:
            assert await cni.ok(Verb.STATUS, env={"CNI_CONTAINERID": None, "CNI_IFNAME": None}) is None
