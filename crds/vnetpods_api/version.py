"""The version of the installed distribution."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Final


def _installed() -> str:
    try:
        return version("vnetpods")
    except PackageNotFoundError:  # run from a tree that isn't installed
        return "unknown"


VERSION: Final = _installed()
