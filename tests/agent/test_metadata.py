"""Instance metadata's answers, read and combined: no I/O."""

from __future__ import annotations

from typing import Any

import pytest

from tests.azure.arm import metadata as emulated
from tests.azure.arm.clock import VirtualClock
from tests.azure.arm.ids import key
from tests.azure.arm.server import Emulator
from tests.azure.arm.settings import Settings
from vnetpods_agent.attachment import Address
from vnetpods_agent.sync.metadata import Listing, UnreadableAnswerError, combine, read
from vnetpods_api import Interface

ONE, TWO = "00:0d:3a:1b:c7:21", "00:0d:3a:1b:c7:22"


def entry(*addresses: Any, mac: Any = "000D3A1BC721", subnet: Any = None) -> dict[str, Any]:
    listed = [a if isinstance(a, dict) else {"privateIpAddress": a, "publicIpAddress": ""} for a in addresses]
    subnets = [{"address": "10.0.0.0", "prefix": "16"}] if subnet is None else subnet
    return {"ipv4": {"ipAddress": listed, "subnet": subnets}, "ipv6": {"ipAddress": []}, "macAddress": mac}


def nic(*addresses: str, mac: str = ONE, primary: str = "10.0.0.4") -> Interface:
    return Interface(
        name=mac, mac=mac, subnet="10.0.0.0/16", prefixes=("10.0.0.0/16",), primary_address=primary, addresses=addresses
    )


def _only(address: str) -> frozenset[Address]:
    return frozenset({Address(address)})


def of(*addresses: Any) -> tuple[str, ...]:
    (found,) = read({"interface": [entry("10.0.0.4", *addresses)]})
    return found.addresses


def test_the_first_of_a_nic_is_its_primary_and_the_others_are_for_pods() -> None:
    assert read({"interface": [entry("10.0.0.4", "10.0.0.5", "10.0.0.6")]}) == (nic("10.0.0.5", "10.0.0.6"),)


@pytest.mark.parametrize("length", ["28", 28])
@pytest.mark.parametrize("name", ["prefix", "prefixLength", "privateIpAddressPrefixLength"])
def test_a_block_shows_in_any_of_these_shapes(name: str, length: Any) -> None:
    assert of({"privateIpAddress": "10.0.1.0", name: length}) == ("10.0.1.0/28",)
    assert of({"privateIpAddress": "10.0.1.0/28", name: length}) == ("10.0.1.0/28",)
    assert of({"privateIpAddress": "10.0.1.7", name: length}) == ("10.0.1.0/28",)


def test_a_prefix_that_is_the_subnets_makes_no_block() -> None:
    assert of({"privateIpAddress": "10.0.0.5", "prefix": "16"}, {"privateIpAddress": "10.0.0.6/32"}) == (
        "10.0.0.5",
        "10.0.0.6",
    )


def test_a_block_is_no_nics_primary() -> None:
    assert read({"interface": [entry("10.0.1.0/28", "10.0.0.4", "10.0.0.5")]}) == (nic("10.0.1.0/28", "10.0.0.5"),)


@pytest.mark.parametrize(
    "odd", [{}, {"privateIpAddress": ""}, {"privateIpAddress": None}, {"publicIpAddress": "20.0.0.1"}]
)
def test_an_entry_without_an_address_says_nothing(odd: dict[str, Any]) -> None:
    assert of(odd, "10.0.0.5") == ("10.0.0.5",)


def test_what_is_no_address_is_passed_on_for_the_screening_to_name() -> None:
    assert of("pod", "fd00::5", "10.0.0.0/24") == ("pod", "fd00::5", "10.0.0.0/24")


def test_an_address_that_is_listed_twice_is_one() -> None:
    assert of("10.0.0.5", "10.0.0.4", "10.0.0.5") == ("10.0.0.5",)


@pytest.mark.parametrize("mac", ["000D3A1BC721", "00-0D-3A-1B-C7-21", "00:0d:3a:1b:c7:21"])
def test_macs_are_written_as_the_kernel_does(mac: str) -> None:
    assert read({"interface": [entry("10.0.0.4", mac=mac)]}) == (nic(),)


@pytest.mark.parametrize("subnet", [[], "10.0.0.0/16", [{"address": "", "prefix": ""}], [7], [{"address": "10.0.0.0"}]])
def test_a_subnet_that_cannot_be_read_is_none(subnet: Any) -> None:
    (found,) = read({"interface": [entry("10.0.0.4", "10.0.0.5", subnet=subnet)]})
    assert (found.prefixes, found.addresses) == ((), ("10.0.0.5",))


def test_the_whole_instance_may_be_answered() -> None:
    assert read({"compute": {}, "network": {"interface": [entry("10.0.0.4")]}}) == (nic(),)


@pytest.mark.parametrize(
    "odd",
    [
        7,
        {},
        {"ipv4": None, "macAddress": "000D3A1BC722"},
        {"ipv4": {}, "macAddress": "000D3A1BC722"},
        {"ipv4": {"ipAddress": 7}, "macAddress": "000D3A1BC722"},
        entry("10.0.0.9", mac=""),
        entry("10.0.0.9", mac=None),
        entry("10.0.0.9", mac="000D3A1BC7"),
        entry(mac="000D3A1BC722"),
        entry("", mac="000D3A1BC722"),
    ],
)
def test_a_nic_that_cannot_be_told_costs_the_others_nothing(odd: Any) -> None:
    assert read({"interface": [odd, entry("10.0.0.4", "10.0.0.5")]}) == (nic("10.0.0.5"),)


