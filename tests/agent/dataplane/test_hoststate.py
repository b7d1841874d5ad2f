"""What the host does for pods, and that it is back soon after somebody undid it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from tests.agent.dataplane.keeper import HURRY, NIC, STATE, Keeper
from tests.agent.dataplane.world import (
    AMOUNT,
    AZURE_DNS,
    DIRECT,
    GATEWAY,
    IMDS,
    INTERNET,
    NIC_MAC,
    PEER,
    POOL,
    PRIMARY,
    PodHandle,
    World,
    caller_seen,
    carried,
    eventually,
    run,
    run_in,
    works,
)
from tests.pace import stretched
from vnetpods_agent.attachment import Address, Limits
from vnetpods_agent.dataplane import DataPlaneError, HostState, Nic
from vnetpods_agent.dataplane.host.actions import ADDRESS_ON_HOST, ADDRESS_TAKEN, NIC_MISSING, HostActions, list_tables
from vnetpods_agent.dataplane.host.reconciler import FAILED, REFUSED, HostReconciler
from vnetpods_agent.dataplane.kernel_facts import uplink_limits
from vnetpods_agent.dataplane.names import TABLE
from vnetpods_agent.dataplane.pod.transparent import Transparent


@pytest.mark.parametrize(
    ("address", "seen"),
    [
        pytest.param(PEER, "10.240.0.5", id="direct"),
        pytest.param("10.240.0.1", "10.240.0.5", id="own-subnet"),
        pytest.param(INTERNET, PRIMARY, id="internet"),
        pytest.param(IMDS, None, id="imds"),
    ],
)
def test_what_a_pod_is_seen_as(world: World, pod: PodHandle, address: str, seen: str | None) -> None:
    assert caller_seen(pod.namespace, world.outside, address) == seen


def test_imds_can_be_allowed_and_sees_the_primary_address(world: World, pod: PodHandle, keeper: Keeper) -> None:
    keeper.declare(HostState((NIC,), DIRECT, imds=True))
    assert caller_seen(pod.namespace, world.outside, IMDS) == PRIMARY


@pytest.mark.parametrize(
    ("address", "seen"),
    [
        pytest.param(PEER, "10.240.0.6", id="direct"),
        pytest.param(INTERNET, "10.240.0.6", id="internet"),
        pytest.param(AZURE_DNS, None, id="wireserver"),
        pytest.param(IMDS, None, id="imds"),
    ],
)
def test_a_pod_without_snat_is_seen_as_itself_and_others_are_as_before(
    world: World, plane: Transparent, pod: PodHandle, address: str, seen: str | None
) -> None:
    other = world.pod("10.240.0.6", "other")
    own = replace(other.attachment, snat=False)
    plane.attach(own, other.handles)
    plane.attach(own, other.handles)  # again, as after a crash
    assert plane.check(own, other.handles) == []
    assert caller_seen(other.namespace, world.outside, address) == seen
    assert caller_seen(pod.namespace, world.outside, INTERNET) == PRIMARY


def test_without_snat_dns_of_azure_still_sees_the_primary_address(
    world: World, plane: Transparent, pod: PodHandle
) -> None:
    other = world.pod("10.240.0.6", "other")
    plane.attach(replace(other.attachment, snat=False), other.handles)
    assert caller_seen(other.namespace, world.outside, AZURE_DNS, port=53) == PRIMARY


def test_check_finds_an_interface_that_lost_its_exemption_from_snat(
    world: World, plane: Transparent, pod: PodHandle
) -> None:
    other = world.pod("10.240.0.6", "other")
    own = replace(other.attachment, snat=False)
    plane.attach(own, other.handles)
    run(f"ip link set {other.host_ifname} group default")
    assert plane.check(own, other.handles) == [f"the host's {other.host_ifname} isn't exempt from SNAT"]
    plane.attach(own, other.handles)
    assert plane.check(own, other.handles) == []


def test_the_next_pod_of_a_name_does_not_inherit_that_it_is_without_snat(
    world: World, plane: Transparent, pod: PodHandle
) -> None:
    other = world.pod("10.240.0.6", "other")
    plane.attach(replace(other.attachment, snat=False), other.handles)
    plane.detach(other.attachment)
    heir = world.pod("10.240.0.6", "other")
    plane.attach(heir.attachment, heir.handles)
    assert caller_seen(heir.namespace, world.outside, INTERNET) == PRIMARY


def test_the_node_itself_is_not_translated(world: World, pod: PodHandle) -> None:
    run("ip addr add 10.99.0.9/32 dev lo")
    run_in(world.outside, f"ip route add 10.99.0.9/32 via {PRIMARY}")
    assert caller_seen(world.host, world.outside, INTERNET, source="10.99.0.9") == "10.99.0.9"


@pytest.mark.parametrize("forged", ["10.240.0.6", "198.51.100.7", PRIMARY])
def test_a_pod_cannot_send_from_another_address(world: World, plane: Transparent, pod: PodHandle, forged: str) -> None:
    other = world.pod("10.240.0.6", "other")
    plane.attach(other.attachment, other.handles)
    run_in(pod.namespace, f"ip addr add {forged}/32 dev eth0")
    assert caller_seen(pod.namespace, world.outside, PEER) == pod.address
    before = packets(world.outside, "nic0"), packets(other.namespace, "eth0")
    for address, server in ((PEER, world.outside), (other.address, other.namespace)):
        assert caller_seen(pod.namespace, server, address, source=forged) is None
    assert (packets(world.outside, "nic0"), packets(other.namespace, "eth0")) == before


def test_a_further_interface_of_a_pod_answers_and_calls_under_its_own_address(
    world: World, plane: Transparent, pod: PodHandle
) -> None:
    """As by Multus: the default route is the first one's, and what came that way was taken for forged."""
    handles, key = world.open_doors(pod.namespace), replace(pod.attachment.key, ifname="net1")
    further = replace(pod.attachment, key=key, address=Address("10.240.0.6"))
    plane.attach(further, handles)
    plane.attach(further, handles)  # again, as after a crash
    for address in (pod.address, further.address):
        assert caller_seen(world.outside, pod.namespace, address) is not None
        assert caller_seen(pod.namespace, world.outside, PEER, source=address) == address
    assert caller_seen(pod.namespace, world.outside, PEER) == pod.address
    assert plane.check(further, handles) == []
    plane.detach(further)
    assert caller_seen(world.outside, pod.namespace, pod.address) is not None


