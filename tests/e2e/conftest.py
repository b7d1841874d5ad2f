"""One cluster for all end-to-end tests: the demo's world, brought up when the first of them asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from tests.demo.report import Report
from tests.demo.world import World


@pytest.fixture(scope="session")
def report() -> Report:
    return Report(Console(width=150, highlight=False, force_terminal=False))


@pytest.fixture(scope="session")
def world(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(Path(tmp_path_factory.mktemp("world")), report)
    try:
        world.up()
        yield world
    finally:
        world.down()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The main job begins with an empty cluster, so it comes before all that use what it leaves up."""
    items.sort(key=lambda item: item.path.parent == Path(__file__).parent and item.path.name != "test_main_job.py")
