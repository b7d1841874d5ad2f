"""The six verbs by their meaning."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.agent.plugin import plugin
from vnetpods_agent.attachment import Moment
from vnetpods_agent.cni.commands import Lasting
from vnetpods_agent.cni.frames import Command

NESTED: list[Any] = []
for _ in range(900):
    NESTED = [NESTED]


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
            result = await cni.ok(Command.ADD, conf={"prevResult": previous, "runtimeConfig": {"bandwidth": {}}})
            assert result["interfaces"][0] == {"name": "net0", "sandbox": "/run/netns/n1", "later": True}
            assert [ip["address"] for ip in result["ips"]] == ["192.0.2.1/24", "10.0.0.5/32"]
            assert result["ips"][1]["interface"] == 2
            assert result["interfaces"][2]["name"] == "eth0"
            assert (result["dns"], result["unknown"]) == ({"nameservers": ["192.0.2.53"]}, {"kept": 1})

    @pytest.mark.parametrize("previous", ["x", 3, {"ips": "x"}, {"interfaces": [1]}, {"ips": {"a": 1}}, NESTED])
    async def test_a_malformed_prev_result_of_an_add_is_named(self, tmp_path: Path, previous: Any) -> None:
        async with plugin(tmp_path, "10.0.0.5") as cni:
            code, said = await cni.refused(Command.ADD, conf={"prevResult": previous})
            assert (code, "prevResult" in said) == (7, True)
            assert cni.desk.pool.usage(0).free == 1


class TestAdd:
    async def test_repeated_gives_the_same(self, tmp_path: Path) -> None:
        async with plugin(tmp_path, "10.0.0.5", "10.0.0.6") as cni:
            assert await cni.ok(Command.ADD) == await cni.ok(Command.ADD)

    async def test_two_interfaces_of_one_container(self, tmp_path: Path) -> None:
        async with plugin(tmp_path, "10.0.0.5", "10.0.0.6") as cni:
            first, second = await cni.ok(Command.ADD), await cni.ok(Command.ADD, env={"CNI_IFNAME": "net1"})
            assert {r["ips"][0]["address"] for r in (first, second)} == {"10.0.0.5/32", "10.0.0.6/32"}
            assert first["interfaces"][0]["name"] != second["interfaces"][0]["name"]

    async def test_without_an_address_says_why(self, tmp_path: Path) -> None:
        async with plugin(tmp_path) as cni:
            code, said = await cni.refused(Command.ADD, within=0.01)
            assert code == 11
            assert "pod default/web-0" in said
            assert "SubnetFull: no address left in pods" in said

    async def test_an_interface_of_somebody_else_is_left_alone(self, tmp_path: Path) -> None:
        async with plugin(tmp_path, "10.0.0.5") as cni:
            cni.desk.plane.taken = {"/run/netns/n1"}
            assert (await cni.refused(Command.ADD))[0] == 102

    async def test_a_kernel_that_refuses(self, tmp_path: Path) -> None:
        async with plugin(tmp_path, "10.0.0.5") as cni:
            cni.desk.plane.refuses = {"attach"}
            code, said = await cni.refused(Command.ADD)
            assert (code, "Input/output error" in said) == (5, True)

    async def test_a_disk_that_refuses(self, tmp_path: Path) -> None:
        async with plugin(tmp_path, "10.0.0.5") as cni:
            cni.desk.ledger.full = True
            code, said = await cni.refused(Command.ADD)
            assert (code, "disk full" in said) == (11, True)

    async def test_a_defect_is_999_and_no_silence(self, tmp_path: Path) -> None:
        async with plugin(tmp_path, "10.0.0.5") as cni:
            cni.desk.plane.taken = None  # type: ignore[assignment]
            assert (await cni.refused(Command.ADD))[0] == 999
            assert cni.outcomes == [("ADD", "999")]


class TestDel:
    @pytest.mark.parametrize("env", [{"CNI_NETNS": ""}, {"CNI_NETNS": None}, {"CNI_ARGS": None}])
    async def test_needs_neither_namespace_nor_pod(self, tmp_path: Path, env: dict[str, str | None]) -> None:
        """C03: aws#1939."""
        async with plugin(tmp_path, "10.0.0.5") as cni:
            await cni.ok(Command.ADD)
            await cni.ok(Command.DEL, env=env, handles=None)
            assert (cni.desk.attachments.by_key, cni.desk.plane.there) == ({}, {})

    @pytest.mark.parametrize("previous", [None, {}, "nonsense", [[[]]], {"interfaces": [{"vlanID": "x"}], "ips": 3}])
    async def test_does_not_care_for_prev_result(self, tmp_path: Path, previous: Any) -> None:
        """C10: aws#2321, a result that another version wrote."""
        async with plugin(tmp_path, "10.0.0.5") as cni:
            await cni.ok(Command.ADD)
            await cni.ok(Command.DEL, conf={"prevResult": previous, "newer": {"key": 1}})
            assert cni.desk.attachments.by_key == {}

    async def test_of_the_unknown_and_again(self, tmp_path: Path) -> None:
        async with plugin(tmp_path) as cni:
            assert await cni.ok(Command.DEL) is None
            assert await cni.ok(Command.DEL) is None

    async def test_from_the_spool_spares_what_came_later(self, tmp_path: Path) -> None:
        async with plugin(tmp_path, "10.0.0.5") as cni:
            await cni.ok(Command.ADD)
            await cni.ok(Command.DEL, spooled=Moment(cni.desk.now[0] - 1))
            assert len(cni.desk.attachments.by_key) == 1
            await cni.ok(Command.DEL, spooled=Moment(cni.desk.now[0] + 1))
            assert cni.desk.attachments.by_key == {}

    @pytest.mark.parametrize("step", [-3600.0, 0.0, 3600.0])
    async def test_from_the_spool_is_in_its_place_whatever_the_clock_did(self, tmp_path: Path, step: float) -> None:
        """A clock set between a pod's ADD, its DEL and the replay: neither is the DEL lost nor a later pod harmed."""
        async with plugin(tmp_path, "10.0.0.5", "10.0.0.6") as cni:
            await cni.ok(Command.ADD)
            await cni.desk.passes(1)
            cni.desk.step_clock(step)
            spooled = cni.desk.attachments.now()
            await cni.ok(Command.DEL, spooled=spooled)
            assert await cni.desk.agree() == {}
        folder = tmp_path / "again"
        folder.mkdir()
        async with plugin(folder, "10.0.0.5", "10.0.0.6") as cni:
            spooled = cni.desk.attachments.now()
            await cni.desk.passes(1)
            cni.desk.step_clock(step)
            await cni.ok(Command.ADD)
            with capture_logs() as logs:
                await cni.ok(Command.DEL, spooled=spooled)
                await asyncio.sleep(0)
            assert await cni.desk.agree() == {"c1": "10.0.0.5"}
            assert [line["spared"] for line in logs if "spared" in line] == [
                "c1/eth0: attached since the DEL was spooled"
            ]

    @pytest.mark.parametrize("step", [-3600.0, 3600.0])
    async def test_from_an_earlier_boots_spool_spares_this_boots_pods(self, tmp_path: Path, step: float) -> None:
        async with plugin(tmp_path, "10.0.0.5") as cni:
            await cni.ok(Command.ADD)
            await cni.ok(Command.DEL, spooled=Moment(cni.desk.now[0] + step, 9e9, "an earlier one"))
            assert await cni.desk.agree() == {"c1": "10.0.0.5"}

    async def test_an_add_waits_for_what_was_spooled_before_and_nothing_else_does(self, tmp_path: Path) -> None:
        """The same container again: it is attached still, and the DEL in the spool is of its former sandbox."""
        async with plugin(tmp_path, "10.0.0.5", "10.0.0.6") as cni:
            await cni.ok(Command.ADD)
            cni.verbs.caught_up.clear()
            again = asyncio.create_task(cni.ok(Command.ADD))
            for verb in (Command.STATUS, Command.VERSION, Command.GC):
                await cni.ok(verb)
            await cni.ok(Command.DEL, env={"CNI_CONTAINERID": "c2"})
            assert not again.done()
            await cni.ok(Command.DEL, spooled=Moment(cni.desk.now[0]))
            cni.verbs.caught_up.set()
            assert (await again)["ips"][0]["address"] == "10.0.0.6/32"  # the first one cools down
            assert await cni.desk.agree() == {"c1": "10.0.0.6"}

    async def test_an_add_that_can_not_wait_for_the_spool_says_so(self, tmp_path: Path) -> None:
        async with plugin(tmp_path, "10.0.0.5") as cni:
            await cni.ok(Command.ADD)
            cni.verbs.caught_up.clear()
            code, said = await cni.refused(Command.ADD, within=0.01)
            assert (code, "pod default/web-0 has to wait for the DELs" in said) == (11, True)

    async def test_an_add_into_a_namespace_whose_former_container_is_in_the_spool_waits(self, tmp_path: Path) -> None:
        async with plugin(tmp_path, "10.0.0.5", "10.0.0.6") as cni:
            await cni.ok(Command.ADD)
            cni.verbs.caught_up.clear()
            other = {"CNI_CONTAINERID": "c2"}
            code, said = await cni.refused(Command.ADD, env=other, within=0.01)
            assert (code, "has to wait for the DELs" in said) == (11, True)
            assert (await cni.ok(Command.ADD, env=other | {"CNI_NETNS": "/run/netns/n2"}))["ips"]

    async def test_a_newcomer_does_not_wait_for_the_spool(self, tmp_path: Path) -> None:
        """Its container isn't attached, so no DEL of before can be meant for what it gets."""
        async with plugin(tmp_path, "10.0.0.5") as cni:
            cni.verbs.caught_up.clear()
            spooled = Moment(cni.desk.now[0])
            cni.desk.now[0] += 1
            await cni.ok(Command.ADD)
            await cni.ok(Command.DEL, spooled=spooled)
            assert await cni.desk.agree() == {"c1": "10.0.0.5"}


