"""Real namespaces, real packets: what attach, detach and check do, also again and after every failure."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.agent.dataplane.world import (
    PEER,
    PRIMARY,
    PodHandle,
    World,
    caller_seen,
    eventually,
    run,
    run_in,
    whole_picture,
    works,
)
from tests.pace import stretched
from vnetpods_agent.attachment import Address, AttachmentKey, Pod, SandboxHandles
from vnetpods_agent.dataplane import DataPlaneError, InterfaceExists
from vnetpods_agent.dataplane.netlink import messages as rt
from vnetpods_agent.dataplane.netlink.socket import NetlinkRequest, NetlinkSocket
from vnetpods_agent.dataplane.pod import host_veth
from vnetpods_agent.dataplane.pod.reaper import Reaper
from vnetpods_agent.dataplane.pod.transparent import Transparent

pytestmark = pytest.mark.usefixtures("forwarding")


@pytest.fixture
def finished() -> Iterator[Callable[[Transparent], Transparent]]:
    with contextlib.ExitStack() as stack:
        yield lambda plane: stack.enter_context(contextlib.closing(plane))


def test_pods_reach_each_other_and_are_reached_under_their_own_addresses(world: World, plane: Transparent) -> None:
    first, second = world.pod("10.240.0.5", "a"), world.pod("10.240.0.6", "b")
    for pod in (first, second):
        plane.attach(pod.attachment, pod.handles)
        assert plane.check(pod.attachment, pod.handles) == []
    assert caller_seen(first.namespace, second.namespace, second.address) == first.address
    assert caller_seen(first.namespace, world.outside, PEER) == first.address
    assert caller_seen(world.outside, first.namespace, first.address) == "10.240.0.1"
    assert caller_seen(first.namespace, world.host, PRIMARY) == first.address
    assert caller_seen(world.host, first.namespace, first.address) == PRIMARY


def test_the_first_packet_arrives(world: World, plane: Transparent) -> None:
    for number in range(20):
        pod = world.pod("10.240.0.5", f"p{number}")
        plane.attach(pod.attachment, pod.handles)
        assert caller_seen(world.outside, pod.namespace, pod.address), number
        plane.detach(pod.attachment)


def test_an_interface_is_what_the_row_says(world: World, plane: Transparent) -> None:
    pod = world.pod("10.240.0.5")
    attachment = replace(pod.attachment, mtu=1400, gso_max_size=62780)
    plane.attach(attachment, pod.handles)
    host, inside = run(f"ip -d link show {pod.host_ifname}"), run_in(pod.namespace, "ip -d link show eth0")
    for text, mac in ((host, attachment.host_mac), (inside, attachment.pod_mac)):
        assert f"link/ether {mac}" in text
        assert "mtu 1400" in text
        assert "addrgenmode none" in text
    assert "gso_max_size 65536" in host
    assert "gso_max_size 62780" in inside
    addresses = run_in(pod.namespace, "ip addr show eth0")
    assert [line for line in addresses.splitlines() if "inet" in line] == ["    inet 10.240.0.5/32 scope global eth0"]
    assert f"alias vnetpods 10.240.0.5 vnetpods {attachment.key}" in host
    assert "inet" not in run(f"ip addr show {pod.host_ifname}")
    assert run("ip route show proto 118").split() == f"10.240.0.5 dev {pod.host_ifname} scope link".split()


def test_udev_has_no_reason_to_rewrite_a_mac(world: World, plane: Transparent) -> None:
    """aws#2103: MACAddressPolicy=persistent replaces what the kernel calls random or unset, not NET_ADDR_SET (3)."""
    pod = world.pod("10.240.0.5")
    plane.attach(pod.attachment, pod.handles)
    for namespace, name in ((world.host, pod.host_ifname), (pod.namespace, "eth0")):
        look = f"mount -t sysfs sysfs /sys && cat /sys/class/net/{name}/addr_assign_type"
        command = ["nsenter", f"--net=/run/netns/{namespace}", "unshare", "--mount", "sh", "-c", look]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "3\n"


def test_net_admin_is_enough(world: World, plane: Transparent) -> None:
    pod = world.pod("10.240.0.5")
    program = (
        "import pickle, sys; from vnetpods_agent.attachment import SandboxHandles\n"
        "from vnetpods_agent.dataplane.pod.reaper import Reaper\n"
        "from vnetpods_agent.dataplane.pod.transparent import Transparent\n"
        "attachment, handles = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
        "print([line for line in open('/proc/self/status') if line.startswith('CapEff')])\n"
        "Transparent(Reaper()).attach(attachment, handles)\n"
    )
    argument = pickle.dumps((pod.attachment, pod.handles)).hex()
    command = ["setpriv", "--bounding-set=-all,+net_admin", sys.executable, "-c", program, argument]
    handles = (pod.handles.netns_fd, pod.handles.netlink_fd)
    done = subprocess.run(command, capture_output=True, text=True, pass_fds=handles, check=False)
    assert done.returncode == 0, done.stderr
    assert "0000000000001000" in done.stdout
    assert plane.check(pod.attachment, pod.handles) == []
    assert works(world, pod)


