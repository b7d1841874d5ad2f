"""`python -m tests.azure`: a small Azure in namespaces, started by hand or by the demo."""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.azure.arm.settings import Settings
from tests.azure.process import end_with_parent, main

EPILOG = """\
Needs root; the machine's own network stays as it is. Everything lives in network and mount namespaces of its own (of
the caller, if the caller already has some): the command to enter them is printed when it is ready.

Point an Azure SDK client at it, from there or from any VM:
  base URL          http://20.0.0.1:8080   (plain http: pass enforce_https=False per call, see tests/azure/arm/sdk.py)
  subscription      00000000-0000-0000-0000-000000000001, resource group vnetpods
  managed identity  http://169.254.169.254 from VMs; elsewhere any bearer token is taken as the caller's name
Build VNets and VMs with tests.azure.client.connect(FOLDER); a VM is the network namespace of its name:
  ip netns exec w1 ip addr
"""

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m tests.azure",
        description="ARM emulator and VNet fabric in network namespaces, until SIGTERM.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("build/azure"), help="state file and admin socket (build/azure)"
    )
    parser.add_argument("--duration", type=float, default=1.5, help="seconds that a NIC write stays InProgress (1.5)")
    parser.add_argument(
        "--end-with-parent", action="store_true", help="end when the process that started this one ends"
    )
    given = parser.parse_args()
    if given.end_with_parent:
        end_with_parent()
    main(given.folder.absolute(), Settings(durations={"microsoft.network/networkinterfaces": given.duration}))
