"""The shim is built before any test's clock runs (see tests/agent/conftest.py)."""

from __future__ import annotations

import pytest

from tests.agent import shim


def pytest_collection_finish(session: pytest.Session) -> None:
    if not session.config.option.collectonly:
        shim.build_all()
