"""Programs out of Debian packages, unpacked and never installed: no daemon starts, the machine stays as it was.

`unpacked("docker.io")` is a folder below the cache with the packages' files; it is made once per release of Debian,
behind a lock and by rename, and needs Debian's mirror only then. What the packages depend on has to be there otherwise.
Synchronous, called before a test starts its clock.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.kube.binaries import BuildError, cache, locked, outside_network


def unpacked(*packages: str) -> Path:
    """Raises BuildError."""
    folder = cache() / "debian" / f"{release()}-{platform.machine()}" / "+".join(packages)
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.parent / f".{folder.name}.lock", packages[0]):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=folder.parent) as scratch:
                _fetch(packages, Path(scratch))
                made = Path(scratch, "files")
                for archive in Path(scratch).glob("*.deb"):
                    subprocess.run(["dpkg", "-x", archive, made], check=True)
                made.rename(folder)
    return folder


def release() -> str:
    """This machine's: `bookworm` is Debian 12."""
    return platform.freedesktop_os_release().get("VERSION_CODENAME", "unknown")


def _fetch(packages: tuple[str, ...], folder: Path) -> None:
    """Without a list of packages, which a fresh machine doesn't have, that is fetched first."""
    if shutil.which("apt-get") is None:
        raise BuildError(f"{packages[0]}: comes from a Debian package, and this machine has no apt-get")
    get = [*outside_network(), "apt-get", "-qq", "-o", "APT::Sandbox::User=root"]
    download = [*get, "download", *packages]
    done = subprocess.run(download, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        subprocess.run([*get, "update"], capture_output=True, check=False)
        done = subprocess.run(download, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{packages[0]}: `apt-get download {' '.join(packages)}` failed: {done.stderr.strip()}")


if __name__ == "__main__":
    try:
        print(unpacked(*sys.argv[1:]))
    except BuildError as error:
        sys.exit(f"error: {error}")
