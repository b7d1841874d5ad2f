"""The cloud's settings for tests, and every unconfirmed guess about the service.

A *guess* is behaviour that neither documentation nor a recording settles; it has one name here so that it can be
changed if a real subscription differs. All times are seconds. Mutable on purpose: a test changes a field while the
cloud runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(slots=True)
class Guesses:
    """Unconfirmed behaviour of the service."""

    etags_enforced: bool = True
    """A NIC PUT with a stale If-Match returns 412. Recorded for load balancers, public IPs and NSGs, unproven for
    NICs."""
    parallel_writes: Literal["retryable", "conflict", "accept"] = "retryable"
    """A write to a NIC whose last operation still runs: 429 RetryableErrorDueToAnotherOperation, 409
    AnotherOperationInProgress, or accepted, ending the earlier operation with OperationPreempted."""
    nic_limit_code: str = "PrivateIPAddressCountPerNicLimitReached"
    """More than 256 ipConfigurations on a plain NIC; the real code is unknown, so nothing may depend on it."""
    vm_limit_code: str = "PrivateIPAddressCountPerVmLimitReached"
    """The same for all NICs of one VM."""
    joins_checked: Literal["all", "changed"] = "all"
    """Whether join permissions are checked for every reference in a body, or only for those that changed."""
    listed_configurations: int = 1000
    """`subnet.ipConfigurations` is null when the subnet has more than this many."""
    empty_set_has_no_nics: bool = True
    """Listing the NICs of an empty scale set returns 404, which was observed, but maybe not always."""
    throttle_code: str = "TooManyRequests"
    """The error code of a Microsoft.Network throttle."""
    pool_sku_code: str = "BackendAddressesRequireStandardSku"
    """Addresses in a Basic balancer's pool; only that it is refused is documented."""
    pool_vnet_code: str = "BackendAddressesMustBeInTheSameVirtualNetwork"
    """Addresses of two VNets in one pool, or of none."""
    pool_address_code: str = "BackendAddressNotInVirtualNetwork"
    """An address that the named VNet doesn't contain."""
    pool_mixed_code: str = "BackendAddressPoolCannotMixNicAndIpMembers"
    """Members by NIC and by address in one pool."""


@dataclass(slots=True)
class Limits:
    """Request budgets: (bucket, per second) of ARM and Compute, (requests, seconds) of Microsoft.Network."""

    reads: tuple[float, float] = (250, 25)
    writes: tuple[float, float] = (200, 10)
    deletes: tuple[float, float] = (200, 10)
    network_reads: tuple[float, float] = (10_000, 300)
    network_writes: tuple[float, float] = (1_000, 300)
    instance_writes: tuple[float, float] = (12, 4 / 60)
    instances_writes: tuple[float, float] = (1_500, 500 / 60)


@dataclass(slots=True)
class Settings:
    """The behaviour of this cloud. Durations tell how long an operation stays InProgress."""

    durations: dict[str, float] = field(default_factory=dict)
    """Resource type in lower case (or "*") → seconds; operations on missing types end at once."""
    retry_after: int | tuple[int, ...] = 1
    """The Retry-After of an unfinished operation, in whole seconds; of several each in its turn (recorded: 1 to 10 on
    writes and deletions, 2 to 160 on polls)."""
    operation_style: Literal["recorded", "header", "body", "none"] = "recorded"
    """How the write of a NIC is followed. As recorded: an Azure-AsyncOperation header, while the body says Succeeded
    at once and the etag stays when the operation ends; by that header and a body that says Updating until then (as all
    other types of Microsoft.Network); only by such a body; or (as the newest API versions) not at all: it is done."""
    removed_stays_taken: float = 0.0
    """How long a removed address still counts as allocated when requested (8 minutes were observed)."""
    page: int = 500
    """Resources per page of a list; the next page is behind `nextLink`."""
    metadata_lag: float | None = None
    """Seconds after the end of a NIC's operation until instance metadata shows it; negative is before the end (but
    never before the write). None: at once."""
    throttling: bool = False
    """Whether the published read and write budgets are enforced."""
    limits: Limits = field(default_factory=Limits)
    guesses: Guesses = field(default_factory=Guesses)

    def next_retry_after(self) -> str:
        if isinstance(self.retry_after, int):
            return str(self.retry_after)
        first, *others = self.retry_after
        self.retry_after = (*others, first)
        return str(first)

    def duration(self, kind: str) -> float:
        return self.durations.get(kind.lower(), self.durations.get("*", 0.0))
