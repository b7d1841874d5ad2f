"""The ARM client: one HTTP session, one credential, SDK clients per subscription, every request through the budget.

Each SDK request, including polls of long-running operations, passes `_BudgetPolicy`: it waits for a token on behalf of
the task's caller, counts and times the response, and honours Retry-After. Briefly throttled reads are retried after the
wait (a lost poll leaves a write's outcome unknown until the NIC is read); writes are not, because the plan is stale by
then. The SDK's own retries are off: they bypass the budget. Used from the event loop only.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import azure.core.pipeline.policies as core
from azure.core.exceptions import HttpResponseError
from azure.core.pipeline import PipelineRequest, PipelineResponse
from azure.core.pipeline.transport import AioHttpTransport
from azure.mgmt.core.policies import ARMHttpLoggingPolicy, AsyncARMChallengeAuthenticationPolicy

from vnetpods_operator.azure.budget import Budget, Kind
from vnetpods_operator.azure.credentials import Credential
from vnetpods_operator.azure.sdk_errors import from_response, retry_after
from vnetpods_operator.config import Azure
from vnetpods_operator.errors import Throttled

if TYPE_CHECKING:
    from azure.mgmt.compute.aio import ComputeManagementClient
    from azure.mgmt.network.aio import NetworkManagementClient

USER_AGENT = "vnetpods-operator"
_CLIENTS = ("azure.mgmt.compute.aio", "azure.mgmt.network.aio")
"""112 MiB; a standby that waits for the Lease does not load them."""
THROTTLED_READS = 5
"""Attempts of a read that Azure throttles before the caller gets the 429."""

NICS_SECONDS = 1500.0
"""Validity of a machine's cached NIC list: NICs are attached and detached only while the machine is stopped."""

_SUBSCRIPTION = re.compile(r"/subscriptions/([^/?]+)", re.IGNORECASE)
_SERVICE = re.compile(r"/providers/([^/?]+)", re.IGNORECASE)
_OPERATIONS = (
    ("operation", re.compile(r"/operations/|/operationStatuses/|/operationResults/", re.IGNORECASE)),
    ("scale_set_nic", re.compile(r"/virtualMachineScaleSets/.*/networkInterfaces", re.IGNORECASE)),
    ("scale_set_machine", re.compile(r"/virtualMachineScaleSets/[^/]+/virtualMachines", re.IGNORECASE)),
    ("machine", re.compile(r"/virtualMachines/", re.IGNORECASE)),
    ("nic", re.compile(r"/networkInterfaces", re.IGNORECASE)),
    ("subnet", re.compile(r"/subnets/", re.IGNORECASE)),
    ("vnet", re.compile(r"/virtualNetworks", re.IGNORECASE)),
)


def service_of(url: str) -> str:
    """The resource provider in the URL, such as `Microsoft.Compute`."""
    found = _SERVICE.search(url)
    return found[1] if found else ""


def operation_of(method: str, url: str) -> str:
    """The request's `operation` label in metrics, such as `put_nic`."""
    kind = next((name for name, pattern in _OPERATIONS if pattern.search(url)), "other")
    return f"{method.lower()}_{kind}"


@dataclass(frozen=True, slots=True)
class NicId:
    """A NIC reference in a machine's network profile."""

    id: str
    primary: bool


class Watcher(Protocol):
    """Called for every request."""

    def answered(self, operation: str, outcome: str, seconds: float) -> None:
        """Records a response; `outcome` is the HTTP status or `no_answer`."""

    def remaining(self, subscription: str, kind: Kind, requests: int) -> None:
        """Records the remaining-requests header."""


class _BudgetPolicy(core.AsyncHTTPPolicy[Any, Any]):
    """See the module docstring."""

    def __init__(self, budget: Budget, watcher: Watcher, fence: Callable[[], None]) -> None:
        super().__init__()
        self._budget = budget
        self._watcher = watcher
        self._fence = fence

    async def send(self, request: PipelineRequest[Any]) -> PipelineResponse[Any, Any]:
        http = request.http_request
        found = _SUBSCRIPTION.search(http.url)
        subscription = found[1] if found else ""
        kind = Kind.READ if http.method in ("GET", "HEAD") else Kind.WRITE
        operation = operation_of(http.method, http.url)
        for attempt in range(THROTTLED_READS):
            await self._budget.acquire(subscription, kind, service_of(http.url))
            if kind is Kind.WRITE:
                self._fence()
            response = await self._timed(request, operation)
            self._heed(subscription, kind, response.http_response)
            if response.http_response.status_code != 429:
                break
            if not await self._throttled(subscription, kind, response):
                break
            if kind is Kind.WRITE or attempt == THROTTLED_READS - 1:
                break
        return response

    async def _timed(self, request: PipelineRequest[Any], operation: str) -> PipelineResponse[Any, Any]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            response: PipelineResponse[Any, Any] = await self.next.send(request)
        except BaseException:
            self._watcher.answered(operation, "no_answer", loop.time() - began)
            raise
        self._watcher.answered(operation, str(response.http_response.status_code), loop.time() - began)
        return response

    async def _throttled(self, subscription: str, kind: Kind, response: PipelineResponse[Any, Any]) -> bool:
        """Closes the bucket if the 429 is about its quota, not about a lock on one resource; returns whether it did.

        Microsoft.Compute has limits of its own (`OperationNotAllowed`), per machine and per subscription: the former
        delays only this machine's node, the latter all requests to that service.
        """
        http = response.http_response
        with contextlib.suppress(Exception):  # the body may be broken: then the status alone decides
            await http.read()
        error = from_response(HttpResponseError(response=http), "")
        if not isinstance(error, Throttled):
            return False
        if error.code == "OperationNotAllowed":
            if "for this subscription" in str(error):
                service = service_of(response.http_request.url)
                self._budget.close_service(subscription, kind, service, retry_after(http))
            return False
        self._budget.close(subscription, kind, retry_after(http))
        return True

    def _heed(self, subscription: str, kind: Kind, http: Any) -> None:
        """Records the lowest remaining-requests header: of this principal, or of the subscription (`…-global-…`)."""
        left = []
        for name, value in http.headers.items():
            lower = name.lower()
            if lower.startswith("x-ms-ratelimit-remaining-subscription") and lower.endswith(f"{kind.value}s"):
                with contextlib.suppress(ValueError):
                    left.append(int(value))
        if left:
            self._watcher.remaining(subscription, kind, min(left))
            self._budget.lower(subscription, kind, float(min(left)))


