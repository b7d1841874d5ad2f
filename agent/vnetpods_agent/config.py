"""The agent's configuration: one file, read once at start; nothing else is read from the environment but NODE_NAME.

A key that isn't known, a value of the wrong type or out of bounds stops the agent with file, key, value and what was
expected. docs/agent.md describes every key for those who write the file; here the types say what the code relies on.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import msgspec

Seconds = Annotated[float, msgspec.Meta(ge=0, le=86400)]


class ConfigError(Exception):
    """The file can't be used; says which key of which file, what it holds and what was expected."""


class _Section(msgspec.Struct, rename="camel", forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Keys in camelCase, unknown ones refused."""


class Kubernetes(_Section, kw_only=True, frozen=True):
    """`kubeconfig`: a file as kubectl reads it; without it the pod's ServiceAccount is used."""

    kubeconfig: Path | None = None


class Source(_Section, kw_only=True, frozen=True):
    """Where addresses come from: `file` (a NodeIPPool's status as YAML or JSON), else the Kubernetes API.
    `confirmation`: seconds to wait for the operator to confirm the list (see `trust`).
    """

    kubernetes: Kubernetes = Kubernetes()
    file: Path | None = None
    confirmation: Seconds = 60.0


class Paths(_Section, kw_only=True, frozen=True):
    """Files on the node. `shim` is the program to install, for this machine's architecture; nothing is installed
    without it. `sysctl`: where the network settings of /proc/sys/net can be written; in a container that is a mount.
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


class Http(_Section, kw_only=True, frozen=True):
    """Metrics and health. Port 0: any free one, which the log names."""

    address: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 9809


class Operator(_Section, kw_only=True, frozen=True):
    """The operator's Lease, which is read while pods wait; without `lease` it isn't. `patience`: seconds for which it
    may go unrenewed.
    """

    namespace: str = "kube-system"
    lease: str = ""
    patience: Annotated[float, msgspec.Meta(ge=0.1, le=3600)] = 60.0


class Config(_Section, kw_only=True, frozen=True):
    """Everything. `cooldown`: seconds an address rests after its pod; `report_interval`: between reports that nobody
    waits for.
    """

    node: Annotated[str, msgspec.Meta(max_length=253)] = ""
    source: Source = Source()
    paths: Paths = Paths()
    http: Http = Http()
    operator: Operator = Operator()
    cooldown: Seconds = 30.0
    sweep_interval: Annotated[float, msgspec.Meta(ge=0.1, le=86400)] = 30.0
    report_interval: Annotated[float, msgspec.Meta(ge=0.1, le=3600)] = 10.0
    stop_grace: Seconds = 20.0
    stuck_after: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 60.0
    chained: tuple[str, ...] = ()
    imds: bool = False
    take_from_host: bool = True
    log_level: Annotated[str, msgspec.Meta(pattern="^(debug|info|warning|error)$")] = "info"


def load(path: Path, environment: dict[str, str] | None = None) -> Config:
    """Raises ConfigError."""
    import yaml  # noqa: PLC0415 - only where it is needed

    try:
        document = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is no YAML: {error}") from error
    try:
        config = msgspec.convert({} if document is None else document, Config, dec_hook=_path)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {_explained(error, document)}") from error
    if not config.node:
        name = (os.environ if environment is None else environment).get("NODE_NAME", "")
        config = msgspec.structs.replace(config, node=name)
    if not config.node and config.source.file is None:
        raise ConfigError(f"{path}: node: is missing, and so is the environment variable NODE_NAME")
    return config


def _path(type_: type, value: Any) -> Any:
    if type_ is Path and isinstance(value, str) and value.startswith("/"):
        return Path(value)
    raise ValueError("Expected an absolute path")


def _explained(error: msgspec.ValidationError, document: Any) -> str:
    """`key: value: what was expected`, from msgspec's "what was expected - at `$.key`"."""
    expected, _, place = str(error).partition(" - at `$.")
    key = place.rstrip("`")
    value = document
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if not key:
        return expected
    return f"{key}: {value!r}: {expected}"
