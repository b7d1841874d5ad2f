"""The operator's configuration: one YAML file, read at start and again when it changes.

Every setting is here with its default, unit and reason; docs/operator.md shows them as a table. An unknown key or a
value of the wrong type fails the start with file, key, value and what was expected; a reload then keeps the former
configuration. No setting comes from the environment, except azure-identity's own variables.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Mapping
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from vnetpods_api import Sizing
from vnetpods_kit.config import CIDR, ConfigError, Duration, Section, content, explain


class Interval(Duration):
    """The duration of a repetition or a wait: never zero."""

    __slots__ = ()
    LEAST = 0.001


class AddressRange(str):
    """A closed range of IPv4 addresses, written as one address, `first-last` or CIDR."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> AddressRange:
        try:
            first, last = cls._bounds(text)
        except ValueError as error:
            raise ValueError(f"Expected an IPv4 address, `first-last` or a CIDR, got `{text}`") from error
        if first > last:
            raise ValueError(f"Expected `first-last` in ascending order, got `{text}`")
        return cls(text)

    @staticmethod
    def _bounds(text: str) -> tuple[int, int]:
        if "/" in text:
            network = IPv4Network(text)
            return int(network.network_address), int(network.broadcast_address)
        first, _, last = text.partition("-")
        return int(IPv4Address(first.strip())), int(IPv4Address((last or first).strip()))

    @property
    def bounds(self) -> tuple[int, int]:
        """First and last address as numbers."""
        return self._bounds(self)


Count = Annotated[int, msgspec.Meta(ge=0, le=4096)]
Rate = Annotated[float, msgspec.Meta(gt=0)]

Place = Annotated[str, msgspec.Meta(pattern=r"^[^:]*:[0-9]+$")]


Operator = Literal["In", "NotIn", "Exists", "DoesNotExist"]
LogLevel = Literal["debug", "info", "warning", "error"]


class Expression(Section, frozen=True):
    """One requirement on labels, as in a Kubernetes LabelSelector."""

    key: str
    operator: Operator
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.key)
        match self.operator:
            case "In":
                return value in self.values
            case "NotIn":
                return value not in self.values
            case "Exists":
                return value is not None
            case "DoesNotExist":
                return value is None


