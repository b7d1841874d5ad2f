"""`python -m tests.install image` builds the image into build/image.tar, for the tests that install the chart."""

from __future__ import annotations

import argparse
import sys
import time

from tests.install import building


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.install", description=__doc__)
    parser.add_argument("command", choices=["image"])
    parser.parse_args()
    started = time.monotonic()
    try:
        found = building.build()
    except building.ImageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    seconds = time.monotonic() - started
    print(f"{building.ARCHIVE}: {found['reference']}, {found['bytes'] / 1e6:.0f} MB compressed, in {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
