"""The shim is built before any test's clock runs: zig's first build on a machine takes longer than a test may."""

from __future__ import annotations

import pytest

from tests.agent import shim


def pytest_collection_finish(session: pytest.Session) -> None:
    if not session.config.option.collectonly:
        shim.build_all()
