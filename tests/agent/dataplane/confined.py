"""The host reconciler with no more rights than the chart gives the agent: CAP_NET_ADMIN, and a /run that can't be
written.

As a program it prints what is said as lines of JSON, beside its log, until its standard input ends; `confine` starts it
with those rights.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator

from tests import pace
from tests.agent.dataplane.keeper import HURRY, STATE
from vnetpods_agent.dataplane.host.reconciler import HostReconciler

_RIGHTS = "mount --bind -o ro /run /run && exec setpriv --bounding-set=-all,+net_admin --inh-caps=-all "


def main() -> None:
    reconciler = HostReconciler(lambda *said: print(json.dumps(said), flush=True), HURRY)
    with contextlib.closing(reconciler):
        reconciler.start()
        reconciler.declare(STATE)
        settled = str(reconciler.wait(pace.stretched(30)))
        with contextlib.suppress(BrokenPipeError):  # nobody wants to know any more
            print(json.dumps(["settled", settled]), flush=True)
            sys.stdin.read(1 if settled == "True" else 0)


@contextlib.contextmanager
def confine() -> Iterator[Iterator[tuple[str, str]]]:
    """In the namespace of the calling thread; gives what is said, as it comes."""
    command = f"{_RIGHTS} {sys.executable} -m {__name__}"
    with subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        try:
            yield (
                (kind, message)
                for kind, message in (json.loads(line) for line in process.stdout if line.startswith('["'))
            )
        finally:
            process.stdin.close()


if __name__ == "__main__":
    main()
