"""The demo's steps, one test each, in order, on the shared cluster."""

from __future__ import annotations

from types import ModuleType

import pytest

from tests.demo import STEPS
from tests.demo.report import Report
from tests.demo.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]


@pytest.mark.parametrize("step", [pytest.param(step, id=step.__name__.rsplit(".", 1)[-1]) for step in STEPS])
def test_step(step: ModuleType, world: World, report: Report) -> None:
    with report.step(step.TITLE):
        step.run(world, report)