class _InsecurePolicy(core.SansIOHTTPPolicy[Any, Any]):
    """Allows tokens over http://, for an endpoint configured as such (an emulator)."""

    def on_request(self, request: PipelineRequest[Any]) -> None:
        request.context.options["enforce_https"] = False


class Arm:
    """SDK clients per subscription; closed by leaving `opened()`."""

    def __init__(
        self,
        config: Azure,
        budget: Budget,
        watcher: Watcher,
        credential: Any,
        transport: Any,
        fence: Callable[[], None],
    ) -> None:
        """`fence`: called before each write; raises once writes are forbidden."""
        self.config = config
        self._fence = fence
        self._budget = budget
        self._watcher = watcher
        self._transport = transport
        self._credential = credential
        self._authentication = AsyncARMChallengeAuthenticationPolicy(credential, config.scope)
        self.unseen: defaultdict[str, set[str]] = defaultdict(set)
        """By machine: lower-case names of entries that this process created and has never read with an address."""
        self._nics: dict[str, tuple[tuple[NicId, ...], float]] = {}
        self._network: dict[str, NetworkManagementClient] = {}
        self._compute: dict[str, ComputeManagementClient] = {}

    def known_nics(self, machine: str) -> tuple[NicId, ...]:
        """The machine's cached NIC references; empty once they have expired."""
        ids, until = self._nics.get(machine.lower(), ((), 0.0))
        return ids if asyncio.get_running_loop().time() < until else ()

    @property
    def remembered(self) -> int:
        """Number of machines in the cache."""
        return len(self._nics)

    def learn_nics(self, machine: str, ids: tuple[NicId, ...]) -> None:
        now = asyncio.get_running_loop().time()
        self._nics = {key: known for key, known in self._nics.items() if known[1] > now}  # machines come and go
        self._nics[machine.lower()] = (ids, now + NICS_SECONDS)

    def network(self, subscription: str) -> NetworkManagementClient:
        key = subscription.lower()
        if key not in self._network:
            from azure.mgmt.network.aio import NetworkManagementClient  # noqa: PLC0415 - see load

            self._network[key] = NetworkManagementClient(**self._arguments(subscription))
        return self._network[key]

    def compute(self, subscription: str) -> ComputeManagementClient:
        key = subscription.lower()
        if key not in self._compute:
            from azure.mgmt.compute.aio import ComputeManagementClient  # noqa: PLC0415 - see load

            self._compute[key] = ComputeManagementClient(**self._arguments(subscription))
        return self._compute[key]

    def network_arguments(self) -> dict[str, Any]:
        """Arguments for every call of the network client."""
        version = self.config.network_api_version
        return {"api_version": version} if version else {}

    def compute_arguments(self) -> dict[str, Any]:
        """Arguments for every call of the compute client."""
        version = self.config.compute_api_version
        return {"api_version": version} if version else {}

    def _arguments(self, subscription: str) -> dict[str, Any]:
        policies: list[Any] = [
            core.RequestIdPolicy(),
            core.UserAgentPolicy(base_user_agent=USER_AGENT, user_agent_use_env=False),
            core.ContentDecodePolicy(),
            _BudgetPolicy(self._budget, self._watcher, self._fence),
            *([_InsecurePolicy()] if self.config.endpoint.startswith("http://") else []),
            self._authentication,
            ARMHttpLoggingPolicy(),
        ]
        return {
            "credential": self._credential,
            "subscription_id": subscription,
            "base_url": self.config.endpoint.rstrip("/"),
            "credential_scopes": [self.config.scope],
            "policies": policies,
            "transport": self._transport,
            "polling_interval": self.config.poll,
        }


def load() -> None:
    """Imports the SDK's clients; run it in a thread.

    The import takes a second, but on a starved node longer than a leader may go without renewing its Lease: in the
    event loop it ended one leader after another.
    """
    for name in _CLIENTS:
        importlib.import_module(name)


@contextlib.asynccontextmanager
async def opened(
    config: Azure,
    budget: Budget,
    watcher: Watcher,
    credential: Callable[[], Any] = Credential,
    fence: Callable[[], None] = lambda: None,
) -> AsyncIterator[Arm]:
    """Keeps the ARM client open while the block runs."""
    transport = AioHttpTransport(connection_timeout=10, read_timeout=float(config.request_timeout))
    async with transport, credential() as held:
        yield Arm(config, budget, watcher, held, transport, fence)
