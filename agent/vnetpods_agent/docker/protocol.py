"""The request and answer bodies of libnetwork's remote drivers, and the refusals that follow from a body alone.

Pure. Source: libnetwork's docs/remote.md, docs/ipam.md and drivers/remote/api; the parts used here are the same from
20.10 to 28. Empty maps and lists arrive as null. A pool's id describes the pool completely, since no state is kept:
`vnetpods SUBNET RANGE NIC`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Final, Self

import msgspec

from vnetpods_agent.attachment import TAKEN, Address, AttachmentKey, mac

DRIVER: Final = "vnetpods"
"""Our address space: a network in it also uses our address driver."""
NETWORK: Final = f"{TAKEN}docker"
"""The network name of all Docker attachments, for any Docker network."""
GATEWAY: Final = "169.254.1.1"
_IS_GATEWAY = "com.docker.network.gateway"
_INTERNAL = "com.docker.network.internal"
_GENERIC = "com.docker.network.generic"
_PORTS = "com.docker.network.portmap"
Options = dict[str, Any] | None


class Refused(Exception):  # noqa: N818 - its name is the finding
    """The message says what can't be done, why, and what to do instead."""


class _Body(msgspec.Struct, rename="pascal", frozen=True, kw_only=True):
    """Unknown keys are ignored: later versions may add some."""


class Nothing(_Body, frozen=True, kw_only=True): ...


class Addresses(_Body, frozen=True, kw_only=True):
    """A network's data from one pool."""

    address_space: str = ""
    pool: str = ""
    aux_addresses: dict[str, str] | None = None


class Network(_Body, frozen=True, kw_only=True):
    network_id: str = msgspec.field(name="NetworkID", default="")
    options: Options = None
    ipv4: list[Addresses] | None = msgspec.field(name="IPv4Data", default=None)
    ipv6: list[Addresses] | None = msgspec.field(name="IPv6Data", default=None)

    def check(self) -> None:
        """Raises Refused."""
        options = dict(self.options or {})
        if self.ipv6:
            raise Refused("containers have no IPv6 address here; leave out --ipv6")
        if not self.ipv4 or any(each.address_space != DRIVER for each in self.ipv4):
            raise Refused("addresses have to be those that Azure has for this VM; add --ipam-driver vnetpods")
        if any(each.aux_addresses for each in self.ipv4):
            raise Refused("no address is handed out but this VM's own; leave out --aux-address")
        if options.get(_INTERNAL):
            raise Refused("every container is a member of the VNet, and none is kept in; leave out --internal")
        if unknown := options.get(_GENERIC):
            named = ", ".join(unknown) if isinstance(unknown, dict) else str(unknown)
            raise Refused(f"there are no options for a network, and so none called {named}; leave out -o")


class Interface(_Body, frozen=True, kw_only=True):
    address: str = ""
    address_ipv6: str = msgspec.field(name="AddressIPv6", default="")
    mac_address: str = ""


class Endpoint(_Body, frozen=True, kw_only=True):
    """Any call about an endpoint; endpoint ids are never reused."""

    endpoint_id: Annotated[str, msgspec.Meta(pattern="^[0-9A-Za-z]{12,128}$")] = msgspec.field(name="EndpointID")
    interface: Interface | None = None
    options: Options = None

    @property
    def key(self) -> AttachmentKey:
        return AttachmentKey(NETWORK, self.endpoint_id, f"vnd{self.endpoint_id[:11]}")

    @property
    def address(self) -> Address:
        """Raises Refused."""
        if self.interface is None or not self.interface.address or self.interface.address_ipv6:
            raise Refused("a container needs one address of vnetpods, and no IPv6 address; use --ipam-driver vnetpods")
        return canonical(self.interface.address.partition("/")[0])

    @property
    def published(self) -> list[str]:
        """Container ports to publish under the host's address."""
        ports = (self.options or {}).get(_PORTS) or []
        listed = ports if isinstance(ports, list) else [ports]
        return [str(port.get("Port", "?")) if isinstance(port, dict) else str(port) for port in listed]

    @property
    def made(self) -> dict[str, Any]:
        """The answer with the MAC, unless Docker sent it: repeating it is an error. Raises Refused."""
        given = self.interface.mac_address.lower() if self.interface else ""
        own = mac("pod", self.key)
        if given not in ("", own):
            raise Refused(f"the MAC of a container is always {DRIVER}' own; leave out --mac-address")
        return {"Interface": {} if given else {"MacAddress": own}}


