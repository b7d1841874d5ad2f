"""The rule set as text: the same for the same state, and accepted by nft in every shape."""

from __future__ import annotations

import random
import subprocess
from dataclasses import replace

import pytest

from vnetpods_agent.attachment import Address
from vnetpods_agent.dataplane import HostState, Nic
from vnetpods_agent.dataplane.host.routing import beyond_bridges, leads_astray, wanted
from vnetpods_agent.dataplane.host.ruleset import collapsed, ruleset
from vnetpods_agent.dataplane.kernel_facts import Uplink, uplinks
from vnetpods_agent.dataplane.netlink.messages import Link, Route
from vnetpods_agent.dataplane.netlink.tables import HeldAddress


def link(index: int, name: str, mac: str, master: int = 0) -> Link:
    return Link(index, name, True, mac, 1500, 65536, "", "", 0, master, 0)


FIRST = Nic("00:0d:3a:00:00:01", Address("10.240.0.4"), ("10.240.0.0/16",), ("10.240.0.5", "10.240.0.16/28"))
SECOND = Nic("00:0d:3a:00:00:02", Address("10.241.0.4"), ("10.241.0.0/16",), ("10.241.0.5",))
ONE = [Uplink(FIRST, link(2, "eth0", FIRST.mac))]
TWO = [*ONE, Uplink(SECOND, link(3, "eth1", SECOND.mac))]
EVERYTHING = "0.0.0.0/0"


@pytest.mark.parametrize(
    ("networks", "expected"),
    [
        pytest.param(["10.0.0.7/8"], ["10.0.0.0/8"], id="host-bits"),
        pytest.param(["10.1.0.0/16", "10.0.0.0/8", "10.1.2.0/24"], ["10.0.0.0/8"], id="overlapping"),
        pytest.param(["10.0.1.0/24", "10.0.0.0/24"], ["10.0.0.0/23"], id="adjacent"),
        pytest.param([EVERYTHING, "10.0.0.0/8"], [EVERYTHING], id="everything"),
        pytest.param(["10.0.0.5"], ["10.0.0.5/32"], id="one-address"),
        pytest.param([], [], id="none"),
    ],
)
def test_ranges_are_brought_into_one_form(networks: list[str], expected: list[str]) -> None:
    assert [str(network) for network in collapsed(networks)] == expected


def test_the_order_of_what_is_declared_does_not_matter() -> None:
    direct = ["10.0.0.0/8", "10.3.0.1/16", "192.168.7.9/24", "172.16.0.0/12", "10.0.0.0/8"]
    texts = set()
    for seed in range(20):
        random.Random(seed).shuffle(direct)
        texts.add(ruleset(HostState((FIRST,), tuple(direct)), ONE))
    assert len(texts) == 1


@pytest.mark.parametrize(
    "direct", [(), (EVERYTHING,), ("10.0.0.0/8", "10.0.0.1/9")], ids=["none", "all", "overlapping"]
)
@pytest.mark.parametrize("imds", [False, True], ids=["imds-refused", "imds-allowed"])
@pytest.mark.parametrize("found", [[], ONE, TWO], ids=["no-nic", "one-nic", "two-nics"])
@pytest.mark.parametrize("empty", [False, True], ids=["pool", "empty-pool"])
@pytest.mark.parametrize("astray", [False, True], ids=["", "astray"])
def test_nft_takes_it(direct: tuple[str, ...], imds: bool, found: list[Uplink], empty: bool, astray: bool) -> None:
    nics = tuple(Nic(u.nic.mac, u.nic.primary_address, u.nic.prefixes, () if empty else u.nic.addresses) for u in found)
    text = ruleset(
        HostState(nics, direct, imds),
        [Uplink(nic, u.link) for nic, u in zip(nics, found, strict=True)],
        astray=astray and bool(found),
    )
    subprocess.run(["nft", "-c", "-f", "-"], input=text, text=True, check=True)


def test_rules_do_not_grow_with_the_pool() -> None:
    def lines(count: int) -> int:
        addresses = tuple(f"10.240.{number // 250}.{number % 250}" for number in range(count))
        nic = Nic(FIRST.mac, FIRST.primary_address, FIRST.prefixes, addresses)
        return len(ruleset(HostState((nic,), ("10.0.0.0/8",)), [Uplink(nic, ONE[0].link)]).splitlines())

    assert lines(1) == lines(250)


def test_one_nic_needs_no_policy_routing() -> None:
    assert wanted(ONE) == ([], [])
    assert "mark" not in ruleset(HostState((FIRST,), ()), ONE)


def test_every_nic_gets_its_rules_and_its_table() -> None:
    rules, routes = wanted(TWO, ["10.9.0.0/16", "10.241.0.0/16"])
    assert [(rule.priority, rule.mark, rule.mask, rule.table, rule.suppress_prefix) for rule in rules] == [
        (11800, 0x100, 0xF00, 254, 31),
        (11801, 0x100, 0xF00, 11801, 0),
        (11802, 0x100, 0xF00, 254, 0),
        (11803, 0x100, 0xF00, 11801, -1),
        (11800, 0x200, 0xF00, 254, 31),
        (11801, 0x200, 0xF00, 11802, 0),
        (11802, 0x200, 0xF00, 254, 0),
        (11803, 0x200, 0xF00, 11802, -1),
    ]
    assert [(r.destination, r.prefix, r.gateway, r.index, r.table) for r in routes] == [
        ("10.240.0.0", 16, "", 2, 11801),
        ("10.9.0.0", 16, "10.240.0.1", 2, 11801),
        ("10.241.0.0", 16, "10.240.0.1", 2, 11801),
        ("0.0.0.0", 0, "10.240.0.1", 2, 11801),
        ("10.241.0.0", 16, "", 3, 11802),
        ("10.9.0.0", 16, "10.241.0.1", 3, 11802),
        ("0.0.0.0", 0, "10.241.0.1", 3, 11802),
    ]


