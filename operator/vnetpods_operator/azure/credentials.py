"""The operator's Azure credential: azure-identity's default chain, rebuilt when a mounted file changes.

azure-identity reads a certificate (AZURE_CLIENT_CERTIFICATE_PATH) once, and a client secret only from the environment,
which can't change while a process runs. A rotated Secret changes under the same mount path: the certificate is then
read again, and so is the client secret in the file named by AZURE_CLIENT_SECRET_PATH. azure-identity re-reads federated
tokens itself. A token is requested only when one is due or the last attempt failed, so reading the files costs nothing.
Used from the event loop.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from azure.core.exceptions import ClientAuthenticationError
from azure.identity.aio import ClientSecretCredential, DefaultAzureCredential

SECRET, CERTIFICATE = "AZURE_CLIENT_SECRET_PATH", "AZURE_CLIENT_CERTIFICATE_PATH"


class Credential:
    """An AsyncTokenCredential. `options` are passed to azure-identity's credential."""

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._inner: Any = None
        self._made_from: object = None

    async def get_token(self, *scopes: str, **more: Any) -> Any:
        return await (await self._current()).get_token(*scopes, **more)

    async def get_token_info(self, *scopes: str, **more: Any) -> Any:
        return await (await self._current()).get_token_info(*scopes, **more)

    async def close(self) -> None:
        inner, self._inner = self._inner, None
        if inner is not None:
            await inner.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _current(self) -> Any:
        """The credential for the files' present content."""
        try:
            found = _mounted()
            if self._inner is None or found != self._made_from:
                await self.close()
                self._inner, self._made_from = self._made(), found
        except (OSError, ValueError) as error:  # missing file, not a certificate, or a missing variable
            raise ClientAuthenticationError(f"the mounted credentials can't be used: {error}") from error
        return self._inner

    def _made(self) -> Any:
        path = os.environ.get(SECRET)
        if not path:
            return DefaultAzureCredential(**self._options)
        names = ("AZURE_TENANT_ID", "AZURE_CLIENT_ID")
        missing = [name for name in names if not os.environ.get(name)]
        if missing:
            raise ValueError(f"{SECRET} needs {' and '.join(missing)} beside it")
        tenant, client = (os.environ[name] for name in names)
        secret = Path(path).read_text(encoding="utf-8").strip()
        return ClientSecretCredential(tenant, client, secret, **self._options)


def _mounted() -> tuple[bytes, ...]:
    """Contents of the files named in the environment."""
    paths = [os.environ.get(name) for name in (SECRET, CERTIFICATE)]
    return tuple(Path(path).read_bytes() for path in paths if path)
