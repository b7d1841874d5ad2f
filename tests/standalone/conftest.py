"""Programs are there before any test's clock runs (see tests/agent/conftest.py)."""

from __future__ import annotations

import pytest

from tests.agent import shim
from tests.standalone import vm


def pytest_collection_finish(session: pytest.Session) -> None:
    if not session.config.option.collectonly:
        shim.build_all()
        vm.programs()