@pytest.mark.parametrize("odd", [None, 7, "no", [], {}, {"interface": 3}, {"interface": []}, {"interface": [entry()]}])
def test_an_answer_without_nics_is_none(odd: Any) -> None:
    with pytest.raises(UnreadableAnswerError, match=r"it (has no list|lists no interface)"):
        read(odd)


async def test_what_the_emulators_metadata_says_is_understood() -> None:
    async with Emulator(Settings(retry_after=0), VirtualClock()) as azure:
        build = azure.build
        build.create_vnet("net", "10.0.0.0/8")
        build.create_subnet("net", "pods", "10.0.0.0/16")
        build.create_subnet("net", "more", "10.1.0.0/16")
        first, second = build.create_nic("a", "net/pods", secondaries=2), build.create_nic("b", "net/more")
        body = build.get("Microsoft.Network/networkInterfaces", "a")
        reference = body["properties"]["ipConfigurations"][0]["properties"]["subnet"]
        block = {"subnet": reference, "primary": False, "privateIPAddressPrefixLength": 28}
        body["properties"]["ipConfigurations"].append({"name": "block", "properties": block})
        build.request("PUT", first, body)
        build.create_vm("vm", nics=[first, second])
        one, two = read(emulated.network(azure.cloud, [key(first), key(second)], 0.0))
    assert (one.primary_address, one.addresses) == ("10.0.0.4", ("10.0.0.5", "10.0.0.6", "10.0.0.16/28"))
    assert (two.primary_address, two.prefixes, two.addresses) == ("10.1.0.4", ("10.1.0.0/16",), ())


class TestTwoAnswers:
    def test_the_first_counts_by_itself(self) -> None:
        now = (nic("10.0.0.5"),)
        assert combine((), now, ()) == (Listing(now), now)

    def test_what_both_list_is_used(self) -> None:
        now = (nic("10.0.0.5"),)
        assert combine(now, now, ()) == (Listing(now), now)

    def test_what_is_new_is_listed_and_waits_for_the_next(self) -> None:
        now = (nic("10.0.0.5", "10.0.0.6"),)
        listing, before = combine((nic("10.0.0.5"),), now, ())
        assert listing == Listing(now, _only("10.0.0.6"))
        assert combine(before, now, ())[0] == Listing(now)

    def test_what_is_gone_stays_listed_until_the_next_says_so_too(self) -> None:
        now = (nic("10.0.0.5"),)
        listing, before = combine((nic("10.0.0.5", "10.0.0.6"),), now, ())
        assert listing == Listing((nic("10.0.0.5", "10.0.0.6"),), _only("10.0.0.6"))
        assert combine(before, now, ())[0] == Listing(now)

    def test_an_older_answer_in_between_neither_brings_nor_takes(self) -> None:
        new, old = (nic("10.0.0.5", "10.0.0.6"),), (nic("10.0.0.5", "10.0.0.9"),)
        before: tuple[Interface, ...] = new
        for answer in (old, new, new, old, new):
            listing, before = combine(before, answer, ())
            assert "10.0.0.6" in listing.interfaces[0].addresses
            assert "10.0.0.9" not in {*listing.interfaces[0].addresses} - listing.withheld

    def test_a_block_that_is_gone_in_part(self) -> None:
        listing, _ = combine((nic("10.0.1.0/30"),), (nic("10.0.1.1"),), ())
        assert listing.interfaces == (nic("10.0.1.1", "10.0.1.0", "10.0.1.2", "10.0.1.3"),)
        assert listing.withheld == {"10.0.1.0", "10.0.1.2", "10.0.1.3"}

    def test_an_address_that_is_a_primary_one_by_now_is_no_pods(self) -> None:
        listing, _ = combine((nic("10.0.0.5"),), (nic(primary="10.0.0.5"),), ())
        assert listing == Listing((nic(primary="10.0.0.5"),))

    def test_an_address_that_has_moved_to_another_nic_is_listed_there_alone(self) -> None:
        there = nic("10.0.0.5", mac=TWO, primary="10.0.0.8")
        listing, _ = combine((nic("10.0.0.5"), nic(mac=TWO, primary="10.0.0.8")), (nic(), there), ())
        assert listing == Listing((nic(), there), _only("10.0.0.5"))

    def test_a_nic_that_is_not_named_stays_for_as_long_as_the_machine_has_it(self) -> None:
        two = nic("10.0.0.9", mac=TWO, primary="10.0.0.8")
        listing, before = combine((nic(), two), (nic(),), ())
        assert listing == Listing((nic(), two), _only("10.0.0.9"))
        for _ in range(3):
            listing, before = combine(before, (nic(),), ())
            assert listing == Listing((nic(), nic(mac=TWO, primary="10.0.0.8")))
        assert combine(before, (nic(),), {TWO})[0] == Listing((nic(),))

    def test_a_new_nics_addresses_wait_for_the_next_answer(self) -> None:
        now = (nic(), nic("10.0.0.9", mac=TWO, primary="10.0.0.8"))
        listing, before = combine((nic(),), now, ())
        assert listing == Listing(now, _only("10.0.0.9"))
        assert combine(before, now, ())[0] == Listing(now)
