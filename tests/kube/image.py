"""Tiny container images made from files of this host: no registry, no builder.

Decided here: the bytes of an OCI image archive (OCI image specification 1.1, "image layout" in one tar file) that
`ctr images import` takes. Pure: the same files give the same bytes. Busybox comes from Debian's busybox-static.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import subprocess
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BUSYBOX = "vnetpods.test/busybox:1"
"""The image that pods of tests run, and every pod's sandbox container."""
WAITS = ("sh", "-c", 'trap "exit 0" TERM INT; while :; do sleep 86400 & wait $!; done')
"""Command of a container without its own, and of sandboxes: does nothing until it is asked to end."""
FOLDERS = ("bin", "dev", "etc", "proc", "root", "sys", "tmp", "usr", "var")
ETC = {
    "etc/passwd": b"root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
    "etc/group": b"root:x:0:\n",
}
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_TYPE = "application/vnd.oci.image"


class ImageError(Exception):
    """An image can't be made; the message names the missing program."""


@dataclass
class Layer:
    """One tar layer under construction; entries keep the order in which they were added."""

    entries: dict[str, tuple[bytes, int, str, bytes]] = field(default_factory=dict)

    def folder(self, path: str, mode: int = 0o755) -> None:
        self.entries[path] = (tarfile.DIRTYPE, mode, "", b"")

    def file(self, path: str, content: bytes, mode: int = 0o755) -> None:
        self.entries[path.lstrip("/")] = (tarfile.REGTYPE, mode, "", content)

    def link(self, path: str, target: str) -> None:
        self.entries[path] = (tarfile.SYMTYPE, 0o777, target, b"")

    def tar(self) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as archive:
            for path, (kind, mode, target, content) in self.entries.items():
                entry = tarfile.TarInfo(path)
                entry.type, entry.mode, entry.linkname, entry.size = kind, mode, target, len(content)
                archive.addfile(entry, io.BytesIO(content))
        return out.getvalue()


def busybox(path: Path = Path("/bin/busybox")) -> Layer:
    """A root file system with busybox under all its names."""
    if not path.exists():
        raise ImageError(f"{path} is missing: apt-get install busybox-static")
    layer = Layer()
    for name in FOLDERS:
        layer.folder(name, 0o1777 if name == "tmp" else 0o755)
    for name, content in ETC.items():
        layer.file(name, content, 0o644)
    layer.file("bin/busybox", path.read_bytes())
    names = subprocess.run([path, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for name in sorted(set(names) - {"busybox"}):
        layer.link(f"bin/{name}", "busybox")
    return layer


def archive(
    name: str, layer: Layer, command: Sequence[str] = WAITS, environment: Mapping[str, str] | None = None
) -> bytes:
    """An OCI archive of one image with one layer; `name` is its full reference, as `registry/name:tag`."""
    raw = layer.tar()
    blobs: dict[str, bytes] = {}

    def blob(content: bytes, media: str) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = content
        return {"mediaType": media, "digest": f"sha256:{digest}", "size": len(content)}

    target = {"architecture": ARCHITECTURES.get(platform.machine(), platform.machine()), "os": "linux"}
    variables = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", **(environment or {})}
    config = {
        **target,
        "config": {"Cmd": list(command), "Env": [f"{key}={value}" for key, value in variables.items()]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(raw).hexdigest()}"]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_TYPE}.manifest.v1+json",
        "config": blob(json.dumps(config).encode(), f"{_TYPE}.config.v1+json"),
        "layers": [blob(gzip.compress(raw, 1, mtime=0), f"{_TYPE}.layer.v1.tar+gzip")],
    }
    entry = blob(json.dumps(manifest).encode(), f"{_TYPE}.manifest.v1+json")
    entry |= {"annotations": {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}}
    entry |= {"platform": target}
    index = {"schemaVersion": 2, "mediaType": f"{_TYPE}.index.v1+json", "manifests": [entry]}
    files = Layer()
    for path, content in blobs.items():
        files.file(path, content, 0o644)
    files.file("index.json", json.dumps(index).encode(), 0o644)
    files.file("oci-layout", b'{"imageLayoutVersion":"1.0.0"}', 0o644)
    return files.tar()