def test_attach_twice_changes_nothing(world: World, plane: Transparent) -> None:
    pod = world.pod("10.240.0.5")
    plane.attach(pod.attachment, pod.handles)
    before = whole_picture(pod)
    plane.attach(pod.attachment, pod.handles)
    assert whole_picture(pod) == before


def test_detach_of_nothing_changes_nothing(world: World, plane: Transparent) -> None:
    pod, never = world.pod("10.240.0.5", "a"), world.pod("10.240.0.6", "b")
    plane.attach(pod.attachment, pod.handles)
    before = whole_picture(pod)
    plane.detach(never.attachment)
    plane.detach(never.attachment)
    assert whole_picture(pod) == before
    assert plane.leaving() == frozenset()


def test_detach_makes_the_address_unreachable_at_once_and_the_interface_goes_soon(
    world: World, plane: Transparent, reaper: Reaper
) -> None:
    pod = world.pod("10.240.0.5")
    plane.attach(pod.attachment, pod.handles)
    plane.detach(pod.attachment)
    assert plane.interfaces() == []
    assert pod.address not in run("ip route") + run("ip neigh")
    assert caller_seen(world.outside, pod.namespace, pod.address) is None
    assert reaper.wait(stretched(5))
    assert plane.leaving() == frozenset()
    assert pod.host_ifname not in run("ip link")


def test_detach_when_the_sandbox_is_gone(world: World, plane: Transparent, reaper: Reaper) -> None:
    pod = world.pod("10.240.0.5")
    plane.attach(pod.attachment, pod.handles)
    run_in(pod.namespace, "ip link del eth0")
    plane.detach(pod.attachment)
    assert reaper.wait(stretched(5))
    assert pod.address not in run("ip route")


@pytest.mark.parametrize("kind", ["veth peer name other", "bridge"])
def test_a_foreign_interface_in_the_pod_is_left_alone(world: World, plane: Transparent, kind: str) -> None:
    pod = world.pod("10.240.0.5")
    run_in(pod.namespace, f"ip link add eth0 type {kind}")
    before = whole_picture(pod)
    with pytest.raises(InterfaceExists, match=r"create eth0 of c.*isn't ours"):
        plane.attach(pod.attachment, pod.handles)
    assert whole_picture(pod) == before


def test_a_foreign_interface_on_the_host_is_left_alone(world: World, plane: Transparent) -> None:
    pod = world.pod("10.240.0.5")
    run(f"ip link add {pod.host_ifname} type veth peer name other")
    before = whole_picture(pod)
    with pytest.raises(DataPlaneError, match=f"create {pod.host_ifname}: .*isn't ours"):
        plane.attach(pod.attachment, pod.handles)
    assert whole_picture(pod) == before


def test_a_taken_index_costs_a_second_attempt(world: World, plane: Transparent, reaper: Reaper) -> None:
    pod = world.pod("10.240.0.5")
    index, _ = host_veth.indexes(pod.attachment.key)
    run(f"ip link add foreign index {index} type veth peer name foreign1")
    plane.attach(pod.attachment, pod.handles)
    assert plane.check(pod.attachment, pod.handles) == []
    plane.attach(pod.attachment, pod.handles)
    plane.detach(pod.attachment)
    assert reaper.wait(stretched(5))
    assert "foreign" in run("ip link")
    assert "azv" not in run("ip link")


class Old(NetlinkSocket):
    """Like a kernel before 6.2: an interface can't be renamed while it is up."""

    def execute(self, steps: Sequence[NetlinkRequest]) -> None:
        if [step.what for step in steps] == ["move aside"] and "state UP" in run(f"ip link show {steps[0].subject}"):
            raise DataPlaneError("move aside", steps[0].subject, errno.EBUSY)
        super().execute(steps)


