"""A real ManagedIdentityCredential gets its token from the emulator, and ARM recognises its principal."""

from __future__ import annotations

import pytest
from azure.identity.aio import ManagedIdentityCredential
from azure.mgmt.network.aio import NetworkManagementClient

from tests.azure.arm import identity
from tests.azure.arm.builder import GROUP, SUBSCRIPTION
from tests.azure.arm.sdk import options
from tests.azure.arm.server import Emulator


@pytest.mark.parametrize(("client_id", "principal"), [(None, "operator"), ("somebody", "somebody")])
async def test_managed_identity(
    cloud: Emulator, monkeypatch: pytest.MonkeyPatch, client_id: str | None, principal: str
) -> None:
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", cloud.url)
    credential = ManagedIdentityCredential(client_id=client_id)
    async with credential, NetworkManagementClient(credential, SUBSCRIPTION, **options(cloud.url)) as network:
        await network.network_interfaces.get(GROUP, "w1-nic")
    assert [entry["principal"] for entry in cloud.build.requests()] == [principal]


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ({"resource": "r"}, {"Metadata": "true"}, 200),
        ({"resource": "r"}, {"metadata": "TRUE"}, 200),
        ({"resource": "r"}, {}, 400),
        ({}, {"Metadata": "true"}, 400),
    ],
    ids=["good", "case", "no header", "no audience"],
)
def test_token_endpoint(query: dict[str, str], headers: dict[str, str], status: int) -> None:
    assert identity.token_reply(query, headers, "vm/w1", 0.0)[0] == status


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (f"Bearer {identity.token('vm/w1', 'arm', 0.0)}", "vm/w1"),
        ("Bearer somebody", "somebody"),
        ("Bearer a.b.c", "a.b.c"),
        ("Basic x", ""),
        ("", ""),
    ],
    ids=["token", "name", "nonsense", "basic", "none"],
)
def test_principal(header: str, expected: str) -> None:
    assert identity.principal(header) == expected
