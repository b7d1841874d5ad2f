"""HTTP(S)_PROXY and NO_PROXY as everybody else in a cluster understands them.

The libraries that send our requests (aiohttp, by way of urllib) know names and suffixes in NO_PROXY, but no CIDRs,
which Kubernetes' own programs do know. The destinations that we ask by address are few and known at the start, so those
that a CIDR covers are added to NO_PROXY by themselves. Azure's endpoints on the host are never asked by way of a proxy:
they answer nobody but the machine itself. Pure but for the mapping that it is given (the process's environment).
"""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

NEVER = ("169.254.169.254", "168.63.129.16")
"""Instance metadata, which hands out the identity's tokens, and the wireserver."""


def settle(environ: MutableMapping[str, str], destinations: Iterable[str | None]) -> None:
    """Makes NO_PROXY say what it means for these hosts or URLs."""
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
