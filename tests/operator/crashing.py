"""The operator's own main program, killed by SIGKILL when it reaches a fault point for the nth time.

python -m tests.operator.crashing POINT NTH --config FILE --kubeconfig FILE
"""

from __future__ import annotations

import os
import signal
import sys

from vnetpods_operator import faults
from vnetpods_operator.__main__ import main


def killer(point: faults.Point, nth: int) -> None:
    """Installs the hook."""
    seen = 0

    def hook(reached: faults.Point) -> None:
        nonlocal seen
        seen += reached is point
        if seen == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    faults.install(hook)


if __name__ == "__main__":
    killer(faults.Point(sys.argv[1]), int(sys.argv[2]))
    sys.exit(main(sys.argv[3:]))