def packets(namespace: str, interface: str) -> str:
    return run_in(namespace, "cat /proc/net/dev").split(f"{interface}:")[1].split()[1]


def test_an_added_direct_range_counts_without_restart(world: World, pod: PodHandle, keeper: Keeper) -> None:
    assert caller_seen(pod.namespace, world.outside, INTERNET) == PRIMARY
    keeper.declare(HostState((NIC,), (*DIRECT, "203.0.113.0/24")))
    assert caller_seen(pod.namespace, world.outside, INTERNET) == pod.address


@pytest.mark.parametrize(
    "undo",
    [
        "nft flush ruleset",
        "nft delete table ip vnetpods",
        "nft flush chain ip vnetpods from_pods",
        "nft add rule ip vnetpods source accept",
        "nft flush set ip vnetpods pool",
        "nft delete table ip6 vnetpods",
    ],
)
def test_the_table_comes_back(pod: PodHandle, keeper: Keeper, undo: str) -> None:
    whole, said = list_tables(), len(keeper.events)
    run(undo)
    eventually(
        lambda: ("HostStateRestored", f"the nftables table {TABLE} was missing or changed") in keeper.events[said:]
    )
    eventually(lambda: list_tables() == whole)


@pytest.fixture
def writable_elsewhere(tmp_path: Path) -> Iterator[Path]:
    """As in an unprivileged container: /proc/sys can't be written, a mount of the host's can."""
    place = tmp_path / "net"
    place.mkdir()
    run(f"mount --bind /proc/sys/net {place}")
    run("mount --bind -o ro /proc/sys /proc/sys")
    yield place
    run("umount /proc/sys")
    run(f"umount {place}")


def test_settings_are_made_where_the_configuration_says(world: World, writable_elsewhere: Path) -> None:
    (writable_elsewhere / "ipv4" / "ip_forward").write_text("0")
    events: list[tuple[str, str]] = []
    reconciler = HostReconciler(lambda *event: events.append(event), HURRY, writable_elsewhere)
    with contextlib.closing(reconciler):
        reconciler.start()
        reconciler.declare(STATE)
        assert reconciler.wait(stretched(5)), events
        assert Path("/proc/sys/net/ipv4/ip_forward").read_text().strip() == "1"


def test_at_its_usual_pace_everything_is_back_within_five_seconds(world: World, plane: Transparent) -> None:
    reconciler = HostReconciler(lambda kind, message: None)
    reconciler.start()
    reconciler.declare(STATE)
    assert reconciler.wait(stretched(5))
    pod = world.pod("10.240.0.5")
    plane.attach(pod.attachment, pod.handles)
    for command in ("nft flush ruleset", "ip route flush proto 118", "sysctl -qw net.ipv4.ip_forward=0"):
        run(command)
    eventually(lambda: caller_seen(pod.namespace, world.outside, INTERNET) == PRIMARY)
    reconciler.close()