class RequestPool(_Body, frozen=True, kw_only=True):
    pool: str = ""
    sub_pool: str = ""
    options: Options = None
    v6: bool = False

    def chosen(self, subnets: Iterable[str]) -> Pool:
        """`subnets`: those of this VM's NICs. Raises Refused."""
        if self.v6:
            raise Refused("containers have no IPv6 address here; leave out --ipv6")
        if self.options:
            raise Refused(f"there are no options called {', '.join(self.options)}; leave out --ipam-opt")
        known = [ipaddress.IPv4Network(subnet) for subnet in subnets]
        such = " or ".join(f"--subnet {subnet}" for subnet in known)
        if not known:
            raise Refused("the subnet of this VM is not known yet; see the agent's log")
        if not self.pool:
            raise Refused(f"the subnet has to be named, as this VM has it: {such}")
        wanted, part = _network(self.pool), _network(self.sub_pool or self.pool)
        if not part.subnet_of(wanted):
            raise Refused(f"--ip-range {part} is not in {wanted}")
        for subnet in known:
            if wanted.subnet_of(subnet):
                return Pool(wanted, part, subnet)
        raise Refused(f"{wanted} is no subnet of this VM; use {such}")


class PoolCall(_Body, frozen=True, kw_only=True):
    """RequestAddress, ReleaseAddress and ReleasePool."""

    pool_id: str = msgspec.field(name="PoolID", default="")
    address: str = ""
    options: Options = None

    @property
    def pool(self) -> Pool:
        """Raises Refused."""
        return Pool.named(self.pool_id)

    @property
    def for_gateway(self) -> bool:
        return (self.options or {}).get("RequestAddressType") == _IS_GATEWAY


@dataclass(frozen=True, slots=True)
class Pool:
    """`network`: the subnet as the user gave it; `part`: the range of its addresses; `subnet`: the NIC's."""

    network: ipaddress.IPv4Network
    part: ipaddress.IPv4Network
    subnet: ipaddress.IPv4Network

    @classmethod
    def named(cls, pool_id: str) -> Self:
        """Raises Refused."""
        parts = pool_id.split(" ")
        if len(parts) != 4 or parts[0] != DRIVER:
            raise Refused(f"{pool_id or 'nothing'} is no pool of vnetpods")
        return cls(*map(_network, parts[1:]))

    @property
    def id(self) -> str:
        return f"{DRIVER} {self.network} {self.part} {self.subnet}"

    @property
    def gateway(self) -> str:
        """Azure's, the first address of each subnet. No container uses it: see `joined`."""
        return f"{self.subnet[1]}/{self.subnet.prefixlen}"

    @property
    def granted(self) -> dict[str, Any]:
        return {"PoolID": self.id, "Pool": str(self.network), "Data": {_IS_GATEWAY: self.gateway}}


def joined(key: AttachmentKey) -> dict[str, Any]:
    """The interface to move into the sandbox, and the sandbox's gateway."""
    return {
        "InterfaceName": {"SrcName": key.ifname, "DstPrefix": "eth"},
        "Gateway": GATEWAY,
        "StaticRoutes": [{"Destination": f"{GATEWAY}/32", "RouteType": 1, "NextHop": ""}],
    }


def canonical(address: str) -> Address:
    """Raises Refused."""
    try:
        return Address(str(ipaddress.IPv4Address(address)))
    except ValueError as error:
        raise Refused(f"{address} is no IPv4 address") from error


def _network(text: str) -> ipaddress.IPv4Network:
    try:
        return ipaddress.IPv4Network(text, strict=False)
    except ValueError as error:
        raise Refused(f"{text} is no range of IPv4 addresses") from error
