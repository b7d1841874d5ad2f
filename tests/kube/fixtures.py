"""The fixtures of tests.kube, loaded as a pytest plugin by tests/conftest.py.

`apiserver` is shared by the whole session, so tests give their objects unique names (or run their own API server by
`tests.kube.apiserver.running`). Programs are built after collection, before any test's clock runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kube import apiserver as apiserver_module
from tests.kube import binaries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kube.apiserver import ApiServer

NEEDS = {"apiserver": binaries.API_SERVER, "e2e": (*binaries.DEMO, *binaries.REFERENCE_PLUGINS)}
"""Marker → the programs that tests with it need."""


def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds the programs that the selected tests need: a cold build takes minutes, a test's timeout is one."""
    if session.config.option.collectonly:
        return
    used = {marker.name for item in session.items for marker in item.iter_markers()}
    wanted = dict.fromkeys(program for name, programs in NEEDS.items() if name in used for program in programs)
    if wanted:
        binaries.programs(*wanted)


@pytest.fixture(scope="session")
def apiserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A real API server with RBAC, shared by the session."""
    with apiserver_module.running(tmp_path_factory.mktemp("apiserver")) as server:
        yield server
