"""`vnetpods-operator nic`, as a process, with the real SDK, against the ARM emulator."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.azure.arm.builder import Builder
from tests.azure.arm.server import Emulator
from tests.zygote import Fork, zygote

VM_READ = "Microsoft.Compute/virtualMachines/read"
NIC_READ = "Microsoft.Network/networkInterfaces/read"
NIC_WRITE = "Microsoft.Network/networkInterfaces/write"
INSTANCE_WRITE = "Microsoft.Compute/virtualMachineScaleSets/virtualMachines/write"
SDK = tuple(f"azure.mgmt.{service}.{part}" for service in ("network", "compute") for part in ("aio", "models"))
CONFIGURATION = {"name", "address"}
CARD = {
    *("name", "id", "subnet", "subnetLeft", "others", "before", "add", "blocks", "remove", "after", "rewrite"),
    "addresses",
}


@dataclass(frozen=True)
class Ended:
    """How a run of the command ended."""

    code: int
    out: str
    told: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def nic(self) -> Any:
        (card,) = self.json["nics"]
        return card


@dataclass
class Desk:
    """Where a person sits who runs the command."""

    azure: Emulator
    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    started: list[Fork] = field(default_factory=list)

    @property
    def build(self) -> Builder:
        return self.azure.build

    async def start(self, *arguments: str, environment: Mapping[str, str] | None = None) -> Fork:
        config = self.folder / "operator.yaml"
        config.write_text(yaml.safe_dump({"azure": {"endpoint": self.azure.url, "poll": "50ms"}} | self.settings))
        # azure-identity's own variables, as on a VM with a managed identity
        identity = {
            "AZURE_TOKEN_CREDENTIALS": "ManagedIdentityCredential",
            "AZURE_POD_IDENTITY_AUTHORITY_HOST": self.azure.url,
        }
        whole = {**os.environ, **identity, **(environment or {})}
        operator = zygote("vnetpods_operator.__main__", "vnetpods_operator.nic.command", *SDK)
        process = await operator.start("nic", "--config", str(config), *arguments, environment=whole, piped=True)
        self.started.append(process)
        return process

    async def run(self, machine: str, count: int, *more: str) -> Ended:
        process = await self.start("--machine", machine, "--count", str(count), *more)
        out, told = await process.communicate()
        assert "Traceback" not in told.decode(), told.decode()
        return Ended(process.returncode or 0, out.decode(), told.decode())

    async def write(self, machine: str, count: int, *more: str) -> Ended:
        return await self.run(machine, count, "--write", "-o", "json", *more)

    def writes(self) -> int:
        """Changes of anything, by whatever method."""
        return sum(request["method"] not in ("GET", "HEAD") for request in self.build.requests())

    def ours(self, nic: str) -> list[str]:
        """ipConfigurations of ours."""
        return [name for name in self.build.addresses(nic) if name.startswith("vnetpods-")]


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    """The VM `w1`, in a subnet with plenty of room."""
    async with Emulator() as azure:
        azure.build.create_vnet("net", "10.240.0.0/12")
        azure.build.create_subnet("net", "pods", "10.240.0.0/16")
        azure.build.create_subnet("net", "tiny", "10.241.0.0/28")
        made = Desk(azure, tmp_path)
        yield made
        for process in made.started:
            if process.returncode is None:
                process.kill()
                await process.wait()


@pytest.fixture
def vm(desk: Desk) -> str:
    return desk.build.create_vm("w1", "net/pods")


def foreign(desk: Desk) -> dict[str, Any]:
    """All of w1's NIC but the ipConfigurations of ours and what changes with each write."""
    body = desk.build.nic("w1-nic")
    properties = body["properties"]
    kept = [one for one in properties["ipConfigurations"] if not one["name"].startswith("vnetpods-")]
    configurations = [{key: value for key, value in one.items() if key != "etag"} for one in kept]
    rest = {key: value for key, value in properties.items() if key not in ("ipConfigurations", "provisioningState")}
    return {**{k: v for k, v in body.items() if k not in ("etag", "properties")}, "rest": rest, "all": configurations}