class TestCheck:
    async def test_of_what_is_as_it_was_made(self, tmp_path: Path) -> None:
        async with plugin(tmp_path, "10.0.0.5") as cni:
            result = await cni.ok(Command.ADD)
            changed = result | {
                "dns": {"nameservers": ["1.1.1.1"]},
                "ips": [*result["ips"], {"address": "192.0.2.1/24"}],
            }
            assert await cni.ok(Command.CHECK, conf={"prevResult": changed}) is None

    async def test_names_every_deviation(self, tmp_path: Path) -> None:
        async with plugin(tmp_path, "10.0.0.5") as cni:
            result = await cni.ok(Command.ADD)
            cni.desk.plane.there.clear()
            wrong = result | {"ips": [{"address": "10.0.0.50/32"}]}
            code, said = await cni.refused(Command.CHECK, conf={"prevResult": wrong})
            assert code == 101
            assert "prevResult lacks 10.0.0.5" in said
            assert "there is no interface" in said

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            pytest.param(lambda r: r["interfaces"].pop(1), "prevResult lacks the pod's eth0", id="no-pod-end"),
            pytest.param(lambda r: r["interfaces"].pop(0), "prevResult lacks the host's azv", id="no-host-end"),
            pytest.param(lambda r: r.pop("interfaces"), "prevResult lacks the pod's eth0", id="no-interfaces"),
            pytest.param(
                lambda r: r["interfaces"][1].update(name="eth1"), "prevResult lacks the pod's eth0", id="other-name"
            ),
            pytest.param(
                lambda r: r["interfaces"][1].update(sandbox="/run/netns/n2"),
                "the pod's eth0 with sandbox '/run/netns/n2' instead of /run/netns/n1",
                id="sandbox",
            ),
            pytest.param(
                lambda r: r["interfaces"][1].update(mac="02:00:00:00:00:01"),
                "the pod's eth0 with mac '02:00:00:00:00:01' instead of",
                id="pod-mac",
            ),
            pytest.param(lambda r: r["interfaces"][0].update(mac=5), "with mac '5' instead of", id="host-mac-a-number"),
            pytest.param(lambda r: r["interfaces"][1].update(mtu=9000), "mtu 9000 instead of 1500", id="mtu"),
            pytest.param(lambda r: r.pop("ips"), "prevResult lacks 10.0.0.5", id="no-ips"),
            pytest.param(
                lambda r: r["ips"][0].update(address="10.0.0.5/24"),
                "10.0.0.5 with address '10.0.0.5/24' instead of 10.0.0.5/32",
                id="prefix",
            ),
            pytest.param(
                lambda r: r["ips"][0].update(gateway="10.0.0.1"), "with gateway '10.0.0.1' instead of", id="gateway"
            ),
            pytest.param(lambda r: r["ips"][0].update(interface=0), "on interface '0' instead of 1", id="interface"),
            pytest.param(lambda r: r["ips"][0].update(interface=7), "on interface '7' instead of 1", id="no-interface"),
        ],
    )
    async def test_compares_what_prev_result_says_of_ours(
        self, tmp_path: Path, change: Callable[[Any], object], sentence: str
    ) -> None:
        """CNI spec section 2, CHECK: the expected interfaces and addresses are those of prevResult."""
        async with plugin(tmp_path, "10.0.0.5") as cni:
            result = await cni.ok(Command.ADD)
            change(result)
            code, said = await cni.refused(Command.CHECK, conf={"prevResult": result})
            assert (code, sentence in said) == (101, True), said

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(lambda r: r["interfaces"].insert(0, {"name": "ifb0", "mac": "02:00:00:00:00:02"}), id="first"),
            pytest.param(lambda r: r["interfaces"].append({"name": "net1", "sandbox": "/run/netns/n1"}), id="more"),
            pytest.param(lambda r: r["interfaces"][1].update(mac=r["interfaces"][1]["mac"].upper()), id="upper-case"),
            pytest.param(lambda r: r["interfaces"][1].update(mtu=1400), id="smaller-mtu"),
            pytest.param(lambda r: r["interfaces"][1].pop("mtu"), id="without-mtu"),
            pytest.param(lambda r: r["routes"].append({"dst": "192.0.2.0/24", "gw": "192.0.2.1"}), id="routes-added"),
            pytest.param(lambda r: r.pop("routes"), id="routes-taken-out"),
            pytest.param(lambda r: r["ips"][0].pop("interface"), id="index-left-out"),
        ],
    )
    async def test_tolerates_what_chained_plugins_change(self, tmp_path: Path, change: Callable[[Any], object]) -> None:
        async with plugin(tmp_path, "10.0.0.5") as cni:
            result = await cni.ok(Command.ADD)
            change(result)
            for ip in result["ips"]:  # who inserts an interface moves the indexes
                if "interface" in ip:
                    ip["interface"] = next(at for at, i in enumerate(result["interfaces"]) if i["name"] == "eth0")
            assert await cni.ok(Command.CHECK, conf={"prevResult": result}) is None

    async def test_of_the_unknown(self, tmp_path: Path) -> None:
        async with plugin(tmp_path) as cni:
            assert (await cni.refused(Command.CHECK, conf={"prevResult": {}}))[0] == 100

    async def test_needs_prev_result(self, tmp_path: Path) -> None:
        async with plugin(tmp_path) as cni:
            assert (await cni.refused(Command.CHECK))[0] == 7


