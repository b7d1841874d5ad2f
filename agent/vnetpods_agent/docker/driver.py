"""Maps Docker's calls to attachments: what each guarantees, and what is durable once it has answered.

The driver keeps no state. An endpoint's id is part of its attachment's key, a pool's id describes the pool, and
networks have no meaning here; so after any restart, restore or repetition the ledger alone counts.

    RequestAddress   the ledger has a reservation of an address, under a random name
    CreateEndpoint   the reservation has become the endpoint's attachment, and the interface waits for its sandbox. If
                     the reservation is gone (released by an earlier call, or swept): the same address, if it is free
    Join             that interface exists, and the answer names it. Docker then moves it, renames it and sets address
                     and routes without another call, once the container's namespace exists
    DeleteEndpoint   the address is free
    ReleaseAddress   the address is not reserved. An endpoint that holds it keeps it: its DeleteEndpoint comes first, so
                     this is a repetition of an earlier call, and the address is already another container's

Repeated calls get the same answer. The sweeper covers calls that never arrive.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import structlog

from vnetpods_agent.attachment import AttachmentKey
from vnetpods_agent.dataplane import DataPlaneError
from vnetpods_agent.docker import protocol
from vnetpods_agent.docker.protocol import DRIVER, NETWORK, Endpoint, Network, Nothing, PoolCall, Refused, RequestPool
from vnetpods_agent.ipam.attachments import Attachments
from vnetpods_agent.ipam.ledger.store import LedgerError
from vnetpods_agent.ipam.pool import Wish
from vnetpods_agent.ipam.requests import AttachError, AttachRequest

PATIENCE = 60.0
"""Seconds that `docker run` waits for an address: longer than the default cool-down."""
_SOON = 20.0
_QUIET = frozenset({"Plugin.Activate", "NetworkDriver.GetCapabilities", "IpamDriver.GetCapabilities"})

log = structlog.get_logger(component="docker")
Answer = dict[str, Any]


@dataclass(slots=True)
class _Call:
    name: str
    about: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Driver:
    """`guarded`: the host's rule set was loaded once. `subnets`: of this VM's NICs. `observe`: called per call."""

    attachments: Attachments
    guarded: asyncio.Event
    unfit: Callable[[], str]
    subnets: Callable[[], Iterable[str]]
    observe: Callable[[str, str, float], None]
    ignores_ports: bool

    async def answer(self, name: str, body: bytes) -> tuple[int, Answer]:
        """HTTP status and body. Raises nothing but CancelledError."""
        began, outcome, call = time.perf_counter(), "cancelled", _Call(name)
        try:
            status, answer = await self._outcome(call, body)
            outcome = "ok" if "Err" not in answer else "refused"
            return status, answer
        finally:
            seconds = time.perf_counter() - began
            if name in _TABLE:
                self.observe(name, outcome, seconds)
            level = log.warning if outcome != "ok" else log.debug if name in _QUIET else log.info
            say = partial(level, "call", verb=name, outcome=outcome, ms=round(seconds * 1000, 2), **call.about)
            asyncio.get_running_loop().call_soon(say)

    async def _outcome(self, call: _Call, body: bytes) -> tuple[int, Answer]:
        if call.name not in _TABLE:
            return 404, _error(f"{DRIVER} knows no call {call.name}")
        form, method = _TABLE[call.name]
        try:
            return 200, await method(self, call, msgspec.json.decode(body or b"{}", type=form))
        except msgspec.DecodeError as error:
            said = f"the body of {call.name} can't be read: {error}"
        except (Refused, AttachError, LedgerError, DataPlaneError) as error:
            said = str(error)
        except Exception as error:
            log.exception("unexpected error", verb=call.name, **call.about)
            said = f"{type(error).__name__}: {error}: a defect of the agent, see its log"
        call.about["error"] = said
        return 200, _error(f"{DRIVER}: {said}")

    # networks

    async def _activate(self, _: _Call, __: Nothing) -> Answer:
        return {"Implements": ["NetworkDriver", "IpamDriver"]}

    async def _capabilities(self, _: _Call, __: Nothing) -> Answer:
        return {"Scope": "local", "ConnectivityScope": "local"}

    async def _create_network(self, call: _Call, asked: Network) -> Answer:
        call.about["network"] = asked.network_id
        asked.check()
        return {}

    async def _nothing(self, _: _Call, __: Nothing) -> Answer:
        return {}

    async def _allocate_network(self, _: _Call, __: Nothing) -> Answer:
        return {"Options": {}}

    # endpoints

    async def _create_endpoint(self, call: _Call, asked: Endpoint) -> Answer:
        address, answer = asked.address, asked.made
        call.about |= {"endpoint": asked.endpoint_id, "address": address}
        self._see_to_ports(asked, address)
        await self._guard()
        holder = self.attachments.holder(address)
        claims = holder if holder and _reserves(holder) else None
        wanted = AttachRequest(asked.key, "", None, Wish(address=address), claims)
        made = await self.attachments.attach(wanted, None, asyncio.get_running_loop().time() + _SOON)
        if made.address != address:
            raise Refused(f"the endpoint {asked.endpoint_id} already has the address {made.address}")
        return answer

    def _see_to_ports(self, asked: Endpoint, address: str) -> None:
        if not asked.published:
            return
        said = (
            f"ports are not published ({', '.join(asked.published)}): the container has an address of the VNet, "
            f"{address}, and is reached there on all of them"
        )
        if not self.ignores_ports:
            raise Refused(f"{said}; leave out -p (or set docker.ports: ignore in the agent's configuration)")
        log.warning(said, endpoint=asked.endpoint_id)

    async def _guard(self) -> None:
        """Waits for the rule set: without it a container could reach destinations reserved for the host."""
        try:
            async with asyncio.timeout(_SOON):
                await self.guarded.wait()
        except TimeoutError:
            raise Refused(f"no container can be added yet: {self.unfit()}") from None

    async def _info(self, call: _Call, asked: Endpoint) -> Answer:
        call.about["endpoint"] = asked.endpoint_id
        return {"Value": {}}

    async def _delete_endpoint(self, call: _Call, asked: Endpoint) -> Answer:
        call.about["endpoint"] = asked.endpoint_id
        if (former := await self.attachments.detach(asked.key)) is not None:
            call.about["address"] = former.address
        return {}

    async def _join(self, call: _Call, asked: Endpoint) -> Answer:
        call.about["endpoint"] = asked.endpoint_id
        attachment = await self.attachments.renew(asked.key, None)
        if attachment is None:
            raise Refused(f"the endpoint {asked.endpoint_id} has no address (any more); start the container again")
        call.about["address"] = attachment.address
        return protocol.joined(asked.key)

    async def _leave(self, call: _Call, asked: Endpoint) -> Answer:
        """Does nothing: Docker then moves the interface back out, and DeleteEndpoint removes it."""
        call.about["endpoint"] = asked.endpoint_id
        return {}

    async def _connectivity(self, call: _Call, asked: Endpoint) -> Answer:
        """Does nothing: the interface has connectivity, and CreateEndpoint has checked the published ports."""
        call.about["endpoint"] = asked.endpoint_id
        return {}

    # addresses

    async def _ipam_capabilities(self, _: _Call, __: Nothing) -> Answer:
        return {"RequiresMACAddress": False, "RequiresRequestReplay": False}

    async def _spaces(self, _: _Call, __: Nothing) -> Answer:
        return {"LocalDefaultAddressSpace": DRIVER, "GlobalDefaultAddressSpace": DRIVER}

    async def _request_pool(self, call: _Call, asked: RequestPool) -> Answer:
        pool = asked.chosen(self.subnets())
        call.about["pool"] = pool.id
        return pool.granted

    async def _request_address(self, call: _Call, asked: PoolCall) -> Answer:
        """Reserves an address; none for the gateway, which is Azure's."""
        pool = asked.pool
        if asked.for_gateway:
            return {"Address": f"{asked.address or pool.subnet[1]}/{pool.subnet.prefixlen}", "Data": {}}
        address = await self._reserved(asked)
        call.about["address"] = address
        return {"Address": f"{address}/32", "Data": {}}

    async def _reserved(self, asked: PoolCall) -> str:
        """A named address that is already reserved counts as reserved by this call; if not, CreateEndpoint fails."""
        named = protocol.canonical(asked.address) if asked.address else None
        holder = self.attachments.holder(named) if named else None
        if named and holder and _reserves(holder) and await self.attachments.renew(holder, None):  # it is durable then
            return named
        wish = Wish(address=named) if named else Wish(network=str(asked.pool.part))
        key = AttachmentKey(NETWORK, secrets.token_hex(16), "")
        deadline = asyncio.get_running_loop().time() + PATIENCE
        return (await self.attachments.reserve(key, wish, deadline)).address

    async def _release_address(self, call: _Call, asked: PoolCall) -> Answer:
        if not asked.address:
            return {}
        call.about["address"] = address = protocol.canonical(asked.address)
        holder = self.attachments.holder(address)
        if holder is not None and _reserves(holder) and not self.attachments.busy(holder):
            await self.attachments.detach(holder)
        elif holder is not None:
            call.about["kept"] = f"{holder} has it"
        return {}