async def test_a_dry_run_says_what_it_would_do_and_writes_nothing(desk: Desk, vm: str) -> None:
    ended = await desk.run(vm, 32)
    assert ended.code == 0, ended.told
    assert "NIC w1-nic in subnet net/pods: 0 addresses of ours, 1 ipConfiguration of others\n" in ended.out
    assert "  would add 32 addresses\n" in ended.out
    assert ended.out.endswith("Nothing was written; --write does it.\n")
    assert desk.writes() == 0
    assert desk.ours("w1-nic") == []


async def test_the_shape_of_the_json(desk: Desk, vm: str) -> None:
    dry = (await desk.run(vm, 3, "-o", "json")).json
    assert dry.keys() == {"machine", "count", "written", "nics", "error"}
    assert (dry["machine"], dry["count"], dry["written"], dry["error"]) == (vm, 3, False, None)
    (card,) = dry["nics"]
    assert card.keys() == CARD
    assert card["subnet"] == desk.build.id("Microsoft.Network/virtualNetworks/subnets", "net/pods")
    counts = {key: card[key] for key in ("others", "before", "add", "blocks", "after", "rewrite")}
    assert counts == {"others": 1, "before": 0, "add": 3, "blocks": 0, "after": 3, "rewrite": False}
    assert card["remove"] == card["addresses"] == []
    assert card["subnetLeft"] == 65536 - 5 - 1

    card = (await desk.write(vm, 3)).nic
    assert (card["before"], card["add"], card["after"], card["subnetLeft"]) == (0, 3, 3, None)
    there = {one["name"]: one["address"] for one in card["addresses"]}
    assert there == {name: desk.build.addresses("w1-nic")[name] for name in desk.ours("w1-nic")}
    assert all(one.keys() == CONFIGURATION for one in card["addresses"])


async def test_written_once_however_often_it_is_run(desk: Desk, vm: str) -> None:
    first = await desk.write(vm, 32)
    assert (first.code, first.json["written"], first.nic["add"]) == (0, True, 32)
    assert len(desk.ours("w1-nic")) == 32
    assert len(desk.build.requests(NIC_WRITE)) == 1, "32 addresses in one write"
    assert "writing NIC w1-nic: 32 addresses to add" in first.told
    second = await desk.write("azure://" + vm, 32)
    assert (second.code, second.nic["add"], second.nic["after"]) == (0, 0, 32)
    assert desk.writes() == 1


async def test_what_is_there_is_added_to(desk: Desk, vm: str) -> None:
    await desk.write(vm, 3)
    before = desk.ours("w1-nic")
    await desk.write(vm, 8)
    assert desk.ours("w1-nic")[:3] == before
    assert len(desk.ours("w1-nic")) == 8


async def test_more_than_asked_for_stays_without_release(desk: Desk, vm: str) -> None:
    await desk.write(vm, 6)
    ended = await desk.run(vm, 2, "--write")
    assert ended.code == 0
    assert "4 more than the 2 that are asked for: --release removes them" in ended.out
    assert len(desk.ours("w1-nic")) == 6


async def test_release_removes_what_is_in_excess_and_then_all(desk: Desk, vm: str) -> None:
    await desk.write(vm, 6)
    before, rest = desk.ours("w1-nic"), foreign(desk)
    dry = await desk.run(vm, 2, "--release")
    assert "  would remove 4 ipConfigurations: " in dry.out
    assert "Nobody is asked whether containers use" in dry.out
    assert dry.out.endswith("Nothing was written; --write --yes does it.\n")
    assert desk.ours("w1-nic") == before
    ended = await desk.write(vm, 2, "--release", "--yes")
    assert [one["name"] for one in ended.nic["remove"]] == before[2:], "the last that were added"
    assert desk.ours("w1-nic") == before[:2]
    await desk.write(vm, 0, "--release", "--yes")
    assert desk.ours("w1-nic") == []
    assert foreign(desk) == rest


async def test_a_release_is_not_written_without_yes(desk: Desk, vm: str) -> None:
    await desk.write(vm, 2)
    ended = await desk.run(vm, 0, "--release", "--write")
    assert ended.code == 2
    assert "without asking anybody whether containers use them" in ended.told
    assert len(desk.ours("w1-nic")) == 2


async def test_what_others_have_put_on_the_nic_stays(desk: Desk, vm: str) -> None:
    build = desk.build
    build.add_address("w1-nic", "theirs")
    body = build.nic("w1-nic")
    body["tags"] = {"team": "blue"}
    body["properties"]["enableIPForwarding"] = True
    body["properties"]["dnsSettings"] = {"dnsServers": ["10.240.0.53"]}
    build.request("PUT", body["id"], body)
    rest = foreign(desk)
    assert len(rest["all"]) == 2
    for count in (5, 0):
        ended = await desk.write(vm, count, "--release", "--yes")
        assert (ended.code, ended.nic["others"], ended.nic["after"]) == (0, 2, count)
        assert foreign(desk) == rest