@pytest.mark.parametrize("kernel", [NetlinkSocket, Old], ids=["live-rename", "before-6.2"])
@pytest.mark.parametrize("order", ["old-first", "new-first"])
def test_a_late_detach_of_the_older_sandbox_of_the_same_pod_name(
    world: World,
    reaper: Reaper,
    kernel: Callable[..., NetlinkSocket],
    order: str,
    finished: Callable[[Transparent], Transparent],
) -> None:
    """calico#10375: the name follows from the pod, so both sandboxes want it."""
    plane = finished(Transparent(reaper, lambda descriptor: kernel(descriptor=descriptor)))
    old, new = world.pod("10.240.0.5", "web-0"), world.pod("10.240.0.6", "web-0")
    assert old.host_ifname == new.host_ifname
    plane.attach(old.attachment, old.handles)
    plane.attach(new.attachment, new.handles)
    assert plane.check(new.attachment, new.handles) == []
    assert any("newer sandbox" in line for line in plane.check(old.attachment, old.handles))
    assert works(world, new)
    assert works(world, old), "until its own DEL the older one goes on"
    assert {(end.key, end.address) for end in plane.interfaces()} == {
        (old.attachment.key, "10.240.0.5"),
        (new.attachment.key, "10.240.0.6"),
    }
    first, second = (old, new) if order == "old-first" else (new, old)
    plane.detach(first.attachment)
    assert reaper.wait(stretched(5))
    assert works(world, second)
    plane.detach(second.attachment)
    assert reaper.wait(stretched(5))
    assert "azv" not in run("ip link")


def test_a_new_sandbox_takes_over_from_one_that_is_just_leaving(world: World, plane: Transparent) -> None:
    for number in range(10):
        pod = world.pod(f"10.240.0.{5 + number}", "web-0")
        plane.attach(pod.attachment, pod.handles)
        assert plane.check(pod.attachment, pod.handles) == []
        plane.detach(pod.attachment)


def test_the_same_container_in_a_new_namespace(world: World, plane: Transparent) -> None:
    old = world.pod("10.240.0.5")
    plane.attach(old.attachment, old.handles)
    fresh = world.namespace("again")
    handles = world.open_doors(fresh)
    plane.attach(old.attachment, handles)
    assert plane.check(old.attachment, handles) == []
    assert works(world, PodHandle(fresh, old.attachment, handles))


@pytest.mark.parametrize("container", ["same", "another"])
def test_the_same_namespace_again_at_once(world: World, plane: Transparent, container: str) -> None:
    """DEL then ADD in one namespace, as Docker and cnitool do: the former interface may still be leaving."""
    pod = world.pod("10.240.0.5")
    for number in range(6, 16):
        plane.attach(pod.attachment, pod.handles)
        assert plane.check(pod.attachment, pod.handles) == []
        plane.detach(pod.attachment)
        key = pod.attachment.key if container == "same" else AttachmentKey("vnetpods", f"again{number}", "eth0")
        pod = replace(pod, attachment=replace(pod.attachment, key=key, address=Address(f"10.240.0.{number}")))


def test_an_owner_that_does_not_fit_into_the_alias_is_refused_before_anything_is_made(
    world: World, plane: Transparent
) -> None:
    pod = world.pod("10.240.0.5")
    key = AttachmentKey("vnetpods", "c" * 230, "eth0")
    with pytest.raises(DataPlaneError, match="too long together"):
        plane.attach(replace(pod.attachment, key=key), pod.handles)
    assert "azv" not in run("ip link")


def test_a_second_interface_of_a_pod(world: World, plane: Transparent) -> None:
    pod = world.pod("10.240.0.5")
    plane.attach(pod.attachment, pod.handles)
    key = replace(pod.attachment.key, ifname="net1")
    second = replace(pod.attachment, key=key, address=Address("10.240.0.6"))
    plane.attach(second, pod.handles)
    assert caller_seen(world.outside, pod.namespace, "10.240.0.6") is not None
    assert second.host_ifname != pod.host_ifname


def test_interfaces_are_what_a_lost_ledger_is_rebuilt_from(world: World, plane: Transparent) -> None:
    pod = world.pod("10.240.0.5")
    attachment = replace(pod.attachment, pod=Pod("default", "web-0", "uid-1"), created=12.5)
    plane.attach(attachment, pod.handles)
    run("ip link add azvforeign type veth peer name azvforeign1")
    found = {end.name: end for end in plane.interfaces()}
    ours = found.pop(attachment.host_ifname)
    assert (ours.key, ours.address) == (attachment.key, attachment.address)
    assert (ours.created, ours.uid) == (12.5, "uid-1")
    assert {(end.key, end.address) for end in found.values()} == {(None, None)}


@pytest.mark.parametrize(
    ("altnames", "created", "uid"),
    [
        pytest.param([], None, "", id="older"),
        pytest.param(["vnetpods-12.500--eth0"], 12.5, "", id="no-pod"),
        pytest.param(["vnetpods-12.500-u-1-eth0"], 12.5, "u-1", id="pod"),
        pytest.param(["enp0s9", "vnetpods-12.500-u-1-eth0", "veth9"], 12.5, "u-1", id="others"),
        pytest.param(["vnetpods-later"], None, "", id="later"),
    ],
)
def test_an_alternative_name_tells_when_and_for_whom(
    world: World, plane: Transparent, altnames: list[str], created: float | None, uid: str
) -> None:
    run("ip link add azv1 type veth peer name azv2")
    subprocess.run(["ip", "link", "set", "azv1", "alias", "vnetpods 10.240.0.5 net c1/eth0"], check=True)
    for altname in altnames:
        run(f"ip link property add dev azv1 altname {altname}")
    [end] = [end for end in plane.interfaces() if end.key]
    assert (end.key, end.address) == (AttachmentKey("net", "c1", "eth0"), "10.240.0.5")
    assert (end.created, end.uid) == (created, uid)