def test_when_everything_is_direct_the_nic_takes_all_of_it() -> None:
    """A default route in the first look would be skipped there."""
    _, routes = wanted(ONE, [EVERYTHING], astray=True)
    assert [f"{route.destination}/{route.prefix}" for route in routes][1:] == ["0.0.0.0/1", "128.0.0.0/1", EVERYTHING]


def network(destination: str, index: int) -> Route:
    address, _, prefix = destination.partition("/")
    return Route(address, int(prefix), index, protocol=2)


DEFAULT, SUBNET = network(EVERYTHING, 2), network("10.240.0.0/16", 2)


@pytest.mark.parametrize(
    ("routes", "expected"),
    [
        pytest.param([DEFAULT, SUBNET], False, id="one-nic"),
        pytest.param([], False, id="no-route-at-all"),
        pytest.param([network(EVERYTHING, 9), DEFAULT, SUBNET], True, id="default-elsewhere"),
        pytest.param([DEFAULT, network(EVERYTHING, 9), SUBNET], False, id="of-higher-metric"),
        pytest.param([DEFAULT, SUBNET, network("10.9.8.0/24", 9)], True, id="within-the-direct"),
        pytest.param([DEFAULT, SUBNET, network("10.0.0.0/8", 9)], True, id="around-the-direct"),
        pytest.param([DEFAULT, SUBNET, network("10.240.0.0/24", 9)], True, id="within-the-subnet"),
        pytest.param([DEFAULT, SUBNET, network("10.240.0.0/16", 9)], False, id="a-second-nic-in-the-subnet"),
        pytest.param([DEFAULT, network("10.240.0.0/16", 9), SUBNET], True, id="and-with-the-lower-metric"),
        pytest.param([DEFAULT, SUBNET, network("172.20.0.0/16", 9)], False, id="vpn"),
        pytest.param([DEFAULT, SUBNET, network("10.240.0.9/32", 9)], False, id="host-route"),
        pytest.param([DEFAULT, SUBNET, network("10.240.0.5/32", 0x40000002)], False, id="pod"),
    ],
)
def test_when_main_leads_pods_astray(routes: list[Route], expected: bool) -> None:
    assert leads_astray(ONE, ["10.9.0.0/16"], routes) == expected


PRIVATE = ["10.0.0.0/8", "172.16.0.0/12"]
REST = ["172.16.0.0/16", "172.18.0.0/15", "172.20.0.0/14", "172.24.0.0/13"]


@pytest.mark.parametrize(
    ("index", "kind", "destination", "expected"),
    [
        pytest.param(9, "bridge", "172.17.0.0/16", {"10.0.0.0/8", *REST}, id="docker0"),
        pytest.param(9, "bridge", "0.0.0.0/0", set(PRIVATE), id="a-default-route"),
        pytest.param(9, "bridge", "172.0.0.0/8", {"10.0.0.0/8"}, id="around"),
        pytest.param(9, "bridge", "192.0.2.0/24", set(PRIVATE), id="elsewhere"),
        pytest.param(9, "wireguard", "172.17.0.0/16", set(PRIVATE), id="somewhere-behind-it"),
        pytest.param(2, "bridge", "10.240.0.0/16", set(PRIVATE), id="the-nic-itself"),
    ],
)
def test_what_is_guessed_to_be_direct_leaves_out_networks_of_own_bridges(
    index: int, kind: str, destination: str, expected: set[str]
) -> None:
    links = [replace(link(index, "docker0", "02:42:00:00:00:01"), kind=kind)]
    routes = [DEFAULT, network(destination, index)]
    left = beyond_bridges(PRIVATE, ONE, links, routes)
    assert set(left) == expected
    assert not leads_astray(ONE, left, routes if kind == "bridge" else [DEFAULT])


@pytest.mark.parametrize(
    ("links", "held", "expected"),
    [
        pytest.param([link(2, "eth0", FIRST.mac)], [], "eth0", id="by-mac"),
        pytest.param(
            [link(3, "enP1s1", FIRST.mac, master=9), link(9, "eth0", FIRST.mac)],
            [],
            "eth0",
            id="accelerated",
        ),
        pytest.param(
            [link(2, "eth0", FIRST.mac), link(9, "br0", FIRST.mac)],
            [HeldAddress(9, "10.240.0.4", 16)],
            "br0",
            id="bridge-with-the-address",
        ),
        pytest.param([link(2, "eth0", "00:0d:3a:00:00:99")], [], None, id="none"),
    ],
)
def test_which_interface_is_the_nic(links: list[Link], held: list[HeldAddress], expected: str | None) -> None:
    nic = Nic(FIRST.mac.upper(), FIRST.primary_address, FIRST.prefixes, FIRST.addresses)
    assert [uplink.link.name for uplink in uplinks([nic], links, held)] == ([expected] if expected else [])
