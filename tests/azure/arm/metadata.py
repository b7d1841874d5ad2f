"""What instance metadata says about a machine's network.

Pure: the document of `GET /metadata/instance/network`, made from the NICs as they are (or, with a lag, as they were).
"""

from __future__ import annotations

import ipaddress
from typing import Any

from tests.azure.arm import nics
from tests.azure.arm.cloud import Cloud
from tests.azure.arm.ids import key
from tests.azure.arm.store import Resource


def network(cloud: Cloud, wanted: list[str], now: float) -> dict[str, Any]:
    """`wanted` are keys of NICs, primary first."""
    found = [nic for text in wanted if (nic := cloud.store.get(text)) is not None]
    return {"interface": [_interface(cloud, nic) for nic in found]}


def _interface(cloud: Cloud, nic: Resource) -> dict[str, Any]:
    parts = sorted(nics.configurations(nic), key=lambda part: not part["properties"]["primary"])
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
