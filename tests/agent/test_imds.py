"""The agent as a process on a machine whose addresses come from instance metadata, which answers as Azure's does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.agent import truths
from tests.agent.machine import NIC_MAC, PRIMARY, Machine, listening_in, machine, until
from tests.agent.test_process import fetch
from tests.azure.fabric.services import NEEDS_HEADER

ADDRESS = "169.254.169.254"
SECOND_MAC = "00:0d:3a:1b:c7:22"
FIVE, SIX, SEVEN, EIGHT = "10.240.0.5", "10.240.0.6", "10.240.0.7", "10.240.0.8"


def nic(*addresses: str, mac: str = NIC_MAC, primary: str = PRIMARY) -> dict[str, Any]:
    listed = [{"privateIpAddress": text, "publicIpAddress": ""} for text in (primary, *addresses)]
    return {
        "ipv4": {"ipAddress": listed, "subnet": [{"address": "10.240.0.0", "prefix": "16"}]},
        "ipv6": {"ipAddress": []},
        "macAddress": mac.replace(":", "").upper(),
    }


class Metadata:
    """What it lists, and how it fails; `once` is answered first, one after the other. `asked` are the moments."""

    def __init__(self) -> None:
        self.nics = [nic()]
        self.once: list[list[dict[str, Any]]] = []
        self.fault: web.Response | None = None
        self.hangs = False
        self.asked: list[float] = []
        self._released = asyncio.Event()
        self._runner: web.AppRunner | None = None

    def lists(self, *addresses: str) -> None:
        self.nics = [nic(*addresses)]

    def heal(self) -> None:
        self.fault, self.hangs = None, False
        self._released.set()

    async def start(self, node: Machine) -> None:
        """On the other side of the machine's link, as the way out is."""
        out = f"{node.name}-out"
        for address in (f"{ADDRESS}/32", "10.240.0.1/16"):
            ip(f"-n {out} addr add {address} dev nic0")
        ip(f"-n {node.name} route add default via 10.240.0.1 dev eth0")
        application = web.Application()
        application.router.add_get("/metadata/instance/network", self._serve)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.SockSite(self._runner, listening_in(out, 80, ADDRESS)).start()

    async def stop(self) -> None:
        self._released.set()
        if self._runner is not None:
            await self._runner.cleanup()

    async def several(self, count: int = 3) -> None:
        """Until it has been asked so many times more, and has answered all of them but the last for certain."""
        enough = len(self.asked) + count
        await until(lambda: len(self.asked) >= enough)

    async def _serve(self, http: web.Request) -> web.Response:
        self.asked.append(time.monotonic())
        if http.headers.get("Metadata") != "true" or http.query.get("api-version") != "2021-02-01":
            return web.json_response(NEEDS_HEADER, status=400)
        if self.hangs:
            await self._released.wait()
        if self.fault is not None:
            return web.Response(status=self.fault.status, body=self.fault.body, headers=self.fault.headers)
        return web.json_response({"interface": self.once.pop(0) if self.once else self.nics})


def ip(arguments: str) -> str:
    return subprocess.run(["ip", *arguments.split()], check=True, capture_output=True, text=True).stdout


@contextlib.asynccontextmanager
async def vm(
    folder: Path, *addresses: str, interval: float = 1, **settings: Any
) -> AsyncIterator[tuple[Machine, Metadata]]:
    """Its agent isn't started yet."""
    metadata = Metadata()
    metadata.lists(*addresses)
    async with machine(folder, source={"imds": {"interval": interval}}, **settings) as node:
        await metadata.start(node)
        try:
            yield node, metadata
        finally:
            await metadata.stop()


def said(node: Machine, reason: str) -> list[str]:
    return [event["message"] for event in node.events("event reported") if event["reason"] == reason]


def fetched(node: Machine, name: str) -> float:
    text = fetch(node, "/metrics")
    return float(next(line for line in text.splitlines() if line.startswith(f"vnetpods_agent_{name}")).split()[-1])


async def gauge(node: Machine, name: str) -> float:
    return await asyncio.to_thread(fetched, node, name)


def led(node: Machine) -> tuple[str, str]:
    """How packets find their NIC."""
    return ip(f"-n {node.name} rule show"), ip(f"-n {node.name} route show table all proto 118")


