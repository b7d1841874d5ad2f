"""Addresses that no pod can have, whoever lists them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from tests.agent.machine import NIC_MAC, PRIMARY, Machine, machine, supply, until
from vnetpods_agent.ipam.screening import Screened, screen
from vnetpods_api import Interface, Usage


def nic(*addresses: str, primary: str = PRIMARY, prefixes: tuple[str, ...] = ("10.240.0.0/16",)) -> Interface:
    return Interface(
        name="nic",
        mac=NIC_MAC,
        subnet="/subscriptions/s/subnets/pods",
        prefixes=prefixes,
        primary_address=primary,
        addresses=addresses,
    )


@pytest.mark.parametrize(
    ("unit", "why"),
    [
        ("168.63.129.16", "Azure's own address"),
        ("169.254.169.254", "link-local"),
        ("169.254.1.1", "link-local"),
        ("127.0.0.9", "the loopback network"),
        ("0.0.0.0", "no host's address"),
        ("224.0.0.5", "multicast"),
        ("255.255.255.255", "reserved"),
        ("10.240.0.0", "the network itself in 10.240.0.0/16"),
        ("10.240.0.1", "the subnet's gateway in 10.240.0.0/16"),
        ("10.240.0.2", "Azure's DNS"),
        ("10.240.0.3", "Azure's DNS"),
        ("10.240.255.255", "the last address of 10.240.0.0/16"),
    ],
)
def test_an_address_that_is_no_pods_is_refused_and_named(unit: str, why: str) -> None:
    screened = screen([nic("10.240.0.5", unit)])
    assert screened.refused == {unit}
    [reason] = screened.reasons
    assert reason.startswith(f"{unit} on nic: {why}")


@pytest.mark.parametrize("unit", ["10.240.1.0/24", "10.240.0.0/27", "fd00::5", "worker-1", ""])
def test_what_is_no_address_and_no_block_is_named(unit: str) -> None:
    screened = screen([nic("10.240.0.5", unit)])
    assert screened == Screened(reasons=(f"{unit} on nic: neither an IPv4 address nor a block of at most 16",))


def test_of_a_block_only_the_addresses_concerned_are_refused() -> None:
    assert screen([nic("10.240.0.0/28")]).refused == {f"10.240.0.{last}" for last in range(4)}


def test_nothing_is_used_of_a_nic_without_a_primary_address() -> None:
    screened = screen([nic("10.240.0.5", "10.240.0.6", primary=""), nic("10.240.0.7")])
    assert screened.refused == {"10.240.0.5", "10.240.0.6"}
    assert "lists no primaryAddress" in screened.reasons[0]


@pytest.mark.parametrize("prefixes", [("10.240.0.0/16", "10.241.0.0/24"), (), ("nonsense",), ("10.240.0.0/28",)])
def test_what_is_fit_passes(prefixes: tuple[str, ...]) -> None:
    """A subnet may have more prefixes than are listed."""
    assert screen([nic("10.240.0.4", "10.240.0.14", "10.242.0.9", prefixes=prefixes)]) == Screened()


@dataclass
class Listing:
    node: Machine

    def put(self, *interfaces: Interface) -> None:
        status = msgspec.structs.replace(supply([]), interfaces=interfaces)
        temporary = self.node.folder / "pool.yaml.new"
        temporary.write_bytes(msgspec.json.encode(status))
        temporary.replace(self.node.folder / "pool.yaml")

    def events(self) -> list[str]:
        return [event["message"] for event in self.node.events("event reported") if event["reason"] == "AddressRefused"]


async def test_no_pod_gets_one_and_an_event_names_them(tmp_path: Path) -> None:
    async with machine(tmp_path) as node:
        listing = Listing(node)
        listing.put(nic("168.63.129.16", "10.240.0.1", "10.240.0.5"))
        await node.start()
        assert await node.add("c1", node.sandbox()) == "10.240.0.5"
        [message] = await until(listing.events)
        assert "168.63.129.16 on nic: Azure's own address" in message
        assert "10.240.0.1 on nic: the subnet's gateway" in message
        await until(lambda: node.report().usage == Usage(assigned=1))


async def test_a_nic_without_a_primary_address_gives_none_and_says_so(tmp_path: Path) -> None:
    async with machine(tmp_path) as node:
        listing = Listing(node)
        listing.put(nic("10.240.0.5", primary=""))
        await node.start()
        assert await until(listing.events)
        status = await node.call("STATUS", "")
        assert (status.code, "lists no primaryAddress" in status.json["details"]) == (50, True)
        listing.put(nic("10.240.0.5"))
        assert await node.add("c1", node.sandbox()) == "10.240.0.5"
