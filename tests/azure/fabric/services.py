"""Hosts that the fabric itself provides: instance metadata, wireserver, a storage service, the host on the internet.

aiohttp applications in the fabric's event loop. The connection identifies the client of instance metadata: the kernel
copies the mark of the packet (the subnet) to the accepted socket, and within a subnet an address belongs to one NIC.
The ruleset has already dropped every address but the primary one of a primary NIC.
"""

from __future__ import annotations

import socket

from aiohttp import web

from tests.azure.arm import identity, metadata
from tests.azure.arm.clock import Clock
from tests.azure.arm.cloud import Cloud
from tests.azure.fabric.network import Network
from tests.azure.fabric.topology import Port

NEEDS_HEADER = {"error": "Bad request. Required metadata header not specified"}


class Metadata:
    """169.254.169.254: `/metadata/instance/network` and `/metadata/identity/oauth2/token`."""

    def __init__(self, cloud: Cloud, network: Network, clock: Clock) -> None:
        self._cloud = cloud
        self._network = network
        self._clock = clock

    def application(self) -> web.Application:
        application = web.Application()
        application.router.add_get("/metadata/identity/oauth2/token", self._token)
        application.router.add_get("/metadata/instance", self._instance)
        application.router.add_get("/metadata/instance/network", self._instance)
        return application

    def _caller(self, http: web.Request) -> Port:
        transport = http.transport
        if transport is None:
            raise web.HTTPBadRequest
        mark = transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_MARK)
        for port in self._network.topology.ports.values():
            if port.primary == http.remote and self._network.numbers.mark(port.subnet) == mark:
                return port
        raise web.HTTPNotFound

    async def _token(self, http: web.Request) -> web.Response:
        owner = f"vm/{self._caller(http).machine}"
        status, body = identity.token_reply(http.query, http.headers, owner, self._clock.now())
        return web.json_response(body, status=status)

    async def _instance(self, http: web.Request) -> web.Response:
        if http.headers.get("Metadata", "").lower() != "true":
            return web.json_response(NEEDS_HEADER, status=400)
        if "api-version" not in http.query:
            return web.json_response({"error": "Bad request. api-version is required"}, status=400)
        machine = self._caller(http).machine
        nics = [port.nic for port in self._network.topology.ports.values() if port.machine == machine]
        network = metadata.network(self._cloud, nics, self._clock.now())
        return web.json_response(network if http.path.endswith("/network") else {"network": network})


class Storage:
    """20.60.0.10: a service that accepts only subnets with a service endpoint, and returns the client's address."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def application(self) -> web.Application:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._serve)
        return application

    async def _serve(self, http: web.Request) -> web.Response:
        transport = http.transport
        mark = transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_MARK) if transport else 0
        for subnet in self._network.topology.subnets.values():
            if self._network.numbers.mark(subnet.key) == mark and "microsoft.storage" in subnet.endpoints:
                return web.Response(text=f"{http.remote}\n")
        return web.Response(status=403, text="AuthorizationFailure: this network is not allowed\n")


async def wireserver(http: web.Request) -> web.Response:
    """168.63.129.16: responds, and nothing more."""
    return web.Response(text="Versions\n")


def wireserver_application() -> web.Application:
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", wireserver)
    return application


async def who_calls(http: web.Request) -> web.Response:
    """The host on the internet: returns the client's address."""
    return web.Response(text=f"{http.remote}\n")


def internet_application() -> web.Application:
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", who_calls)
    return application
