"""A minimal Kubernetes API client for the agent, over aiohttp.

Handles credentials (a kubeconfig, or the pod's ServiceAccount) and request timeouts, and detects within half a minute
a connection whose peer vanished silently. Used in the event loop only. Tokens, the cluster's CA and client certificates
rotate: all files are reloaded every minute, and by the next request after an unauthorized or failed one. HTTP(S)_PROXY
are ignored: the API server is in the cluster's own network.
Errors are ApiError (the server answered) and ApiUnreachable (it didn't).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import os
import socket
import ssl
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import structlog

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TIMEOUT = aiohttp.ClientTimeout(total=20.0)
_ACCESS_LIFE = 60.0
_UNAUTHORIZED = 401
_TLS_GOODBYE = 0.25  # for connections of watches that have just ended; aiohttp waits for all others by itself
_log = structlog.get_logger(component="kubeapi")
_MAX_LINE = 8 * 1024 * 1024  # a watch event is one line; an object is at most etcd's 1.5 MB


class KubeError(Exception):
    """├── ApiError        the API server rejected a request; `status` is HTTP's
    ├── ApiUnreachable  it is unreachable or doesn't answer
    └── AccessError     kubeconfig or ServiceAccount are missing or invalid
    """


class ApiError(KubeError):
    def __init__(self, status: int, what: str, message: str) -> None:
        super().__init__(f"{what}: the API server answers {status}: {message}")
        self.status = status


class ApiUnreachable(KubeError): ...  # noqa: N818 - its name is the finding


class AccessError(KubeError): ...


@dataclass(frozen=True, slots=True)
class Access:
    """The API server's address and our credentials. `digest` identifies the CA, certificates and server that were read;
    `again` re-reads them and raises AccessError.
    """

    server: str
    context: ssl.SSLContext | None
    digest: bytes
    again: Callable[[], Access]
    token: str = ""
    token_file: Path | None = None


def in_cluster(folder: Path = SERVICE_ACCOUNT, environment: Mapping[str, str] = os.environ) -> Access:
    """The access that every pod has: two variables and the ServiceAccount's files. Raises AccessError."""
    host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise AccessError(
            "KUBERNETES_SERVICE_HOST is not set: outside a cluster, source.kubernetes.kubeconfig is needed"
        )
    try:
        digest = _digest(folder / "ca.crt")  # before the file is used, so that a change in between is reloaded
        context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    except OSError as error:
        raise AccessError(f"{folder}/ca.crt can't be used: {error}") from error
    server = f"https://{f'[{host}]' if ':' in host else host}:{port}"
    return Access(server, context, digest, partial(in_cluster, folder, environment), token_file=folder / "token")


def from_kubeconfig(path: Path) -> Access:
    """The current context: server, CA, and a token or a client certificate. Raises AccessError."""
    import yaml  # noqa: PLC0415 - only where it is needed

    try:
        document = yaml.safe_load(path.read_bytes())
        context = _named(document["contexts"], document["current-context"])["context"]
        cluster = _named(document["clusters"], context["cluster"])["cluster"]
        user = _named(document["users"], context["user"])["user"]
        token_file = Path(user["tokenFile"]) if user.get("tokenFile") else None
        named = (cluster.get("certificate-authority"), user.get("client-certificate"), user.get("client-key"))
        digest = _digest(path, *(path.parent / name for name in named if name))
        made = _ssl_context(path.parent, cluster, user)
        return Access(
            cluster["server"], made, digest, partial(from_kubeconfig, path), user.get("token", ""), token_file
        )
    except (OSError, KeyError, TypeError, ValueError, StopIteration, yaml.YAMLError) as error:
        raise AccessError(f"kubeconfig {path} can't be used: {type(error).__name__}: {error}") from error