def _reserves(holder: AttachmentKey) -> bool:
    """Whether it is a reservation of Docker's that no endpoint has claimed yet."""
    return holder.reserves and holder.network == NETWORK


def _error(said: str) -> Answer:
    """Docker reads `Err` from network drivers and `Error` from address drivers."""
    return {"Err": said, "Error": said}


_Method = Callable[[Driver, _Call, Any], Awaitable[Answer]]
_TABLE: dict[str, tuple[type[msgspec.Struct], _Method]] = {
    "Plugin.Activate": (Nothing, Driver._activate),  # noqa: SLF001 - the class's own table
    "NetworkDriver.GetCapabilities": (Nothing, Driver._capabilities),  # noqa: SLF001
    "NetworkDriver.CreateNetwork": (Network, Driver._create_network),  # noqa: SLF001
    "NetworkDriver.DeleteNetwork": (Nothing, Driver._nothing),  # noqa: SLF001
    "NetworkDriver.AllocateNetwork": (Nothing, Driver._allocate_network),  # noqa: SLF001
    "NetworkDriver.FreeNetwork": (Nothing, Driver._nothing),  # noqa: SLF001
    "NetworkDriver.CreateEndpoint": (Endpoint, Driver._create_endpoint),  # noqa: SLF001
    "NetworkDriver.EndpointOperInfo": (Endpoint, Driver._info),  # noqa: SLF001
    "NetworkDriver.DeleteEndpoint": (Endpoint, Driver._delete_endpoint),  # noqa: SLF001
    "NetworkDriver.Join": (Endpoint, Driver._join),  # noqa: SLF001
    "NetworkDriver.Leave": (Endpoint, Driver._leave),  # noqa: SLF001
    "NetworkDriver.ProgramExternalConnectivity": (Endpoint, Driver._connectivity),  # noqa: SLF001
    "NetworkDriver.RevokeExternalConnectivity": (Endpoint, Driver._connectivity),  # noqa: SLF001
    "NetworkDriver.DiscoverNew": (Nothing, Driver._nothing),  # noqa: SLF001
    "NetworkDriver.DiscoverDelete": (Nothing, Driver._nothing),  # noqa: SLF001
    "IpamDriver.GetCapabilities": (Nothing, Driver._ipam_capabilities),  # noqa: SLF001
    "IpamDriver.GetDefaultAddressSpaces": (Nothing, Driver._spaces),  # noqa: SLF001
    "IpamDriver.RequestPool": (RequestPool, Driver._request_pool),  # noqa: SLF001
    "IpamDriver.ReleasePool": (Nothing, Driver._nothing),  # noqa: SLF001
    "IpamDriver.RequestAddress": (PoolCall, Driver._request_address),  # noqa: SLF001
    "IpamDriver.ReleaseAddress": (PoolCall, Driver._release_address),  # noqa: SLF001
}
