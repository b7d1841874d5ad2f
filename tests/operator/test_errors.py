"""The SDK's errors in our words: the code in the body decides, then the status."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from azure.core import exceptions as sdk

from vnetpods_api import Reason
from vnetpods_operator import errors
from vnetpods_operator.azure.client import operation_of
from vnetpods_operator.azure.sdk_errors import ending, from_response, translated
from vnetpods_operator.reconcile.backoff import problem_of, wait_after


class Response:
    """As much of an HTTP answer as the SDK's errors look at."""

    def __init__(self, status: int, code: str = "", headers: dict[str, str] | None = None, **more: Any) -> None:
        self.status_code = status
        self.reason = "reason"
        self.headers = headers or {}
        error = {"code": code, "message": more.pop("message", "words"), **more}
        self._text = json.dumps({"error": error}) if code else "<html>"

    def text(self) -> str:
        return self._text


def error(*arguments: Any, **more: Any) -> errors.AzureError:
    response: Any = Response(*arguments, **more)
    return from_response(sdk.HttpResponseError(response=response), "writing NIC n")


CASES = [
    ("stale-etag", (412, "PreconditionFailed"), errors.Changed),
    ("stale-etag-without-a-code", (412,), errors.Changed),
    ("failed-operation-says-200", (200, "SubnetIsFull"), errors.SubnetFull),
    ("failed-operation-unknown", (200, "NetworkingInternalOperationError"), errors.Unavailable),
    ("preempted", (200, "OperationPreempted"), errors.Busy),
    ("lock", (429, "RetryableErrorDueToAnotherOperation"), errors.Busy),
    ("quota", (429, "TooManyRequests"), errors.Throttled),
    ("quota-of-an-unknown-code", (429, "SubscriptionRequestsThrottled"), errors.Throttled),
    ("other-operation", (409, "AnotherOperationInProgress"), errors.Busy),
    ("taken", (400, "PrivateIPAddressIsAllocated"), errors.AddressTaken),
    ("taken-2016", (400, "PrivateIPAddressInUse"), errors.AddressTaken),
    ("scale-set-prefix", (400, "VMScaleSetPrivateIPAddressIsAllocated"), errors.AddressTaken),
    ("too-many", (400, "SecondaryIpConfigurationCountPerVMSSVMExceeded"), errors.NicFull),
    ("linked", (403, "LinkedAuthorizationFailed"), errors.Forbidden),
    ("no-machine", (404, "ResourceNotFound"), errors.Gone),
    ("no-code", (404,), errors.Gone),
    ("instance-went-away", (400, "InstanceIdsListInstanceIdNotActiveVM"), errors.Gone),
    ("passing", (503, "ServiceUnavailable"), errors.Unavailable),
    ("passing-without-a-code", (502,), errors.Unavailable),
    ("management-lock", (409, "ScopeLocked"), errors.Refused),
    ("disabled-subscription", (409, "ReadOnlyDisabledSubscription"), errors.Refused),
    ("provider-not-registered", (409, "MissingSubscriptionRegistration"), errors.Refused),
    ("policy", (403, "RequestDisallowedByPolicy"), errors.Refused),
    ("no-such-type", (404, "InvalidResourceType"), errors.Refused),
    ("quota-of-compute", (429, "OperationNotAllowed"), errors.Throttled),
    ("unknown-refusal", (400, "SomethingNew"), errors.Refused),
]


@pytest.mark.parametrize(("answer", "kind"), [row[1:] for row in CASES], ids=[row[0] for row in CASES])
def test_kinds(answer: tuple[Any, ...], kind: type[errors.AzureError]) -> None:
    found = error(*answer)
    assert type(found) is kind
    assert str(found).startswith("writing NIC n: ")


