"""Pods talk as virtual machines do: each side sees the pod's own address, the internet the node's or a public one."""

from __future__ import annotations

from tests.demo.report import Report
from tests.demo.world import INTERNET, World

TITLE = "3. Pods talk, and are reached, under their own address"


def run(world: World, report: Report) -> None:
    """One line per direction; the far side reports who called."""
    pods = world.running("web") or []
    first = pods[0]
    neighbour = next(p for p in pods if p.node == first.node and p.name != first.name)
    far = next(p for p in pods if p.node != first.node)

    report.expect("pod → pod, same node: caller", first.address, world.call_from_pod(first, neighbour.address))
    report.expect("pod → pod, other node: caller", first.address, world.call_from_pod(first, far.address))
    report.expect("pod → peered VNet: caller", first.address, world.call_from_pod(first, world.peer_address))
    report.expect("peered VNet → pod: caller", world.peer_address, world.call_from_peer(first.address))
    report.expect(
        "node → its own pod: caller", world.primary(first.node), world.call_from_node(first.node, first.address)
    )

    service = world.service_address("web")
    callers = {
        report.until("the Service answers", lambda: world.try_call_from_pod(first, service, 80), within=30)
        for _ in range(4)
    }
    # when the Service picks the calling pod itself, kube-proxy must put the node's address in between
    allowed = {first.address, world.primary(first.node)}
    report.expect(f"pod → ClusterIP {service}: caller", first.address, callers, ok=first.address in callers <= allowed)

    report.expect("pod → internet: caller", world.primary(first.node), world.call_from_pod(first, INTERNET, 80, "/"))
    report.expect("pod → instance metadata (it hands out the node's identity)", "refused", world.metadata_from(first))

    echoes = world.peer_echo_requests()
    report.expect("ping of the peered host under the pod's own address", True, world.ping(first, world.peer_address))
    report.expect("echo requests that arrived", True, world.peer_echo_requests() > echoes)
    echoes = world.peer_echo_requests()
    forged = world.ping(first, world.peer_address, source=far.address)
    report.expect(f"ping with the forged source {far.address} is answered", False, forged)
    report.expect("forged echo requests that arrived", 0, world.peer_echo_requests() - echoes)

    world.create_untranslated()
    (own,) = report.until("a pod with vnetpods.io/snat: never Running", lambda: world.running("own", 1), within=60)
    report.expect("it → peered VNet: caller", own.address, world.call_from_pod(own, world.peer_address))
    report.expect("it → internet, without a public address", None, world.try_call_from_pod(own, INTERNET, 80, "/"))
    report.until(f"nothing is under way on {own.node}", lambda: world.settled(own.node), within=60)
    public = world.give_public_address(own)
    report.expect("it → internet, with a public address: caller", public, world.call_from_pod(own, INTERNET, 80, "/"))
    world.scale("own", 0)
    report.until("it is gone", lambda: not world.pods("own"), within=60)
