# ruff: noqa: N818 - these are named after what happened
"""Azure's errors as few types. Code outside vnetpods_operator.azure knows only these.

AzureError
├── Changed        another writer changed the resource since it was read (412): read again at once
├── Busy           Azure updates the resource or lost the operation: retry in a few seconds
├── Throttled      too many requests: no retry before `seconds`
├── SubnetFull     no (or too few) free addresses
├── AddressTaken   the address requested by value is not available
├── NicFull        no further ipConfiguration fits
├── NoInterface    the machine has no NIC that pods may use
├── Forbidden      the role lacks an action: a person must act, retry after minutes
├── SignInRefused  the operator can't sign in, and a retry would fail too: a person must act
├── Gone           the machine or NIC does not exist
├── Refused        any other refusal that the same request would meet again
└── Unavailable    no response, a transient error, or no credentials at present
"""

from __future__ import annotations

import re


class AzureError(Exception):
    """`code` is Azure's; the text is Azure's message with the action and the resource."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class Changed(AzureError):
    """The ETag did not match."""


class Busy(AzureError):
    """Azure is updating the resource."""


class Throttled(AzureError):
    """No retry before `seconds` have passed."""

    def __init__(self, message: str, code: str, seconds: float) -> None:
        super().__init__(message, code)
        self.seconds = seconds


class SubnetFull(AzureError):
    """Fewer addresses are free than requested."""


class AddressTaken(AzureError):
    """An address requested by value is in use, reserved or outside the subnet."""


class NicFull(AzureError):
    """No further ipConfiguration fits on the NIC or machine."""


class NoInterface(AzureError):
    """The machine has no NIC that pods may use."""


class Forbidden(AzureError):
    """The operator's identity lacks an action; `action` and `scope` if Azure names them."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message, code)
        found = re.search(r"perform action '([^']+)'.*?over scope '([^']+)'", message, re.DOTALL)
        linked = re.search(r"perform action(?:\(s\))? '([^']+)' on the linked scope(?:\(s\))? '([^']+)'", message)
        match = linked or found
        self.action = match[1] if match else ""
        self.scope = match[2] if match else ""


class SignInRefused(AzureError):
    """Signing in fails and would fail again: an expired secret, a wrong tenant, no such identity."""


class Gone(AzureError):
    """The resource does not exist."""


class Refused(AzureError):
    """The same request would be refused again."""


class Unavailable(AzureError):
    """No response, or one that says nothing about the request."""