async def heard(node: Machine, count: float) -> None:
    """Until the pool lists so many addresses."""
    await until(lambda: fetched(node, "listed") == count)


async def test_the_vms_secondary_addresses_are_its_pods(tmp_path: Path) -> None:
    """Nobody confirms them, no proxy is asked, and what cloud-init has put on eth0 is taken from there."""
    async with vm(tmp_path, FIVE, SIX, "10.240.1.0/28") as (node, _):
        for address in (FIVE, SIX):
            ip(f"-n {node.name} addr add {address}/16 dev eth0")
        node.environment = dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy"), "http://127.0.0.1:9")
        await node.start()
        await until(lambda: node.addresses_of(node.name) == [PRIMARY])
        assert [await node.add(f"c{n}", node.sandbox()) for n in range(3)] == [FIVE, SIX, "10.240.1.0"]
        assert said(node, "AddressTakenFromHost")
        assert await gauge(node, "listed") == 18
        assert truths.read(node).agreed
        assert (tmp_path / "net.d" / "05-vnetpods.conflist").exists()
        assert not said(node, "ListUnconfirmed")


async def test_it_is_asked_at_once_when_pods_wait_and_at_most_once_a_second(tmp_path: Path) -> None:
    """However many wait; and the error says what there is to do."""
    async with vm(tmp_path, FIVE, interval=3600) as (node, metadata):
        await node.start()
        assert await node.add("c0", node.sandbox()) == FIVE
        assert len(metadata.asked) == 1
        waiting = [asyncio.create_task(node.add(f"c{n}", node.sandbox())) for n in (1, 2, 3)]
        await metadata.several(4)
        metadata.lists(FIVE, SIX, SEVEN, EIGHT)
        assert sorted(await asyncio.gather(*waiting)) == [SIX, SEVEN, EIGHT]
        gaps = len(metadata.asked) - 1
        assert metadata.asked[-1] - metadata.asked[0] > gaps - 0.5, "more than one request a second"


async def test_no_address_left_is_said_in_words_that_help(tmp_path: Path) -> None:
    async with vm(tmp_path) as (node, metadata):
        await node.start()
        await metadata.several()
        outcome = await node.call("STATUS", "", None)
        assert outcome.json["code"] == 50
        assert "instance metadata lists 0 secondary addresses of this VM" in outcome.stdout.decode()
        assert "az network nic ip-config create" in outcome.stdout.decode()
        assert "operator" not in outcome.stdout.decode()


COMPLAINT = "instance metadata is of no use now; going on with what is known"


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("hangs", "words"), [(False, "answers 429"), (True, "does not answer within")])
async def test_a_fault_is_said_once_and_survived(tmp_path: Path, hangs: bool, words: str) -> None:
    """Pods get what is known meanwhile, at once; who waits changes nothing about the pauses."""
    async with vm(tmp_path, FIVE, SIX) as (node, metadata):
        await node.start()
        await heard(node, 2)
        metadata.fault, metadata.hangs = web.Response(status=429), hangs
        await metadata.several(1)
        began = metadata.asked[-1]
        assert await node.add("c1", node.sandbox()) == FIVE
        assert await node.add("c2", node.sandbox()) == SIX
        waiting = asyncio.create_task(node.add("c3", node.sandbox()))
        await metadata.several(2)
        assert metadata.asked[-1] - began > 1 + 2 - 0.5, "no growing pauses"
        complaints = [event["error"] for event in node.events(COMPLAINT)]
        assert len(complaints) == 1
        assert words in complaints[0]
        assert await gauge(node, "source_unavailable") == 1
        assert truths.read(node).agreed
        metadata.lists(FIVE, SIX, SEVEN)
        metadata.heal()
        assert await waiting == SEVEN
        assert await gauge(node, "source_unavailable") == 0


