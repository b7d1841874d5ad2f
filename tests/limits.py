"""A pytest plugin: every test's time limit is stretched by the machine's pace, and nothing else has one.

The limits themselves stand in pyproject.toml and in `timeout` marks. pytest-timeout keeps them, with its thread method:
a test that hangs ends the run and shows every thread's stack. hypothesis would fail an example that takes 0.2 s.
"""

from __future__ import annotations

import hypothesis
import pytest

from tests import pace

hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")


def pytest_report_header() -> str:
    return f"pace: {pace.factor()} (waits and limits are that many times longer; {pace.VARIABLE} sets it)"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    usual = float(config.getoption("timeout") or config.getini("timeout") or 0)
    for item in items:
        own = item.get_closest_marker("timeout")
        limit = float(own.args[0]) if own else usual
        item.add_marker(pytest.mark.timeout(pace.stretched(limit)), append=False)
