"""A small client of the Kubernetes API: as much as one agent needs, over aiohttp.

Decided here: who we are (a kubeconfig, or the pod's ServiceAccount), how long a request may take, and that a connection
whose other end vanished without a word is noticed within half a minute. Used in the event loop only. Tokens rotate: the
file is read again every minute. Errors are ApiError (the server answered) and ApiUnreachable (it didn't).
"""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TIMEOUT = aiohttp.ClientTimeout(total=20.0)
_TOKEN_LIFE = 60.0
_UNAUTHORIZED = 401
_TLS_GOODBYE = 0.25  # for the connections of watches that just ended; aiohttp waits for all others by itself
_MAX_LINE = 8 * 1024 * 1024  # a watch event is one line; an object is at most etcd's 1.5 MB


class KubeError(Exception):
    """├── ApiError        the API server refused; `status` is HTTP's
    ├── ApiUnreachable  it can't be reached or doesn't answer
    └── AccessError     kubeconfig or ServiceAccount are missing or broken
    """


class ApiError(KubeError):
    def __init__(self, status: int, what: str, message: str) -> None:
        super().__init__(f"{what}: the API server answers {status}: {message}")
        self.status = status


class ApiUnreachable(KubeError): ...  # noqa: N818 - its name is the finding


class AccessError(KubeError): ...


@dataclass(frozen=True, slots=True)
class Access:
    """Where the API server is and how to prove who asks."""

    server: str
    context: ssl.SSLContext | None
    token: str = ""
    token_file: Path | None = None


def in_cluster(folder: Path = SERVICE_ACCOUNT, environment: Mapping[str, str] = os.environ) -> Access:
    """As every pod is told: two variables and three files. Raises AccessError."""
    host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise AccessError(
            "KUBERNETES_SERVICE_HOST is not set: outside a cluster, source.kubernetes.kubeconfig is needed"
        )
    try:
        context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    except OSError as error:
        raise AccessError(f"{folder}/ca.crt can't be used: {error}") from error
    return Access(f"https://{f'[{host}]' if ':' in host else host}:{port}", context, token_file=folder / "token")


def from_kubeconfig(path: Path) -> Access:
    """The current context: server, CA, and a token or a client certificate. Raises AccessError."""
    import yaml  # noqa: PLC0415 - only where it is needed

    try:
        document = yaml.safe_load(path.read_bytes())
        context = _named(document["contexts"], document["current-context"])["context"]
        cluster = _named(document["clusters"], context["cluster"])["cluster"]
        user = _named(document["users"], context["user"])["user"]
        token_file = Path(user["tokenFile"]) if user.get("tokenFile") else None
        return Access(cluster["server"], _ssl_context(path.parent, cluster, user), user.get("token", ""), token_file)
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise AccessError(f"kubeconfig {path} can't be used: {type(error).__name__}: {error}") from error


def _named(entries: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(entry for entry in entries if entry["name"] == name)


def _ssl_context(folder: Path, cluster: dict[str, Any], user: dict[str, Any]) -> ssl.SSLContext | None:
    if cluster["server"].startswith("http://"):
        return None
    data = cluster.get("certificate-authority-data")
    file = cluster.get("certificate-authority")
    context = ssl.create_default_context(
        cafile=str(folder / file) if file else None, cadata=base64.b64decode(data).decode() if data else None
    )
    if cluster.get("insecure-skip-tls-verify"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if "client-certificate" in user:
        context.load_cert_chain(str(folder / user["client-certificate"]), str(folder / user["client-key"]))
    elif "client-certificate-data" in user:
        with tempfile.NamedTemporaryFile(suffix=".pem") as pair:  # the ssl module takes files only
            pair.write(base64.b64decode(user["client-certificate-data"]) + b"\n")
            pair.write(base64.b64decode(user["client-key-data"]))
            pair.flush()
            context.load_cert_chain(pair.name)
    return context


class KubeApi:
    """One session. Close it."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._token = access.token
        self._token_read = float("-inf")
        self._session = aiohttp.ClientSession(
            base_url=access.server,
            connector=aiohttp.TCPConnector(limit=8, ssl=access.context or False, socket_factory=_socket),
            timeout=_TIMEOUT,
            headers={"Accept": "application/json", "User-Agent": "vnetpods-agent"},
            read_bufsize=_MAX_LINE,
        )

    async def close(self) -> None:
        await self._session.close()
        await asyncio.sleep(_TLS_GOODBYE)

    async def get(self, path: str, query: Mapping[str, str]) -> Any:
        return await self._request("GET", path, query, None, "application/json")

    async def apply(self, path: str, query: Mapping[str, str], body: Any) -> Any:
        """Server-side apply (JSON is YAML)."""
        return await self._request("PATCH", path, query, body, "application/apply-patch+yaml")

    async def post(self, path: str, body: Any) -> Any:
        return await self._request("POST", path, {}, body, "application/json")

    async def watch(self, path: str, query: Mapping[str, str], seconds: int) -> AsyncIterator[dict[str, Any]]:
        """The events of one watch request, which the server ends after `seconds`."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=20.0, sock_read=seconds + 15.0)
        query = {**query, "watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(seconds)}
        try:
            async with self._session.get(
                path, params=query, headers=self._authorization(), timeout=timeout
            ) as response:
                await self._raise_for(response, f"watch {path}")
                async for line in response.content:
                    yield msgspec.json.decode(line)
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError, ValueError) as error:
            raise ApiUnreachable(f"watch {path}: {type(error).__name__}: {error}") from error

    async def _request(self, method: str, path: str, query: Mapping[str, str], body: Any, content_type: str) -> Any:
        headers = self._authorization() | {"Content-Type": content_type}
        data = None if body is None else msgspec.json.encode(body)
        try:
            async with self._session.request(method, path, params=query, data=data, headers=headers) as response:
                await self._raise_for(response, f"{method} {path}")
                return msgspec.json.decode(await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError) as error:
            raise ApiUnreachable(f"{method} {path}: {type(error).__name__}: {error}") from error

    async def _raise_for(self, response: aiohttp.ClientResponse, what: str) -> None:
        if response.status < 300:
            return
        if response.status == _UNAUTHORIZED:
            self._token_read = float("-inf")  # perhaps there is a newer one
        text = (await response.text())[:2000]
        try:
            message = str(msgspec.json.decode(text)["message"])
        except (msgspec.DecodeError, KeyError, TypeError):
            message = text
        raise ApiError(response.status, what, message)

    def _authorization(self) -> dict[str, str]:
        file = self._access.token_file
        if file is not None and time.monotonic() - self._token_read > _TOKEN_LIFE:
            try:
                self._token = file.read_text().strip()
            except OSError as error:
                raise ApiUnreachable(f"the token {file} can't be read: {error.strerror}") from error
            self._token_read = time.monotonic()
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}


def _socket(info: tuple[Any, ...]) -> socket.socket:
    """A peer that vanished without a word (a power cut) is noticed by the kernel, and not after hours."""
    family, kind, protocol, _, _ = info
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
    return made
