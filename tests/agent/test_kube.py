"""The client's credentials: what rotates is read again, and proxies of the environment are nobody's business here.

The API server is a small one of our own, for its authority has to change; the real one answers in test_nodeippool.
"""

from __future__ import annotations

import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from tests.kube import pki
from tests.kube.pki import Authority, Identity
from vnetpods_agent.kube import Access, AccessError, ApiError, ApiUnreachable, KubeApi, from_kubeconfig, in_cluster


@contextlib.asynccontextmanager
async def api_server(authority: Authority, identity: Identity, port: int = 0) -> AsyncIterator[int]:
    """Says who asks: the client's certificate, which `authority` must have signed, else the token."""

    async def answer(request: web.Request) -> web.Response:
        assert request.transport
        shown = request.transport.get_extra_info("peercert")
        return web.json_response(
            {"who": str(shown["subject"][-1][0][1]) if shown else request.headers["Authorization"]}
        )

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority.folder / "ca.crt")
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_cert_chain(identity.certificate, identity.key)
    application = web.Application()
    application.router.add_get("/version", answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, ssl_context=context, reuse_address=True)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


class Cluster:
    """Two authorities, of which the second takes over, and the files that a client is given."""

    def __init__(self, folder: Path) -> None:
        self.old, self.new = Authority.open(folder / "old"), Authority.open(folder / "new")
        self.files = folder / "files"
        self.files.mkdir()
        self.port = 0

    def server(self, authority: Authority) -> contextlib.AbstractAsyncContextManager[int]:
        return api_server(authority, authority.server("apiserver", ["127.0.0.1"]), self.port)

    def service_account(self, authority: Authority) -> Access:
        (self.files / "ca.crt").write_bytes((authority.folder / "ca.crt").read_bytes())
        (self.files / "token").write_text("t1")
        return in_cluster(
            self.files, {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(self.port)}
        )

    def kubeconfig(self, authority: Authority) -> Access:
        user = pki.with_certificate(authority.client("agent", f"from {authority.folder.name}"))
        url = f"https://127.0.0.1:{self.port}"
        return from_kubeconfig(pki.kubeconfig(self.files / "kubeconfig", url, authority.folder / "ca.crt", user))

    def named_files(self, authority: Authority) -> Access:
        """A kubeconfig that doesn't change: what it names does."""
        identity = authority.client("agent", f"from {authority.folder.name}")
        for name, file in (
            ("ca.crt", authority.folder / "ca.crt"),
            ("client.crt", identity.certificate),
            ("client.key", identity.key),
        ):
            (self.files / name).write_bytes(file.read_bytes())
        cluster = {"server": f"https://127.0.0.1:{self.port}", "certificate-authority": "ca.crt"}
        user = {"client-certificate": "client.crt", "client-key": "client.key"}
        document = {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": user}],
        }
        (self.files / "kubeconfig").write_text(json.dumps(document))
        return from_kubeconfig(self.files / "kubeconfig")


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


@pytest.mark.parametrize("kind", ["service_account", "kubeconfig", "named_files"])
async def test_the_clusters_authority_rotates(cluster: Cluster, kind: str) -> None:
    """kubernetes-sigs/apiserver-network-proxy#801: credentials that are read once end with the old authority."""
    give = getattr(cluster, kind)
    async with cluster.server(cluster.old) as port:
        cluster.port = port
        api = KubeApi(give(cluster.old))
        said = await api.get("/version", {})
        assert said["who"] in ("Bearer t1", "from old")
    async with cluster.server(cluster.new):
        with pytest.raises(ApiUnreachable, match="certificate verify failed"):
            await api.get("/version", {})
        give(cluster.new)
        said = await api.get("/version", {})
        assert said["who"] in ("Bearer t1", "from new")
    await api.close()


async def test_files_that_are_just_being_replaced_change_nothing(cluster: Cluster) -> None:
    async with cluster.server(cluster.old) as port:
        cluster.port = port
        api = KubeApi(cluster.service_account(cluster.old))
        await api.get("/version", {})
        (cluster.files / "ca.crt").write_bytes(b"-----BEGIN CERT")
        api._read = float("-inf")  # as after a minute
        assert (await api.get("/version", {}))["who"] == "Bearer t1"
        await api.close()


async def test_a_token_that_is_refused_is_read_again(cluster: Cluster) -> None:
    async with cluster.server(cluster.old) as port:
        cluster.port = port
        api = KubeApi(cluster.service_account(cluster.old))
        assert (await api.get("/version", {}))["who"] == "Bearer t1"
        (cluster.files / "token").write_text("t2\n")
        with pytest.raises(ApiError):
            await api.get("/none", {})
        assert (await api.get("/version", {}))["who"] == "Bearer t1"  # 404 says nothing about it
        api._read = float("-inf")
        assert (await api.get("/version", {}))["who"] == "Bearer t2"
        await api.close()


async def test_proxies_of_the_environment_are_not_asked(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "10.0.0.0/8")
    async with cluster.server(cluster.old) as port:
        cluster.port = port
        api = KubeApi(cluster.service_account(cluster.old))
        assert (await api.get("/version", {}))["who"] == "Bearer t1"
        await api.close()


@pytest.mark.parametrize("content", [None, "", "[]", "{", '{"current-context": "none", "contexts": []}'])
def test_a_kubeconfig_that_cant_be_used_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "kubeconfig"
    if content is not None:
        path.write_text(content)
    with pytest.raises(AccessError, match=f"kubeconfig {path} can't be used"):
        from_kubeconfig(path)
