"""Certificates: subjects, signers, and acceptance by a strict TLS peer."""

from __future__ import annotations

import json
import socket
import ssl
import stat
import threading
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from tests.kube import pki

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("file", "user", "group"),
    [
        pytest.param("admin", "admin", "system:masters", id="admin"),
        pytest.param("kube-scheduler", "system:kube-scheduler", None, id="scheduler"),
        pytest.param("front-proxy-client", "front-proxy-client", None, id="front-proxy"),
    ],
)
def test_a_component_is_called_what_its_rights_are_bound_to(
    tmp_path: Path, file: str, user: str, group: str | None
) -> None:
    identity = pki.Authority.open(tmp_path).component(file)
    subject = x509.load_pem_x509_certificate(identity.certificate.read_bytes()).subject
    assert [a.value for a in subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == [user]
    assert [a.value for a in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)] == ([group] if group else [])


def test_a_node_is_in_the_group_that_the_node_authorizer_wants(tmp_path: Path) -> None:
    identity = pki.Authority.open(tmp_path).node("worker-1")
    subject = x509.load_pem_x509_certificate(identity.certificate.read_bytes()).subject
    assert subject.rfc4514_string() == "CN=system:node:worker-1,O=system:nodes"


def test_an_authority_is_made_once_and_found_again(tmp_path: Path) -> None:
    first = pki.Authority.open(tmp_path)
    again = pki.Authority.open(tmp_path)
    assert first.certificate == again.certificate
    assert (tmp_path / "sa.pub").read_bytes().startswith(b"-----BEGIN PUBLIC KEY-----")
    assert stat.S_IMODE((tmp_path / "ca.key").stat().st_mode) == 0o600


def test_a_strict_tls_peer_accepts_server_and_client(tmp_path: Path) -> None:
    authority = pki.Authority.open(tmp_path)
    server, client = authority.server("apiserver", ["localhost", "10.240.0.4"]), authority.node("n1")
    ca_file = str(tmp_path / "ca.crt")
    accepting = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ca_file)
    accepting.verify_mode = ssl.CERT_REQUIRED
    accepting.load_cert_chain(server.certificate, server.key)
    calling = ssl.create_default_context(cafile=ca_file)
    calling.load_cert_chain(client.certificate, client.key)
    for context in (accepting, calling):
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT  # Python 3.13's default
    near, far = socket.socketpair()

    def serve() -> None:
        with accepting.wrap_socket(far, server_side=True) as secured:
            secured.sendall(secured.recv(5))

    thread = threading.Thread(target=serve)
    thread.start()
    with calling.wrap_socket(near, server_hostname="10.240.0.4") as secured:
        secured.sendall(b"hello")
        assert secured.recv(5) == b"hello"
    thread.join()


def test_a_kubeconfig_holds_everything_and_is_private(tmp_path: Path) -> None:
    authority = pki.Authority.open(tmp_path)
    user = pki.with_certificate(authority.component("admin"))
    path = pki.kubeconfig(tmp_path / "a" / "admin.kubeconfig", "https://10.0.0.1:6443", tmp_path / "ca.crt", user)
    document = json.loads(path.read_text())
    assert document["clusters"][0]["cluster"]["server"] == "https://10.0.0.1:6443"
    assert set(document["users"][0]["user"]) == {"client-certificate-data", "client-key-data"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
