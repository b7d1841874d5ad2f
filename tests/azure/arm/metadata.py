"""A machine's network in instance metadata.

Pure: the document of `GET /metadata/instance/network`, made from the NICs' present (or, with a lag, earlier) state.
"""

from __future__ import annotations

import ipaddress
from typing import Any

from tests.azure.arm import nics
from tests.azure.arm.cloud import Cloud
from tests.azure.arm.ids import key
from tests.azure.arm.store import Body, Resource


def network(cloud: Cloud, wanted: list[str], now: float) -> dict[str, Any]:
    """`wanted` are keys of NICs, primary first."""
    found = [nic for text in wanted if (nic := cloud.store.get(text)) is not None]
    return {"interface": [_interface(cloud, nic, now) for nic in found]}


def _known(cloud: Cloud, nic: Resource, now: float) -> list[Body]:
    """The configurations that metadata shows: a change appears `metadata_lag` after its operation's end."""
    lag = cloud.settings.metadata_lag
    if lag is not None:
        for done, before in nic.memory.get("history", ()):
            if now < done + lag:
                found: list[Body] = before
                return found
    return nics.configurations(nic)


def _interface(cloud: Cloud, nic: Resource, now: float) -> dict[str, Any]:
    parts = sorted(_known(cloud, nic, now), key=lambda part: not part["properties"]["primary"])
    space = cloud.spaces[key(parts[0]["properties"]["subnet"]["id"])]
    addresses = [
        {"privateIpAddress": part["properties"]["privateIPAddress"], "publicIpAddress": ""}
        for part in parts
        if part["properties"]["privateIPAddressVersion"] == "IPv4"
    ]
    networks = map(ipaddress.IPv4Network, space.networks)
    return {
        "ipv4": {
            "ipAddress": addresses,
            "subnet": [{"address": str(net[0]), "prefix": str(net.prefixlen)} for net in networks],
        },
        "ipv6": {"ipAddress": []},
        "macAddress": nic.properties["macAddress"].replace("-", ""),
    }
