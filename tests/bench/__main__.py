"""`python -m tests.bench [cni|net]`: how fast pods come and go, and how fast their packets travel.

Runs in network and mount namespaces of its own; needs root, gcc, containernetworking-plugins, and iperf3 for `net`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys

from tests.isolation import isolate


def main() -> int:
    parser = argparse.ArgumentParser("tests.bench", description=__doc__)
    parser.add_argument("what", choices=["cni", "net"], nargs="?", default="cni")
    options = parser.parse_args()
    isolate()
    if options.what == "net":
        from tests.bench.net import main as net  # noqa: PLC0415 - only what is asked for

        return net()
    from tests.bench.cni import main as cni  # noqa: PLC0415 - only what is asked for

    return asyncio.run(cni())


if __name__ == "__main__":
    sys.exit(main())
