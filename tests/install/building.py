"""Builds the image of the Dockerfile on this machine, without a container registry: `python -m tests.install
image`.

Decided here: what stands in for the named base image (the same Debian release, bootstrapped from the mirror this
machine already uses, and slimmed as the official one is), and where things are kept: base and buildah's storage in
`$VNETPODS_CACHE/image`, the result in build/image.tar, an OCI archive that `ctr images import` takes. buildah works
with chroot isolation, so it needs root and nothing else. About 2 minutes, of which the base takes one, once.
"""

from __future__ import annotations

import json
import platform
import re
import resource
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.kube import binaries, image

ROOT = Path(__file__).parents[2]
IMAGE = "vnetpods.test/vnetpods:0.1.0"
ARCHIVE = ROOT / "build" / "image.tar"
RELEASE = "trixie"
BASE = f"vnetpods.test/debian:{RELEASE}"
LARGEST = 150_000_000
"""Bytes, compressed: what a node has to pull before its first pod can start."""
SLIMMED = ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale")


class ImageError(Exception):
    """The image can't be built; says which step failed, and with what words."""


@dataclass(frozen=True)
class Store:
    """buildah's storage, apart from the machine's own."""

    folder: Path

    def buildah(self, *arguments: str) -> str:
        command = ["buildah", "--root", str(self.folder / "root"), "--runroot", str(self.folder / "runroot")]
        return run([*command, "--storage-driver", "vfs", *arguments])

    @property
    def policy(self) -> str:
        """The option that accepts images without signature: all of them were made here."""
        path = self.folder / "policy.json"
        path.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        return f"--signature-policy={path}"


def run(command: list[str]) -> str:
    """Standard output; the rest goes to the terminal."""
    if shutil.which(command[0]) is None:
        raise ImageError(f"{command[0]} is missing: apt-get install buildah debootstrap")
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise ImageError(f"{' '.join(command[:6])} … ended with {done.returncode}: {done.stdout[-2000:]}")
    return done.stdout.strip()


def build() -> dict[str, Any]:
    """Builds image and archive; returns what `describe` says of it."""
    folder = binaries.cache() / "image"
    folder.mkdir(parents=True, exist_ok=True)
    store = Store(folder)
    if not store.buildah("images", "--quiet", "--filter", f"reference={BASE}"):
        make_base(store)
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    stamp = run(["git", "-C", str(ROOT), "log", "-1", "--format=%ct"])
    revision = run(["git", "-C", str(ROOT), "rev-parse", "HEAD"])
    options = [
        "--isolation=chroot",
        "--pull-never",
        store.policy,
        f"--ulimit=nofile={limit}:{limit}",  # zig opens a file for every source of musl
        f"--timestamp={stamp}",
        f"--build-arg=BASE={BASE}",
        f"--build-arg=BUILDPLATFORM=linux/{image.ARCHITECTURES[platform.machine()]}",
        f"--build-arg=REVISION={revision}",
        *trust(folder),
    ]
    store.buildah("build", *options, f"--tag={IMAGE}", str(ROOT))
    ARCHIVE.parent.mkdir(exist_ok=True)
    new = ARCHIVE.with_suffix(".new")
    new.unlink(missing_ok=True)
    store.buildah("push", "--quiet", store.policy, IMAGE, f"oci-archive:{new}:{IMAGE}")
    new.rename(ARCHIVE)
    found = describe(ARCHIVE)
    if found["bytes"] > LARGEST:
        raise ImageError(f"{ARCHIVE} has {found['bytes'] / 1e6:.0f} MB compressed, more than {LARGEST / 1e6:.0f}")
    return found


def make_base(store: Store) -> None:
    """The stand-in: Debian's minimal system, slimmed like the official image."""
    tree = store.folder / RELEASE
    if not tree.exists():
        new = tree.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        options = ["--variant=minbase", "--include=ca-certificates"]
        run(["debootstrap", *options, RELEASE, str(new), *mirror()])
        for name in SLIMMED:
            for each in (new / name).iterdir():
                shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink()
        new.rename(tree)
    container = store.buildah("from", store.policy, "scratch")
    store.buildah("add", "--quiet", container, str(tree), "/")
    store.buildah("commit", "--quiet", "--rm", store.policy, container, BASE)


def mirror() -> list[str]:
    """The mirror in this machine's own apt sources, if it names one."""
    files = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    for file in files:
        if file.is_file() and (
            found := re.search(r"(?m)^(?:URIs:|deb)\s+(?:\[.*\]\s+)?(\S+/debian/?)\s", file.read_text())
        ):
            return [found[1]]
    return []


def trust(folder: Path) -> list[str]:
    """Hands pip's settings on this machine (an authority or an index of its own) to the pip inside."""
    settings = run(["pip", "config", "list"]).splitlines()
    wanted = {
        key.split(".")[-1]: value.strip("'")
        for key, _, value in (line.partition("=") for line in settings)
        if key.split(".")[-1] in ("cert", "index-url", "extra-index-url", "trusted-host")
    }
    volumes = []
    if certificate := wanted.get("cert"):
        volumes.append(f"--volume={certificate}:/run/authorities.crt:ro")
        wanted["cert"] = "/run/authorities.crt"
    if wanted:
        file = folder / "pip.conf"
        file.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in wanted.items()))
        volumes.append(f"--volume={file}:/etc/pip.conf:ro")
    return volumes


def describe(archive: Path) -> dict[str, Any]:
    """Compressed size, configuration and reference of the archive's image."""
    with tarfile.open(archive) as tar:

        def content(name: str) -> Any:
            opened = tar.extractfile(name)
            assert opened is not None
            return json.load(opened)

        def blob(descriptor: dict[str, Any]) -> Any:
            return content("blobs/" + descriptor["digest"].replace(":", "/"))

        entry = content("index.json")["manifests"][0]
        manifest = blob(entry)
        return {
            "reference": entry["annotations"]["org.opencontainers.image.ref.name"],
            "bytes": sum(layer["size"] for layer in manifest["layers"]),
            "layers": manifest["layers"],
            "configuration": blob(manifest["config"]),
        }


def names(archive: Path) -> set[str]:
    """Every path in the image's layers, whiteouts as they stand there."""
    found: set[str] = set()
    for layer in describe(archive)["layers"]:
        with tarfile.open(archive) as outer:
            opened = outer.extractfile("blobs/" + layer["digest"].replace(":", "/"))
            assert opened is not None
            with tarfile.open(fileobj=opened, mode="r:gz") as inner:
                found |= {member.name.removeprefix("./") for member in inner}
    return found