def test_codes_in_details_count() -> None:
    found = error(400, "NetcfgInvalidSubnet", details=[{"code": "SubnetIsFull", "message": "full"}])
    assert isinstance(found, errors.SubnetFull)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("17", 17.0),
        ("0", 1.0),
        ("-5", 1.0),
        ("1e9", 3600.0),
        ("inf", 30.0),
        ("soon", 30.0),
        (None, 30.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 1.0),
        ("Wed, 21 Oct 2015 07:28:00 -0000", 30.0),
    ],
)
def test_retry_after(header: str | None, seconds: float) -> None:
    found = error(429, "TooManyRequests", {} if header is None else {"Retry-After": header})
    assert isinstance(found, errors.Throttled)
    assert wait_after(found, 5) == seconds


def test_retry_after_may_be_a_date() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=1000), usegmt=True)
    found = error(429, "TooManyRequests", {"Retry-After": date})
    assert isinstance(found, errors.Throttled)
    assert 100 < found.seconds <= 1000  # a test never lasts as long as the rest


@pytest.mark.parametrize(
    "message",
    [
        (
            "The client 'a' with object id 'b' does not have authorization to perform action 'X/write' over scope "
            "'/subscriptions/s' or the scope is invalid."
        ),
        (
            "The client 'a' has permission to perform action 'Y/write' on scope '/z'; however, it does not have "
            "permission to perform action(s) 'X/write' on the linked scope(s) '/subscriptions/s' or the linked "
            "scope(s) are invalid."
        ),
    ],
    ids=["plain", "linked"],
)
def test_forbidden_names_action_and_scope(message: str) -> None:
    found = error(403, "AuthorizationFailed", message=message)
    assert isinstance(found, errors.Forbidden)
    assert (found.action, found.scope) == ("X/write", "/subscriptions/s")
    problem = problem_of(found)
    assert problem.reason is Reason.FORBIDDEN
    assert problem.message.startswith("the operator's identity needs X/write on /subscriptions/s")


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (sdk.ClientAuthenticationError("no token"), errors.Unavailable),
        (sdk.ClientAuthenticationError("AADSTS90033: A transient error has occurred."), errors.Unavailable),
        (sdk.ServiceRequestError("refused"), errors.Unavailable),
        (sdk.ServiceResponseError("cut"), errors.Unavailable),
        (TimeoutError(), errors.Unavailable),
    ],
)
def test_no_answer(raised: Exception, kind: type[errors.AzureError]) -> None:
    with pytest.raises(kind, match="reading NIC n: no "), translated("reading NIC n"):
        raise raised


async def test_an_operation_that_azure_forgot_has_an_unknown_end() -> None:
    response: Any = Response(404, "NotFound")
    with pytest.raises(errors.Busy, match="how the write ended is not known"):
        async with ending("writing NIC n", 10.0):
            raise sdk.HttpResponseError(response=response)


async def test_an_operation_that_takes_too_long() -> None:
    with pytest.raises(errors.Unavailable, match="writing NIC n: accepted, but not done after 0 s") as found:
        async with ending("writing NIC n", 0.01):
            await asyncio.sleep(10)
    assert found.value.code == "OperationTimeout"


def test_every_error_has_a_reason_and_waits_longer_each_time() -> None:
    for kind in errors.AzureError.__subclasses__():
        found = kind("x", "", 7.0) if kind is errors.Throttled else kind("x", "")
        assert problem_of(found).message
        waits = [wait_after(found, failures) for failures in (1, 2, 3, 50)]
        assert waits == sorted(waits)
        assert 0 < waits[0] <= waits[-1] <= 1800


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("PUT", "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/networkInterfaces/n", "put_nic"),
        ("GET", "/subscriptions/s/providers/Microsoft.Network/locations/l/operations/1?api-version=1", "get_operation"),
        ("GET", "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/n", "get_machine"),
        (
            "PUT",
            "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachineScaleSets/v/virtualMachines/1",
            "put_scale_set_machine",
        ),
        (
            "GET",
            "/s/Microsoft.Compute/virtualMachineScaleSets/v/virtualMachines/1/networkInterfaces",
            "get_scale_set_nic",
        ),
        ("GET", "/s/providers/Microsoft.Network/virtualNetworks/v/subnets/p", "get_subnet"),
        ("GET", "/s/providers/Microsoft.Network/virtualNetworks/v/usages", "get_vnet"),
        ("GET", "/elsewhere", "get_other"),
    ],
)
def test_names_of_operations(method: str, path: str, name: str) -> None:
    assert operation_of(method, f"https://management.azure.com{path}") == name


