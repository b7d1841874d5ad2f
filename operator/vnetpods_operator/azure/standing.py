"""Refusals that persist until a person acts, even under a transient status, each with its remedy.

Pure. Azure's own message names the lock, the policy or the tenant; the remedy says who must do what. The codes are
those of ARM's error reference and of Entra ID's (AADSTS) reference.
"""

from __future__ import annotations

import re

REMEDIES = {
    "ScopeLocked": (
        "a management lock forbids the change: an Owner or User Access Administrator of that scope removes the lock, "
        "or machines of clusters are kept outside of it"
    ),
    "ReadOnlyDisabledSubscription": "the subscription is disabled: its billing owner enables it again",
    "SubscriptionNotRegistered": "an Owner or Contributor of the subscription registers the resource provider",
    "MissingSubscriptionRegistration": (
        "an Owner or Contributor of the subscription registers the resource provider that is named "
        "(`az provider register --namespace …`)"
    ),
    "RequestDisallowedByPolicy": (
        "an Azure Policy denies the change: who looks after that policy assignment grants an exemption or changes it"
    ),
    "RequestDisallowedByAzure": "Azure itself denies the change in this subscription or region: ask Azure's support",
    "InvalidResourceType": (
        "this cloud or API version has no such resource type: set azure.networkApiVersion or azure.computeApiVersion "
        "in the operator's configuration to one that the cloud offers"
    ),
    "NoRegisteredProviderFound": (
        "set azure.networkApiVersion or azure.computeApiVersion in the operator's configuration to one that the cloud "
        "offers"
    ),
}
"""By code, regardless of the status (409, 403, 404)."""

SIGN_IN = {
    "InvalidAuthenticationTokenTenant": (
        "the identity is of another tenant than the subscription: set AZURE_TENANT_ID to the subscription's tenant"
    ),
    "InvalidAuthenticationTokenAudience": "set azure.scope in the operator's configuration to the cloud's own",
    "InvalidAuthenticationToken": (
        "set azure.scope and azure.endpoint in the operator's configuration to those of one cloud, and AZURE_TENANT_ID "
        "to the subscription's tenant"
    ),
    "AuthenticationFailed": "see which identity the operator signs in as (docs/install.md)",
}
"""By ARM's code for a rejected token (401)."""

_PASSING_SIGN_INS = ("AADSTS90033", "AADSTS90024", "AADSTS50196", "AADSTS90014")
"""Transient errors of Entra ID, among them throttling."""
_NOISE = re.compile(
    r"Attempted credentials|To mitigate this issue|Visit https|Trace ID|Correlation ID|Timestamp"
    r"|.*failed to retrieve a token from the included credentials"
)
_ABSENT = re.compile(
    r"unavailable|not fully configured|not found on path|no response from the IMDS|not logged|disabled"
)
"""Messages of a credential in azure-identity's chain that isn't set up, so isn't the cause of the failure."""
_STANDING = re.compile(r"AADSTS\d+|invalid_(?:client|request|scope|resource)|Identity not found|unauthorized_client")


def sign_in_cause(message: str) -> str:
    """The cause in an azure-identity message, below its generic first line.

    A chain lists every credential that it tried; those that aren't set up are omitted unless there is no other.
    """
    lines = [line.strip() for line in message.splitlines()]
    lines = [line for line in lines if line and not _NOISE.match(line)]
    causes = [line for line in lines if not _ABSENT.search(line)]
    return "; ".join(causes or lines)[:1000]


def sign_in_stands(message: str) -> bool:
    """Whether signing in keeps failing until a person acts."""
    cause = sign_in_cause(message)
    return _STANDING.search(cause) is not None and not any(code in cause for code in _PASSING_SIGN_INS)