@pytest.mark.timeout(120)
async def test_whatever_is_no_answer_is_named_and_changes_nothing(tmp_path: Path) -> None:
    unusable = "gives an answer that can't be used"
    faults = [
        (web.Response(status=404, text="no such machine"), "answers 404"),
        (web.Response(status=503), "answers 503"),
        (web.Response(status=302, headers={"Location": "http://127.0.0.1:9/"}), "answers 302"),
        (web.Response(text="<html>"), unusable),
        (web.Response(text="[" * 100_000), unusable),
        (web.json_response({"interface": 3}), "it has no list `interface`"),
        (web.json_response({"interface": []}), "it lists no interface"),
    ]
    async with vm(tmp_path, FIVE) as (node, metadata):
        await node.start()
        assert await node.add("c1", node.sandbox()) == FIVE
        for number, (fault, words) in enumerate(faults, start=1):
            metadata.fault = fault
            await until(lambda: len(node.events(COMPLAINT)) == number)  # noqa: B023 - within this round
            assert words in node.events(COMPLAINT)[-1]["error"]
            assert (await gauge(node, "listed"), await gauge(node, "missing")) == (1, 0)
            metadata.heal()
            await until(lambda: len(node.events("instance metadata answers")) == number + 1)  # noqa: B023
        assert node.routes() == {FIVE}


async def test_it_waits_as_long_as_it_is_told_to(tmp_path: Path) -> None:
    async with vm(tmp_path) as (node, metadata):
        metadata.fault = web.Response(status=429, headers={"Retry-After": "4"})
        await node.start()
        await metadata.several(2)
        assert metadata.asked[1] - metadata.asked[0] > 3.5


async def test_absence_takes_nothing_from_a_pod_and_gives_nothing_to_another(tmp_path: Path) -> None:
    async with vm(tmp_path, FIVE, SIX) as (node, metadata):
        await node.start()
        netns = node.sandbox()
        assert await node.add("c1", netns) == FIVE
        metadata.lists(SEVEN)
        await until(lambda: said(node, "AddressMissing"))
        assert said(node, "AddressMissing")[0].startswith(f"{FIVE} is no longer on the NIC")
        assert await gauge(node, "missing") == 1
        assert await node.add("c2", node.sandbox()) == SEVEN
        waiting = asyncio.create_task(node.add("c3", node.sandbox()))
        await metadata.several()
        assert not waiting.done()
        assert (node.addresses_of(netns), node.routes()) == ([FIVE], {FIVE, SEVEN})
        assert (await node.call("CHECK", "c1", netns, conf={"prevResult": _result(netns, FIVE)})).exit_code != 100
        metadata.lists(FIVE, SIX, SEVEN)
        assert await waiting == SIX
        assert await gauge(node, "missing") == 0
        assert truths.read(node).agreed


def _result(netns: str, address: str) -> dict[str, Any]:
    return {"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": netns}], "ips": [{"address": address}]}


async def test_an_address_that_is_absent_and_free_is_no_new_pods_at_once(tmp_path: Path) -> None:
    """From the first answer that lacks it on, not only from the one that confirms it."""
    async with vm(tmp_path, FIVE, interval=3600) as (node, metadata):
        metadata.once = [[nic(FIVE, SIX)]]
        await node.start()
        assert await node.add("c1", node.sandbox()) == FIVE
        assert await node.add("c2", node.sandbox()) == SIX
        waiting = asyncio.create_task(node.add("c3", node.sandbox()))
        await metadata.several(1)
        await until(lambda: len(node.events("instance metadata lists")) == 2)
        await node.delete("c2")
        asked = len(metadata.asked)
        await until(lambda: waiting.done() or len(metadata.asked) > asked + 2)
        assert not waiting.done()
        waiting.cancel()


async def test_an_older_answer_does_not_matter(tmp_path: Path) -> None:
    """It lacks what a pod holds and lists what has left the NIC since; nobody is told, and no pod gets that."""
    async with vm(tmp_path, FIVE) as (node, metadata):
        await node.start()
        netns = node.sandbox()
        assert await node.add("c1", netns) == FIVE
        waiting = asyncio.create_task(node.add("c2", node.sandbox()))
        for _ in range(2):
            metadata.once = [[nic(SIX)]]
            await until(lambda: not metadata.once)
            await metadata.several(2)
        assert len(node.events("instance metadata lists")) >= 3  # it was heard
        assert not waiting.done()
        assert not said(node, "AddressMissing")
        assert node.routes() == {FIVE}
        waiting.cancel()


