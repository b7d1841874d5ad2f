"""`python -m tests.kube build [program…]`: has the programs ready before anything needs them."""

from __future__ import annotations

import argparse
import sys

from tests.kube import binaries


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kube", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="build (or find) programs; without names those of a whole cluster")
    build.add_argument("names", nargs="*", metavar="program")
    arguments = parser.parse_args()
    try:
        found = binaries.programs(*(arguments.names or binaries.CLUSTER))
    except binaries.BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, path in found.items():
        print(f"{name:26} {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
