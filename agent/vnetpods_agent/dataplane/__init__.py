"""The data plane's interface to the rest of the agent. Only this package uses netlink and nftables.

All methods of DataPlane block and are called from the kernel's worker thread; HostState is declared from any thread and
reconciled in a thread of its own. Nothing here is durable: after a crash or a reboot the agent requests everything
again, and every request is idempotent.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from vnetpods_agent.attachment import Address, Attachment, AttachmentKey, SandboxHandles


class DataPlaneError(Exception):
    """The kernel refused a step.

    ├── InterfaceExists     the pod's namespace has a foreign interface of that name
    └── ProgramFailed       nft or iptables failed or is missing (see `host.tools`)
    """

    def __init__(self, step: str, subject: str, errno: int, said: str = "") -> None:
        reason = os.strerror(errno) + (f" ({said})" if said else "")
        super().__init__(f"{step} {subject}: {reason}")
        self.step = step
        self.subject = subject
        self.errno = errno
        self.said = said


class InterfaceExists(DataPlaneError):  # noqa: N818 - the contract's name
    """The namespace already has an interface of the requested name, and it isn't this attachment's. Nothing was
    changed.
    """


@dataclass(frozen=True, slots=True)
class HostInterface:
    """A pod's host end as found in the kernel; `key` and `address` come from its alias, None without one of ours.
    `created` and the pod's `uid` come from its alternative name, which host ends of earlier versions lack.
    """

    name: str
    index: int
    key: AttachmentKey | None
    address: Address | None
    created: float | None = None
    uid: str = ""
    untaken: bool = field(default=False, compare=False)
    """The pod's end is in the host's namespace: no sandbox has taken it yet, or none has it any more."""


class DataPlane(Protocol):
    """A way to connect pods (transparent; bridge later). Errors: DataPlaneError with step, object and errno."""

    def attach(self, attachment: Attachment, handles: SandboxHandles | None) -> None:
        """Creates the pod's interface and makes it carry traffic. Idempotent for the same attachment.

        Without handles the pod's end stays in the host's namespace, under the key's interface name, for the runtime to
        take (see TAKEN).

        Raises InterfaceExists, before any change, if the namespace has a foreign interface of that name.
        """
        ...

    def detach(self, attachment: Attachment) -> None:
        """Makes the address unreachable at once; interface and connections may go a little later (see `leaving`). No
        error if there is none.
        """
        ...

    def present(self, attachment: Attachment) -> bool:
        """Whether its interface exists, possibly being deleted."""
        ...

    def leaving(self) -> Collection[Address]:
        """Addresses whose interface is detached but not yet gone from the kernel: not reusable until it is."""
        ...

    def check(self, attachment: Attachment, handles: SandboxHandles) -> Sequence[str]:
        """Every deviation from the declared end state, as a sentence; empty without any."""
        ...

    def interfaces(self) -> Sequence[HostInterface]:
        """All our host ends (name prefix and alias), for the sweeper and for rebuilding a lost ledger."""
        ...

    def remove(self, interface: HostInterface) -> None:
        """Removes a host end without attachment, with its routes."""
        ...


@dataclass(frozen=True, slots=True)
class Nic:
    """A NIC of this VM, as in the NodeIPPool. `addresses`: all that the pool lists for it, assigned or not: "10.0.0.5"
    or "10.0.0.16/28".
    """

    mac: str
    primary_address: Address
    prefixes: tuple[str, ...]
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HostState:
    """The desired state of the host while the agent runs: declared as a whole, reconciled against the kernel.

    `direct`: CIDRs that pods reach under their own address. `imds`: whether pods may reach 169.254.169.254.
    `take_from_host`: remove pool addresses from the host's own interfaces (otherwise only report them). `guessed`: it
    is unknown which parts of `direct` the VNet really has, so networks of the machine's own bridges take precedence.
    """

    nics: tuple[Nic, ...]
    direct: tuple[str, ...]
    imds: bool = False
    take_from_host: bool = True
    guessed: bool = False