async def test_what_another_writes_in_between_stays(desk: Desk, vm: str) -> None:
    desk.build.fault("writer", method="PUT", change="configuration", argument="foreign")
    ended = await desk.write(vm, 4)
    assert (ended.code, ended.nic["after"], ended.nic["others"]) == (0, 4, 2)
    assert "foreign" in desk.build.addresses("w1-nic")
    assert len(desk.build.requests(NIC_WRITE)) == 2, "the first was refused with 412"


async def test_somebody_who_changes_the_nic_each_time(desk: Desk, vm: str) -> None:
    desk.build.fault("writer", method="PUT", change="tag", times=None)
    ended = await desk.write(vm, 4)
    assert (ended.code, ended.json["error"]["reason"]) == (1, "Conflict")
    assert "see who else writes the NIC" in ended.told
    assert len(desk.build.requests(NIC_WRITE)) == 5
    assert desk.ours("w1-nic") == []


async def test_a_late_read_adds_nothing_twice(desk: Desk, vm: str) -> None:
    before = desk.build.keep("*/w1-nic")
    await desk.write(vm, 4)
    desk.build.lag("*/w1-nic", mark=before, seconds=1.5)
    ended = await desk.write(vm, 4)
    assert (ended.code, ended.nic["after"]) == (0, 4)
    assert len(desk.ours("w1-nic")) == 4


async def test_a_read_that_stays_late(desk: Desk, vm: str) -> None:
    before = desk.build.keep("*/w1-nic")
    await desk.write(vm, 4)
    desk.build.lag("*/w1-nic", mark=before)
    ended = await desk.write(vm, 4)
    assert (ended.code, ended.json["error"]["reason"], len(desk.ours("w1-nic"))) == (1, "Conflict", 4)


async def test_a_nearly_full_subnet_gives_what_it_has(desk: Desk) -> None:
    tiny = desk.build.create_vm("t1", "net/tiny")
    dry = await desk.run(tiny, 32)
    assert "  10 addresses left in the subnet, Azure says: no more than these can be added\n" in dry.out
    ended = await desk.write(tiny, 32)
    assert ended.code == 1
    assert (ended.nic["after"], ended.nic["subnetLeft"]) == (10, 0), "a /28 less Azure's five and the primary"
    assert ended.json["error"]["reason"] == "SubnetFull"
    assert "enlarge the subnet" in ended.told
    again = await desk.run(tiny, 32, "--write")
    assert (again.code, len(desk.ours("t1-nic"))) == (1, 10)
    assert "  0 addresses left in the subnet, Azure says\n" in again.out


async def test_a_nearly_full_subnet_whose_usage_may_not_be_read(desk: Desk) -> None:
    tiny = desk.build.create_vm("t1", "net/tiny")
    desk.build.assign_role("operator", [VM_READ, NIC_READ])
    dry = await desk.run(tiny, 32, "-o", "json")
    assert (dry.code, dry.nic["add"], dry.nic["subnetLeft"]) == (0, 32, None), "reading the two is enough"
    desk.build.assign_role("operator", [NIC_WRITE, "Microsoft.Network/virtualNetworks/subnets/join/action"])
    ended = await desk.write(tiny, 32)
    assert (ended.code, ended.nic["after"], ended.nic["subnetLeft"]) == (1, 10, None)


async def test_a_role_without_the_right_to_write(desk: Desk, vm: str) -> None:
    desk.build.assign_role("operator", ["*/read"])
    words = await desk.run(vm, 4, "--write")
    assert words.out.endswith("  nothing was changed\n")
    ended = await desk.write(vm, 4)
    assert (ended.code, ended.json["error"]["reason"]) == (1, "Forbidden")
    assert f"needs {NIC_WRITE} on " in ended.told
    assert "/networkInterfaces/w1-nic" in ended.told
    assert "docs/azure-role.json" in ended.told
    assert desk.ours("w1-nic") == []


