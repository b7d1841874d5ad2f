"""Figures of a run: percentiles, the machine they were taken on, a table for people, a file for programs."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

BUILD = Path(__file__).resolve().parents[2] / "build"
console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least so many percent are not above."""
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered) - 1, round(percent / 100 * len(ordered) + 0.499999) - 1))]


def machine() -> str:
    cpu = next((line.split(":")[1].strip() for line in _read("/proc/cpuinfo") if line.startswith("model name")), "?")
    return f"{os.cpu_count()} x {cpu}, Linux {platform.release()}, Python {platform.python_version()}"


def versions(*packages: str) -> str:
    """Debian packages with their versions."""
    shown = [
        f"{name} {done.stdout}"
        for name in packages
        if (done := _run(["dpkg-query", "-W", "-f=${Version}", name])).returncode == 0
    ]
    return ", ".join(shown)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    shown = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        shown.add_column(column, justify="right" if number else "left")
    for row in rows:
        shown.add_row(*row)
    console.print(shown)


def save(name: str, content: Mapping[str, Any]) -> None:
    BUILD.mkdir(exist_ok=True)
    (BUILD / name).write_text(json.dumps(content, indent=2) + "\n")
    console.print(f"build/{name} written")


def compiled(source: Path) -> Path:
    """A C program of this folder, built when it is newer than what is there."""
    output = BUILD / "bench" / source.stem
    if not output.exists() or output.stat().st_mtime < source.stat().st_mtime:
        output.parent.mkdir(parents=True, exist_ok=True)
        words = ["gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", str(source), "-o", str(output)]
        subprocess.run(words, check=True)
    return output


def _read(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)
