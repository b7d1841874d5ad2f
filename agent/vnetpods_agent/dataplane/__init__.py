"""The data plane's face: what the agent asks of the kernel. Only this package knows netlink and nftables.

All methods of DataPlane block and are called from the kernel's thread; HostState is declared from any thread and
reconciled by a thread of its own. Nothing here is durable: after a crash or a reboot the agent asks for everything
again, and asking twice is the same as asking once.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from vnetpods_agent.attachment import Address, Attachment, AttachmentKey, SandboxHandles


class DataPlaneError(Exception):
    """The kernel refused a step.

    ├── InterfaceExists     the pod's namespace has an interface of that name which isn't ours
    └── ProgramFailed       nft or iptables failed or is missing (see `programs`)
    """

    def __init__(self, step: str, subject: str, errno: int, said: str = "") -> None:
        reason = os.strerror(errno) + (f" ({said})" if said else "")
        super().__init__(f"{step} {subject}: {reason}")
        self.step = step
        self.subject = subject
        self.errno = errno
        self.said = said


class InterfaceExists(DataPlaneError):  # noqa: N818 - the contract's name
    """The namespace already has an interface of the name asked for, and it isn't this attachment's. Nothing was
    changed.
    """


@dataclass(frozen=True, slots=True)
class HostInterface:
    """A pod's host end as found in the kernel; `key` and `address` are read from its alias, None when it has none of
    ours. `created` and the pod's `uid` are from its alternative name, which those of earlier versions don't have.
    """

    name: str
    index: int
    key: AttachmentKey | None
    address: Address | None
    created: float | None = None
    uid: str = ""
    untaken: bool = field(default=False, compare=False)
    """The pod's end is in the host's namespace: no sandbox has it (yet, or any more)."""


class DataPlane(Protocol):
    """One way of connecting pods (transparent; bridge later). Errors: DataPlaneError with step, object and errno."""

    def attach(self, attachment: Attachment, handles: SandboxHandles | None) -> None:
        """Makes the pod's interface exist and carry traffic. Repeating it for the same attachment changes nothing.

        Without handles the pod's end stays in the host's namespace, under the key's interface name, for the runtime to
        take (see TAKEN).

        Raises InterfaceExists when the namespace has an interface of that name which isn't ours (nothing was changed
        then).
        """
        ...

    def detach(self, attachment: Attachment) -> None:
        """Makes the address unreachable now; the interface itself may go a little later (see `leaving`), and so do
        its connections. Nothing there: no error.
        """
        ...

    def present(self, attachment: Attachment) -> bool:
        """Whether its interface is there, be it on its way out."""
        ...

    def leaving(self) -> Collection[Address]:
        """Addresses whose interface is detached but not yet gone from the kernel: not to be used again before."""
        ...

    def check(self, attachment: Attachment, handles: SandboxHandles) -> Sequence[str]:
        """Every deviation from the declared end state as a sentence; empty when all is well."""
        ...

    def interfaces(self) -> Sequence[HostInterface]:
        """All host ends of ours (name prefix and alias), for the sweeper and for rebuilding a lost ledger."""
        ...

    def remove(self, interface: HostInterface) -> None:
        """Takes away a host end that no attachment claims, with its routes."""
        ...


@dataclass(frozen=True, slots=True)
class Nic:
    """One NIC of this VM, as the NodeIPPool describes it. `addresses` are all of the pool's, assigned or not:
    "10.0.0.5" or "10.0.0.16/28".
    """

    mac: str
    primary_address: Address
    prefixes: tuple[str, ...]
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HostState:
    """What must hold on the host as long as the agent lives: declared whole, reconciled by looking.

    `direct`: CIDRs that pods reach under their own address. `imds`: whether pods may reach 169.254.169.254.
    `take_from_host`: remove pool addresses that the host put on its own interfaces (else only report them). `guessed`:
    nobody knows which of `direct` the VNet really has, so networks of the machine's own bridges come first.
    """

    nics: tuple[Nic, ...]
    direct: tuple[str, ...]
    imds: bool = False
    take_from_host: bool = True
    guessed: bool = False
