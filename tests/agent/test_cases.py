"""Faults that users of other CNIs reported, on the whole agent: process, shim, ledger and kernel. Named as they were
reported.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import sqlite3
import subprocess
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.agent import truths
from tests.agent.machine import NIC_MAC, PRIMARY, Machine, machine, named, until
from tests.agent.mounts import small_disk
from tests.agent.test_ledger_disk import fill, remount
from vnetpods_api import Condition, Interface, Status, Usage

ADDRESSES = [f"10.240.0.{number}" for number in range(5, 35)]
POD = "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID="


async def add_many(node: Machine, names: list[str]) -> dict[str, str]:
    addresses = await asyncio.gather(*(node.add(name, node.sandbox(f"p-{name}")) for name in names))
    return dict(zip(names, addresses, strict=True))


@pytest.mark.parametrize("netns", ["", None], ids=["empty", "absent"])
async def test_aws_1939_del_without_namespace(tmp_path: Path, netns: str | None) -> None:
    """C03: the sandbox died, the runtime has no namespace to name; the address leaked."""
    async with machine(tmp_path) as node:
        node.pool(["10.240.0.5"])
        await node.start()
        sandbox = node.sandbox()
        await node.add("c1", sandbox)
        node.end_sandbox(sandbox)
        await node.delete("c1", netns)
        await until(lambda: truths.read(node) == truths.Truths({}, {}, frozenset()))
        assert await node.add("c2", node.sandbox()) == "10.240.0.5"


async def test_calico_10375_late_del_of_an_older_sandbox(tmp_path: Path) -> None:
    """C05: web-0 comes back under the same name before the old one's DEL; the new one must not feel it."""
    async with machine(tmp_path) as node:
        node.pool(ADDRESSES)
        await node.start()
        old, new = node.sandbox(), node.sandbox()
        await node.add("a", old, args=POD + "1")
        address = await node.add("b", new, args=POD + "2")
        await node.delete("a", old, args=POD + "1")
        assert node.addresses_of(new) == [address]
        assert node.routes() == {address}
        await until(lambda: truths.read(node).agreed)
        assert truths.read(node).ledger == {"b/eth0": address}


async def test_aws_2350_full_node_without_agent(tmp_path: Path) -> None:
    """C08: 110 DELs while no agent runs all succeed, are done when it starts, and then addresses given out."""
    names = [f"c{number}" for number in range(110)]
    addresses = [f"10.240.1.{number}" for number in range(110)]
    async with machine(tmp_path, cooldown=3) as node:
        node.pool(addresses)
        await node.start()
        await add_many(node, names)
        await node.kill()
        for batch in range(0, 110, 10):
            await asyncio.gather(*(node.delete(name) for name in names[batch : batch + 10]))
        for name in names[:5]:  # gone from the API with grace period 0
            node.end_sandbox(f"/run/netns/p-{name}")
        await node.start()
        address = await node.add("new", node.sandbox())  # waits until all of them are done
        assert truths.read(node).ledger == {"new/eth0": address}
        assert node.routes() == {address}
        assert not list((node.state / "spool").glob("*.req"))
        # by a DEL from the spool, or by the sweep that found the sandbox gone
        freed = [*node.events("call"), *node.events("sandbox is gone without a DEL")]
        (since,) = (at(event) for event in freed if event.get("address") == address and event.get("verb") != "ADD")
        (got,) = (at(event) for event in node.events("call") if event["container"] == "new")
        assert got - since >= timedelta(seconds=3)  # it had to cool down first


