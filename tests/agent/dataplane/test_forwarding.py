"""Whoever stops pods' packets on the node is opened or named, with the rights that the product has."""

from __future__ import annotations

import pytest

from tests.agent.dataplane.confined import confine
from tests.agent.dataplane.keeper import STATE, Keeper
from tests.agent.dataplane.world import INTERNET, PRIMARY, World, caller_seen, eventually, run
from vnetpods_agent.dataplane.host.legacy_filter import LegacyRule, forward_chain
from vnetpods_agent.dataplane.host.reconciler import FAILED
from vnetpods_agent.dataplane.pod.transparent import Transparent


def test_the_legacy_chain_is_read_as_it_is(world: World) -> None:
    assert forward_chain() == ([], "ACCEPT")
    assert "filter" not in run("cat /proc/net/ip_tables_names", check=False), "asking must not make the table"
    for rule in (
        "-P FORWARD DROP",
        "-N ENGINE",
        "-A FORWARD -i azv+ -m comment --comment vnetpods -j ACCEPT",
        "-A FORWARD -i eth0 -o docker0 -j ENGINE",
        "-A FORWARD -p tcp -j DROP",
        "-A FORWARD -s 10.0.0.0/8 -j ACCEPT",
        "-A FORWARD -m conntrack --ctstate NEW -j ACCEPT",
        "-A FORWARD ! -i eth0 -j ACCEPT",
        "-A FORWARD -j REJECT",
        "-A INPUT -j DROP",
    ):
        run(f"iptables-legacy {rule}")
    assert forward_chain() == (
        [
            LegacyRule("azv+", "", narrow=False, target="ACCEPT"),
            LegacyRule("eth0", "docker0", narrow=False, target=""),
            LegacyRule("", "", narrow=True, target="DROP"),
            LegacyRule("", "", narrow=True, target="ACCEPT"),
            LegacyRule("", "", narrow=True, target="ACCEPT"),
            LegacyRule("eth0", "", narrow=True, target="ACCEPT"),
            LegacyRule("", "", narrow=False, target="REJECT"),
        ],
        "DROP",
    )


def test_with_the_charts_rights_a_policy_of_iptables_nft_is_opened(world: World, plane: Transparent) -> None:
    run("iptables-nft -P FORWARD DROP")
    with confine() as said:
        assert ("settled", "True") in said
        pod = world.pod("10.240.0.5")
        plane.attach(pod.attachment, pod.handles)
        assert caller_seen(pod.namespace, world.outside, INTERNET) == PRIMARY


def test_with_the_charts_rights_a_policy_of_legacy_iptables_is_named_with_its_remedy(
    world: World, plane: Transparent
) -> None:
    run("iptables-legacy -P FORWARD DROP")
    pod = world.pod("10.240.0.5")
    plane.attach(pod.attachment, pod.handles)
    with confine() as said:
        message = next(message for kind, message in said if kind == FAILED)
        assert "the FORWARD policy of iptables-legacy" in message
        assert "its policy is DROP, which cuts pods off" in message
        remedy = message.partition("on the node: ")[2].rstrip(")").split("; ")
        assert len(remedy) == 2
        for command in remedy:
            run(command)
        eventually(lambda: caller_seen(pod.namespace, world.outside, INTERNET) == PRIMARY)
        assert ("settled", "True") in said, "and then all is well"


def test_and_one_that_stops_nothing_is_no_fault(world: World) -> None:
    """kube-proxy with legacy iptables, say: the table is there, and can't be listed by the program."""
    run("iptables-legacy -N KUBE-FORWARD")
    run("iptables-legacy -A FORWARD -j KUBE-FORWARD")
    with confine() as said:
        found = []
        for kind, message in said:
            found.append(kind)
            if kind == "settled":
                assert message == "True"
                break
        assert FAILED not in found


@pytest.mark.parametrize("target", ["REJECT", "DROP"])
@pytest.mark.parametrize("variant", ["iptables-nft", "iptables-legacy"])
def test_a_final_refusal_of_iptables_is_named_with_its_remedy(
    world: World, plane: Transparent, keeper: Keeper, variant: str, target: str
) -> None:
    for rule in ("-p udp -j ACCEPT", f"-m comment --comment hardening -j {target}"):
        run(f"{variant} -A FORWARD {rule}")
    keeper.reconciler.declare(STATE)
    eventually(lambda: FAILED in keeper.kinds())
    message = next(message for kind, message in keeper.events if kind == FAILED)
    assert f"the FORWARD chain of {variant}" in message
    assert f"its rule `-j {target}` refuses" in message
    assert message[message.index("cannot put right") :] in keeper.reconciler.failing
    for command in message.partition("on the node: ")[2].rstrip(")").split("; "):
        run(command)
    assert keeper.reconciler.wait(10)
    pod = world.pod("10.240.0.5")
    plane.attach(pod.attachment, pod.handles)
    assert caller_seen(pod.namespace, world.outside, INTERNET) == PRIMARY
