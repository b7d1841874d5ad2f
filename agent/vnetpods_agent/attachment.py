"""What the parts of the agent share: the identity of an attachment and everything that follows from it.

Plain data, no I/O. An Attachment is one row of the ledger; all that the kernel is told (interface name, MAC addresses,
routes) is derived from the row here, so that after a crash at any point the same values come out again.
"""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NewType

Address = NewType("Address", str)
"""One IPv4 address in canonical text form, without prefix length."""

_LARGEST_BLOCK = 28  # Azure's block size for a NIC; anything wider is somebody's mistake

TAKEN = "@"
"""Begins the names of networks, none of which can be CNI's, whose runtime takes the pod's end into the sandbox itself
and sets it up there.
"""
HOST_PREFIX = "azv"
"""What Calico's policy engine is told to look for (FELIX_INTERFACEPREFIX=azv)."""


@lru_cache(maxsize=4096)
def expand(unit: str) -> tuple[Address, ...]:
    """The addresses of a unit, an entry of `interfaces[].addresses`; none when it isn't an IPv4 address or a block of
    at most sixteen.
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
    "Parameters"). One without interface name is a reservation: an address that nobody has yet and nobody else gets.
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
    """The pod behind a container id, as far as CNI_ARGS named it. One recognised by its interface has no names,
    only its uid.
    """

    namespace: str
    name: str
    uid: str = ""


MTU = 1500
GSO_MAX_SIZE = 65536
"""What a link has unless told otherwise (Linux: ETH_DATA_LEN, GSO_LEGACY_MAX_SIZE)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the interface of a NIC takes in one piece, in bytes: a packet of `mtu`, and from TCP up to `gso_max_size`,
    which it cuts into packets itself.
    """

    mtu: int = MTU
    gso_max_size: int = GSO_MAX_SIZE


@dataclass(frozen=True, slots=True)
class Moment:
    """When something was done: by the wall clock, in seconds since the epoch, which may have been set since, and by the
    boot's, in seconds since it began. 0 and "" where that isn't known (shims before protocol 2, former ledgers).
    """

    wall: float
    boottime: float = 0.0
    boot_id: str = ""

    def after(self, other: Moment, boot_id: str) -> bool:
        """Whether this came later, seen from the boot of that id, which is the last one."""
        boots = {self.boot_id, other.boot_id}
        if "" not in boots and len(boots) > 1 and boot_id in boots:
            return self.boot_id == boot_id
        if self.boottime and other.boottime and self.boot_id == other.boot_id:
            return self.boottime > other.boottime
        return self.wall > other.wall


@dataclass(frozen=True, slots=True)
class Attachment:
    """One pod interface: which address it holds, and where it is.

    `netns` is the path the runtime gave; it is only repeated in answers and logs, never trusted (it may be reused).
    `nic_mac` names the NIC that owns the address ("00:0d:3a:1b:c7:21"). `mtu` and `gso_max_size` in bytes, as that NIC
    has them (see Limits). `host_name` is the host interface's name when it isn't the one that would follow from what is
    known of the pod. `created` in seconds since the epoch is for people: clocks are set. What is decided goes by
    `attached_boottime` (CLOCK_BOOTTIME within the boot `boot_id`; 0: a former version's) and by `arrival`, which counts
    attachments in the order in which they came (0 likewise). `snat` is as the ADD asked and not in the ledger: the
    host interface's group keeps it (see names.UNTRANSLATED).
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
    """The MAC of an attachment's "pod" or "host" end. An end that the runtime takes asks nobody by ARP and sends all to
    its own MAC: the host's end has the same.
    """
    digest = hashlib.sha1(f"{'pod' if key.taken else end} {key.network} {key}".encode(), usedforsecurity=False).digest()
    octets = bytes([digest[0] & 0xFE | 0x02]) + digest[1:6]
    return octets.hex(":")


@dataclass(frozen=True, slots=True)
class SandboxHandles:
    """Descriptors that the shim opened for one call: the pod's network namespace and a NETLINK_ROUTE socket inside it.

    Whoever received the call closes both when it ends; an open namespace descriptor keeps a dead pod's namespace alive.
    """

    netns_fd: int
    netlink_fd: int