def test_foreign_tables_are_left_alone(pod: PodHandle, keeper: Keeper) -> None:
    run("nft add table inet somebody")
    run("nft add chain inet somebody forward { type filter hook forward priority 0 ; }")
    run("nft delete table ip vnetpods")
    eventually(list_tables)
    assert "table inet somebody" in run("nft list tables")


@pytest.mark.parametrize(
    ("undo", "command", "expected"),
    [
        pytest.param("ip route flush proto 118", "ip route", "10.240.0.5 dev azv", id="host-route"),
        pytest.param("ip link set {azv} down", "ip route", "10.240.0.5 dev azv", id="link-down"),
        pytest.param("ip neigh flush all nud permanent", "ip neigh", "10.240.0.5 dev azv", id="neighbour"),
        pytest.param("ip link set {azv} address 02:11:22:33:44:55", "ip link show {azv}", "{mac}", id="mac"),
        pytest.param("sysctl -qw net.ipv4.ip_forward=0", "sysctl net.ipv4.ip_forward", "= 1", id="ip_forward"),
        pytest.param(
            "sysctl -qw net.ipv4.conf.eth0.forwarding=0", "sysctl net.ipv4.conf.eth0.forwarding", "= 1", id="forwarding"
        ),
        pytest.param(
            "sysctl -qw net.ipv4.conf.all.rp_filter=1", "sysctl net.ipv4.conf.eth0.rp_filter", "= 2", id="rp_filter"
        ),
    ],
)
def test_what_was_undone_comes_back(
    world: World, pod: PodHandle, keeper: Keeper, undo: str, command: str, expected: str
) -> None:
    words = {"azv": pod.host_ifname, "mac": pod.attachment.host_mac}
    run(undo.format(**words))
    eventually(lambda: "HostStateRestored" in keeper.kinds())  # of what the look before had to do, too, it is said once
    eventually(lambda: expected.format(**words) in run(command.format(**words)))
    eventually(lambda: caller_seen(pod.namespace, world.outside, INTERNET) == PRIMARY)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("address", ["10.240.0.7", "10.240.0.20"])
def test_a_pool_address_is_taken_from_the_host(keeper: Keeper, moment: str, address: str) -> None:
    if moment == "after":
        keeper.declare(STATE)
    run(f"ip addr add {address}/16 dev eth0")
    run("ip addr add 10.241.7.7/16 dev eth0")  # nobody's
    keeper.declare(STATE)
    eventually(lambda: address not in run("ip addr show eth0"))
    assert f"{PRIMARY}/16" in run("ip addr show eth0")
    assert "10.241.7.7/16" in run("ip addr show eth0")
    assert ADDRESS_TAKEN in keeper.kinds()
    assert keeper.reconciler.held_by_host() == frozenset()


def test_the_primary_survives_even_when_the_pool_address_came_first(world: World, keeper: Keeper) -> None:
    run("ip addr flush dev eth0")
    run("ip addr add 10.240.0.7/16 dev eth0")
    run(f"ip addr add {PRIMARY}/16 dev eth0")
    run(f"ip route replace default via {GATEWAY} dev eth0 src {PRIMARY}")  # as DHCP clients make it
    assert "secondary" in next(line for line in run("ip addr show eth0").splitlines() if PRIMARY in line)
    keeper.declare(STATE)
    assert "10.240.0.7" not in run("ip addr show eth0")
    assert f"{PRIMARY}/16" in run("ip addr show eth0")


def test_many_of_them_are_one_event(keeper: Keeper) -> None:
    addresses = [f"10.240.0.{last}" for last in range(6, 16)]
    for address in addresses:
        run(f"ip addr add {address}/16 dev eth0")
    keeper.declare(STATE)
    [message] = [message for kind, message in keeper.events if kind == ADDRESS_TAKEN]
    assert "10.240.0.6 (eth0), " in message
    assert " and 5 more" in message


def test_a_range_that_is_none_does_not_cost_the_rest(world: World, keeper: Keeper, plane: Transparent) -> None:
    keeper.declare(HostState((NIC,), ("10.0.0.0/33", *DIRECT)))
    assert (REFUSED, "left out: direct CIDR: '33' is not a valid netmask") in keeper.events
    pod = world.pod("10.240.0.5")
    plane.attach(pod.attachment, pod.handles)
    assert caller_seen(pod.namespace, world.outside, INTERNET) == PRIMARY
    assert caller_seen(pod.namespace, world.outside, IMDS) is None