async def test_a_machine_that_is_not_there(desk: Desk) -> None:
    ended = await desk.write(desk.build.id("Microsoft.Compute/virtualMachines", "nobody"), 4)
    assert (ended.code, ended.json["nics"], ended.json["error"]["reason"]) == (1, [], "MachineNotFound")
    assert "reading virtual machine nobody in vnetpods: " in ended.told


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--machine", "w1", "--count", "4"], "neither the resource id of a virtual machine"),
        (["--machine", "/subscriptions/s/resourceGroups/g", "--count", "4"], "nor of an instance of a scale set"),
        (["--machine", "VM", "--count", "257"], "expected a number from 0 to 256"),
        (["--machine", "VM", "--count", "-1"], "expected"),
        (["--machine", "VM"], "--count"),
        (["--machine", "VM", "--count", "4", "--config", "/nowhere"], "/nowhere: cannot be read"),
    ],
)
async def test_bad_arguments(desk: Desk, vm: str, arguments: Sequence[str], said: str) -> None:
    process = await desk.start(*(vm if word == "VM" else word for word in arguments))
    out, told = await process.communicate()
    assert (process.returncode, out) == (2, b"")
    assert said in told.decode()
    assert desk.build.requests() == []


async def test_an_instance_of_a_uniform_scale_set(desk: Desk) -> None:
    instance = desk.build.create_scale_set("set", "net/pods", 2) + "/virtualMachines/1"
    dry = await desk.run(instance, 8, "-o", "json")
    assert (dry.code, dry.nic["name"], dry.nic["add"]) == (0, "set-nic", 8)
    assert desk.writes() == 0
    first, second = await desk.write(instance, 8), await desk.write(instance, 8)
    assert (first.code, first.nic["add"], first.nic["after"]) == (0, 8, 8)
    assert (second.code, second.nic["add"], second.nic["after"]) == (0, 0, 8)
    kind = "Microsoft.Compute/virtualMachineScaleSets/virtualMachines/networkInterfaces"
    parts = desk.build.get(kind, "set/1/set-nic")["properties"]["ipConfigurations"]
    there = {one["properties"]["privateIPAddress"] for one in parts if one["name"].startswith("vnetpods-")}
    assert {one["address"] for one in second.nic["addresses"]} == there
    emptied = await desk.write(instance, 0, "--release", "--yes")
    assert (emptied.code, emptied.nic["after"], len(emptied.nic["remove"])) == (0, 0, 8)
    assert len(desk.build.requests(INSTANCE_WRITE)) == desk.writes() == 2


async def test_half_made_entries_of_a_failed_update_of_an_instance(desk: Desk) -> None:
    instance = desk.build.create_scale_set("set", "net/pods", 1) + "/virtualMachines/0"
    desk.build.fault("half", operation=INSTANCE_WRITE, code="NetworkingInternalOperationError")
    ended = await desk.write(instance, 4)
    assert (ended.code, ended.nic["add"], ended.nic["after"]) == (0, 4, 4)
    model = desk.build.get("Microsoft.Compute/virtualMachineScaleSets/virtualMachines", "set/0")
    (nic,) = model["properties"]["networkProfileConfiguration"]["networkInterfaceConfigurations"]
    assert len(nic["properties"]["ipConfigurations"]) == 5, "nothing of what failed is left"


async def test_an_instance_of_a_flexible_scale_set(desk: Desk) -> None:
    desk.build.create_scale_set("flex", "net/pods", 1, mode="Flexible")
    ended = await desk.write(desk.build.id("Microsoft.Compute/virtualMachines", "flex_0"), 8)
    assert (ended.code, ended.nic["after"]) == (0, 8)


async def test_blocks(desk: Desk, vm: str) -> None:
    ended = await desk.write(vm, 35, "--blocks")
    assert (ended.code, ended.nic["add"], ended.nic["blocks"], ended.nic["after"]) == (0, 35, 2, 35)
    assert len(desk.ours("w1-nic")) == 5
    less = await desk.run(vm, 10, "--release", "--yes", "--write")
    assert less.code == 0
    assert "6 more than the 10 that are asked for: they are in /28 blocks, which can't be divided" in less.out


async def test_no_more_than_fit_on_a_nic(desk: Desk, vm: str) -> None:
    dry = await desk.run(vm, 256, "-o", "json")
    assert (dry.code, dry.nic["after"], dry.json["error"]["reason"]) == (1, 255, "AtCapacity")
    ended = await desk.write(vm, 256)
    assert (ended.code, ended.nic["after"], ended.json["error"]["reason"]) == (1, 255, "AtCapacity")
    assert len(desk.build.requests(NIC_WRITE)) == 1


