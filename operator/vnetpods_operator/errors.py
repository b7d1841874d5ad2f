# ruff: noqa: N818 - these are named after what happened
"""What can go wrong with Azure, in few words. Everything outside vnetpods_operator.azure knows only these.

AzureError
├── Changed        somebody else wrote the resource since it was read (412): read again, at once
├── Busy           Azure works on the resource or lost the operation: again in a few seconds
├── Throttled      too many requests: not before `seconds`
├── SubnetFull     no (or not so many) free addresses
├── AddressTaken   the address asked for by value is not to be had
├── NicFull        no further ipConfiguration fits
├── NoInterface    the machine has no NIC that pods may use
├── Forbidden      the role lacks an action: a person must act, look again after minutes
├── SignInRefused  the operator can't sign in, and couldn't again: a person must act
├── Gone           the machine or NIC does not exist
├── Refused        any other refusal that the same request would meet again
└── Unavailable    no answer, a passing error, no credentials at the moment
"""

from __future__ import annotations

import re


class AzureError(Exception):
    """`code` is Azure's; the text is its message with the resource it was about."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class Changed(AzureError):
    """The ETag did not match."""


class Busy(AzureError):
    """Azure is at work there."""


class Throttled(AzureError):
    """Not before `seconds` have passed."""

    def __init__(self, message: str, code: str, seconds: float) -> None:
        super().__init__(message, code)
        self.seconds = seconds


class SubnetFull(AzureError):
    """Fewer addresses are free than were asked for."""


class AddressTaken(AzureError):
    """An address asked for by value is used, reserved or not of the subnet."""


class NicFull(AzureError):
    """No further ipConfiguration fits on the NIC or machine."""


class NoInterface(AzureError):
    """The machine has no NIC that pods may use."""


class Forbidden(AzureError):
    """The operator's identity lacks an action; `action` and `scope` when Azure names them."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message, code)
        found = re.search(r"perform action '([^']+)'.*?over scope '([^']+)'", message, re.DOTALL)
        linked = re.search(r"perform action(?:\(s\))? '([^']+)' on the linked scope(?:\(s\))? '([^']+)'", message)
        match = linked or found
        self.action = match[1] if match else ""
        self.scope = match[2] if match else ""


class SignInRefused(AzureError):
    """Neither this nor the next attempt to sign in succeeds: an expired secret, a wrong tenant, no such identity."""


class Gone(AzureError):
    """The resource does not exist."""


class Refused(AzureError):
    """The same request would be refused again."""


class Unavailable(AzureError):
    """No answer, or one that says nothing about the request."""
