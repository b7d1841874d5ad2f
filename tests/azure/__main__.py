"""`python -m tests.azure`: a small Azure in namespaces, started by hand or by the demo."""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.azure.arm.settings import Settings
from tests.azure.process import main

EPILOG = """\
Needs root. Point an Azure SDK client at it, from this namespace or from any VM:
  base URL http://20.0.0.1:8080 · managed identity on 169.254.169.254 (from VMs) · subscription
  00000000-0000-0000-0000-000000000001
Build VNets and VMs with tests.azure.client.connect(FOLDER). A VM is the network namespace of its name:
  ip netns exec w1 ip addr
Started outside the test suite it makes namespaces of its own; enter them with
  nsenter --mount=/proc/PID/ns/mnt --net=/proc/PID/ns/net        (the fabric; PID is in FOLDER/azure.json)
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
    given = parser.parse_args()
    main(given.folder.absolute(), Settings(durations={"microsoft.network/networkinterfaces": given.duration}))
