"""User-defined routes of a subnet, as a kernel table that is looked up before the VNet's own.

Pure. The longest prefix wins between user routes and Azure's own (the VNet's and its peers' prefixes, which are `throw`
routes: continue with the next table); for the same prefix the user's wins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

NO_ROUTE = "none"
"""The device of routes whose next hop is None, or that lead nowhere; its packets are counted as `route`."""
GATEWAY = "onprem"
INTERNET = "inet"


@dataclass(frozen=True, slots=True)
class Route:
    prefix: str
    hop: str
    """VnetLocal, Internet, None, VirtualAppliance or VirtualNetworkGateway, in lower case."""
    address: str


def table(
    routes: tuple[Route, ...], system: list[str], appliance: Callable[[str], str | None]
) -> dict[str, tuple[str, str]]:
    """Destination → (type of route, rest of the line). `appliance` returns the device of an address."""
    found: dict[str, tuple[str, str]] = dict.fromkeys(system, ("throw", ""))
    for route in routes:
        prefix = "default" if route.prefix == "0.0.0.0/0" else route.prefix
        if route.hop == "vnetlocal":
            found[prefix] = ("throw", "")
        elif route.hop == "internet":
            found[prefix] = ("unicast", f"dev {INTERNET}")
        elif route.hop == "virtualnetworkgateway":
            found[prefix] = ("unicast", f"dev {GATEWAY}")
        elif route.hop == "virtualappliance" and (device := appliance(route.address)) is not None:
            found[prefix] = ("unicast", f"via {route.address} dev {device} onlink")
        else:
            found[prefix] = ("unicast", f"dev {NO_ROUTE}")
    return found