@pytest.mark.parametrize("odd", ["<html>", {"properties": None}, None, {"id": 1}], ids=str)
def test_an_answer_that_nobody_understands_is_no_answer(odd: Any) -> None:
    """Whatever it is: it must not end the operator, which would meet it again at its next start."""
    with (
        pytest.raises(errors.Unavailable, match="reading it: an answer that can't be understood"),
        translated("reading it"),
    ):
        odd["properties"]["addressSpace"]


@pytest.mark.parametrize(
    ("status", "code", "who"),
    [
        (409, "ScopeLocked", "Owner or User Access Administrator"),
        (409, "ReadOnlyDisabledSubscription", "billing owner"),
        (409, "MissingSubscriptionRegistration", "registers the resource provider"),
        (403, "RequestDisallowedByPolicy", "policy assignment"),
        (404, "InvalidResourceType", "azure.networkApiVersion"),
    ],
)
def test_what_stands_is_left_alone_for_minutes_and_says_who_acts(status: int, code: str, who: str) -> None:
    found = error(status, code, message="the lock is named here")
    problem = problem_of(found)
    assert problem.stalled
    assert "the lock is named here" in problem.message
    assert who in problem.message
    assert [wait_after(found, failures) for failures in (1, 2, 3)] == [60, 120, 240]


CHAIN = """\
DefaultAzureCredential failed to retrieve a token from the included credentials.
Attempted credentials:
\tEnvironmentCredential: Authentication failed: AADSTS7000222: The provided client secret keys for app 'x' are expired.
\tWorkloadIdentityCredential: WorkloadIdentityCredential authentication unavailable. Missing client id.
\tManagedIdentityCredential: ManagedIdentityCredential authentication unavailable, no response from the IMDS endpoint.
To mitigate this issue, please refer to the troubleshooting guidelines here at https://aka.ms/azsdk."""


def signing_in(message: str) -> errors.AzureError:
    with pytest.raises(errors.AzureError) as caught, translated("reading NIC n"):
        raise sdk.ClientAuthenticationError(message)
    return caught.value


def test_a_failed_sign_in_says_its_inner_cause_and_stands() -> None:
    found = signing_in(CHAIN)
    problem = problem_of(found)
    assert problem.reason is Reason.SIGN_IN_REFUSED
    assert problem.stalled
    assert problem.message == (
        "reading NIC n: no credentials: EnvironmentCredential: Authentication failed: AADSTS7000222: "
        "The provided client secret keys for app 'x' are expired."
    )
    assert wait_after(found, 1) >= 60


def test_metadata_that_does_not_answer_may_pass() -> None:
    found = signing_in("\n".join(line for line in CHAIN.splitlines() if "AADSTS" not in line))
    assert type(found) is errors.Unavailable
    assert "no response from the IMDS endpoint" in str(found)
    assert "failed to retrieve" not in str(found)


@pytest.mark.parametrize(
    ("code", "kind", "remedy"),
    [
        ("InvalidAuthenticationTokenTenant", errors.SignInRefused, "AZURE_TENANT_ID"),
        ("InvalidAuthenticationToken", errors.SignInRefused, "azure.scope"),
        ("ExpiredAuthenticationToken", errors.Unavailable, ""),
    ],
)
def test_a_token_that_arm_does_not_accept(code: str, kind: type[errors.AzureError], remedy: str) -> None:
    response: Any = Response(401, code, message="The access token is from the wrong issuer 'x'.")
    with pytest.raises(kind) as caught, translated("reading NIC n"):
        raise sdk.ClientAuthenticationError(response=response)
    assert type(caught.value) is kind
    assert "wrong issuer" in str(caught.value)
    assert remedy in str(caught.value)