def test_a_defect_in_one_area_does_not_cost_the_others(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is: without its thread the node would be open, and say nothing."""
    with monkeypatch.context() as patch:
        patch.setattr(HostActions, "_routing", lambda *_: 1 / 0)
        keeper.reconciler.declare(STATE)
        eventually(lambda: TABLE in list_tables())
        eventually(lambda: "cannot put right" in keeper.reconciler.failing)
        assert not keeper.reconciler.wait(0)
    eventually(lambda: keeper.reconciler.wait(0))
    assert keeper.reconciler.failing == ""
    assert [kind for kind, _ in keeper.events].count(FAILED) == 1


def test_pods_that_come_too_fast_to_be_counted_are_no_event(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(HostActions, "_pods", raising(DataPlaneError("list links of", "the host", errno.EAGAIN)))
        keeper.reconciler.declare(STATE)
        eventually(lambda: TABLE in list_tables())
        assert not keeper.reconciler.wait(0.3)
        assert keeper.reconciler.failing == ""
    eventually(lambda: keeper.reconciler.wait(0))
    assert FAILED not in keeper.kinds()


def raising(error: Exception) -> Callable[..., NoReturn]:
    def refuse(*_: object) -> NoReturn:
        raise error

    return refuse


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param("10.240.0.9/32 dev eth0 scope link", id="no-pod"),
        pytest.param("10.240.0.9/32 dev {azv} scope link", id="another-pod"),
        pytest.param("10.240.0.5/32 dev eth0 metric 5 scope link", id="beside"),
    ],
)
def test_a_stale_route_goes(pod: PodHandle, keeper: Keeper, wrong: str) -> None:
    before = run("ip route show proto 118")
    run(f"ip route add {wrong.format(azv=pod.host_ifname)} proto 118")
    run("ip route add 10.240.0.10/32 dev eth0 scope link")  # somebody else's
    eventually(lambda: run("ip route show proto 118") == before)
    assert "10.240.0.10 dev eth0" in run("ip route")


def test_or_it_is_only_reported(keeper: Keeper) -> None:
    run("ip addr add 10.240.0.7/16 dev eth0")
    keeper.declare(HostState((NIC,), DIRECT, take_from_host=False))
    assert "10.240.0.7/16" in run("ip addr show eth0")
    assert keeper.reconciler.held_by_host() == {"10.240.0.7"}
    assert keeper.kinds() == {ADDRESS_ON_HOST} | (keeper.kinds() & {"HostStateRestored"})
    run("ip addr del 10.240.0.7/16 dev eth0")
    eventually(lambda: keeper.reconciler.held_by_host() == frozenset())


def test_a_nic_that_the_machine_does_not_have_is_said_once(keeper: Keeper) -> None:
    absent = Nic("00:0d:3a:00:00:01", PRIMARY, ("10.240.0.0/16",), POOL)
    keeper.declare(HostState((absent,), DIRECT))
    time.sleep(4.5 * HURRY)  # the settings are looked at again after four seconds
    assert [kind for kind, _ in keeper.events].count(NIC_MISSING) == 1


def test_uninstall_leaves_what_running_pods_need_and_later_goes_whole(
    world: World, plane: Transparent, pod: PodHandle, keeper: Keeper
) -> None:
    keeper.reconciler.close()
    leaving = HostReconciler(lambda kind, message: None)
    assert "1 pods still run" in leaving.uninstall()[0]
    assert caller_seen(pod.namespace, world.outside, INTERNET) == PRIMARY
    plane.detach(pod.attachment)
    assert leaving.uninstall() == []
    assert list_tables() == ""
    assert run("ip route show proto 118") == ""
    assert leaving.uninstall() == []
    leaving.close()


@pytest.mark.parametrize("mtu", [1400, 3900])
def test_the_mtu_of_the_nic_changes_under_running_pods(
    world: World, plane: Transparent, pod: PodHandle, keeper: Keeper, mtu: int
) -> None:
    run(f"ip link set eth0 mtu {mtu} gso_max_size 62780")
    run_in(world.outside, f"ip link set nic0 mtu {mtu}")
    assert uplink_limits(NIC_MAC) == Limits(mtu, 62780)
    young = world.pod("10.240.0.6", "young")
    plane.attach(replace(young.attachment, mtu=mtu), young.handles)
    for here, there in ((pod, young), (young, pod)):
        assert carried(here.namespace, there.namespace, there.address) == AMOUNT
    for each in (pod, young):
        assert carried(each.namespace, world.outside, PEER) == AMOUNT
        assert carried(world.outside, each.namespace, each.address) == AMOUNT


@pytest.mark.parametrize(("told", "whole"), [(16000, True), pytest.param(65536, False, id="or it would be cut up")])
def test_what_a_pod_sends_in_one_piece_leaves_the_nic_in_one_piece(
    world: World, plane: Transparent, pod: PodHandle, told: int, whole: bool
) -> None:
    """A limit that the short transfers of a test reach; that of Hyper-V's NICs, 62,780, takes megabytes."""
    run("ip link set eth0 gso_max_size 16000")
    young = world.pod("10.240.0.6", "young")
    plane.attach(replace(young.attachment, gso_max_size=told), young.handles)
    before = sent("eth0")
    assert carried(young.namespace, world.outside, PEER) == AMOUNT
    assert (sent("eth0") - before < AMOUNT / 1500 / 2) == whole


def sent(interface: str) -> int:
    (link,) = json.loads(run(f"ip -s -j link show {interface}"))
    return int(link["stats64"]["tx"]["packets"])


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("variant", ["iptables-nft", "iptables-legacy"])
def test_a_forward_policy_of_drop_is_opened_for_pods_only(
    world: World, plane: Transparent, keeper: Keeper, variant: str, moment: str
) -> None:
    """As Docker leaves it; a policy engine's chain in front keeps its say."""
    if moment == "after":
        keeper.declare(STATE)
    for command in ("-N ENGINE", "-A ENGINE -p tcp --dport 81 -j DROP", "-A FORWARD -j ENGINE", "-P FORWARD DROP"):
        run(f"{variant} {command}")
    keeper.declare(STATE)
    pod = world.pod("10.240.0.5")
    plane.attach(pod.attachment, pod.handles)
    eventually(lambda: caller_seen(pod.namespace, world.outside, INTERNET) == PRIMARY)
    assert caller_seen(pod.namespace, world.outside, INTERNET, port=81) is None
    rules = run(f"{variant} -S FORWARD").splitlines()
    assert rules[:2] == ["-P FORWARD DROP", "-A FORWARD -j ENGINE"]
    assert len(rules) == 4
    run(f"{variant} -F FORWARD")
    eventually(lambda: len(run(f"{variant} -S FORWARD").splitlines()) == 3)
    keeper.reconciler.close()
    plane.detach(pod.attachment)
    with contextlib.closing(HostReconciler(lambda kind, message: None)) as leaving:
        leaving.uninstall()
    assert run(f"{variant} -S FORWARD").splitlines() == ["-P FORWARD DROP"]


def test_iptables_that_nobody_uses_is_not_touched(pod: PodHandle) -> None:
    assert run("cat /proc/net/ip_tables_names", check=False) == ""
    assert "filter" not in run("nft list tables")


def test_after_lost_news_everything_is_looked_at(
    world: World, plane: Transparent, forwarding: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel says only that its buffer was too small; what it couldn't say is found all the same."""
    monkeypatch.setattr("vnetpods_agent.dataplane.netlink.monitor._ROOM", 1)  # the least that the kernel gives
    reconciler = HostReconciler(lambda *_: None)  # in no hurry: without news a look comes once a minute
    reconciler.start()
    try:
        reconciler.declare(STATE)
        assert reconciler.wait(15)
        pod = world.pod("10.240.0.5")
        plane.attach(pod.attachment, pod.handles)
        eventually(lambda: works(world, pod))
        routed = lambda: pod.address in run(f"ip route show dev {pod.host_ifname}")  # noqa: E731
        run(f"ip route del {pod.address} dev {pod.host_ifname}")
        eventually(routed)  # and with it all news of before are done with
        # addresses, whose news concern other areas; in their midst the pod loses its route
        adding = [f"addr add 198.18.{n // 250}.{n % 250 + 1}/32 dev lo" for n in range(400)]
        commands = [*adding[:200], f"route del {pod.address} dev {pod.host_ifname}", *adding[200:]]
        before = lost(reconciler)
        subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), text=True, check=True)
        eventually(lambda: lost(reconciler) > before)
        eventually(routed)
    finally:
        reconciler.close()


def lost(reconciler: HostReconciler) -> int:
    """How many messages the kernel has dropped for want of room."""
    inode = str(os.fstat(reconciler._news._route.fileno()).st_ino)
    rows = [line.split() for line in Path("/proc/thread-self/net/netlink").read_text().splitlines()]
    return next(int(row[8]) for row in rows if row[9] == inode)
