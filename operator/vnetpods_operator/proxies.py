"""Makes HTTP(S)_PROXY and NO_PROXY work as for other programs in a cluster.

aiohttp, which sends our requests, parses NO_PROXY with urllib: names and suffixes, but no CIDRs, which Kubernetes' own
programs support. Our destinations with literal addresses are few and known at the start, so those within a CIDR are
added to NO_PROXY one by one. Azure's endpoints on the host never go through a proxy: they respond only to the machine
itself. Pure except for the mapping passed in (the process's environment).
"""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

NEVER = ("169.254.169.254", "168.63.129.16")
"""Instance metadata, which hands out the identity's tokens, and the wireserver."""


def settle(environ: MutableMapping[str, str], destinations: Iterable[str | None]) -> None:
    """Adds to NO_PROXY those of these hosts or URLs that its CIDRs cover, and Azure's host endpoints."""
    said = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    parts = [part.strip() for part in said.split(",") if part.strip()]
    hosts = [host for one in destinations if one and (host := _host(one))]
    wanted = [*parts, *NEVER, *(host for host in hosts if any(_covers(part, host) for part in parts))]
    environ["no_proxy"] = environ["NO_PROXY"] = ",".join(dict.fromkeys(wanted))


def _host(destination: str) -> str:
    return (urlsplit(destination).hostname if "://" in destination else destination) or ""


def _covers(part: str, host: str) -> bool:
    try:
        return "/" in part and ip_address(host) in ip_network(part, strict=False)
    except ValueError:
        return False
