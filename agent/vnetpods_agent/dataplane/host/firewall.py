"""Finds foreign nftables chains on the forward hook that refuse every pod (firewalld, a hardened rule set), and why.

`refusal` is pure: it follows a pod's first packet to a destination beyond the node through the rules as `nft -j` lists
them. It evaluates the matches that concern such a packet; a rule with any other match is undecided, and then nothing is
reported: a false alarm would take the node from the cluster. The same goes for rules that name pods' interfaces: they
take pods into account, and may refuse some of them. `refused` runs nft. Called from the host reconciler's thread.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Collection
from typing import Any

from vnetpods_agent.attachment import HOST_PREFIX
from vnetpods_agent.dataplane import DataPlaneError
from vnetpods_agent.dataplane.host.tools import output
from vnetpods_agent.dataplane.names import TABLE

Rule = dict[str, Any]
Rules = Callable[[str], list[Rule]]
"""Returns the rules of one table's chain, by the chain's name."""

_OPEN = "accepted, or nobody can tell"
_NEXT = "the next rule"
_REFUSES = "refuses all that comes so far"
_VERDICTS = {"drop", "reject", "accept", "return", "jump", "goto"}
_STATEMENTS = {"counter", "log", "comment", "mangle", "notrack"}
_STEPS = 32


def refused(uplinks: Collection[str]) -> None:
    """Raises DataPlaneError, with chain, rule and remedy, if packets from pods to these interfaces are refused."""
    listed = json.loads(output("list chains", ["nft", "-j", "list", "chains"]))["nftables"]
    for chain in (entry["chain"] for entry in listed if "chain" in entry):
        family, table, name = chain["family"], chain["table"], chain["name"]
        iptables = (family, table, name) == ("ip", "filter", "FORWARD")  # see `forwarding`
        if chain.get("hook") != "forward" or family not in {"ip", "inet"} or table == TABLE or iptables:
            continue

        def rules(of: str, family: str = family, table: str = table) -> list[Rule]:
            found = json.loads(output("list rules", ["nft", "-j", "list", "chain", family, table, of]))["nftables"]
            return [entry["rule"] for entry in found if "rule" in entry]

        if why := refusal(rules, name, chain.get("policy", "accept"), uplinks):
            said = f'{why}; let pods pass before: accept iifname "{HOST_PREFIX}*" and oifname "{HOST_PREFIX}*" there'
            subject = f"chain {name} of table {family} {table}"
            raise DataPlaneError("pass pods' packets through", subject, errno.EPERM, f"{said} (docs/dataplane.md)")


def refusal(rules: Rules, chain: str, policy: str, uplinks: Collection[str]) -> str:
    """Why no pod's packet passes the base chain; empty if one may."""
    end = _walk(rules, chain, uplinks, _STEPS)
    if end is None and policy == "drop":
        return "its policy is drop"
    return end if end not in {None, _OPEN} else ""


def _walk(rules: Rules, chain: str, uplinks: Collection[str], steps: int) -> str | None:
    """The packet's fate in a chain: a refusal, _OPEN, or None if it falls through."""

    def follow(target: str) -> str | None:
        return _walk(rules, target, uplinks, steps - 1)

    for rule in rules(chain) if steps else ():
        end = _end(*_understood(rule, uplinks), follow)
        if end != _NEXT:
            return f"its rule {json.dumps(rule['expr'])} in {chain} {_REFUSES}" if end == _REFUSES else end
    return None if steps else _OPEN


def _understood(rule: Rule, uplinks: Collection[str]) -> tuple[bool | None, str, Any]:
    """Whether the packet matches the rule, and the rule's verdict with its content."""
    matched: bool | None = True
    for expression in rule["expr"]:
        ((kind, content),) = expression.items()
        if HOST_PREFIX in json.dumps(content):
            return matched, "accept", None  # a rule made for pods
        if kind == "match":
            matched = _both(matched, _matches(content, uplinks))
        elif kind == "vmap":
            by_state = content.get("key") == {"ct": {"key": "state"}} and '"new"' not in json.dumps(content)
            return (False if by_state else matched), "accept", None
        elif kind in _VERDICTS:
            return matched, kind, content
        elif kind not in _STATEMENTS:
            matched = _both(matched, None)
    return matched, "", None


def _end(matched: bool | None, verdict: str, content: Any, follow: Callable[[str], str | None]) -> str | None:
    if matched is False or not verdict:
        return _NEXT
    if verdict in {"drop", "reject"}:
        return _REFUSES if matched else _NEXT
    if verdict in {"accept", "return"}:
        return None if matched and verdict == "return" else _OPEN
    end = follow(content["target"])
    if end == _OPEN or (end and matched):
        return end
    return None if verdict == "goto" and matched else _NEXT


def _both(one: bool | None, other: bool | None) -> bool | None:
    """Three-valued AND."""
    if one is False or other is False:
        return False
    return None if one is None or other is None else True


def _matches(match: Rule, uplinks: Collection[str]) -> bool | None:
    """Whether the packet matches; None if undecided."""
    left, right = match["left"], match["right"]
    values = right.get("set", []) if isinstance(right, dict) else right if isinstance(right, list) else [right]
    if not all(isinstance(value, str) for value in values) or any(value.startswith("@") for value in values):
        return None
    known: Collection[str] | None = {
        '{"meta": {"key": "iifname"}}': (),
        '{"meta": {"key": "iif"}}': (),
        '{"meta": {"key": "oifname"}}': uplinks,
        '{"meta": {"key": "oif"}}': uplinks,
        '{"ct": {"key": "state"}}': ("new",),
        '{"ct": {"key": "status"}}': (),
        '{"meta": {"key": "nfproto"}}': ("ipv4",),
    }.get(json.dumps(left))
    if "ip6" in json.dumps(left):
        return False
    if known is None or any("*" in value for value in values):
        return None
    return bool(set(values) & set(known)) != bool(match["op"] == "!=")
