"""Runs nft, iptables and the like, with a deadline, and with errors that quote the program's own.

Blocking; called from the host reconciler's thread and from `uninstall`.
"""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Sequence

from vnetpods_agent.dataplane import DataPlaneError

PATIENCE = 20.0
"""Seconds. iptables itself waits for other writers (-w 5); nft needs at most a second for our one table."""


class ProgramFailed(DataPlaneError):  # noqa: N818 - named like its sibling InterfaceExists
    """A program is missing (errno ENOENT), hung (ETIMEDOUT) or failed (EIO, with its own message)."""


def output(step: str, command: Sequence[str], text: str = "") -> str:
    """Runs the program with `text` on its stdin and returns its stdout. Raises ProgramFailed."""
    subject = " ".join(command)
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except FileNotFoundError as error:
        raise ProgramFailed(step, subject, errno.ENOENT, f"{command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise ProgramFailed(step, subject, errno.ETIMEDOUT) from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[:500]
        raise ProgramFailed(step, subject, errno.EIO, said or f"exit code {done.returncode}")
    return done.stdout