async def test_the_nic_that_is_named_or_configured(desk: Desk) -> None:
    build = desk.build
    nics = [build.create_nic(name, "net/pods") for name in ("front", "back")]
    two = build.create_vm("two", nics=nics)
    await desk.write(two, 2)
    await desk.write(two, 3, "--nic", "BACK")
    assert [len(desk.ours(nic)) for nic in ("front", "back")] == [2, 3]
    desk.settings["interfaces"] = {"primary": False, "names": ["ba*"]}
    await desk.write(two, 5)
    assert [len(desk.ours(nic)) for nic in ("front", "back")] == [2, 5]
    ended = await desk.write(two, 5, "--nic", "side")
    assert (ended.code, ended.json["error"]["reason"]) == (1, "NoInterface")
    assert "the machine has no NIC named side; it has front, back" in ended.told


async def test_azure_asks_to_wait(desk: Desk, vm: str) -> None:
    refused = {"method": "PUT", "status": 429, "code": "TooManyRequests"}
    desk.build.fault("status", retry_after=1, **refused)
    ended = await desk.write(vm, 4)
    assert (ended.code, ended.nic["after"]) == (0, 4)
    assert "again in 1 s" in ended.told
    desk.build.fault("status", retry_after=1200, **refused)
    ended = await desk.write(vm, 8)
    assert (ended.code, ended.json["error"]["reason"]) == (1, "Throttled")
    assert "Azure asks to wait 1200 s" in ended.told


async def test_azure_fails_at_the_write_and_leaves_a_failed_nic(desk: Desk, vm: str) -> None:
    desk.build.fault("fail", method="PUT", code="InternalServerError", after=True)
    ended = await desk.write(vm, 4)
    assert (ended.code, ended.nic["after"]) == (0, 4)
    assert len(desk.ours("w1-nic")) == 4
    assert desk.build.nic("w1-nic")["properties"]["provisioningState"] == "Succeeded"


async def test_an_entry_that_stays_failed_is_not_written_for_ever(desk: Desk, vm: str) -> None:
    """Azure takes each write and shows the entry as Failed again."""
    await desk.write(vm, 1)
    body = desk.build.nic("w1-nic")
    body["properties"]["ipConfigurations"][1]["properties"]["provisioningState"] = "Failed"
    desk.build.configure(etags_enforced=False)  # the body below always has the same
    desk.build.fault("garbage", resource="*/w1-nic", argument=json.dumps(body), times=None)
    before = desk.writes()
    ended = await desk.write(vm, 1)
    assert (ended.code, ended.json["error"]["reason"]) == (1, "NicFailed")
    assert desk.writes() - before == 3


async def test_no_way_to_sign_in(desk: Desk, vm: str) -> None:
    nobody = {"AZURE_TOKEN_CREDENTIALS": "EnvironmentCredential"}
    process = await desk.start("--machine", vm, "--count", "4", "--write", environment=nobody)
    out, told = await process.communicate()
    assert (process.returncode, out) == (1, b"")
    assert "no credentials" in told.decode()
    assert "az login" in told.decode()
    assert "again in" not in told.decode()


async def test_ended_by_hand_while_azure_works(desk: Desk, vm: str) -> None:
    desk.build.set_duration("Microsoft.Network/networkInterfaces", 3600.0)
    process = await desk.start("--machine", vm, "--count", "4", "--write")
    assert b"writing NIC w1-nic" in await process.stderr.readline()
    assert b"Azure works on NIC w1-nic for 10 s" in await process.stderr.readline()
    assert len(desk.ours("w1-nic")) == 4
    process.send_signal(signal.SIGINT)
    _, told = await process.communicate()
    assert process.returncode == 1
    assert "a write that Azure has accepted goes on there" in told.decode()
    assert "Traceback" not in told.decode()


async def test_it_needs_no_kubernetes() -> None:
    words = (
        "import sys; sys.modules['kopf'] = sys.modules['kubernetes'] = None\n"
        "from vnetpods_operator.__main__ import main\n"
        "main(['nic', '--help'])"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", words, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert process.returncode == 0
    assert b"--machine ID" in out
