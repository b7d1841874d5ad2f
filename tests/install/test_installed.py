"""vnetpods installed by helm onto a real cluster from the built image: from nothing to pods that talk, upgrade,
uninstall.

The tests follow each other on one cluster. They need the image: `make image`, or `python -m tests.install image`.
"""

from __future__ import annotations

import functools
import json
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from tests import pace
from tests.demo.report import Report
from tests.demo.world import WORKERS
from tests.install import building, rights
from tests.install.world import CHART, IDENTITY, NAMESPACE, HelmError, InstalledWorld, previous_chart, values
from tests.kube.api import KubeError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

WEB = 12
NET_ADMIN = "0000000000001000"
GHOST = "ghost"
FORBIDDEN = 403


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InstalledWorld]:
    if not building.ARCHIVE.exists():
        pytest.skip(f"{building.ARCHIVE} is missing: make image")
    console = Console(width=150, highlight=False, force_terminal=False)
    world = InstalledWorld(tmp_path_factory.mktemp("installed"), Report(console))
    try:
        world.up()
        yield world
    finally:
        world.down()


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    """What earlier tests measured, for later ones."""
    return {}


def web_addresses(world: InstalledWorld) -> dict[str, str]:
    return {pod.name: pod.address for pod in world.pods("web")}


def test_from_helm_install_to_pods_with_addresses(
    world: InstalledWorld, told: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world.until_nodes_exist()
    world.cluster.wait("the default ServiceAccount", lambda: world.cluster.get("serviceaccount", "default"), 30)
    world.create_web(WEB)
    assert not any(world.node_is_ready(node) for node in WORKERS)
    chart = earlier_chart(world, tmp_path)
    started = time.monotonic()
    notes = world.install(chart)
    world.cluster.wait("the first pod's address", lambda: any(pod.address for pod in world.pods("web")), 120)
    first = time.monotonic() - started
    world.cluster.wait(f"{WEB} pods", lambda: world.running("web", WEB), 120)
    everything = time.monotonic() - started
    with capsys.disabled():
        print(f"\nhelm install → first pod with an address {first:.1f} s, {WEB} pods Running {everything:.1f} s")
    assert "kubectl get nodeippools" in notes
    assert all(world.node_is_ready(node) for node in WORKERS)
    told["web"] = web_addresses(world)


def earlier_chart(world: InstalledWorld, folder: Path) -> Path:
    """The previous commit's chart, so that the upgrade below is one; this one where that can't take today's values."""
    try:
        chart = previous_chart(folder)
        world.helm("template", "vnetpods", str(chart), "--values=-", stdin=json.dumps(values()))
    except (HelmError, subprocess.CalledProcessError):
        return CHART
    return chart


def test_everything_is_rolled_out_and_every_pool_ready_as_kstatus_reads_it(world: InstalledWorld) -> None:
    world.kubectl(
        "rollout", "status", "deployment/vnetpods-operator", "-n", NAMESPACE, f"--timeout={pace.stretched(60):.0f}s"
    )
    world.kubectl(
        "rollout", "status", "daemonset/vnetpods-agent", "-n", NAMESPACE, f"--timeout={pace.stretched(60):.0f}s"
    )
    world.kubectl("wait", "--for=condition=Ready", "nodeippools", "--all", f"--timeout={pace.stretched(60):.0f}s")
    columns = world.kubectl("get", "nodeippools").splitlines()[0].split()
    assert columns == ["NAME", "READY", "CAPACITY", "ALLOCATED", "ASSIGNED", "FREE", "WAITING", "SUBNET", "AGE"]


def test_pods_have_addresses_of_their_nodes_nic_and_talk_under_them(world: InstalledWorld) -> None:
    pods = world.running("web", WEB)
    assert pods
    for node in WORKERS:
        assert {pod.address for pod in pods if pod.node == node} <= world.nic_addresses(node)
    near = next(pod for pod in pods if pod.node == WORKERS[0])
    far = next(pod for pod in pods if pod.node == WORKERS[1])
    assert world.call_from_pod(near, far.address) == near.address


@pytest.mark.parametrize(
    ("workload", "user", "capabilities"),
    [
        pytest.param("daemonset/vnetpods-agent", "0", NET_ADMIN, id="agent"),
        pytest.param("deployment/vnetpods-operator", "65532", "0000000000000000", id="operator"),
    ],
)
def test_a_program_has_the_least_rights_in_the_kernel(
    world: InstalledWorld, workload: str, user: str, capabilities: str
) -> None:
    text = world.kubectl("exec", "-n", NAMESPACE, workload, "--", "cat", "/proc/1/status")
    status = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    assert status["Uid"].split()[0] == user
    assert {status[name] for name in ("CapEff", "CapPrm", "CapBnd")} == {capabilities}
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
    with pytest.raises(KubeError, match="Read-only file system"):
        world.kubectl("exec", "-n", NAMESPACE, workload, "--", "touch", "/opt/mark")


def test_the_admission_policy_fits_the_crd(world: InstalledWorld) -> None:
    """The controller manager checks its expressions against the schema and says in the status what doesn't fit."""

    def checked() -> dict[str, Any]:
        found = world.cluster.get("validatingadmissionpolicy", "vnetpods-agent").get("status", {})
        return dict(found) if "typeChecking" in found else {}

    status = world.cluster.wait("the type check of the policy", checked, 30)
    assert not status["typeChecking"].get("expressionWarnings")


def test_nothing_of_the_chart_was_changed_by_what_the_operator_wrote(world: InstalledWorld) -> None:
    """What Argo CD and Flux would call drift: the live objects against the manifest."""
    manifest = world.helm("get", "manifest", "vnetpods")
    command = ["diff", "--server-side", "--force-conflicts", "--field-manager=helm", "-f", "-"]
    assert world.kubectl(*command, stdin=manifest) == ""


def test_a_pruned_pool_comes_back_and_no_pod_notices(world: InstalledWorld, told: dict[str, Any]) -> None:
    before = world.cluster.get("nodeippool", WORKERS[0])["metadata"]["uid"]
    world.kubectl("delete", "nodeippool", WORKERS[0], f"--timeout={pace.stretched(20):.0f}s")

    def back() -> bool:
        found = world.cluster.get("nodeippool", WORKERS[0])
        return found["metadata"]["uid"] != before and bool(world.usage(WORKERS[0]).get("assigned"))

    world.cluster.wait("the pool to be there again", back, 60)
    assert web_addresses(world) == told["web"]
    owners = world.cluster.get("nodeippool", WORKERS[0])["metadata"]["ownerReferences"]
    assert [owner["kind"] for owner in owners] == ["Node"]
    assert not world.cluster.get("nodeippool", WORKERS[0])["metadata"].get("finalizers")


def test_a_node_that_is_no_azure_machine_is_told_of(world: InstalledWorld) -> None:
    world.cluster.apply(json.dumps({"apiVersion": "v1", "kind": "Node", "metadata": {"name": GHOST}}))

    def told_of() -> bool:
        events = world.cluster.get("events", "-n", "default")["items"]
        return any(event["involvedObject"]["name"] == GHOST and event["reason"] == "NoProviderID" for event in events)

    world.cluster.wait("an event about it", told_of, 60)
    world.kubectl("delete", "node", GHOST)
    world.cluster.wait("its pool to be collected", lambda: not exists(world, "nodeippool", GHOST), 60)


def exists(world: InstalledWorld, *what: str) -> bool:
    return bool(world.kubectl("get", *what, "--ignore-not-found", "-o", "name").strip())


def test_an_upgrade_under_load_moves_no_address_and_fails_no_pod_for_good(
    world: InstalledWorld, told: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    world.create_burst(0, WORKERS[0])
    finished = threading.Event()
    rounds = 0

    def churn() -> None:
        nonlocal rounds
        while not finished.is_set():
            for replicas in (8, 0):
                world.scale("burst", replicas)
                finished.wait(4)
            rounds += 1

    thread = threading.Thread(target=churn)
    thread.start()
    before = {pod["metadata"]["name"] for pod in agents(world)}
    started = time.monotonic()
    try:
        world.upgrade({"agent": {"config": {"cooldown": 4}}})
    finally:
        finished.set()
        thread.join()
    with capsys.disabled():
        print(f"\nhelm upgrade under load: {time.monotonic() - started:.1f} s, {rounds} rounds of 8 pods meanwhile")
    told["upgraded"] = len(world.cluster.audit())
    replaced = lambda: not before & {pod["metadata"]["name"] for pod in agents(world)}  # noqa: E731
    world.cluster.wait("the former agents to be gone", replaced, 60)
    world.scale("burst", 8)
    world.cluster.wait("8 pods after the upgrade", lambda: world.running("burst", 8), 90)
    world.scale("burst", 0)
    world.cluster.wait("no pod of the burst", lambda: not world.pods("burst"), 90)
    assert web_addresses(world) == told["web"]
    assert all(pod.ready for pod in world.pods("web"))


def agents(world: InstalledWorld) -> list[Any]:
    return world.cluster.pods("-n", NAMESPACE, "-l", "app.kubernetes.io/component=agent")


def test_pods_that_wait_are_told_why_and_start_when_there_are_addresses(world: InstalledWorld) -> None:
    pause = ["patch", "nodeippool", WORKERS[0], "--type=merge", "-p"]
    world.kubectl(*pause, json.dumps({"spec": {"paused": True}}))
    world.scale("burst", 40)

    def told_of() -> bool:
        events = world.cluster.get("events", "-n", "default")["items"]
        return any(event["reason"] == "WaitingForAddress" for event in events)

    world.cluster.wait("an event on a pod that waits", told_of, 60)
    world.kubectl(*pause, json.dumps({"spec": {"paused": None}}))
    world.cluster.wait("40 pods", lambda: world.running("burst", 40), 120)
    world.scale("burst", 0)
    world.cluster.wait("no pod of the burst", lambda: not world.pods("burst"), 120)


def test_no_request_was_refused_and_no_right_is_spare(world: InstalledWorld, told: dict[str, Any]) -> None:
    """The audit log of everything above, against the rules as they are in the cluster."""
    granted = rights.granted(world.cluster)
    events = world.cluster.audit()
    used, _ = rights.used(events)
    _, refused = rights.used(events[told["upgraded"] :])  # before, the rights were the previous chart's
    assert refused == set()
    assert used <= granted
    assert granted - used == set(rights.RARE)


def test_the_documented_role_in_azure_is_enough(world: InstalledWorld) -> None:
    """The operator's identity has it and no other; whatever it asked for was answered."""
    asked = world.azure.requests(principal=IDENTITY)
    assert any(entry["operation"] == "Microsoft.Network/networkInterfaces/write" for entry in asked)
    assert [entry for entry in asked if entry["status"] == FORBIDDEN] == []


def test_without_any_one_right_something_that_was_done_would_be_refused(world: InstalledWorld) -> None:
    for right in sorted(rights.granted(world.cluster)):
        allowed = functools.partial(rights.allowed, world.cluster, right)
        refused = functools.partial(rights.refused, world.cluster, right)
        with rights.withdrawn(world.cluster, right):
            world.cluster.wait(f"{right} to be refused", refused, 10)
        world.cluster.wait(f"{right} to be allowed again", allowed, 10)


def test_without_an_operator_pools_can_be_deleted_at_once(world: InstalledWorld) -> None:
    world.kubectl("scale", "deployment/vnetpods-operator", "-n", NAMESPACE, "--replicas=0")
    selector = "app.kubernetes.io/component=operator"
    world.cluster.wait("no operator", lambda: not world.cluster.pods("-n", NAMESPACE, "-l", selector), 60)
    world.kubectl("delete", "nodeippools", "--all", f"--timeout={pace.stretched(20):.0f}s")


def test_an_uninstall_leaves_nothing_on_the_nodes(world: InstalledWorld) -> None:
    for app in ("web", "burst"):
        world.kubectl("delete", "deployment", app, f"--timeout={pace.stretched(60):.0f}s")
    world.cluster.wait("no pods", lambda: not world.pods("web") and not world.pods("burst"), 90)
    world.upgrade({"agent": {"uninstall": True}})
    world.helm("uninstall", "vnetpods", "--wait", f"--timeout={pace.stretched(120):.0f}s")
    for node in WORKERS:
        machine = world.cluster.machines[node]
        assert machine.run("ls", "/etc/cni/net.d").stdout.split() == []
        assert machine.run("ls", "/opt/cni/bin").stdout.split() == ["loopback"]
        assert "vnetpods" not in machine.run("nft", "list", "tables").stdout
        assert "azv" not in machine.run("ip", "-brief", "link").stdout
        assert "azv" not in machine.run("ip", "route", "show", "table", "all").stdout
    assert exists(world, "crd", "nodeippools.vnetpods.io"), "the definition goes only when a person deletes it"
    for kind in ("clusterrole", "clusterrolebinding", "validatingadmissionpolicy"):
        assert "vnetpods" not in world.kubectl("get", kind, "-o", "name")