class Selector(Section, frozen=True):
    """Selects Nodes (empty: all) in the form of a Kubernetes LabelSelector."""

    match_labels: dict[str, str] = msgspec.field(default_factory=dict)
    match_expressions: tuple[Expression, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(labels.get(k) == v for k, v in self.match_labels.items()) and all(
            e.matches(labels) for e in self.match_expressions
        )


class Group(Section, frozen=True):
    """Sizing of the Nodes that match `nodes`. Unit: addresses."""

    nodes: Selector = Selector()
    minimum: Count = 16
    """Added as soon as the Node appears, never gone below."""
    warm: Count = 16
    """Kept free ahead of demand."""
    batch: Annotated[int, msgspec.Meta(ge=1, le=256)] = 16
    """Least number to add in one step."""
    maximum: Count = 250
    """Never exceeded."""
    blocks: bool = False
    """Request /28 blocks where 16 or more addresses are needed (a preview feature of Azure)."""

    def __post_init__(self) -> None:
        if self.minimum > self.maximum:
            raise ValueError(f"Expected `minimum` <= `maximum`, got {self.minimum} and {self.maximum}")
        if self.warm > self.maximum:
            raise ValueError(f"Expected `warm` <= `maximum`, got {self.warm} and {self.maximum}")

    def refined(self, sizing: Sizing | None) -> Group:
        """The group with a pool's spec.sizing applied; ValueError if the result contradicts itself."""
        if sizing is None:
            return self
        said = {f: v for f in ("minimum", "warm", "batch", "maximum") if (v := getattr(sizing, f)) is not None}
        return msgspec.structs.replace(self, **said)


class Release(Section, frozen=True):
    """When unneeded addresses are returned to the subnet."""

    after: Duration = Duration(600)
    """How long more than twice `warm` must have been free."""
    batch: Annotated[int, msgspec.Meta(ge=1, le=256)] = 64
    """Most addresses in one step."""
    patience: Duration = Duration(120)
    """Wait for an agent's acknowledgement, and before an address that a pod kept is requested again."""


class Interfaces(Section, frozen=True):
    """Which NICs of a machine carry pod addresses: the primary, and those that match `names` or `tags`."""

    primary: bool = True
    names: tuple[str, ...] = ()
    """Shell patterns for NIC names."""
    tags: dict[str, str] = msgspec.field(default_factory=dict)
    """Tags, all of which a NIC must have."""

    def chosen(self, name: str, primary: bool, tags: Mapping[str, str]) -> bool:
        if primary:
            return self.primary
        by_name = any(fnmatch.fnmatchcase(name.lower(), pattern.lower()) for pattern in self.names)
        by_tag = bool(self.tags) and all(tags.get(k) == v for k, v in self.tags.items())
        return by_name or by_tag


class Machines(Section, frozen=True):
    """Which machines a Node may name: anyone who may register a Node chooses its providerID."""

    resource_groups: tuple[str, ...] = ()
    """Shell patterns for `subscription/resource group`, or for the resource group alone. Empty: the resource groups of
    control-plane Nodes' machines; without any control-plane Node, all that the operator's role reaches."""

    def allows(self, place: str, trusted: Collection[str]) -> bool:
        """`place`: the machine's `subscription/resource group`; `trusted`: those of control-plane machines."""
        wanted = place.lower()
        if not self.resource_groups:
            return not trusted or wanted in trusted
        group = wanted.rpartition("/")[2]
        return any(
            fnmatch.fnmatchcase(wanted if "/" in pattern else group, pattern.lower())
            for pattern in self.resource_groups
        )


class Allowance(Section, frozen=True):
    """One token bucket: sustained requests per second, and burst."""

    per_second: Rate
    burst: Annotated[int, msgspec.Meta(ge=1)]


class Budget(Section, frozen=True):
    """Requests to ARM, per subscription.

    Microsoft.Network sustains 33 reads and 3.3 writes per second, shared by the whole subscription.
    """

    reads: Allowance = Allowance(per_second=15, burst=250)
    writes: Allowance = Allowance(per_second=2, burst=40)


class Azure(Section, frozen=True):
    """ARM's endpoint and its use. Credentials: azure-identity's default chain."""

    endpoint: Annotated[str, msgspec.Meta(pattern="^https?://[^/]+/?$")] = "https://management.azure.com"
    scope: str = "https://management.azure.com/.default"
    """Credential scope; both differ in sovereign clouds."""
    budget: Budget = Budget()
    poll: Interval = Interval(1)
    """Polling interval of long-running operations when ARM returns no Retry-After."""
    request_timeout: Interval = Interval(60)
    operation_timeout: Interval = Interval(900)
    networks: Interval = Interval(600)
    """Interval of reading VNets for direct CIDRs."""
    network_api_version: str | None = None
    compute_api_version: str | None = None
    """In place of the SDK's versions, for clouds that lag behind."""


class Election(Section, frozen=True):
    """The Lease that makes one of several operators the leader."""

    namespace: str = "kube-system"
    name: str = "vnetpods-operator"
    duration: Duration = Duration(15)
    renew: Duration = Duration(10)
    """A leader that could not renew for this long exits."""
    retry: Interval = Interval(2)

    def __post_init__(self) -> None:
        if not self.retry < self.renew < self.duration:
            got = f"{self.retry:g}s, {self.renew:g}s and {self.duration:g}s"
            raise ValueError(f"Expected `retry` < `renew` < `duration`, got {got}")


class Agents(Section, frozen=True):
    """The agents' Pods, whose Ready conditions tell which agents run. Without a namespace only the Nodes' count."""

    namespace: str = ""
    selector: Selector = Selector()
    patience: Interval = Interval(60)
    """How long an agent may be unwell and write nothing before it is considered silent."""


class Config(Section, frozen=True):
    """The whole file."""

    listen: Place = "0.0.0.0:9461"
    """Address and port of /healthz and /readyz, for the kubelet's probes."""
    metrics_listen: Annotated[str, msgspec.Meta(pattern=r"^([^:]*:[0-9]+)?$")] = "127.0.0.1:9462"
    """Address and port of /metrics; empty: not served. May be the same as `listen`."""
    log_level: LogLevel = "info"
    nodes: Selector = Selector()
    """Which Nodes are managed; those labelled vnetpods.io/managed=false never are."""
    groups: tuple[Group, ...] = (Group(),)
    """The first that matches a Node applies; if none does, the defaults."""
    release: Release = Release()
    interfaces: Interfaces = Interfaces()
    machines: Machines = Machines()
    adopt: tuple[str, ...] = ()
    """Shell patterns for names of others' ipConfigurations whose addresses pods may use; never removed."""
    exclude: tuple[AddressRange, ...] = ()
    """Addresses that are never handed out."""
    direct_cidrs: Annotated[tuple[CIDR, ...], msgspec.Meta(max_length=256)] = msgspec.field(
        default=(), name="directCIDRs"
    )
    """Destinations reached under the pod's own address, beside the VNet's and its peers'."""
    agents: Agents = Agents()
    azure: Azure = Azure()
    election: Election = Election()
    audit: Interval = Interval(1800)
    """Every NIC is read at least this often."""
    relist: Interval = Interval(600)
    """All Nodes and NodeIPPools are listed this often, to find what the watch missed."""
    workers: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 128
    """Nodes reconciled concurrently."""

    def group_of(self, labels: Mapping[str, str]) -> Group:
        return next((group for group in self.groups if group.nodes.matches(labels)), Group())


def load(path: Path) -> Config:
    """Loads the file; raises ConfigError if it can't be used."""
    return parse(content(path), str(path))


def readable(path: Path) -> None:
    """Raises ConfigError if the file, which a library reads later, can't be opened."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def parse(raw: Any, source: str) -> Config:
    """`raw` as read from YAML."""
    try:
        return msgspec.convert({} if raw is None else raw, Config, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise ConfigError(explain(error, raw, source, Config, "docs/operator.md")) from error


def _decode(type_: type, value: Any) -> Any:
    if issubclass(type_, Duration):
        return type_.read(value)
    if type_ is AddressRange:
        return AddressRange.parse(str(value))
    raise NotImplementedError(type_)
