"""Versions and input of the verbs: environment and standard input in, exit code and JSON out."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.agent.machine import until
from tests.agent.plugin import ARGS, plugin
from vnetpods_agent.attachment import Moment
from vnetpods_agent.cni.frames import Command
from vnetpods_agent.cni.protocol import VERSIONS

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
            result = await cni.ok(Command.ADD, conf={"cniVersion": version})
            attachment = next(iter(cni.desk.attachments.by_key.values()))
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
    @pytest.mark.parametrize("verb", [Command.ADD, Command.CHECK, Command.GC, Command.STATUS])
    async def test_others_are_refused(self, tmp_path: Path, verb: Command, version: str | None) -> None:
        async with plugin(tmp_path, "10.0.0.5") as cni:
            code, said = await cni.refused(verb, conf={"cniVersion": version})
            assert code == 1
            assert "1.1.0" in said
            assert (f"{version!r} is not supported" if version else "gives no cniVersion") in said

    @pytest.mark.parametrize(
        ("verb", "version", "allowed"),
        [
            *((Command.CHECK, version, version >= "0.4.0") for version in VERSIONS),
            *((Command.GC, version, version >= "1.1.0") for version in VERSIONS),
            *((Command.STATUS, version, version >= "1.1.0") for version in VERSIONS),
            *((Command.DEL, version, True) for version in VERSIONS),
        ],
    )
    async def test_verbs_came_with_versions(self, tmp_path: Path, verb: Command, version: str, allowed: bool) -> None:
        async with plugin(tmp_path, "10.0.0.5") as cni:
            previous = await cni.ok(Command.ADD, conf={"cniVersion": version})
            response = await cni.call(verb, conf={"cniVersion": version, "prevResult": previous})
            assert (response.exit_code == 0) is allowed, response.stdout

    @pytest.mark.parametrize("asked", [*VERSIONS, "0.1.0", "9.9.9"])
    async def test_version_answers_in_the_version_asked(self, tmp_path: Path, asked: str) -> None:
        async with plugin(tmp_path) as cni:
            answer = await cni.ok(
                Command.VERSION, conf={"cniVersion": asked, "name": None}, env={"CNI_CONTAINERID": None}
            )
            assert answer == {"cniVersion": asked, "supportedVersions": list(VERSIONS)}

    async def test_an_error_is_in_the_version_asked(self, tmp_path: Path) -> None:
        async with plugin(tmp_path) as cni:
            response = await cni.call(Command.ADD, conf={"cniVersion": "0.4.0"}, within=0.01)
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
        ],
    )
    async def test_garbage_gets_its_code_and_costs_nothing(self, tmp_path: Path, stdin: bytes, code: int) -> None:
        async with plugin(tmp_path, "10.0.0.5") as cni:
            assert (await cni.refused(Command.ADD, stdin=stdin))[0] == code
            assert cni.desk.pool.usage(0).free == 1

    @pytest.mark.parametrize("spooled", [None, Moment(2_000_000.0)], ids=["live", "spooled"])
    @pytest.mark.parametrize(
        "stdin",
        [
            pytest.param(b"", id="empty"),
            pytest.param(b"\x00" * 100, id="nuls"),
            pytest.param(b"[" * 100_000, id="deep"),
            pytest.param(b'{"cniVersion": "1.1.0", "na', id="cut"),
            pytest.param(b"{}", id="nothing-said"),
            pytest.param(b'{"name": "vnetpods"}', id="no-version"),
            pytest.param(b'{"name": "vnetpods", "cniVersion": null}', id="null-version"),
            *(
                pytest.param(json.dumps({"name": "vnetpods", "cniVersion": version}).encode(), id=f"version-{version}")
                for version in ("", "0.1.0", "0.2.0", "1.2.0", "one", 1)
            ),
            pytest.param(b'{"cniVersion": "1.1.0"}', id="no-name"),
            pytest.param(b'{"cniVersion": "1.1.0", "name": ["vnetpods"]}', id="name-a-list"),
            pytest.param(b'{"cniVersion": "1.1.0", "name": "../x"}', id="name-a-path"),
        ],
    )
    async def test_a_deletion_needs_container_and_interface_alone(
        self, tmp_path: Path, stdin: bytes, spooled: Moment | None
    ) -> None:
        """A DEL that fails keeps its pod Terminating for ever, and one that is set aside keeps its address held."""
        async with plugin(tmp_path, "10.0.0.5", "10.0.0.6") as cni:
            await cni.ok(Command.ADD)
            await cni.ok(Command.ADD, env={"CNI_CONTAINERID": "c2"})
            await cni.ok(Command.DEL, stdin=stdin, spooled=spooled)
            assert await cni.desk.agree() == {"c2": "10.0.0.6"}

    async def test_a_deletion_that_names_no_network_abandons_an_add(self, tmp_path: Path) -> None:
        async with plugin(tmp_path) as cni:
            add = asyncio.create_task(cni.refused(Command.ADD))
            await until(cni.desk.pool.waiting)
            await cni.ok(Command.DEL, stdin=b"")
            code, said = await add
            assert (code, "deleted while its address was being set up" in said) == (11, True)

    async def test_a_deletion_leaves_another_network_alone(self, tmp_path: Path) -> None:
        async with plugin(tmp_path, "10.0.0.5") as cni:
            await cni.ok(Command.ADD)
            await cni.ok(Command.DEL, conf={"name": "other", "cniVersion": None})
            assert await cni.desk.agree() == {"c1": "10.0.0.5"}

    @pytest.mark.parametrize(
        ("verb", "name", "value"),
        [
            (Command.ADD, "CNI_CONTAINERID", None),
            (Command.ADD, "CNI_CONTAINERID", ""),
            (Command.ADD, "CNI_CONTAINERID", "a/b"),
            (Command.ADD, "CNI_CONTAINERID", ".a"),
            (Command.ADD, "CNI_CONTAINERID", "caf\xe9"),
            (Command.ADD, "CNI_CONTAINERID", "a\udcff"),
            (Command.ADD, "CNI_NETNS", None),
            (Command.ADD, "CNI_NETNS", "/run/netns/\udcff"),
            (Command.ADD, "CNI_IFNAME", None),
            (Command.ADD, "CNI_IFNAME", "."),
            (Command.ADD, "CNI_IFNAME", ".."),
            (Command.ADD, "CNI_IFNAME", "eth0/1"),
            (Command.ADD, "CNI_IFNAME", "eth:0"),
            (Command.ADD, "CNI_IFNAME", "eth 0"),
            (Command.ADD, "CNI_IFNAME", "sixteencharacter"),
            (Command.ADD, "CNI_IFNAME", "\xe4" * 8),
            (Command.ADD, "CNI_ARGS", "K8S_POD_NAMESPACE=default;K8S_POD_NAME=\udcff\udcfe"),
            (Command.CHECK, "CNI_NETNS", None),
            (Command.DEL, "CNI_CONTAINERID", None),
            (Command.DEL, "CNI_IFNAME", None),
        ],
    )
    async def test_a_variable_that_is_missing_or_malformed_is_named(
        self, tmp_path: Path, verb: Command, name: str, value: str | None
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
            result = await cni.ok(Command.ADD, env={"CNI_ARGS": args})
            found = next(iter(cni.desk.attachments.by_key.values())).pod
            assert (found and (found.namespace, found.name, found.uid)) == pod
            assert len(result["interfaces"][0]["name"]) == 14  # IFNAMSIZ has 15
            await cni.ok(Command.DEL, env={"CNI_ARGS": args})

    async def test_a_name_that_is_no_text_does_not_hold_up_a_deletion(self, tmp_path: Path) -> None:
        async with plugin(tmp_path, "10.0.0.5") as cni:
            await cni.ok(Command.ADD)
            await cni.ok(Command.DEL, env={"CNI_ARGS": "K8S_POD_NAMESPACE=\udcff;K8S_POD_NAME=\udcfe"})
            assert cni.desk.attachments.by_key == {}

    async def test_an_unknown_verb(self, tmp_path: Path) -> None:
        async with plugin(tmp_path) as cni:
            code, said = await cni.refused(Command.OTHER, env={"CNI_COMMAND": "FROB"})
            assert (code, "FROB" in said) == (4, True)

    async def test_a_namespace_that_the_shim_could_not_open(self, tmp_path: Path) -> None:
        async with plugin(tmp_path, "10.0.0.5") as cni:
            assert await cni.refused(Command.ADD, handles=None) == (
                8,
                "CNI_NETNS: '/run/netns/n1' could not be opened: ",
            )
            for number, why in ((2, "No such file or directory"), (22, "Invalid argument; it is no network namespace")):
                _, said = await cni.refused(Command.ADD, handles=None, netns_errno=number)
                assert said == f"CNI_NETNS: '/run/netns/n1' could not be opened: {why}: "
