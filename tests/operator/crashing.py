"""The operator's own main program, killed by SIGKILL when it reaches a fault point for the nth time.

python -m tests.operator.crashing POINT NTH --config FILE --kubeconfig FILE
"""

from __future__ import annotations

import sys

from vnetpods_kit import faultpoints
from vnetpods_operator.__main__ import main

if __name__ == "__main__":
    faultpoints.install(faultpoints.killer(sys.argv[1], int(sys.argv[2])))
    sys.exit(main(sys.argv[3:]))
