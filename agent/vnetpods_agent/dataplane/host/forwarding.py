"""Opens iptables' FORWARD chain for pods if its policy is DROP; reports a rule that refuses their packets.

Docker sets this policy. An `accept` in our own table would not help: a packet must pass every table. So the chain
itself gets two rules, in whichever of the two iptables (legacy, nft) has the policy. They are appended: earlier rules,
such as a policy engine's, keep their effect, and only the policy is overridden. A final REJECT is an explicit rule: it
stays, and the error names the remedy. Blocking; called from the host reconciler's thread.
"""

from __future__ import annotations

import errno

from vnetpods_agent.attachment import HOST_PREFIX
from vnetpods_agent.dataplane import DataPlaneError
from vnetpods_agent.dataplane.host.legacy_filter import forward_chain
from vnetpods_agent.dataplane.host.tools import ProgramFailed, output

LEGACY, NFT = "iptables-legacy", "iptables-nft"
_WAIT = ("-w", "5")
_PODS = f"{HOST_PREFIX}+"
_INTERFACES = (("-i", _PODS), ("-o", _PODS))
_VERDICT = ("-m", "comment", "--comment", "vnetpods", "-j", "ACCEPT")


def open_for_pods(variant: str) -> bool:
    """Appends our missing rules if the policy is DROP; returns whether any was missing.

    Raises DataPlaneError if the chain can't be read or opened, or a rule refuses pods' packets.
    """
    rules, policy = _chain(variant)
    for rule in rules:
        if _PODS in rule:
            break  # another rule handles pods
        if rule in {"-j REJECT", "-j DROP"}:
            remedy = f"{variant} -I FORWARD -i {_PODS} -j ACCEPT; {variant} -I FORWARD -o {_PODS} -j ACCEPT"
            said = f"its rule `{rule}` refuses all that comes so far; on the node: {remedy}"
            raise DataPlaneError("pass pods' packets through", f"the FORWARD chain of {variant}", errno.EPERM, said)
    if policy != "DROP":
        return False
    missing = [match for match in _INTERFACES if f"{' '.join(match)} -j ACCEPT" not in rules]
    for match in missing:
        _append(variant, match)
    return bool(missing)


def _append(variant: str, match: tuple[str, str]) -> None:
    try:
        output("open FORWARD for pods", [variant, *_WAIT, "-A", "FORWARD", *match, *_VERDICT])
    except ProgramFailed as error:
        remedy = "; ".join(f"{variant} -A FORWARD {' '.join(each)} -j ACCEPT" for each in _INTERFACES)
        said = f"{error.said}; its policy is DROP, which cuts pods off; on the node: {remedy}"
        raise ProgramFailed(error.step, error.subject, error.errno, said) from error


def close() -> None:
    """Removes our rules from both variants, where present."""
    for variant in (LEGACY, NFT):
        rules, _ = _chain(variant)
        for match in _INTERFACES:
            if f"{' '.join(match)} -j ACCEPT" in rules:
                output("close FORWARD for pods", [variant, *_WAIT, "-D", "FORWARD", *match, *_VERDICT])


def _chain(variant: str) -> tuple[list[str], str]:
    """The rules without their comments (irrelevant rules in any form), and the policy."""
    if variant == LEGACY:
        rules, policy = forward_chain()
        return [_written(rule.incoming, rule.outgoing, rule.target, narrow=rule.narrow) for rule in rules], policy
    try:
        lines = output("list the FORWARD chain", [variant, *_WAIT, "-S", "FORWARD"]).splitlines()
    except ProgramFailed as error:
        if error.errno == errno.ENOENT or "incompatible" in error.said:
            return [], "ACCEPT"  # not installed, so not used; or a native nftables table of that name
        raise
    policy = next((line.split()[2] for line in lines if line.startswith("-P FORWARD ")), "ACCEPT")
    return [_plain(line) for line in lines if line.startswith("-A FORWARD ")], policy


def _written(incoming: str, outgoing: str, target: str, *, narrow: bool) -> str:
    words = [f"-i {incoming}"] * bool(incoming) + [f"-o {outgoing}"] * bool(outgoing) + ["…"] * narrow
    return " ".join([*words, f"-j {target}"])


def _plain(line: str) -> str:
    """`-A FORWARD -i azv+ -m comment --comment "a b" -j REJECT --reject-with x` -> `-i azv+ -j REJECT`."""
    matches, _, target = line.removeprefix("-A FORWARD").rpartition(" -j ")
    matches = matches.partition(" -m comment ")[0] if matches.count(" -m ") == 1 else matches
    return f"{matches.strip()} -j {target.split()[0] if target else ''}".strip()