async def test_a_nic_that_is_plugged_in_later_and_one_that_is_not_named(tmp_path: Path) -> None:
    """Metadata may list it before the kernel has it. While it is left out, its pods' traffic still goes by it."""
    second = nic(EIGHT, mac=SECOND_MAC, primary="10.240.0.9")
    async with vm(tmp_path, FIVE) as (node, metadata):
        await node.start()
        assert await node.add("c1", node.sandbox()) == FIVE
        metadata.nics = [nic(FIVE), second]
        await heard(node, 2)
        waiting = asyncio.create_task(node.add("c2", node.sandbox()))
        await metadata.several()
        assert not waiting.done()
        ip(f"-n {node.name} link add eth1 address {SECOND_MAC} type veth peer name nic1 netns {node.name}-out")
        ip(f"-n {node.name}-out link set nic1 up")
        ip(f"-n {node.name} addr add 10.240.0.9/16 dev eth1")
        ip(f"-n {node.name} link set eth1 up")
        assert await waiting == EIGHT
        await until(lambda: "eth1" in ip(f"-n {node.name} route show table all proto 118"))
        before = led(node)
        metadata.lists(FIVE)
        await until(lambda: said(node, "AddressMissing"))
        await metadata.several()
        assert led(node) == before
        await node.delete("c2")
        later = asyncio.create_task(node.add("c3", node.sandbox()))
        await metadata.several()
        assert not later.done()
        metadata.nics = [nic(FIVE), second]
        assert await later == EIGHT


async def test_an_agent_that_is_restarted_serves_while_metadata_is_silent(tmp_path: Path) -> None:
    async with vm(tmp_path, FIVE, SIX) as (node, metadata):
        await node.start()
        assert await node.add("c1", node.sandbox()) == FIVE
        await until((node.state / "pool.json").exists)
        await node.kill()
        metadata.fault = web.Response(status=500)
        await node.start()
        assert await node.add("c2", node.sandbox()) == SIX


@pytest.mark.parametrize("how", ["deallocated", "put-back"])
async def test_what_an_earlier_boot_or_an_older_disk_knew_waits_for_metadata(tmp_path: Path, how: str) -> None:
    """FIVE left the NIC meanwhile. Nobody waits for a confirmation: the first answer counts."""
    async with vm(tmp_path, FIVE, SIX) as (node, metadata):
        await node.start()
        await until((node.state / "pool.json").exists)
        await node.stop()
        if how == "deallocated":
            node.reboot()
            await metadata.stop()
            await metadata.start(node)
        else:
            shutil.copytree(node.state, tmp_path / "copy")
            metadata.lists(SIX)
            await node.start()
            await heard(node, 1)
            await node.stop()
            shutil.rmtree(node.state)
            (tmp_path / "copy").rename(node.state)
        metadata.lists(SIX)
        metadata.fault = web.Response(status=500)
        await node.start()
        waiting = asyncio.create_task(node.add("c1", node.sandbox()))
        await metadata.several(1)
        assert not waiting.done()
        metadata.fault = None
        assert await waiting == SIX
        assert not said(node, "ListUnconfirmed")


async def test_a_copy_of_another_vms_disk_gives_out_its_own_addresses(tmp_path: Path) -> None:
    """Also within what looks like the same boot."""
    async with vm(tmp_path, FIVE) as (node, metadata):
        await node.start()
        await until((node.state / "pool.json").exists)
        await node.stop()
        ip(f"-n {node.name} link set eth0 address {SECOND_MAC}")
        metadata.nics = [nic(SEVEN, mac=SECOND_MAC)]
        metadata.fault = web.Response(status=500)
        await node.start()
        waiting = asyncio.create_task(node.add("c1", node.sandbox()))
        await metadata.several(1)
        assert not waiting.done()
        metadata.fault = None
        assert await waiting == SEVEN
        assert json.loads((node.state / "pool.json").read_text())["interfaces"][0]["mac"] == SECOND_MAC


def test_what_serves_an_add_knows_no_http_client() -> None:
    program = "import sys, vnetpods_agent.cni.server, vnetpods_agent.cni.commands; sys.exit('aiohttp' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
