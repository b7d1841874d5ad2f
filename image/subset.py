"""Prints the part of requirements.lock that is asked for, with everything it requires: `subset.py [--extra E]…
[NAME]… <LOCK`.

An extra is one of pyproject.toml's. What a distribution requires is read from the metadata of the ones installed
beside this interpreter, so install the whole lock file first (a name that isn't installed is taken to require
nothing). Used by the Dockerfile: the image holds what the programs need, with the very versions and hashes that the
tests ran with.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name


def closure(requirements: Iterable[Requirement]) -> set[str]:
    """Canonical names of these and of all that they require here."""
    found: set[str] = set()
    waiting = list(requirements)
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        found.add(name)
        try:
            required = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        waiting += [
            each
            for each in map(Requirement, required)
            if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in (*extras, ""))
        ]
    return found


def blocks(lock: str) -> Iterator[tuple[str, str]]:
    """(canonical name, its lines) for every requirement of a lock file."""
    for block in re.split(r"\n(?=[A-Za-z0-9])", lock):
        if match := re.match(r"[A-Za-z0-9._-]+", block):
            yield canonicalize_name(match[0]), block


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extra", action="append", default=[], help="an extra of pyproject.toml")
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    wanted = list(arguments.names)
    if arguments.extra:
        project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
        wanted += project["dependencies"]
        for extra in arguments.extra:
            wanted += project["optional-dependencies"][extra]
    names = closure(map(Requirement, wanted))
    for name, block in blocks(sys.stdin.read()):
        if name in names:
            print(block)  # noqa: T201 - a program for a pipe


if __name__ == "__main__":
    main()
