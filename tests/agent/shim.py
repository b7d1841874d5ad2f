"""The shim as the process that a container runtime starts: built for tests, called, its outcome read.

`python -m tests.agent.shim` builds what tests use before they run: the first time on a machine zig compiles a C library
for each kind of build, which takes longer than a test may.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests import pace
from tests.kube.binaries import cache

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "agent" / "shim" / "shim.c"
BUILD = SOURCE.with_name("build.py")

QUICK = tuple(
    f"{name}={pace.factor() * milliseconds}"
    for name, milliseconds in (
        ("ADD_DEADLINE_MS", 2000),
        ("DEL_DEADLINE_MS", 700),
        ("STATUS_DEADLINE_MS", 700),
        ("AGENT_RETURN_MS", 1000),
    )
)
"""Short enough for a test, long enough for this machine."""
PATIENT = (f"ADD_DEADLINE_MS={pace.factor() * 20_000}", f"AGENT_RETURN_MS={pace.factor() * 10_000}")
"""For a real agent, which may be about to start."""


def build_all() -> None:
    """What most tests use, and one of each kind of build."""
    for defines in (QUICK, PATIENT):
        program(*defines)
    program()
    for arch in ("amd64", "arm64"):
        program(arch=arch)


@functools.cache
def program(*defines: str, sanitize: bool = False, arch: str | None = None) -> Path:
    """The shim built from the tree with these constants; kept in the cache under a name that follows from all of
    that.
    """
    words = [*(f"--define={entry}" for entry in defines), *(["--sanitize"] if sanitize else [])]
    words += [f"--arch={arch}"] if arch else []
    digest = hashlib.sha256(SOURCE.read_bytes() + BUILD.read_bytes() + repr(words).encode()).hexdigest()[:16]
    output = cache() / "shim" / digest
    if not output.exists():
        # two copies of zig invalidate each other's entries: seen as a library compiled anew at every turn
        zig = cache() / "zig" / hashlib.sha256(sys.prefix.encode()).hexdigest()[:8]
        environment = {"ZIG_GLOBAL_CACHE_DIR": str(zig), "ZIG_LOCAL_CACHE_DIR": str(zig)}
        command = [sys.executable, str(BUILD), *words, str(output)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | environment)
    return output


@dataclass(frozen=True)
class Outcome:
    exit_code: int
    stdout: bytes
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)

    @property
    def code(self) -> int:
        """The CNI error's code; 0 when there is none."""
        return int(self.json["code"]) if self.exit_code else 0


@dataclass(frozen=True)
class Runtime:
    """Calls the shim as a runtime does, with the agent's socket and spool where the test has them."""

    folder: Path
    shim: Path = field(default_factory=lambda: program(*QUICK))

    @property
    def socket(self) -> Path:
        return self.folder / "agent.sock"

    @property
    def spool(self) -> Path:
        return self.folder / "spool"

    def environment(self, command: str | None, **variables: str) -> dict[str, str]:
        named = {"CNI_COMMAND": command} if command is not None else {}
        return {"VNETPODS_SOCKET": str(self.socket), "VNETPODS_SPOOL": str(self.spool), **named, **variables}

    async def start(self, command: str | None, **variables: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            self.shim,
            env=self.environment(command, **variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    async def call(self, command: str | None, stdin: bytes = b"{}", **variables: str) -> Outcome:
        process = await self.start(command, **variables)
        stdout, stderr = await process.communicate(stdin)
        assert process.returncode is not None
        return Outcome(process.returncode, stdout, stderr.decode(errors="replace"))


@contextmanager
def named_netns(*, link: str | None = None) -> Iterator[Path]:
    """A network namespace as runtimes make them: a file below /run/netns. With a veth of this name in it, if asked."""
    name = f"t-{uuid4().hex[:8]}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    if link:
        subprocess.run(["ip", "-n", name, "link", "add", link, "type", "veth", "peer", "name", "other"], check=True)
    try:
        yield Path("/run/netns", name)
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


if __name__ == "__main__":
    build_all()
