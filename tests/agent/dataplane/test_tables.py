"""The kernel's tables are read as `ip` shows them, whatever somebody else has put there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from tests.agent.dataplane.world import GATEWAY, PRIMARY, World, run
from vnetpods_agent.dataplane import DataPlaneError
from vnetpods_agent.dataplane.netlink import tables
from vnetpods_agent.dataplane.netlink.messages import ANY, PROTOCOL, Route, Rule
from vnetpods_agent.dataplane.netlink.socket import NetlinkRequest, NetlinkSocket
from vnetpods_agent.dataplane.netlink.tables import HeldAddress, Neighbour
from vnetpods_agent.dataplane.pod.reaper import NETLINK_NETFILTER

BOOT = 3  # RTPROT_BOOT: what `ip` adds
MAC = "02:00:00:00:00:01"


@pytest.fixture
def netlink(world: World) -> Iterator[NetlinkSocket]:
    with NetlinkSocket() as netlink:
        yield netlink


def index(name: str) -> int:
    return int(run(f"ip -o link show {name}").partition(":")[0])


ROUTES = [
    ("10.1.0.0/16 dev eth0", Route("10.1.0.0", 16, 1, protocol=BOOT)),
    (f"10.2.0.0/16 via {GATEWAY} dev eth0", Route("10.2.0.0", 16, 1, GATEWAY, protocol=BOOT)),
    (f"10.3.0.0/16 dev eth0 src {PRIMARY} metric 55 mtu 1300", Route("10.3.0.0", 16, 1, "", 254, BOOT, source=PRIMARY)),
    (
        "10.4.0.0/16 via 203.0.113.1 dev eth0 onlink",
        Route("10.4.0.0", 16, 1, "203.0.113.1", protocol=BOOT, onlink=True),
    ),
    ("10.5.0.1 dev eth0 proto 118", Route("10.5.0.1", 32, 1, protocol=PROTOCOL)),
    ("blackhole 10.6.0.0/16", Route("10.6.0.0", 16, 0, protocol=BOOT)),
    (
        f"10.7.0.0/16 nexthop via {GATEWAY} dev eth0 nexthop via 10.240.0.2 dev eth0",
        Route("10.7.0.0", 16, 0, "", 254, BOOT),
    ),
    ("10.8.0.0/16 via inet6 fe80::1 dev eth0", Route("10.8.0.0", 16, 1, protocol=BOOT)),
    ("10.9.0.0/16 encap ip id 5 dst 10.240.0.9 dev eth0", Route("10.9.0.0", 16, 1, protocol=BOOT)),
    ("10.10.0.0/16 dev eth0 table 11801", Route("10.10.0.0", 16, 1, table=11801, protocol=BOOT)),
    (f"default via {GATEWAY} dev eth0 table 200", Route(ANY, 0, 1, GATEWAY, 200, BOOT)),
]
"""As `ip route add` takes them, and as they are read, with 1 for the index of eth0."""


@pytest.mark.parametrize(("command", "expected"), ROUTES, ids=[command for command, _ in ROUTES])
def test_a_route_of_any_kind_is_read(netlink: NetlinkSocket, command: str, expected: Route) -> None:
    run("sysctl -qw net.ipv6.conf.eth0.disable_ipv6=0")
    before = tables.routes(netlink, table=expected.table)
    run(f"ip route add {command}")
    found = [route for route in tables.routes(netlink, table=expected.table) if route not in before]
    assert found == [replace(expected, index=expected.index and index("eth0"))]


def test_a_route_that_was_changed_is_read_anew(netlink: NetlinkSocket) -> None:
    run("ip route add 10.1.0.0/16 dev eth0")
    assert any(route.destination == "10.1.0.0" for route in tables.routes(netlink))
    run(f"ip route replace 10.1.0.0/16 via {GATEWAY} dev eth0")
    assert [route.gateway for route in tables.routes(netlink) if route.destination == "10.1.0.0"] == [GATEWAY]
    run("ip route del 10.1.0.0/16")
    assert not any(route.destination == "10.1.0.0" for route in tables.routes(netlink))


def test_only_the_interface_asked_for_is_listed(netlink: NetlinkSocket) -> None:
    run("ip link add other type veth peer name there")
    run("ip link set other up")
    run("ip addr add 10.1.0.1/24 dev other")
    run(f"ip neigh add 10.1.0.2 lladdr {MAC} dev other nud permanent")
    run(f"ip neigh add 10.240.0.2 lladdr {MAC} dev eth0 nud permanent")
    other = index("other")
    assert tables.addresses(netlink, index=other) == [HeldAddress(other, "10.1.0.1", 24)]
    assert tables.neighbours(netlink, index=other) == [Neighbour(other, "10.1.0.2", MAC)]
    assert {route.index for route in tables.routes(netlink, index=other)} == {other}
    assert {route.index for route in tables.routes(netlink)} == {other, index("eth0")}


def test_an_address_is_read_and_removed(netlink: NetlinkSocket) -> None:
    run("ip addr add 10.240.0.9/16 dev eth0")
    run("ip addr add 10.99.0.1 peer 10.99.0.2/24 dev eth0")
    eth0 = index("eth0")
    first, later = HeldAddress(eth0, PRIMARY, 16), HeldAddress(eth0, "10.240.0.9", 16, secondary=True)
    assert tables.addresses(netlink, index=eth0) == [first, HeldAddress(eth0, "10.99.0.1", 24), later]
    netlink.execute([NetlinkRequest("remove", later.address, tables.address_removal(later))])
    assert later not in tables.addresses(netlink)
    assert first in tables.addresses(netlink)


def test_only_permanent_neighbours_are_read(netlink: NetlinkSocket) -> None:
    run(f"ip neigh add 10.240.0.2 lladdr {MAC} dev eth0 nud permanent")
    run(f"ip neigh add 10.240.0.3 lladdr {MAC} dev eth0 nud reachable")
    assert tables.neighbours(netlink) == [Neighbour(index("eth0"), "10.240.0.2", MAC)]


RULES = [
    ("priority 9 fwmark 0x100/0xf00 lookup 11801 protocol 118", Rule(9, 0x100, 0xF00, 11801)),
    ("priority 9 lookup main suppress_prefixlength 0 protocol 118", Rule(9, 0, 0, 254, suppress_prefix=0)),
    ("priority 9 from 10.1.0.0/16 lookup 7", Rule(9, 0, 0, 7, protocol=0)),
]


@pytest.mark.parametrize(("command", "expected"), RULES, ids=[command for command, _ in RULES])
def test_a_rule_is_read(netlink: NetlinkSocket, command: str, expected: Rule) -> None:
    run(f"ip rule add {command}")
    assert [rule for rule in tables.rules(netlink) if rule.priority == 9] == [expected]


LISTINGS: list[tuple[Callable[[NetlinkSocket], object], str]] = [
    (tables.addresses, "list addresses of the host: "),
    (lambda netlink: tables.routes(netlink, "table 11801", 11801), "list routes of table 11801: "),
    (lambda netlink: tables.neighbours(netlink, "azv1"), "list neighbours of azv1: "),
    (tables.rules, "list rules of the host: "),
]


@pytest.mark.parametrize(("listing", "said"), LISTINGS, ids=[said for _, said in LISTINGS])
def test_a_listing_that_the_kernel_refuses_is_named(listing: Callable[[NetlinkSocket], object], said: str) -> None:
    """Netfilter knows none of these messages."""
    with NetlinkSocket(NETLINK_NETFILTER) as other, pytest.raises(DataPlaneError, match=said):
        listing(other)


def test_pyroute2_is_entered_without_its_sockets() -> None:
    """They would cost every node 7 MB, and every start a quarter of a second."""
    program = """
import sys
import vnetpods_agent.app
print(*(name for name in sys.modules if name.startswith("pyroute2.")))
"""
    loaded = subprocess.check_output([sys.executable, "-c", program], text=True).split()
    assert "pyroute2.netlink.rtnl.rtmsg" in loaded
    assert len(loaded) < 12  # 8 with pyroute2 0.9.7
