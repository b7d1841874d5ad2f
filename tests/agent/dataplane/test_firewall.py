"""Whose chain refuses every pod is said; what only may is not."""

from __future__ import annotations

import subprocess

import pytest

from tests.agent.dataplane.keeper import STATE, Keeper
from tests.agent.dataplane.world import INTERNET, PRIMARY, PodHandle, World, caller_seen, eventually
from vnetpods_agent.dataplane.host.reconciler import FAILED

FIREWALLD = """
table inet firewalld {
  chain filter_FORWARD {
    type filter hook forward priority filter + 10; policy accept;
    ct state { established, related } accept
    ct status dnat accept
    iifname "lo" accept
    ct state invalid drop
    ip6 daddr { ::/96, 2002::/24 } reject with icmpv6 addr-unreachable
    jump filter_FORWARD_ZONES
    reject with icmpx admin-prohibited
  }
  chain filter_FORWARD_ZONES {
    iifname "eth0" goto filter_FWD_public
    MORE
    goto filter_FWD_public
  }
  chain filter_FWD_public {
    jump filter_FWD_public_log
    meta l4proto { icmp, ipv6-icmp } accept
    reject with icmpx admin-prohibited
  }
  chain filter_FWD_public_log {
  }
}
"""


def hardened(policy: str, *rules: str) -> str:
    lines = [f"type filter hook forward priority 0; policy {policy};", *rules]
    return "\n".join(["table inet hardened {", "chain onward {", *lines, "}", "}"])


def load(text: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)


@pytest.mark.parametrize(
    ("text", "chain", "rule"),
    [
        pytest.param(
            FIREWALLD.replace("MORE", "").replace("meta l4proto { icmp, ipv6-icmp } accept", ""),
            "chain filter_FORWARD of table inet firewalld",
            "in filter_FWD_public refuses",
            id="firewalld",
        ),
        pytest.param(hardened("drop"), "chain onward of table inet hardened", "its policy is drop", id="policy"),
        pytest.param(
            hardened("drop", "ct state established,related accept", 'iifname "docker0" accept'),
            "chain onward of table inet hardened",
            "its policy is drop",
            id="others-pass",
        ),
        pytest.param(
            hardened("accept", "ct state vmap { established : accept, related : accept }", "counter reject"),
            "chain onward of table inet hardened",
            "reject",
            id="final-reject",
        ),
        pytest.param(
            hardened("accept", 'iifname != "eth0" drop'),
            "chain onward of table inet hardened",
            "drop",
            id="all-but-eth0",
        ),
    ],
)
def test_who_refuses_all_pods_is_named(
    world: World, pod: PodHandle, keeper: Keeper, text: str, chain: str, rule: str
) -> None:
    load(text)
    assert caller_seen(pod.namespace, world.outside, INTERNET) is None
    eventually(lambda: FAILED in keeper.kinds())
    message = next(message for kind, message in keeper.events if kind == FAILED)
    assert chain in message
    assert rule in message
    assert chain in keeper.reconciler.failing
    table, base = chain.rsplit(maxsplit=1)[-1], chain.split()[1]
    for direction in ("iifname", "oifname"):
        load(f"insert rule inet {table} {base} {direction} azv* accept")
    eventually(lambda: keeper.reconciler.failing == "")
    assert caller_seen(pod.namespace, world.outside, INTERNET) == PRIMARY


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(hardened("accept", "ct state invalid drop", "tcp dport 25 reject"), id="some-packets"),
        pytest.param(hardened("drop", "ip saddr 10.0.0.0/8 accept"), id="by-address"),
        pytest.param(hardened("drop", 'oifname "eth0" accept'), id="by-uplink"),
        pytest.param(hardened("accept", 'iifname "azv0123456789a" accept', 'iifname "azv*" drop'), id="policy-engine"),
        pytest.param(hardened("accept", "limit rate over 1000/second drop"), id="limit"),
        pytest.param(hardened("accept", 'iifname "docker0" drop'), id="others"),
        pytest.param(FIREWALLD.replace("MORE", 'iifname "azv*" accept'), id="firewalld-with-pods-trusted"),
    ],
)
def test_what_may_let_pods_pass_is_no_fault(keeper: Keeper, text: str) -> None:
    load(text)
    keeper.declare(STATE)
    assert FAILED not in keeper.kinds()
