"""Types that the agent's rooms share: the identity of an attachment and everything derived from it.

Plain data, no I/O. An Attachment is one row of the ledger; all kernel configuration (interface name, MAC addresses,
routes) is derived from the row here, so that it is the same after a crash at any point.
"""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NewType

Address = NewType("Address", str)
"""One IPv4 address in canonical text form, without prefix length."""

_LARGEST_BLOCK = 28  # Azure's block size for a NIC; anything wider is a mistake

TAKEN = "@"
"""Prefix of networks whose runtime moves the pod's end into the sandbox and configures it there by itself. No CNI
network's name can begin with it.
"""
HOST_PREFIX = "azv"
"""The interface prefix for Calico's policy engine (FELIX_INTERFACEPREFIX=azv)."""


@lru_cache(maxsize=4096)
def expand(unit: str) -> tuple[Address, ...]:
    """The addresses of a unit, an entry of `interfaces[].addresses`; none if it is not an IPv4 address or a block of at
    most sixteen.
    """
    try:
        network = ipaddress.IPv4Network(unit, strict=False)
    except ValueError:
        return ()
    if network.prefixlen < _LARGEST_BLOCK:
        return ()
    return tuple(Address(str(address)) for address in network)


@dataclass(frozen=True, slots=True, order=True)
class AttachmentKey:
    """The CNI specification's key of an attachment: network name, container id and interface name (section 2,
    "Parameters"). A key without an interface name is a reservation: an address that has no pod yet and is not free.
    """

    network: str
    container_id: str
    ifname: str

    @property
    def reserves(self) -> bool:
        return not self.ifname

    @property
    def taken(self) -> bool:
        """Whether the runtime takes the pod's end (see TAKEN)."""
        return self.network.startswith(TAKEN)

    def __str__(self) -> str:
        """The form used in logs and in the host interface's alias."""
        return f"{self.container_id}/{self.ifname}"


@dataclass(frozen=True, slots=True)
class Pod:
    """The pod behind a container id, as far as CNI_ARGS names it. A pod recognised by its interface has no names, only
    its uid.
    """

    namespace: str
    name: str
    uid: str = ""


MTU = 1500
GSO_MAX_SIZE = 65536
"""A link's defaults (Linux: ETH_DATA_LEN, GSO_LEGACY_MAX_SIZE)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Size limits of a NIC's interface, in bytes: packets up to `mtu`, and TCP segments up to `gso_max_size`, which it
    splits into packets itself.
    """

    mtu: int = MTU
    gso_max_size: int = GSO_MAX_SIZE


@dataclass(frozen=True, slots=True)
class Moment:
    """A point in time: by the wall clock, in seconds since the epoch, which may have been set since, and by the boot
    clock, in seconds since the boot. 0 and "" if unknown (shims before protocol 2, ledgers of earlier versions).
    """

    wall: float
    boottime: float = 0.0
    boot_id: str = ""

    def after(self, other: Moment, boot_id: str) -> bool:
        """Whether this is later than `other`; `boot_id` is the present boot's."""
        boots = {self.boot_id, other.boot_id}
        if "" not in boots and len(boots) > 1 and boot_id in boots:
            return self.boot_id == boot_id
        if self.boottime and other.boottime and self.boot_id == other.boot_id:
            return self.boottime > other.boottime
        return self.wall > other.wall


@dataclass(frozen=True, slots=True)
class Attachment:
    """One pod interface: its address and its location.

    `netns` is the runtime's path; it is only repeated in answers and logs, never trusted (it may be reused). `nic_mac`
    identifies the NIC that owns the address ("00:0d:3a:1b:c7:21"). `mtu` and `gso_max_size` in bytes, as that NIC has
    them (see Limits). `host_name` is the host interface's name if it differs from the one derived from the known pod.
    `created` in seconds since the epoch is for display only, since clocks are set. Decisions use `attached_boottime`
    (CLOCK_BOOTTIME within the boot `boot_id`; 0: from an earlier version) and `arrival`, which numbers attachments in
    their order of arrival (0 likewise). `snat` is as the ADD requested and not in the ledger: the host interface's
    group keeps it (see names.UNTRANSLATED).
    """

    key: AttachmentKey
    address: Address
    netns: str
    nic_mac: str
    mtu: int
    boot_id: str
    created: float
    pod: Pod | None = None
    gso_max_size: int = GSO_MAX_SIZE
    host_name: str = ""
    attached_boottime: float = 0.0
    arrival: int = 0
    snat: bool = field(default=True, compare=False)
    """False: the pod's own address is its source everywhere, not only for direct destinations."""

    @property
    def attached(self) -> Moment:
        return Moment(self.created, self.attached_boottime, self.boot_id)

    @property
    def host_ifname(self) -> str:
        """`azv` + 11 hex digits of sha1("namespace.pod"), or of the container id without a pod: 14 characters."""
        if self.host_name:
            return self.host_name
        pod = self.pod if self.pod and self.pod.name and self.key.ifname == "eth0" else None
        subject = f"{pod.namespace}.{pod.name}" if pod else str(self.key)
        return HOST_PREFIX + hashlib.sha1(subject.encode(), usedforsecurity=False).hexdigest()[:11]

    @property
    def pod_mac(self) -> str:
        """A locally administered unicast MAC derived from the key, for the pod's end."""
        return mac("pod", self.key)

    @property
    def host_mac(self) -> str:
        """The same for the host's end."""
        return mac("host", self.key)


def mac(end: str, key: AttachmentKey) -> str:
    """The MAC of an attachment's "pod" or "host" end. An end that the runtime takes does no ARP and sends everything to
    its own MAC, so the host's end has the same one.
    """
    digest = hashlib.sha1(f"{'pod' if key.taken else end} {key.network} {key}".encode(), usedforsecurity=False).digest()
    octets = bytes([digest[0] & 0xFE | 0x02]) + digest[1:6]
    return octets.hex(":")


@dataclass(frozen=True, slots=True)
class SandboxHandles:
    """Descriptors that the shim opened for one call: the pod's network namespace and a NETLINK_ROUTE socket inside it.

    The call's receiver closes both when it ends; an open namespace descriptor keeps a dead pod's namespace alive.
    """

    netns_fd: int
    netlink_fd: int
