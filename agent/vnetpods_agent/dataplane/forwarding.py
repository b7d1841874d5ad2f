"""A FORWARD chain whose policy is DROP (Docker leaves it so) stops pods' packets: detected, and opened for pods only.

An `accept` in a table of ours would not help: a packet must pass every table. So the chain itself gets two rules, in
whichever of the two iptables (legacy, nft) has the policy. They are appended: what stands before them, a policy
engine's verdict say, keeps its say, and only the policy is overtaken. Blocking; called from the host reconciler's
thread.
"""

from __future__ import annotations

from pathlib import Path

from vnetpods_agent.attachment import HOST_PREFIX
from vnetpods_agent.dataplane.programs import ProgramFailed, output

LEGACY, NFT = "iptables-legacy", "iptables-nft"
_WAIT = ("-w", "5")
_INTERFACES = (("-i", f"{HOST_PREFIX}+"), ("-o", f"{HOST_PREFIX}+"))
_VERDICT = ("-m", "comment", "--comment", "vnetpods", "-j", "ACCEPT")


def open_for_pods(variant: str) -> bool:
    """Appends what is missing of our rules if the policy is DROP; True when something was."""
    listed = _listed(variant)
    if "-P FORWARD DROP" not in listed:
        return False
    missing = [match for match in _INTERFACES if not _has(listed, match)]
    for match in missing:
        output("open FORWARD for pods", [variant, *_WAIT, "-A", "FORWARD", *match, *_VERDICT])
    return bool(missing)


def close() -> None:
    """Takes our rules out of both variants, where they are."""
    for variant in (LEGACY, NFT):
        listed = _listed(variant)
        for match in _INTERFACES:
            if _has(listed, match):
                output("close FORWARD for pods", [variant, *_WAIT, "-D", "FORWARD", *match, *_VERDICT])


def _listed(variant: str) -> list[str]:
    """The chain's lines; none when nobody uses this variant (legacy would make its tables by being asked)."""
    names = Path("/proc/net/ip_tables_names")
    if variant == LEGACY and not (names.exists() and "filter" in names.read_text().split()):
        return []
    try:
        return output("list the FORWARD chain", [variant, *_WAIT, "-S", "FORWARD"]).splitlines()
    except ProgramFailed:
        return []  # not installed, or no such table


def _has(listed: list[str], match: tuple[str, str]) -> bool:
    wanted = " ".join(("-A FORWARD", *match))
    return any(line.startswith(wanted) and line.endswith("-j ACCEPT") for line in listed)
