"""What every version of every NodeIPPool said, written down as it happened.

Some of it is true for a moment only (addresses that cool down, a release that is asked for): whoever looks from time
to time misses it on a slow machine, a watch doesn't. `kubectl` does the watching, into a file; it ends with the
process that started it.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.kube.api import Api

# not tabs: kubectl turns them into columns
_COLUMNS = r'{.metadata.name}{"|"}{.status.allocated}{"|"}{.status.usage}{"|"}{.status.interfaces[*].releasing}{"\n"}'


@dataclass(frozen=True)
class Moment:
    """One version of one pool."""

    node: str
    allocated: int
    cooling: int
    releasing: bool


class History:
    """`file` grows until this process ends, or until `close`."""

    def __init__(self, api: Api, file: Path) -> None:
        self._file = file
        watch = ["get", "nodeippools", "--watch", f"--output=jsonpath={_COLUMNS}"]
        command = ["setpriv", "--pdeathsig", "KILL", "--", str(api.kubectl_program)]
        with file.open("wb") as output:
            self._process = subprocess.Popen(
                [*command, f"--kubeconfig={api.admin_kubeconfig}", *watch], stdin=subprocess.DEVNULL, stdout=output
            )

    def of(self, node: str) -> list[Moment]:
        """What its pool said so far, the oldest first."""
        lines = self._file.read_text().split("\n")[:-1]  # the last one may be half written
        return [moment for line in lines if (moment := _moment(line)).node == node]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def growths(moments: Sequence[Moment]) -> int:
    """How often more addresses were allocated than before."""
    return sum(later.allocated > earlier.allocated for earlier, later in pairwise(moments))


def _moment(line: str) -> Moment:
    name, allocated, usage, releasing = line.split("|")
    return Moment(name, int(allocated or 0), json.loads(usage or "{}").get("cooling", 0), '"' in releasing)