@pytest.mark.parametrize("uid", ["u" * 250, "an odd/uid"])
def test_a_uid_that_is_none_of_kubernetes_is_left_out(world: World, plane: Transparent, uid: str) -> None:
    pod = world.pod("10.240.0.5")
    attachment = replace(pod.attachment, pod=Pod("default", "web-0", uid))
    plane.attach(attachment, pod.handles)
    assert plane.check(attachment, pod.handles) == []
    [end] = plane.interfaces()
    assert (end.key, end.uid) == (attachment.key, "")


def test_remove_takes_what_nobody_claims(world: World, plane: Transparent, reaper: Reaper) -> None:
    pod, other = world.pod("10.240.0.5", "a"), world.pod("10.240.0.6", "b")
    for each in (pod, other):
        plane.attach(each.attachment, each.handles)
    [orphan] = [end for end in plane.interfaces() if end.address == pod.address]
    plane.remove(orphan)
    assert pod.address not in run("ip route")
    assert reaper.wait(stretched(5))
    plane.remove(orphan)
    assert [end.address for end in plane.interfaces()] == [other.address]


def test_a_new_process_finishes_what_an_older_one_left_dying(world: World, plane: Transparent) -> None:
    pod = world.pod("10.240.0.5")
    plane.attach(pod.attachment, pod.handles)
    never_started = Reaper()
    with contextlib.closing(Transparent(never_started)) as crashed:
        crashed.detach(pod.attachment)
    assert never_started.leaving() == {pod.address}
    assert pod.host_ifname in run("ip link")
    successor = Reaper()
    successor.start()
    assert successor.wait(stretched(5))
    successor.close()
    assert pod.host_ifname not in run("ip link")


def test_a_second_interface_leaves_the_first_its_default_route(world: World, plane: Transparent) -> None:
    first = world.pod("10.240.0.5")
    plane.attach(first.attachment, first.handles)
    before = run_in(first.namespace, "ip route show default")
    key = replace(first.attachment.key, ifname="net1")
    second = replace(first.attachment, key=key, address=Address("10.240.0.6"))
    for _ in range(2):  # once more: nothing changes
        plane.attach(second, first.handles)
        assert run_in(first.namespace, "ip route show default") == before
        assert plane.check(first.attachment, first.handles) == plane.check(second, first.handles) == []
    assert caller_seen(world.outside, first.namespace, Address("10.240.0.6")) is not None
    plane.detach(second)
    eventually(lambda: "net1" not in run_in(first.namespace, "ip link"))
    assert run_in(first.namespace, "ip route show default") == before
    assert plane.check(first.attachment, first.handles) == []
    assert works(world, first)


def test_descriptors_stay_their_owners(world: World, plane: Transparent) -> None:
    pod = world.pod("10.240.0.5")
    before = len(list(Path("/proc/self/fd").iterdir()))
    plane.attach(pod.attachment, pod.handles)
    plane.check(pod.attachment, pod.handles)
    plane.detach(pod.attachment)
    eventually(lambda: len(list(Path("/proc/self/fd").iterdir())) == before)  # the reaper opens some of its own
    os.fstat(pod.handles.netns_fd)
    os.fstat(pod.handles.netlink_fd)


def test_a_door_that_is_none_is_an_error_and_no_leak(world: World, plane: Transparent) -> None:
    pod = world.pod("10.240.0.5")
    wall = os.open("/dev/null", os.O_RDONLY)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(DataPlaneError, match="open a netlink socket"):
        plane.attach(pod.attachment, SandboxHandles(pod.handles.netns_fd, wall))
    with pytest.raises(DataPlaneError, match="create the interface"):
        plane.attach(pod.attachment, SandboxHandles(wall, pod.handles.netlink_fd))
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    os.close(wall)


def test_an_error_names_step_object_and_cause(world: World) -> None:
    with NetlinkSocket() as netlink, pytest.raises(DataPlaneError) as caught:
        netlink.execute(
            [
                NetlinkRequest("bring up", "lo", rt.link_set(rt.LOOPBACK, up=True)),
                NetlinkRequest("add the route to", "10.0.0.9", rt.route_add(rt.Route("10.0.0.9", 32, 12345))),
                NetlinkRequest("bring up", "lo", rt.link_set(rt.LOOPBACK, up=True)),
            ]
        )
    assert caught.value.errno == errno.ENODEV
    assert str(caught.value).startswith("add the route to 10.0.0.9: No such device")