def at(event: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(event["timestamp"])


async def test_aws_2321_state_of_another_version(tmp_path: Path) -> None:
    """C10: pods that a newer version made are deleted by an older one, and the reverse."""
    async with machine(tmp_path) as node:
        node.pool(ADDRESSES)
        await node.start()
        await add_many(node, ["c1", "c2"])
        await node.stop()
        with contextlib.closing(sqlite3.connect(node.state / "ledger.db")) as ledger, ledger:
            ledger.execute("ALTER TABLE attachment ADD COLUMN vlan INTEGER NOT NULL DEFAULT 0")
            ledger.execute("UPDATE meta SET value = '2' WHERE name = 'format'")
        await node.start()
        result = {"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "vlanID": "x"}], "ips": "malformed"}
        await node.delete("c1", "/run/netns/p-c1", conf={"prevResult": result, "later": {"key": 1}})
        assert set(truths.read(node).ledger) == {"c2/eth0"}
        assert len(node.events("call")) == 3


def full_subnet() -> Status:
    nic = Interface(name="nic", mac=NIC_MAC, subnet="pods", primary_address=PRIMARY)
    said = "the subnet pods (10.240.0.0/24) has no address left"
    since = "2026-01-01T00:00:00Z"
    full = Condition(type="Ready", status="False", reason="SubnetFull", message=said, last_transition_time=since)
    return Status(interfaces=(nic,), conditions=(full,))


async def test_aws_1923_a_node_without_any_address_is_not_ready(tmp_path: Path) -> None:
    """C14: the node counted as Ready although not one address could be had."""
    async with machine(tmp_path) as node:
        (tmp_path / "pool.yaml").write_bytes(msgspec.json.encode(full_subnet()))
        await node.start()
        conflist = tmp_path / "net.d" / "05-vnetpods.conflist"
        await until(lambda: node.report().usage)
        outcome = await node.call("STATUS", "")
        assert outcome.code == 50
        assert "SubnetFull: the subnet pods (10.240.0.0/24) has no address left" in outcome.json["details"]
        assert not conflist.exists()
        node.pool(["10.240.0.5"])
        await until(conflist.exists)
        assert (await node.call("STATUS", "")).exit_code == 0
        assert [plugin["type"] for plugin in json.loads(conflist.read_text())["plugins"]] == ["vnetpods"]


def _empty(ledger: Path) -> None:
    ledger.write_bytes(b"")


def _nuls(ledger: Path) -> None:
    ledger.write_bytes(bytes(4096))


def _cut(ledger: Path) -> None:
    content = ledger.read_bytes()
    ledger.write_bytes(content[: len(content) // 2])


def _lost(ledger: Path) -> None:
    ledger.unlink()


def _all_lost(ledger: Path) -> None:
    for file in (ledger, ledger.with_name("pool.json")):
        file.unlink()


@pytest.mark.parametrize("damage", [_empty, _nuls, _cut, _lost, _all_lost], ids=lambda d: d.__name__.strip("_"))
async def test_acn_763_state_that_cannot_be_read(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """C16: every ADD and DEL failed from then on. Here the pods' interfaces say who holds what."""
    async with machine(tmp_path) as node:
        node.pool(ADDRESSES[:6])
        await node.start()
        held = await add_many(node, ["c1", "c2", "c3"])
        named = await node.call("ADD", "c4", node.sandbox("p-c4"), args=POD + "1")
        held["c4"] = named.json["ips"][0]["address"].removesuffix("/32")
        await node.stop()
        damage(node.state / "ledger.db")
        await node.start()
        assert truths.read(node).ledger == {f"{name}/eth0": address for name, address in held.items()}
        rebuilt = [event for event in node.events("event reported") if event["reason"] == "LedgerRebuilt"]
        assert len(rebuilt) == 1
        checked = await node.call("CHECK", "c4", "/run/netns/p-c4", args=POD + "1", conf={"prevResult": named.json})
        assert checked.exit_code == 0, checked
        await node.delete("c1", "/run/netns/p-c1")
        assert await node.add("c2", "/run/netns/p-c2") == held["c2"]
        new = await add_many(node, ["d1", "d2"])
        assert not set(new.values()) & {held[name] for name in ("c2", "c3", "c4")}
        await until(lambda: truths.read(node).agreed)


async def test_acn_763_a_disk_that_is_full(tmp_path: Path) -> None:
    """C16: ADDs fail with the reason and the node says so; DELs succeed; all is well again when there is room."""
    with small_disk(tmp_path / "state", kilobytes=512) as disk:
        async with machine(tmp_path, sweepInterval=0.5) as node:
            node.pool(ADDRESSES[:4])
            await node.start()
            held = await add_many(node, ["c1", "c2"])
            ballast = fill(disk)
            outcomes = [await node.call("ADD", f"d{number}", node.sandbox(f"p-d{number}")) for number in range(2)]
            assert {outcome.code for outcome in outcomes} == {11}
            assert "is the disk full" in outcomes[0].json["msg"]
            assert (await node.call("STATUS", "")).code == 50
            await node.delete("c1", "/run/netns/p-c1")
            assert node.routes() == {held["c2"]}
            assert [event["reason"] for event in node.events("event reported")] == ["LedgerUnavailable"]
            ballast.unlink()
            await until(lambda: truths.read(node).ledger == {"c2/eth0": held["c2"]})
            assert (await node.call("STATUS", "")).exit_code == 0
            again = [await node.add(f"d{number}", f"/run/netns/p-d{number}") for number in range(2)]
            assert len({*again, held["c2"]}) == 3


async def test_acn_763_a_disk_that_is_read_only(tmp_path: Path) -> None:
    """C16: from the start; pods are known by their interfaces, and can be deleted."""
    with small_disk(tmp_path / "state", kilobytes=2048) as disk:
        async with machine(tmp_path) as node:
            node.pool(ADDRESSES[:4])
            await node.start()
            held = await add_many(node, ["c1", "c2"])
            await node.stop()
            remount(disk, "ro")
            await node.start()
            assert (await node.call("STATUS", "")).code == 50
            assert (await node.call("ADD", "d1", node.sandbox())).code == 11
            await node.delete("c1", "/run/netns/p-c1")
            assert node.routes() == {held["c2"]}
            remount(disk, "rw")
            await until(lambda: truths.read(node).ledger == {"c2/eth0": held["c2"]})
            assert await node.add("d2", node.sandbox()) != held["c2"]


async def test_acn_763_a_disk_that_is_read_only_forgets_nothing(tmp_path: Path) -> None:
    """C16: what the ledger held when it couldn't be read (cool-downs, promises, pods' names) is in force, and in the
    file, as soon as it can.
    """
    with small_disk(tmp_path / "state", kilobytes=2048) as disk:
        async with machine(tmp_path, cooldown=60) as node:
            node.pool(ADDRESSES[:4], releasing=ADDRESSES[2:3])
            await node.start()
            await node.add("c1", node.sandbox("p-c1"), args=POD + "1")
            await node.add("c2", node.sandbox("p-c2"), args=POD + "2")
            await node.delete("c1", "/run/netns/p-c1")
            await until(lambda: node.report().released == (ADDRESSES[2],))
            before = all_rows(node.state / "ledger.db")
            await node.stop()
            conflist = tmp_path / "net.d" / "05-vnetpods.conflist"
            conflist.unlink()
            remount(disk, "ro")
            # a promise of which the operator knows, and the ledger doesn't (any more)
            node.pool(ADDRESSES[:4], releasing=ADDRESSES[2:4], released=ADDRESSES[3:4])
            await node.start()
            assert (await node.call("ADD", "d1", node.sandbox())).code == 11
            remount(disk, "rw")
            await until(conflist.exists)
            assert (await node.call("STATUS", "")).exit_code == 0
            await until(lambda: node.report().usage == Usage(assigned=1, cooling=1))
            assert node.report().released == tuple(ADDRESSES[2:4])
            promised = [(unit, named(unit)) for unit in ADDRESSES[2:4]]
            await until(lambda: all_rows(node.state / "ledger.db") == [*before[:2], promised])
            assert [event["reason"] for event in node.events("event reported")] == ["LedgerUnavailable"]


def all_rows(ledger: Path) -> list[list[Any]]:
    with contextlib.closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as connection:
        return [
            connection.execute(f"SELECT * FROM {table}").fetchall() for table in ("attachment", "rest", "withdrawn")
        ]


async def test_acn_2022_withdrawn_stays_withdrawn(tmp_path: Path) -> None:
    """C18: marked for release, then a restart: the address came back as available and went to a pod."""
    async with machine(tmp_path) as node:
        node.pool(["10.240.0.5", "10.240.0.6"], releasing=["10.240.0.5"])
        await node.start()
        await until(lambda: node.report().released == ("10.240.0.5",))
        await node.kill()
        node.reboot()
        (tmp_path / "pool.yaml").rename(tmp_path / "pool.away")  # the API server is away, too
        await node.start()
        assert await node.add("c1", node.sandbox()) == "10.240.0.6"
        waiting = asyncio.create_task(node.call("ADD", "c2", node.sandbox()))
        await until(lambda: len(node.pods) == 2)
        await asyncio.sleep(1)
        assert not waiting.done()
        # cancelled, too late: what is promised stays promised
        node.pool(["10.240.0.5", "10.240.0.6"], released=["10.240.0.5"])
        await until(lambda: (said := node.report()).usage == Usage(assigned=1, waiting=1) and said.released)
        assert not waiting.done()
        # another ipConfiguration with the same address
        node.pool(["10.240.0.5", "10.240.0.6"], names={"10.240.0.5": "vnetpods-another"})
        outcome = await waiting
        assert outcome.json["ips"][0]["address"] == "10.240.0.5/32"
        await until(lambda: node.report().released == ())


async def test_acn_2022_a_lost_ledger_remembers_by_the_pool(tmp_path: Path) -> None:
    """The same when the ledger is lost: what the pool says this node has released is out of use."""
    async with machine(tmp_path) as node:
        node.pool(["10.240.0.5", "10.240.0.6"], releasing=["10.240.0.5"], released=["10.240.0.5"])
        await node.start()
        assert await node.add("c1", node.sandbox()) == "10.240.0.6"
        await until(lambda: node.report().released == ("10.240.0.5",))


async def test_acn_1259_restart_without_api_server(tmp_path: Path) -> None:
    """C19: after a restart of the agent several pods had one address."""
    async with machine(tmp_path) as node:
        node.pool(ADDRESSES)
        await node.start()
        held = await add_many(node, [f"c{number}" for number in range(20)])
        await node.kill()
        (tmp_path / "pool.yaml").unlink()
        await node.start()
        new = await add_many(node, [f"d{number}" for number in range(5)])
        assert len({*held.values(), *new.values()}) == 25
        await until(lambda: truths.read(node).agreed)


async def test_spiderpool_1747_names_of_any_length(tmp_path: Path) -> None:
    """C54: a pod of 253 and a namespace of 63 characters never got an address."""
    name = ".".join(["n" * 62] * 4)
    async with machine(tmp_path, node="w" * 63 + ("." + "x" * 62) * 3) as node:
        node.pool(ADDRESSES)
        await node.start()
        args = f"Unknown=1;;K8S_POD_NAMESPACE={'s' * 63};K8S_POD_NAME={name};Odd=a=b"
        netns = node.sandbox()
        address = await node.add("f" * 64, netns, args=args)
        assert node.addresses_of(netns) == [address]
        bad = await node.call("ADD", "c2", node.sandbox(), args="K8S_POD_NAMESPACE=a;K8S_POD_NAME=\udcff")
        assert (bad.code, "CNI_ARGS" in bad.json["msg"]) == (4, True)
        await node.delete("f" * 64, netns, args=args)
        assert node.routes() == set()


async def test_what_can_not_be_made_costs_no_address(tmp_path: Path) -> None:
    """Not even for the time of a cool-down: somebody else's interface on the host, a container id that is too long
    to be told.
    """
    async with machine(tmp_path, cooldown=3600) as node:
        node.pool(["10.240.0.5"])
        await node.start()
        netns = node.sandbox()
        foreign(node, hashlib.sha1(b"default.web-0", usedforsecurity=False).hexdigest()[:11])
        for container, args in (("c1", POD + "1"), ("c" * 230, "")):
            assert (await node.call("ADD", container, netns, args=args)).code == 5
        assert await node.add("c2", netns) == "10.240.0.5"


def foreign(node: Machine, name: str) -> None:
    subprocess.run(["ip", "-n", node.name, "link", "add", f"azv{name}", "type", "bridge"], check=True)


async def test_a_reboot_voids_what_was(tmp_path: Path) -> None:
    async with machine(tmp_path, cooldown=0) as node:
        node.pool(ADDRESSES[:2])
        await node.start()
        await add_many(node, ["c1", "c2"])
        await node.kill()
        node.reboot()
        await node.start()
        assert truths.read(node).ledger == {}
        assert set((await add_many(node, ["c1", "c2"])).values()) == set(ADDRESSES[:2])


async def test_an_address_that_vanishes_under_a_pod_is_reported_and_kept(tmp_path: Path) -> None:
    async with machine(tmp_path) as node:
        node.pool(["10.240.0.5", "10.240.0.6"])
        await node.start()
        netns = node.sandbox()
        assert await node.add("c1", netns) == "10.240.0.5"
        node.pool(["10.240.0.6"])
        await until(lambda: node.report().missing == ("10.240.0.5",))
        assert node.addresses_of(netns) == ["10.240.0.5"]
        assert node.routes() == {"10.240.0.5"}
        assert [event["reason"] for event in node.events("event reported")] == ["AddressMissing"]
        node.pool(["10.240.0.5", "10.240.0.6"])
        await until(lambda: node.report().missing == ())


def cloud_init(node: Machine, does: str) -> None:
    address(node, does, "10.240.0.5/16", "eth0")


def address(node: Machine, does: str, address: str, link: str) -> None:
    subprocess.run(["ip", "-n", node.name, "addr", does, address, "dev", link], check=True)


async def test_cilium_13415_an_address_that_the_host_keeps_is_left_out(tmp_path: Path) -> None:
    """C43, with removal switched off: cloud-init has put a pool address on eth0."""
    async with machine(tmp_path, takeFromHost=False) as node:
        cloud_init(node, "add")
        node.pool(["10.240.0.5", "10.240.0.6"])
        await node.start()
        await until(lambda: [event for event in node.events("event reported") if event["reason"] == "AddressOnHost"])
        await asyncio.sleep(0.5)
        assert await node.add("c1", node.sandbox()) == "10.240.0.6"
        waiting = asyncio.create_task(node.add("c2", node.sandbox()))
        await asyncio.sleep(0.5)
        assert not waiting.done()
        cloud_init(node, "del")
        assert await waiting == "10.240.0.5"


@pytest.mark.parametrize("known", [False, True], ids=["first-heard", "last-known"])
async def test_cilium_13415_also_when_a_pod_waits_for_it(tmp_path: Path, known: bool) -> None:
    """C43: the host's addresses are known before the first of a new pool is given out, be it from the source or from
    the disk.
    """
    async with machine(tmp_path, takeFromHost=False) as node:
        if known:
            node.pool(["10.240.0.5", "10.240.0.6"])
            await node.start()
            await until((node.state / "pool.json").exists)
            await node.kill()
            (tmp_path / "pool.yaml").unlink()
        waiting = asyncio.create_task(node.add("c1", node.sandbox()))  # its shim looks for an agent
        cloud_init(node, "add")
        await node.start()
        if not known:
            await asyncio.sleep(0.5)
            node.pool(["10.240.0.5", "10.240.0.6"])
        assert await waiting == "10.240.0.6"


async def test_cilium_13415_an_address_is_taken_from_the_host_before_a_pod_gets_it(tmp_path: Path) -> None:
    """However much else there is to look at."""
    async with machine(tmp_path) as node:
        node.pool(["10.240.0.6"])
        await node.start()
        await node.add("c1", node.sandbox())
        waiting = asyncio.create_task(node.add("c2", node.sandbox()))
        cloud_init(node, "add")
        node.pool(["10.240.0.5", "10.240.0.6"])
        for does in itertools.cycle(["add", "del"]):
            address(node, does, "10.99.0.1/32", "lo")
            given = node.routes()
            assert not given & set(node.addresses_of(node.name)), "a pod's and the host's"
            if waiting.done():
                break
            await asyncio.sleep(0.01)
        assert await waiting == "10.240.0.5"
        assert node.addresses_of(node.name) == [PRIMARY]
