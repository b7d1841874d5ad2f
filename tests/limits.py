"""A pytest plugin: every test's time limit is stretched by the machine's pace.

The limits themselves stand in pyproject.toml and in `timeout` marks. pytest-timeout keeps them, with its thread method:
a test that hangs ends the run and shows every thread's stack.
"""

from __future__ import annotations

import pytest

from tests import pace


def pytest_report_header() -> str:
    return f"pace: {pace.factor()} (waits and limits are that many times longer; {pace.VARIABLE} sets it)"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    usual = float(config.getoption("timeout") or config.getini("timeout") or 0)
    for item in items:
        own = item.get_closest_marker("timeout")
        limit = float(own.args[0]) if own else usual
        item.add_marker(pytest.mark.timeout(pace.stretched(limit)), append=False)
