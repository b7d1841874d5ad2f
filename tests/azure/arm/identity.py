"""Managed identities: the token endpoint of instance metadata, and the principal of a token.

Pure. A token is an unsigned JWT whose `oid` is the principal's name. A bearer token that is no JWT is itself the name,
for tests with a static credential.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import msgspec

DEFAULT_PRINCIPAL = "operator"
LIFETIME = 86_400


def token(principal: str, resource: str, now: float) -> str:
    header = {"alg": "none", "typ": "JWT"}
    claims = {
        "aud": resource,
        "oid": principal,
        "sub": principal,
        "iat": int(now),
        "exp": int(now) + LIFETIME,
        "tid": "emulator",
    }
    return ".".join([*(_encode(msgspec.json.encode(part)) for part in (header, claims)), "unsigned"])


def principal(authorization: str) -> str:
    """The principal in the Authorization header; empty without one."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() != "bearer" or not value:
        return ""
    parts = value.split(".")
    if len(parts) != 3:
        return value
    try:
        claims = msgspec.json.decode(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        return str(claims["oid"])
    except (ValueError, KeyError, TypeError, msgspec.DecodeError):
        return value


def token_reply(
    query: Mapping[str, str], headers: Mapping[str, str], owner: str, now: float
) -> tuple[int, dict[str, Any]]:
    """`GET /metadata/identity/oauth2/token?api-version=2018-02-01&resource=…`; a `client_id` chooses a user-assigned
    identity."""
    if {name.lower(): value for name, value in headers.items()}.get("metadata", "").lower() != "true":
        return 400, {"error": "invalid_request", "error_description": "Required metadata header not specified"}
    if not query.get("resource"):
        return 400, {"error": "invalid_request", "error_description": "Required audience parameter not specified"}
    who = query.get("client_id") or query.get("object_id") or query.get("msi_res_id") or owner
    return 200, {
        "access_token": token(who, query["resource"], now),
        "client_id": who,
        "expires_in": str(LIFETIME),
        "expires_on": str(int(now) + LIFETIME),
        "ext_expires_in": str(LIFETIME),
        "not_before": str(int(now)),
        "resource": query["resource"],
        "token_type": "Bearer",
    }


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
