"""Starting nft, iptables and the like: with a deadline, and with an error that says what the program said.

Blocking; called from the host reconciler's thread and from `uninstall`.
"""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Sequence

from vnetpods_agent.dataplane import DataPlaneError

PATIENCE = 20.0
"""Seconds. iptables waits for other writers by itself (-w 5); nft never takes longer than a second with our one
table.
"""


class ProgramFailed(DataPlaneError):  # noqa: N818 - named like its sibling InterfaceExists
    """A program is missing (errno ENOENT), hung (ETIMEDOUT) or refused (EIO, with its own words)."""


def output(step: str, command: Sequence[str], text: str = "") -> str:
    """Runs the program with `text` on its stdin and gives back its stdout. Raises ProgramFailed."""
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
