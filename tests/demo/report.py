"""What the demo prints: each step with what it expects and what it saw, and a summary of times and counts.

A step that sees something else than it expects ends the demo with StepFailed; nothing counts as a success that
wasn't looked at.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from tests import pace

T = TypeVar("T")


class StepFailed(Exception):  # noqa: N818 - it is a finding
    """A step saw something else than it expected; the message says what, and where to look."""


@dataclass
class Report:
    """Collects and prints; `seconds` holds how long each step took."""

    console: Console = field(default_factory=lambda: Console(width=150, highlight=False))
    seconds: dict[str, float] = field(default_factory=dict)
    current: str = ""

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Prints a heading, measures, and names the step in a failure."""
        self.console.rule(f"[bold]{title}", align="left")
        self.current = title
        started = time.monotonic()
        yield
        self.seconds[title] = time.monotonic() - started
        self.console.print(f"  [green]done[/] in {self.seconds[title]:.1f} s")

    def say(self, text: str) -> None:
        """A line of what is going on."""
        self.console.print(f"  [dim]{text}[/]")

    def show(self, output: str) -> None:
        """Output of a command, as a user would see it."""
        for line in output.rstrip().splitlines():
            self.console.print(f"    {line}", markup=False, no_wrap=True, overflow="crop")

    def expect(self, what: str, expected: object, saw: object, *, ok: bool | None = None) -> None:
        """Holds what was seen against what was expected (equality unless `ok` says)."""
        good = saw == expected if ok is None else ok
        mark = "[green]ok[/]" if good else "[red]NOT[/]"
        self.console.print(f"  {mark}  {what}: expected [cyan]{expected}[/], saw [cyan]{saw}[/]")
        if not good:
            raise StepFailed(f"{self.current}: {what}: expected {expected}, saw {saw}")

    def until(self, what: str, look: Callable[[], T | None], *, within: float, every: float = 0.3) -> T:
        """Looks again and again until `look` gives something; StepFailed when it doesn't `within` seconds."""
        started, within = time.monotonic(), pace.stretched(within)
        while True:
            found = look()
            if found:
                return found
            if time.monotonic() - started > within:
                raise StepFailed(
                    f"{self.current}: {what} did not come true within {within:.0f} s (last seen: {found!r})"
                )
            time.sleep(every)

    def summary(self, rows: dict[str, str]) -> None:
        """The table at the end: time per step, then whatever else is worth a row."""
        table = Table(title="Summary", title_justify="left", show_header=False)
        for title, seconds in self.seconds.items():
            table.add_row(title, f"{seconds:.1f} s")
        table.add_section()
        for name, value in rows.items():
            table.add_row(name, value)
        self.console.print(table)