class TestGc:
    async def test_gives_back_what_is_not_valid_any_more(self, tmp_path: Path) -> None:
        async with plugin(tmp_path, *(f"10.0.0.{n}" for n in range(5, 10))) as cni:
            for container in ("c1", "c2", "c3"):
                await cni.ok(Command.ADD, env={"CNI_CONTAINERID": container})
            await cni.ok(Command.ADD, conf={"name": "other"}, env={"CNI_CONTAINERID": "c4"})
            valid = [{"containerID": "c2", "ifname": "eth0"}, {"containerID": "c3", "ifname": "net1"}]
            await cni.ok(Command.GC, conf={"cni.dev/valid-attachments": valid}, env={"CNI_CONTAINERID": None})
            assert {key.container_id for key in cni.desk.attachments.by_key} == {"c2", "c4"}

    @pytest.mark.parametrize(("conf", "left"), [({}, 1), ({"cni.dev/valid-attachments": []}, 0)])
    async def test_no_list_is_not_an_empty_list(self, tmp_path: Path, conf: dict[str, Any], left: int) -> None:
        async with plugin(tmp_path, "10.0.0.5") as cni:
            await cni.ok(Command.ADD)
            await cni.ok(Command.GC, conf=conf)
            assert len(cni.desk.attachments.by_key) == left

    async def test_goes_on_after_an_error_and_reports_all(self, tmp_path: Path) -> None:
        async with plugin(tmp_path, "10.0.0.5", "10.0.0.6") as cni:
            for container in ("c1", "c2"):
                await cni.ok(Command.ADD, env={"CNI_CONTAINERID": container})
            cni.desk.plane.refuses = {"detach"}
            code, said = await cni.refused(Command.GC, conf={"cni.dev/valid-attachments": []})
            assert code == 5
            assert "2 of 2" in said
            assert said.count("Input/output error") == 2

    async def test_spares_an_add_under_way(self, tmp_path: Path) -> None:
        async with plugin(tmp_path, "10.0.0.5") as cni:
            go_on = cni.desk.plane.hold("attach")
            add = asyncio.get_running_loop().create_task(cni.ok(Command.ADD))
            await asyncio.to_thread(cni.desk.plane.reached["attach"].wait, 5)
            await cni.ok(Command.GC, conf={"cni.dev/valid-attachments": []})
            go_on.set()
            assert (await add)["ips"][0]["address"] == "10.0.0.5/32"


