# ruff: noqa: N818 - these are named after what happened
"""The API server's client: raw requests with the official client's configuration, credentials and connections.

Responses are bytes, of which msgspec decodes the needed fields; the client's own models of Nodes alone would cost more
memory than everything that the operator remembers. Every request has a timeout.

    KubeError
    ├── NotFound     404
    ├── Outdated     409: the object has changed since it was read
    ├── Denied       401, 403: RBAC lacks a rule (docs/operator.md has the list)
    ├── Invalid      422, 400: the API server refuses the object; or its CRD, of an earlier version, lacks a field
    └── Unreachable  no response, a timeout, 429 or 5xx
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
import kopf
import kubernetes.aio.client
import kubernetes.aio.config
import msgspec

from vnetpods_operator import proxies

TIMEOUT = 30.0
"""Seconds for one request, by default."""
_SILENCE = 90.0
"""Seconds without a byte after which a watch is considered broken."""
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"


class KubeError(Exception):
    """A request to the API server failed."""


class NotFound(KubeError):
    """404."""


class Outdated(KubeError):
    """409."""


class Denied(KubeError):
    """401, 403."""


class Invalid(KubeError):
    """400, 422, or a 500 for a field that the CRD doesn't declare."""


class Unreachable(KubeError):
    """No response, or one without a verdict."""


_BY_STATUS: dict[int, type[KubeError]] = {
    400: Invalid,
    401: Denied,
    403: Denied,
    404: NotFound,
    409: Outdated,
    422: Invalid,
}


_UNDECLARED = "field not declared in schema"
"""Server-side apply's message for an undeclared field, under status 500."""


class _Answer(msgspec.Struct):
    message: str = ""


class _ListMetadata(msgspec.Struct):
    continue_: str = msgspec.field(default="", name="continue")


class _List(msgspec.Struct):
    items: list[msgspec.Raw] | None
    metadata: _ListMetadata


class Kube:
    """Requests to one API server, from one event loop."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.requests = 0
        self.fence: Callable[[], None] = lambda: None
        """Called before each write; raises once writes are forbidden."""

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        timeout: float = TIMEOUT,  # noqa: ASYNC109 - handed to the HTTP client
    ) -> bytes:
        """Returns the response's body; raises one of the errors above unless the status is a success."""
        headers = {"Accept": accept, "Content-Type": content_type}
        configuration = self._client.configuration
        url = configuration.host + path + ("?" + urlencode(query) if query else "")
        self.requests += 1
        try:
            await self._client.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
            if method != "GET":
                self.fence()
            answer = await self._client.rest_client.request(
                method, url, headers=headers, body=body, _request_timeout=aiohttp.ClientTimeout(timeout)
            )
            data = await answer.response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(f"{method} {path}: {str(error) or type(error).__name__}") from error
        if answer.status < 300:
            return bytes(data)
        raise _refusal(f"{method} {path}", answer.status, data)

    async def watch(self, path: str, query: dict[str, str], seconds: int) -> AsyncIterator[bytes]:
        """Yields one watch's events as JSON lines; the API server ends it after `seconds`. Raises like `request`.

        The API server sends a bookmark every minute, so a watch that is silent for longer is broken.
        """
        asked = query | {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(seconds)}
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        url = f"{self._client.configuration.host}{path}?{urlencode(asked)}"
        timeout = aiohttp.ClientTimeout(total=seconds + TIMEOUT, sock_connect=TIMEOUT, sock_read=_SILENCE)
        try:
            await self._client.update_params_for_auth(headers, [], ["BearerToken"], path, "GET", None)
            answer = await self._client.rest_client.request("GET", url, headers=headers, _request_timeout=timeout)
            if answer.status >= 300:
                raise _refusal(f"watch {path}", answer.status, await answer.response.read())
            rest = b""
            async for chunk in answer.response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield line
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(f"watch {path}: {str(error) or type(error).__name__}") from error

    async def listed(
        self, path: str, page: int, *, query: dict[str, str] | None = None, accept: str = "application/json"
    ) -> AsyncIterator[msgspec.Raw]:
        """Yields every object of a list, requested in pages of `page` objects; raises like `request`."""
        following = ""
        while True:
            asked = (query or {}) | {"limit": str(page)} | ({"continue": following} if following else {})
            found = msgspec.json.decode(await self.request("GET", path, query=asked, accept=accept), type=_List)
            for item in found.items or ():
                yield item
            following = found.metadata.continue_
            if not following:
                return

    async def login(self) -> kopf.ConnectionInfo:
        """The same server and credentials for kopf, which calls this again when they are rejected."""
        configuration = self._client.configuration
        header = await configuration.get_api_key_with_prefix("BearerToken")
        return kopf.ConnectionInfo(
            server=configuration.host,
            ca_path=configuration.ssl_ca_cert,
            insecure=not configuration.verify_ssl,
            token=header.split(" ", 1)[-1].strip() if header else None,
            certificate_path=configuration.cert_file,
            private_key_path=configuration.key_file,
            default_namespace="default",
            trust_env=True,  # the same proxy settings as for the requests above
        )


def _refusal(what: str, status: int, data: bytes) -> KubeError:
    try:
        message = msgspec.json.decode(data, type=_Answer).message
    except msgspec.MsgspecError:
        message = data[:300].decode(errors="replace")
    kind = Invalid if _UNDECLARED in message else _BY_STATUS.get(status, Unreachable)
    return kind(f"{what}: {status} {message}")


@contextlib.asynccontextmanager
async def opened(kubeconfig: Path | None) -> AsyncIterator[Kube]:
    """A client of the API server in the kubeconfig, or of the cluster that the operator runs in."""
    client: Any = kubernetes.aio.client  # its functions have no types
    config: Any = kubernetes.aio.config
    configuration = client.Configuration()
    if kubeconfig is None:
        config.load_incluster_config(configuration)
    else:
        await config.load_kube_config(str(kubeconfig), client_configuration=configuration, persist_config=False)
    proxies.settle(os.environ, [configuration.host])
    configuration.retries = None
    configuration.connection_pool_maxsize = 64
    async with client.ApiClient(configuration) as api:
        yield Kube(api)
