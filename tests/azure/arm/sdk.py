"""Real Azure SDK clients of the emulator, for the tests here and as an example of how to point a client at it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

from azure.core.credentials import AccessToken
from azure.core.pipeline import PipelineRequest
from azure.core.pipeline.policies import SansIOHTTPPolicy
from azure.mgmt.compute.aio import ComputeManagementClient
from azure.mgmt.network.aio import NetworkManagementClient

from tests.azure.arm.builder import SUBSCRIPTION


class StaticCredential:
    """A credential whose token is the principal's name."""

    def __init__(self, principal: str) -> None:
        self._principal = principal

    async def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        return AccessToken(self._principal, 4_000_000_000)

    async def close(self) -> None: ...

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None: ...


class PlainHttp(SansIOHTTPPolicy[Any, Any]):
    """Allows tokens over http, which the SDK refuses unless it is allowed per request."""

    def on_request(self, request: PipelineRequest[Any]) -> None:
        request.context.options["enforce_https"] = False


def options(url: str) -> dict[str, Any]:
    return {
        "base_url": url,
        "credential_scopes": [f"{url}/.default"],
        "per_call_policies": [PlainHttp()],
        "polling_interval": 0,
        "retry_total": 0,
    }


@asynccontextmanager
async def network_client(
    url: str, principal: str = "operator", subscription: str = SUBSCRIPTION
) -> AsyncIterator[NetworkManagementClient]:
    async with NetworkManagementClient(StaticCredential(principal), subscription, **options(url)) as client:
        yield client


@asynccontextmanager
async def compute_client(
    url: str, principal: str = "operator", subscription: str = SUBSCRIPTION
) -> AsyncIterator[ComputeManagementClient]:
    async with ComputeManagementClient(StaticCredential(principal), subscription, **options(url)) as client:
        yield client
