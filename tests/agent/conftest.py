"""The shim is built before any test's clock runs: zig's first build on a machine takes longer than a test may."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.agent import shim
from tests.kube.apiserver import ApiServer

CRD = Path(__file__).parents[2] / "crds" / "nodeippool.yaml"


def pytest_collection_finish(session: pytest.Session) -> None:
    if not session.config.option.collectonly:
        shim.build_all()


@pytest.fixture(scope="session")
def nodeippools(apiserver: ApiServer) -> ApiServer:
    """The API server knows NodeIPPools."""
    apiserver.apply(CRD.read_text())
    return apiserver