class TestStatus:
    async def test_a_good_answer_is_no_news(self, tmp_path: Path) -> None:
        """It is asked every five seconds."""
        async with plugin(tmp_path, "10.0.0.5") as cni:
            with capture_logs() as logs:
                await cni.ok(Command.STATUS)
                cni.unfit = "no disk"
                await cni.refused(Command.STATUS)
                await asyncio.sleep(0)
            assert [line["log_level"] for line in logs] == ["debug", "warning"]

    async def test_says_why_no_pod_can_be_added(self, tmp_path: Path) -> None:
        async with plugin(tmp_path) as cni:
            cni.unfit = "no address for pods is known: SubnetFull"
            assert await cni.refused(Command.STATUS) == (
                50,
                "no pod can be added: no address for pods is known: SubnetFull",
            )

    async def test_says_what_running_pods_lack(self, tmp_path: Path) -> None:
        """CNI spec section "Error": 51 when pods that run are concerned as well."""
        async with plugin(tmp_path) as cni:
            cni.limited = "cannot put right the ruleset: nft is not installed"
            said = "the pods of this node are not fully connected: cannot put right the ruleset: nft is not installed"
            assert await cni.refused(Command.STATUS) == (51, said)
            cni.unfit = "no address for pods is known"
            assert await cni.refused(Command.STATUS) == (51, f"{said}; no address for pods is known")

    def test_a_failure_counts_once_it_lasts(self) -> None:
        now, said = [0.0], ["nft failed"]
        lasting = Lasting(lambda: said[0], lambda: now[0])
        expected = [(0.0, "nft failed", ""), (9.9, "nft hung", ""), (10.0, "nft hung", "nft hung"), (11.0, "", "")]
        expected += [(12.0, "nft failed", ""), (21.9, "nft failed", ""), (22.0, "nft failed", "nft failed")]
        for now[0], said[0], counts in expected:
            assert lasting() == counts, now

    async def test_is_fine_otherwise(self, tmp_path: Path) -> None:
        async with plugin(tmp_path) as cni:
            assert await cni.ok(Command.STATUS, env={"CNI_CONTAINERID": None, "CNI_IFNAME": None}) is None
