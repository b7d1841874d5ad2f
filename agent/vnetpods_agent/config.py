"""The agent's configuration: one file, read once at start; from the environment only NODE_NAME is read.

An unknown key, or a value of the wrong type or out of bounds, stops the agent with file, key, value and expectation.
docs/agent.md describes every key for authors of the file; the types here state what the code relies on.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from vnetpods_kit.config import CIDR, ConfigError, Duration, Section, content, explain


class Seconds(Duration):
    """Up to a day."""

    __slots__ = ()
    MOST = 86400


class Period(Duration):
    """A repetition interval or a wait: never 0."""

    __slots__ = ()
    LEAST, MOST = 0.1, 3600


class SweepPeriod(Period):
    __slots__ = ()
    MOST = 86400


class Patience(Period):
    """The watchdog's."""

    __slots__ = ()
    LEAST = 1


class Interval(Period):
    """Between requests to a service that allows five per second."""

    __slots__ = ()
    LEAST = 1


class Kubernetes(Section, kw_only=True, frozen=True):
    """`kubeconfig`: a kubectl file; without it the pod's ServiceAccount is used."""

    kubeconfig: Path | None = None


_PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")


class Imds(Section, kw_only=True, frozen=True):
    """Instance metadata. `direct_cidrs`: destinations reached under the pod's own address, besides the NICs' subnets;
    metadata doesn't tell the VNet's ranges, and Azure routes private destinations only to VNets and networks connected
    to them.
    """

    interval: Interval = Interval(15)
    direct_cidrs: tuple[CIDR, ...] = msgspec.field(default=_PRIVATE, name="directCIDRs")

    @property
    def guesses(self) -> bool:
        """Whether these destinations are the default, not configured."""
        return self.direct_cidrs == _PRIVATE


class Source(Section, kw_only=True, frozen=True):
    """The source of addresses: `file` (a NodeIPPool's status as YAML or JSON) or `imds`, else the Kubernetes API.
    `confirmation`: seconds to wait for the operator to confirm the list (see `trust`).
    """

    kubernetes: Kubernetes = Kubernetes()
    file: Path | None = None
    imds: Imds | None = None
    confirmation: Seconds = Seconds(60)

    @property
    def is_kubernetes(self) -> bool:
        return self.file is None and self.imds is None


class Paths(Section, kw_only=True, frozen=True):
    """Files on the node. `shim`: the program to install, for this machine's architecture; without it nothing is
    installed. `sysctl`: a writable /proc/sys/net; in a container that is a mount.
    """

    state: Path = Path("/var/lib/vnetpods")
    socket: Path = Path("/run/vnetpods/agent.sock")
    shim: Path | None = None
    cni_bin: Path = Path("/opt/cni/bin")
    cni_conf: Path = Path("/etc/cni/net.d")
    sysctl: Path = Path("/proc/sys/net")
    boot_id: Path = Path("/proc/sys/kernel/random/boot_id")

    @property
    def ledger(self) -> Path:
        return self.state / "ledger.db"

    @property
    def pool(self) -> Path:
        return self.state / "pool.json"

    @property
    def spool(self) -> Path:
        return self.state / "spool"


class Http(Section, kw_only=True, frozen=True):
    """Metrics and health. Port 0: any free port, which is logged."""

    address: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 9809


class Operator(Section, kw_only=True, frozen=True):
    """The operator's Lease, read while pods wait; with an empty `lease` it isn't read. `patience`: seconds for which it
    may go unrenewed.
    """

    namespace: str = "kube-system"
    lease: str = ""
    patience: Period = Period(60)


class Docker(Section, kw_only=True, frozen=True):
    """Docker's network and address driver, named after the socket's file. `ports`: whether a container with published
    ports is refused, or the ports are ignored.
    """

    socket: Path = Path("/run/docker/plugins/vnetpods.sock")
    ports: Literal["refuse", "ignore"] = "refuse"


Namespaces = tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=63)], ...]


class Annotations(Section, kw_only=True, frozen=True):
    """Namespaces whose pods may have a wish (see cni.wishes); "*": all. `snat`: `vnetpods.io/snat: never`; `ips`: an
    address that the pod names itself, through Multus.
    """

    snat: Namespaces = ()
    ips: Namespaces = ()


class Config(Section, kw_only=True, frozen=True):
    """The whole file. `cooldown`: seconds that an address rests after its release; `report_interval`: between routine
    reports.
    """

    node: Annotated[str, msgspec.Meta(max_length=253)] = ""
    source: Source = Source()
    paths: Paths = Paths()
    http: Http = Http()
    operator: Operator = Operator()
    docker: Docker | None = None
    annotations: Annotations = Annotations()
    cooldown: Seconds = Seconds(30)
    sweep_interval: SweepPeriod = SweepPeriod(30)
    report_interval: Period = Period(10)
    stop_grace: Seconds = Seconds(20)
    stuck_after: Patience = Patience(60)
    chained: tuple[str, ...] = ()
    imds: bool = False
    take_from_host: bool = True
    log_level: Literal["debug", "info", "warning", "error"] = "info"


def load(path: Path, environment: dict[str, str] | None = None) -> Config:
    """Raises ConfigError."""
    document = content(path)
    try:
        config = msgspec.convert({} if document is None else document, Config, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise ConfigError(explain(error, document, str(path), Config, "docs/agent.md")) from error
    if not config.node:
        name = (os.environ if environment is None else environment).get("NODE_NAME", "")
        config = msgspec.structs.replace(config, node=name)
    if config.source.file and config.source.imds:
        raise ConfigError(f"{path}: source: `file` and `imds` both say where addresses come from; keep one of them")
    if not config.node and config.source.is_kubernetes:
        raise ConfigError(f"{path}: node: is missing, and so is the environment variable NODE_NAME")
    return config


def _decode(type_: type, value: Any) -> Any:
    if issubclass(type_, Duration):
        return type_.read(value)
    if type_ is Path and isinstance(value, str) and value.startswith("/"):
        return Path(value)
    raise ValueError("Expected an absolute path")
