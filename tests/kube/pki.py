"""The cluster's certificates, keys and kubeconfigs, made with the `cryptography` package.

Decided here: the names. One authority signs everything; users and groups are those that Kubernetes derives rights from
("PKI certificates and requirements" in its documentation). Keys are P-256 and every certificate has the identifiers
that OpenSSL's strict verification (Python 3.13) requires. Synchronous; all state is on disk, where a restarted cluster
finds its authority.
"""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

SERVICE_ADDRESS = "10.96.0.1"
"""The first address of the Service range, which `kubernetes.default` gets."""
SERVER_NAMES = (
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "localhost",
    "127.0.0.1",
    SERVICE_ADDRESS,
)
LIFETIME = dt.timedelta(days=3650)
CLIENTS = {
    "admin": ("admin", "system:masters"),
    "kube-controller-manager": ("system:kube-controller-manager", None),
    "kube-scheduler": ("system:kube-scheduler", None),
    "kube-proxy": ("system:kube-proxy", None),
    "apiserver-kubelet-client": ("kube-apiserver-kubelet-client", "system:masters"),
    "front-proxy-client": ("front-proxy-client", None),
}
"""File name → common name and organization (Kubernetes: user and group)."""


@dataclass(frozen=True)
class Identity:
    """A certificate and its key on disk."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class Authority:
    """The authority in `folder`; `Authority.open` creates it on first use."""

    folder: Path
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def open(cls, folder: Path) -> Authority:
        """The authority in `folder`, created if there is none; with it the key pair that signs tokens."""
        folder.mkdir(parents=True, exist_ok=True)
        certificate_file, key_file = folder / "ca.crt", folder / "ca.key"
        if certificate_file.exists() and key_file.exists():
            key = serialization.load_pem_private_key(key_file.read_bytes(), None)
            assert isinstance(key, ec.EllipticCurvePrivateKey)
            return cls(folder, x509.load_pem_x509_certificate(certificate_file.read_bytes()), key)
        key = _write_key(key_file)
        name = _name("vnetpods-test-ca", None)
        certificate = _certificate(name, name, key.public_key(), _AUTHORITY, key)
        certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        tokens = _write_key(folder / "sa.key")
        (folder / "sa.pub").write_bytes(
            tokens.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
        return cls(folder, certificate, key)

    def server(self, file: str, names: Iterable[str]) -> Identity:
        """A server certificate for these DNS names and addresses."""
        subjects = [
            x509.IPAddress(ipaddress.ip_address(name)) if name.replace(".", "").isdigit() else x509.DNSName(name)
            for name in dict.fromkeys(names)
        ]
        alternatives = x509.SubjectAlternativeName(subjects)
        return self._issue(file, _name(file, None), [(alternatives, False), *_leaf(ExtendedKeyUsageOID.SERVER_AUTH)])

    def client(self, file: str, user: str, group: str | None = None) -> Identity:
        """A client certificate: Kubernetes takes the user from the common name and the group from the organization."""
        return self._issue(file, _name(user, group), _leaf(ExtendedKeyUsageOID.CLIENT_AUTH))

    def component(self, name: str) -> Identity:
        """The client certificate of one of CLIENTS."""
        return self.client(name, *CLIENTS[name])

    def node(self, name: str) -> Identity:
        """The client certificate of a kubelet; the Node authorizer requires exactly this user and group."""
        return self.client(f"node-{name}", f"system:node:{name}", "system:nodes")

    def _issue(self, file: str, subject: x509.Name, extensions: list[tuple[x509.ExtensionType, bool]]) -> Identity:
        identity = Identity(self.folder / f"{file}.crt", self.folder / f"{file}.key")
        key = _write_key(identity.key)
        extensions = [*extensions, (x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), False)]
        certificate = _certificate(subject, self.certificate.subject, key.public_key(), extensions, self.key)
        identity.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return identity


def kubeconfig(path: Path, server: str, authority: Path, user: Mapping[str, str]) -> Path:
    """Writes a self-contained kubeconfig, so that it works in another mount namespace.

    `user` is the value of `users[].user`; see `with_certificate` and `{"token": …}`. JSON is YAML.
    """
    cluster = {"server": server, "certificate-authority-data": base64.b64encode(authority.read_bytes()).decode()}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "vnetpods-test",
        "clusters": [{"name": "vnetpods-test", "cluster": cluster}],
        "users": [{"name": "user", "user": dict(user)}],
        "contexts": [{"name": "vnetpods-test", "context": {"cluster": "vnetpods-test", "user": "user"}}],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1))
    path.chmod(0o600)
    return path


def with_certificate(identity: Identity) -> dict[str, str]:
    """The user entry of a kubeconfig with a client certificate."""
    return {
        "client-certificate-data": base64.b64encode(identity.certificate.read_bytes()).decode(),
        "client-key-data": base64.b64encode(identity.key.read_bytes()).decode(),
    }


def _name(common: str, organization: str | None) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization)] if organization else []
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


_AUTHORITY: list[tuple[x509.ExtensionType, bool]] = [
    (x509.BasicConstraints(ca=True, path_length=None), True),
    (_usage(signs_certificates=True), True),
]


def _leaf(purpose: x509.ObjectIdentifier) -> list[tuple[x509.ExtensionType, bool]]:
    return [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_usage(signs_certificates=False), True),
        (x509.ExtendedKeyUsage([purpose]), False),
    ]


def _write_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    path.chmod(0o600)
    return key


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    extensions: list[tuple[x509.ExtensionType, bool]],
    signer: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=2))  # clocks of programs under test may step back
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(signer, hashes.SHA256())
