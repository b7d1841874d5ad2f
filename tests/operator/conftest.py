"""Fixtures of the operator's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.install.rendering import operator_rights
from tests.kube.apiserver import ApiServer
from tests.operator import worlds

CRD = Path(__file__).parents[2] / "crds" / "nodeippool.yaml"


@pytest.fixture(scope="session")
def operator_kubeconfig(apiserver: ApiServer) -> Path:
    """The operator's kubeconfig, with the CRD applied and exactly the documented rights granted."""
    apiserver.apply(CRD.read_text())
    apiserver.apply(operator_rights())
    return apiserver.kubeconfig_for("vnetpods-operator", "kube-system")


@pytest.fixture
async def world(
    apiserver: ApiServer, operator_kubeconfig: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[worlds.World]:
    async with worlds.made(apiserver, operator_kubeconfig, tmp_path) as made:
        # azure-identity's own variables, as in a deployment with a managed identity
        monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "ManagedIdentityCredential")
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", made.azure.url)
        yield made