def _digest(*files: Path) -> bytes:
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).digest()


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
    """One session, replaced when CA, certificate or server have changed. Must be closed."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._token = access.token
        self._read = float("-inf")
        self._trouble = ""
        self._session = _session(access)
        self._closing: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        await asyncio.gather(self._session.close(), *self._closing)
        await asyncio.sleep(_TLS_GOODBYE)

    async def get(self, path: str, query: Mapping[str, str]) -> Any:
        return await self._request("GET", path, query, None, "application/json")

    async def apply(self, path: str, query: Mapping[str, str], body: Any) -> Any:
        """Server-side apply (JSON is YAML)."""
        return await self._request("PATCH", path, query, body, "application/apply-patch+yaml")

    async def post(self, path: str, body: Any) -> Any:
        return await self._request("POST", path, {}, body, "application/json")

    async def watch(self, path: str, query: Mapping[str, str], seconds: int) -> AsyncGenerator[dict[str, Any]]:
        """The events of one watch request, which the server ends after `seconds`."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=20.0, sock_read=seconds + 15.0)
        query = {**query, "watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(seconds)}
        headers = self._authorization()
        try:
            async with self._session.get(path, params=query, headers=headers, timeout=timeout) as response:
                await self._raise_for(response, f"watch {path}")
                async for line in response.content:
                    yield msgspec.json.decode(line)
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError, ValueError) as error:
            self._read = float("-inf")
            raise ApiUnreachable(f"watch {path}: {type(error).__name__}: {error}") from error

    async def _request(self, method: str, path: str, query: Mapping[str, str], body: Any, content_type: str) -> Any:
        headers = self._authorization() | {"Content-Type": content_type}
        data = None if body is None else msgspec.json.encode(body)
        try:
            async with self._session.request(method, path, params=query, data=data, headers=headers) as response:
                await self._raise_for(response, f"{method} {path}")
                return msgspec.json.decode(await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError) as error:
            self._read = float("-inf")
            raise ApiUnreachable(f"{method} {path}: {type(error).__name__}: {error}") from error

    async def _raise_for(self, response: aiohttp.ClientResponse, what: str) -> None:
        if response.status < 300:
            return
        if response.status == _UNAUTHORIZED:
            self._read = float("-inf")  # there may be a newer token or certificate
        text = (await response.text())[:2000]
        try:
            message = str(msgspec.json.decode(text)["message"])
        except (msgspec.DecodeError, KeyError, TypeError):
            message = text
        raise ApiError(response.status, what, message)

    def _authorization(self) -> dict[str, str]:
        if time.monotonic() - self._read > _ACCESS_LIFE:
            self._renew()
            file = self._access.token_file
            try:
                self._token = file.read_text().strip() if file else self._access.token
            except OSError as error:
                raise ApiUnreachable(f"the token {file} can't be read: {error.strerror}") from error
            self._read = time.monotonic()
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    def _renew(self) -> None:
        """Opens a new session if the files have changed. While they can't be used (one is just being replaced), the
        present session stays.
        """
        try:
            access, trouble = self._access.again(), ""
        except AccessError as error:
            access, trouble = self._access, str(error)
        if trouble != self._trouble:
            _log.log(logging.WARNING if trouble else logging.INFO, "access to the API server", trouble=trouble)
        self._trouble = trouble
        if access.digest == self._access.digest:
            return
        _log.info("access to the API server has changed", server=access.server)
        former, self._access, self._session = self._session, access, _session(access)
        task = asyncio.get_running_loop().create_task(former.close())  # its users retry
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def _session(access: Access) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        base_url=access.server,
        connector=aiohttp.TCPConnector(limit=8, ssl=access.context or False, socket_factory=_socket),
        timeout=_TIMEOUT,
        headers={"Accept": "application/json", "User-Agent": "vnetpods-agent"},
        read_bufsize=_MAX_LINE,
        trust_env=False,
    )


def _socket(info: tuple[Any, ...]) -> socket.socket:
    """With keepalives, the kernel detects a peer that vanished silently (a power cut) in seconds, not hours."""
    family, kind, protocol, _, _ = info
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
    return made
