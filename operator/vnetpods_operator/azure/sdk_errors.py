"""Translates the SDK's errors into those of vnetpods_operator.errors; the only place that does.

The code in the error body decides, before the HTTP status: a failed long-running operation returns status 200.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from azure.core import exceptions as sdk

from vnetpods_operator.azure.standing import REMEDIES, SIGN_IN, sign_in_cause, sign_in_stands
from vnetpods_operator.caller import Caller, caller
from vnetpods_operator.errors import (
    AddressTaken,
    AzureError,
    Busy,
    Changed,
    Forbidden,
    Gone,
    NicFull,
    Refused,
    SignInRefused,
    SubnetFull,
    Throttled,
    Unavailable,
)

_BY_CODE: dict[str, type[AzureError]] = {
    "PreconditionFailed": Changed,
    "PreconditionFailedEtagMismatch": Changed,
    "RetryableErrorDueToAnotherOperation": Busy,
    "AnotherOperationInProgress": Busy,
    "RetryableError": Busy,
    "OperationPreempted": Busy,
    "Canceled": Busy,
    "OperationNotAllowed": Refused,
    "SubnetIsFull": SubnetFull,
    "SubnetFull": SubnetFull,
    "PrivateIPAddressIsAllocated": AddressTaken,
    "PrivateIPAddressInUse": AddressTaken,
    "PrivateIPAddressInReservedRange": AddressTaken,
    "PrivateIPAddressNotInSubnet": AddressTaken,
    "SecondaryIpConfigurationCountPerVMSSVMExceeded": NicFull,
    "ResourceNotFound": Gone,
    "ResourceGroupNotFound": Gone,
    "ParentResourceNotFound": Gone,
    "InstanceIdsListInstanceIdNotActiveVM": Gone,
    "SubscriptionNotFound": Gone,
    "NotFound": Gone,
    "AuthorizationFailed": Forbidden,
    "LinkedAuthorizationFailed": Forbidden,
    "InternalServerError": Unavailable,
    "ServerTimeout": Unavailable,
    "GatewayTimeout": Unavailable,
    "ServiceUnavailable": Unavailable,
}
_SCALE_SET_PREFIX = "VMScaleSet"
UNSAID, SHORTEST, LONGEST = 30.0, 1.0, 3600.0
"""Seconds to wait after a 429 without Retry-After, and the bounds of its value: Azure counts per hour at most."""
_BY_STATUS: dict[int, type[AzureError]] = {403: Forbidden, 404: Gone, 408: Unavailable, 409: Busy, 412: Changed}


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Translates SDK errors raised in the block; `what` names the action and the resource."""
    try:
        yield
    except sdk.ClientAuthenticationError as error:
        raise _not_signed_in(error, what) from error
    except sdk.HttpResponseError as error:
        raise from_response(error, what) from error
    except (sdk.AzureError, TimeoutError) as error:
        text = _first_line(str(error)) or type(error).__name__
        raise Unavailable(f"{what}: no answer: {text}", type(error).__name__) from error
    except (AttributeError, LookupError, TypeError, ValueError) as error:  # HTML from a proxy, null for a list
        raise Unavailable(f"{what}: an answer that can't be understood: {error!r}", "BadAnswer") from error


@contextlib.contextmanager
def _firm() -> Iterator[None]:
    """Exempts the task's requests from yielding: the write's outcome must be known."""
    held = caller.get(Caller())
    held.firm = True
    try:
        yield
    finally:
        held.firm = False


@contextlib.asynccontextmanager
async def ending(what: str, seconds: float) -> AsyncIterator[None]:
    """Wraps the wait for the end of a write that Azure has accepted.

    A 404 here may mean the operation itself, which Azure forgets: then the outcome is unknown, and only the next read
    tells whether the machine or NIC exists.
    """
    try:
        with translated(what):
            async with asyncio.timeout(seconds) as limit:
                with _firm():
                    yield
    except Gone as error:
        raise Busy(f"{error}; how the write ended is not known", error.code) from error
    except Unavailable as error:
        if not limit.expired():
            raise
        raise Unavailable(f"{what}: accepted, but not done after {seconds:.0f} s", "OperationTimeout") from error


def from_response(error: sdk.HttpResponseError, what: str) -> AzureError:
    """Maps the error by the body's code, else by the status."""
    code, message, inner = _codes(error)
    text = f"{what}: {message or _first_line(error.message)}"
    status = error.status_code or 0
    for candidate in (code, *inner):
        if candidate in REMEDIES:
            return Refused(f"{text}; {REMEDIES[candidate]}", candidate)
        kind = _BY_CODE.get(candidate.removeprefix(_SCALE_SET_PREFIX))
        if kind is not None and not (kind is Refused and status == 429):  # Compute throttles with such a code
            return kind(text, candidate)
    if status == 429:
        return Throttled(text, code or "TooManyRequests", retry_after(error.response))
    if status in _BY_STATUS:
        return _BY_STATUS[status](text, code)
    passing = status >= 500 or status < 300  # status < 300: a failed operation with an unknown code
    return Unavailable(text, code or str(status)) if passing else Refused(text, code or str(status))


def _not_signed_in(error: sdk.ClientAuthenticationError, what: str) -> AzureError:
    """Either ARM rejected the token (401), or none could be obtained."""
    code, message, _ = _codes(error)
    if code:
        stands = code in SIGN_IN
        text = f"{what}: Azure does not accept the sign-in: {message or code}"
        return SignInRefused(f"{text}; {SIGN_IN[code]}", code) if stands else Unavailable(text, code)
    cause = sign_in_cause(str(error.message))
    kind = SignInRefused if sign_in_stands(str(error.message)) else Unavailable
    return kind(f"{what}: no credentials: {cause}", "NoCredentials")


def retry_after(response: Any) -> float:
    """Seconds of the response's Retry-After, which is a number or a date."""
    value = response.headers.get("Retry-After", "") if response is not None else ""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (TypeError, ValueError):  # not a date, or one without a time zone
            return UNSAID
    return min(LONGEST, max(SHORTEST, seconds)) if math.isfinite(seconds) else UNSAID


def _codes(error: sdk.HttpResponseError) -> tuple[str, str, list[str]]:
    """Code and message of the error in the body, and the codes in its details."""
    found: Any = error.error
    if found is None or isinstance(found, str):
        return "", "", []
    inner = [str(detail.code) for detail in found.details or () if detail.code]
    return str(found.code or ""), str(found.message or ""), inner


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:500] if text.strip() else ""
