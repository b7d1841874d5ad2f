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
from vnetpods_operator import cloud
from vnetpods_operator.azure.client import operation_of
from vnetpods_operator.azure.errors import ending, from_response, translated
from vnetpods_operator.retrying import problem_of, wait_after


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


def error(*arguments: Any, **more: Any) -> cloud.AzureError:
    response: Any = Response(*arguments, **more)
    return from_response(sdk.HttpResponseError(response=response), "writing NIC n")


CASES = [
    ("stale-etag", (412, "PreconditionFailed"), cloud.Changed),
    ("stale-etag-without-a-code", (412,), cloud.Changed),
    ("failed-operation-says-200", (200, "SubnetIsFull"), cloud.SubnetFull),
    ("failed-operation-unknown", (200, "NetworkingInternalOperationError"), cloud.Unavailable),
    ("preempted", (200, "OperationPreempted"), cloud.Busy),
    ("lock", (429, "RetryableErrorDueToAnotherOperation"), cloud.Busy),
    ("quota", (429, "TooManyRequests"), cloud.Throttled),
    ("quota-of-an-unknown-code", (429, "SubscriptionRequestsThrottled"), cloud.Throttled),
    ("other-operation", (409, "AnotherOperationInProgress"), cloud.Busy),
    ("taken", (400, "PrivateIPAddressIsAllocated"), cloud.AddressTaken),
    ("taken-2016", (400, "PrivateIPAddressInUse"), cloud.AddressTaken),
    ("scale-set-prefix", (400, "VMScaleSetPrivateIPAddressIsAllocated"), cloud.AddressTaken),
    ("too-many", (400, "SecondaryIpConfigurationCountPerVMSSVMExceeded"), cloud.NicFull),
    ("linked", (403, "LinkedAuthorizationFailed"), cloud.Forbidden),
    ("no-machine", (404, "ResourceNotFound"), cloud.Gone),
    ("no-code", (404,), cloud.Gone),
    ("instance-went-away", (400, "InstanceIdsListInstanceIdNotActiveVM"), cloud.Gone),
    ("passing", (503, "ServiceUnavailable"), cloud.Unavailable),
    ("passing-without-a-code", (502,), cloud.Unavailable),
    ("unknown-refusal", (400, "SomethingNew"), cloud.Refused),
]


@pytest.mark.parametrize(("answer", "kind"), [row[1:] for row in CASES], ids=[row[0] for row in CASES])
def test_kinds(answer: tuple[Any, ...], kind: type[cloud.AzureError]) -> None:
    found = error(*answer)
    assert type(found) is kind
    assert str(found).startswith("writing NIC n: ")


def test_codes_in_details_count() -> None:
    found = error(400, "NetcfgInvalidSubnet", details=[{"code": "SubnetIsFull", "message": "full"}])
    assert isinstance(found, cloud.SubnetFull)


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
    assert isinstance(found, cloud.Throttled)
    assert wait_after(found, 5) == seconds


def test_retry_after_may_be_a_date() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    found = error(429, "TooManyRequests", {"Retry-After": date})
    assert isinstance(found, cloud.Throttled)
    assert 90 < found.seconds <= 100


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
    assert isinstance(found, cloud.Forbidden)
    assert (found.action, found.scope) == ("X/write", "/subscriptions/s")
    problem = problem_of(found)
    assert problem.reason is Reason.FORBIDDEN
    assert problem.message.startswith("the operator's identity needs X/write on /subscriptions/s")


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (sdk.ClientAuthenticationError("no token"), cloud.Unavailable),
        (sdk.ServiceRequestError("refused"), cloud.Unavailable),
        (sdk.ServiceResponseError("cut"), cloud.Unavailable),
        (TimeoutError(), cloud.Unavailable),
    ],
)
def test_no_answer(raised: Exception, kind: type[cloud.AzureError]) -> None:
    with pytest.raises(kind, match="reading NIC n: no "), translated("reading NIC n"):
        raise raised


async def test_an_operation_that_azure_forgot_has_an_unknown_end() -> None:
    response: Any = Response(404, "NotFound")
    with pytest.raises(cloud.Busy, match="how the write ended is not known"):
        async with ending("writing NIC n", 10.0):
            raise sdk.HttpResponseError(response=response)


async def test_an_operation_that_takes_too_long() -> None:
    with pytest.raises(cloud.Unavailable, match="writing NIC n: accepted, but not done after 0 s") as found:
        async with ending("writing NIC n", 0.01):
            await asyncio.sleep(10)
    assert found.value.code == "OperationTimeout"


def test_every_error_has_a_reason_and_waits_longer_each_time() -> None:
    for kind in cloud.AzureError.__subclasses__():
        found = kind("x", "", 7.0) if kind is cloud.Throttled else kind("x", "")
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
        pytest.raises(cloud.Unavailable, match="reading it: an answer that can't be understood"),
        translated("reading it"),
    ):
        odd["properties"]["addressSpace"]
