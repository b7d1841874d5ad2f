"""Signing in with mounted secrets and certificates, against a token endpoint over TLS."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from vnetpods_operator.azure.credentials import Credential
from vnetpods_operator.azure.sdk_errors import translated
from vnetpods_operator.errors import SignInRefused

EXPIRED = "AADSTS7000222: The provided client secret keys for app 'x' are expired."
SCOPE = "https://management.azure.com/.default"


def certificate(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    """Self-signed, for 127.0.0.1, with its key, as PEM."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "entra")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private + made.public_bytes(serialization.Encoding.PEM)


@dataclass
class Entra:
    """A token endpoint that knows one secret, or takes any assertion."""

    url: str
    ca: str
    secret: str = "good"
    assertions: list[str] = field(default_factory=list)

    async def token(self, request: web.Request) -> web.Response:
        form = await request.post()
        if "client_assertion" in form:
            self.assertions.append(str(form["client_assertion"]))
        elif form["client_secret"] != self.secret:
            return web.json_response({"error": "invalid_client", "error_description": EXPIRED}, status=401)
        return web.json_response({"access_token": "token", "expires_in": 3600, "token_type": "Bearer"})


@pytest.fixture
async def entra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Entra]:
    pem = tmp_path / "entra.pem"
    pem.write_bytes(certificate(ec.generate_private_key(ec.SECP256R1())))
    found = Entra("", str(pem))
    app = web.Application()
    app.router.add_post("/{tenant}/oauth2/v2.0/token", found.token)
    runner = web.AppRunner(app)
    await runner.setup()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem)
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    found.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    for name, value in (
        ("AZURE_TENANT_ID", "tenant"),
        ("AZURE_CLIENT_ID", "client"),
        ("AZURE_AUTHORITY_HOST", found.url),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
    yield found
    await runner.cleanup()


async def test_a_rotated_secret_is_used_without_a_restart(
    entra: Entra, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "client-secret"
    file.write_text("old\n")
    monkeypatch.setenv("AZURE_CLIENT_SECRET_PATH", str(file))
    async with Credential(connection_verify=entra.ca) as credential:
        with pytest.raises(SignInRefused, match="AADSTS7000222"), translated("reading NIC n"):
            await credential.get_token(SCOPE)
        file.write_text("good\n")
        assert (await credential.get_token(SCOPE)).token == "token"


async def test_a_certificate_that_was_replaced_is_read_again(
    entra: Entra, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tls.pem"
    monkeypatch.setenv("AZURE_CLIENT_CERTIFICATE_PATH", str(file))
    heads = []
    async with Credential(connection_verify=entra.ca) as credential:
        for _ in range(2):
            file.write_bytes(certificate(rsa.generate_private_key(65537, 2048)))
            assert (await credential.get_token(SCOPE)).token == "token"
            heads.append(entra.assertions[-1].partition(".")[0])
    assert len(set(heads)) == 2, "the assertion's header names the certificate"


async def test_a_secret_that_is_not_mounted_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_CLIENT_SECRET_PATH", str(tmp_path / "absent"))
    async with Credential() as credential:
        with pytest.raises(Exception, match=r"absent") as caught, translated("reading NIC n"):
            await credential.get_token(SCOPE)
    assert "the mounted credentials can't be used" in str(caught.value)
