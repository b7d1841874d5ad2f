"""`python -m tests.kube build [program…]` builds missing programs; `… down FOLDER…` ends kept clusters."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.kube import binaries, cluster


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kube", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="build (or find) programs; without names those of demo and tests")
    build.add_argument("names", nargs="*", metavar="program")
    down = commands.add_parser("down", help="end kept clusters, by the folders they were brought up in")
    down.add_argument("folders", nargs="+", type=Path, metavar="folder")
    arguments = parser.parse_args()
    if arguments.command == "build":
        return _build(arguments.names or list(binaries.ALL))
    return _down(arguments.folders)


def _build(names: list[str]) -> int:
    try:
        found = binaries.programs(*names)
    except binaries.BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, path in found.items():
        print(f"{name:26} {path}")
    return 0


def _down(folders: list[Path]) -> int:
    for folder in folders:
        if not (folder / cluster.STATE).exists():
            print(f"{folder}: no cluster was brought up there, or it is gone already")
            continue
        print(f"{folder}: ended {', '.join(cluster.down(folder))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
