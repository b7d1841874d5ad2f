"""ARM's JSON of a NIC: reading it, sorting its entries, and changing ours alone."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vnetpods_operator.azure.nics import edited, parse
from vnetpods_operator.config import Interfaces
from vnetpods_operator.errors import NoInterface
from vnetpods_operator.planning.machine import MachineId, Naming, Nics, UnsupportedProvider, usable_by_pods
from vnetpods_operator.planning.model import Change
from vnetpods_operator.planning.nic_choice import chosen

SUBNET = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets/pods"


def part(name: str, address: str | None = None, **properties: Any) -> dict[str, Any]:
    inner = {"subnet": {"id": SUBNET}, "provisioningState": "Succeeded", "primary": False} | properties
    if address:
        inner["privateIPAddress"] = address
    return {"name": name, "id": f"/x/{name}", "etag": 'W/"1"', "properties": inner}


def body(*parts: dict[str, Any], **properties: Any) -> dict[str, Any]:
    first = part("ipconfig1", "10.0.0.4", primary=True)
    return {
        "id": "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/networkInterfaces/n",
        "name": "n",
        "etag": 'W/"7"',
        "location": "westeurope",
        "tags": {"team": "net"},
        "properties": {
            "provisioningState": "Succeeded",
            "macAddress": "00-0D-3A-1B-C7-21",
            "primary": True,
            "enableAcceleratedNetworking": True,
            "somethingNew": {"deep": [1, 2]},
            "ipConfigurations": [first, *parts],
        }
        | properties,
    }


def names() -> Any:
    counter = itertools.count(1)
    return lambda: f"{next(counter):08x}"


def test_nics_of_one_name_are_not_taken_for_each_other() -> None:
    """A name is unique in a resource group only, and stands for the NIC in the pool."""
    one = parse(body())
    other = replace(one, id=one.id.replace("/g/", "/h/"), name=one.name.upper(), primary=False)
    assert chosen(Nics((one, other)), Interfaces(), ()) == (one,)
    with pytest.raises(NoInterface, match="named n"):
        chosen(Nics((one, other)), Interfaces(names=("*",)), ())


@pytest.mark.parametrize(
    "odd",
    [{"macAddress": None}, {"provisioningState": None}, {"primary": None}, {"virtualMachine": None}],
    ids=lambda odd: next(iter(odd)),
)
def test_null_is_as_good_as_nothing(odd: dict[str, None]) -> None:
    parts = (part("vnetpods-1", provisioningState=None, subnet=None), part("vnetpods-2", privateIPAddressVersion=None))
    found = parse(body(*parts, {"name": None, "properties": None}, **odd) | {"tags": None})
    assert found.subnet == SUBNET
    assert [entry.state for entry in found.entries] == ["Succeeded"] * 4


def test_reading() -> None:
    nic = parse(body(part("vnetpods-1", "10.0.0.5")))
    assert (nic.mac, nic.etag, nic.subnet, nic.primary) == ("00:0d:3a:1b:c7:21", 'W/"7"', SUBNET, True)
    assert nic.primary_address == "10.0.0.4"
    assert [entry.ours for entry in nic.entries] == [False, True]


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ({"privateIPAddress": "10.0.0.5"}, "10.0.0.5"),
        ({"privateIPAddress": "10.0.0.16/28"}, "10.0.0.16/28"),
        ({"privateIPAddress": "10.0.0.19/28"}, "10.0.0.16/28"),
        ({"privateIPAddress": "10.0.0.16", "privateIPAddressPrefixLength": 28}, "10.0.0.16/28"),
        ({"privateIPAddress": "10.0.0.5/32"}, "10.0.0.5"),
        ({"privateIPAddress": "fd00::5", "privateIPAddressVersion": "IPv6"}, None),
        ({}, None),
    ],
)
def test_forms_of_an_address(properties: dict[str, Any], expected: str | None) -> None:
    assert parse(body(part("vnetpods-1", **properties))).entries[1].address == expected


def test_adding() -> None:
    groups = [{"id": "/asg/web"}]
    before = body()
    first = before["properties"]["ipConfigurations"][0]["properties"]
    first |= {"applicationSecurityGroups": groups, "loadBalancerBackendAddressPools": [{"id": "/lb/pool"}]}
    after = edited(before, Change("n", add=1, blocks=1, restore=("10.0.0.9",)), names())
    _, single, block, fixed = after["properties"]["ipConfigurations"]
    assert single == {
        "name": "vnetpods-00000001",
        "properties": {
            "privateIPAllocationMethod": "Dynamic",
            "privateIPAddressVersion": "IPv4",
            "primary": False,
            "subnet": {"id": SUBNET},
            "applicationSecurityGroups": groups,
        },
    }
    assert block["properties"]["privateIPAddressPrefixLength"] == 28
    assert (fixed["properties"]["privateIPAddress"], fixed["properties"]["privateIPAllocationMethod"]) == (
        "10.0.0.9",
        "Static",
    )


def test_removing_takes_ours_by_name_and_nothing_that_only_looks_so() -> None:
    before = body(
        part("vnetpods-a", "10.0.0.5"),
        part("VNETPODS-b", "10.0.0.6"),
        part("theirs", "10.0.0.7"),
        part("vnetpods-c"),
    )
    leaving = frozenset({"ipconfig1", "vnetpods-a", "VNETPODS-b", "theirs"})
    after = edited(before, Change("n", remove=leaving, sweep=frozenset({"vnetpods-c", "theirs"})), names())
    assert [p["name"] for p in after["properties"]["ipConfigurations"]] == ["ipconfig1", "theirs"]


def test_a_primary_with_our_name_is_still_not_ours() -> None:
    before = body()
    before["properties"]["ipConfigurations"][0]["name"] = "vnetpods-primary"
    after = edited(before, Change("n", remove=frozenset({"vnetpods-primary"})), names())
    assert after == before


def test_names_never_meet() -> None:
    given_names = iter(["aaaaaaaa", "aaaaaaaa", "bbbbbbbb"])
    after = edited(body(part("VNETPODS-AAAAAAAA", "10.0.0.5")), Change("n", add=1), lambda: next(given_names))
    assert after["properties"]["ipConfigurations"][-1]["name"] == "vnetpods-bbbbbbbb"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(
    extra=st.dictionaries(st.text(min_size=1, max_size=8).map("x".__add__), JSON, max_size=4),
    theirs=st.lists(st.dictionaries(st.text(min_size=1, max_size=8).map("y".__add__), JSON, max_size=3), max_size=4),
    add=st.integers(0, 5),
)
def test_everything_else_is_sent_as_it_was_read(extra: dict[str, Any], theirs: list[dict[str, Any]], add: int) -> None:
    parts = [part(f"theirs-{i}", f"10.0.1.{i}", **more) for i, more in enumerate(theirs)]
    before = body(*parts, part("vnetpods-a", "10.0.0.5"), **extra)
    frozen = copy.deepcopy(before)
    after = edited(before, Change("n", add=add, remove=frozenset({"vnetpods-a"})), names())
    assert before == frozen
    kept = after["properties"].pop("ipConfigurations")
    expected = copy.deepcopy(before)
    assert kept[: 1 + len(parts)] == expected["properties"].pop("ipConfigurations")[: 1 + len(parts)]
    assert after == expected
    assert len(kept) == 1 + len(parts) + add


class TestSorting:
    def view(self, *parts: dict[str, Any], published: tuple[str, ...] = (), **more: Any) -> Any:
        naming = Naming(adopt=("pods-*",), exclude=((0x0A000032, 0x0A000033),))
        (found,) = usable_by_pods([parse(body(*parts, **more))], published, naming, {SUBNET.lower(): ("10.0.0.0/16",)})
        return found

    def test_ours_adopted_and_foreign(self) -> None:
        parts = (part("vnetpods-1", "10.0.0.5"), part("pods-1", "10.0.0.6"), part("theirs", "10.0.0.7"))
        view = self.view(*parts)
        assert view.addresses == ("10.0.0.5", "10.0.0.6")
        assert view.removable == {"10.0.0.5"}
        assert view.slots == 256 - 4

    def test_what_is_being_made_is_on_the_way(self) -> None:
        view = self.view(part("vnetpods-1", "10.0.0.5", provisioningState="Updating"))
        assert (view.addresses, view.pending) == ((), 1)

    def test_what_pods_may_hold_stays_while_the_nic_is_updated(self) -> None:
        view = self.view(
            part("vnetpods-1", "10.0.0.5", provisioningState="Updating"),
            published=("10.0.0.5",),
            provisioningState="Updating",
        )
        assert (view.addresses, view.pending, view.busy) == (("10.0.0.5",), 0, True)

    def test_a_failed_entry_without_an_address_is_half_made(self) -> None:
        view = self.view(part("vnetpods-1", provisioningState="Failed"))
        assert (view.addresses, view.broken, view.failed) == ((), {"vnetpods-1"}, False)

    @pytest.mark.parametrize("published", [(), ("10.0.0.5",)], ids=["unknown", "published"])
    def test_a_failed_entry_with_an_address_is_repaired_not_swept(self, published: tuple[str, ...]) -> None:
        """A pod may hold it, even if the pool doesn't say so at the moment."""
        view = self.view(part("vnetpods-1", "10.0.0.5", provisioningState="Failed"), published=published)
        assert (view.addresses, view.broken, view.failed) == (published, frozenset(), True)
        assert ("10.0.0.5" in view.unusable) is (not published)

    def test_excluded_ones_are_kept_from_pods(self) -> None:
        view = self.view(part("vnetpods-1", "10.0.0.50"), part("vnetpods-2", "10.0.0.51"), published=("10.0.0.51",))
        assert (view.addresses, view.excluded, view.barred) == (("10.0.0.51",), {"10.0.0.51"}, 0)

    def test_what_came_last_and_is_excluded_is_counted(self) -> None:
        view = self.view(
            part("vnetpods-0", "10.0.0.51"), part("vnetpods-1", "10.0.0.5"), part("vnetpods-2", "10.0.0.50")
        )
        assert (view.addresses, view.barred) == (("10.0.0.5",), 1)

    def test_256_on_all_nics_together(self) -> None:
        many = [part(f"theirs-{i}", f"10.0.2.{i}") for i in range(250)]
        nics = [parse(body(*many)), parse(body())]
        views = usable_by_pods(nics, (), Naming(), {})
        assert [view.slots for view in views] == [4, 4]


@pytest.mark.parametrize(
    ("provider_id", "group", "name", "scale_set"),
    [
        ("azure:///subscriptions/S/resourceGroups/G/providers/Microsoft.Compute/virtualMachines/N", "G", "N", None),
        ("azure:///SUBSCRIPTIONS/S/resourcegroups/G/PROVIDERS/microsoft.compute/virtualmachines/N", "G", "N", None),
        (
            "azure:///subscriptions/S/resourceGroups/G/providers/Microsoft.Compute/virtualMachineScaleSets/V/virtualMachines/3",
            "G",
            "3",
            "V",
        ),
    ],
)
def test_provider_ids(provider_id: str, group: str, name: str, scale_set: str | None) -> None:
    found = MachineId.from_provider_id(provider_id)
    assert (found.subscription, found.group, found.name, found.scale_set) == ("S", group, name, scale_set)
    assert found.id == provider_id.removeprefix("azure://")


@pytest.mark.parametrize(
    "provider_id", ["aws:///eu/i-1", "azure:///subscriptions/S/resourceGroups/G", "azure://", "kind://docker/k/n"]
)
def test_other_provider_ids(provider_id: str) -> None:
    with pytest.raises(UnsupportedProvider):
        MachineId.from_provider_id(provider_id)
