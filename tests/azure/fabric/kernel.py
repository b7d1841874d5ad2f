"""Running `ip` and `nft`: one process per batch, errors with the commands that failed.

Called from the fabric's event loop; every call runs in the namespace that the process is in, or with `ip -n` in
another.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec


class KernelError(Exception):
    """The kernel refused a batch; the message has the tool's output and the batch."""


async def ip(lines: list[str], namespace: str | None = None) -> None:
    """`ip -batch -`; stops at the first line that fails."""
    if lines:
        where = ["-n", namespace] if namespace else []
        await _run(["ip", *where, "-batch", "-"], "\n".join(lines) + "\n")


async def nft(script: str) -> None:
    """`nft -f -`: one transaction."""
    if script:
        await _run(["nft", "-f", "-"], script + "\n")


async def nft_json(*arguments: str) -> list[dict[str, Any]]:
    """`nft -j …`."""
    found: list[dict[str, Any]] = msgspec.json.decode(await _run(["nft", "-j", *arguments], ""))["nftables"]
    return found


def sysctl(name: str, value: object) -> None:
    """Sets a network sysctl of the calling thread's namespace, by its path below /proc/sys/net."""
    Path("/proc/sys/net", name).write_text(f"{value}\n", encoding="ascii")


async def _run(command: list[str], text: str) -> bytes:
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await process.communicate(text.encode())
    if process.returncode != 0:
        raise KernelError(f"{' '.join(command)}: {errors.decode(errors='replace').strip()}\n{text[:4000]}")
    return output
