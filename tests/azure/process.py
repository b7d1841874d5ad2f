"""The emulator and the fabric as one separate process, inside the fabric's namespace.

Started by `python -m tests.azure` (`client.start` does that): creates the namespaces, moves into the fabric's, serves
ARM on 20.0.0.1:8080, instance metadata on 169.254.169.254:80, the host on the internet, and the admin verbs on a unix
socket. The state file appears once everything is served. On SIGTERM it removes everything that it created. A crash
leaves namespaces, which the next start removes.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import subprocess
import traceback
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.azure.arm.admin import RefusedError
from tests.azure.arm.server import Emulator
from tests.azure.arm.settings import Settings
from tests.azure.fabric import namespaces, services
from tests.azure.fabric.kernel import KernelError
from tests.azure.fabric.network import (
    ARM_ADDRESS,
    DESK_ADDRESS,
    DESK_GATEWAY,
    INTERNET,
    INTERNET_HOST,
    ONPREMISES,
    ONPREMISES_HOST,
    Network,
)
from tests.azure.fabric.ruleset import METADATA, STORAGE, WIRESERVER
from tests.isolation import isolate

ARM_PORT = 8080
FABRIC = "fabric"
"""Name of the fabric's namespace."""
DESK = "desk"
"""Name of the namespace that the process was started in."""
PR_SET_PDEATHSIG = 1
STATE = "azure.json"
READY = """\
Ready (pid {pid}, state in {folder}/azure.json).
  ARM         {arm}, from here and from VMs; any bearer token is its caller's name
  build       from pathlib import Path; from tests.azure import client
              azure = client.connect(Path("{folder}"))
  go inside   nsenter --mount=/proc/{pid}/ns/mnt --net=/proc/{pid}/root/run/netns/desk   (or a VM's name)
  end it      kill {pid}"""
SOCKET = "admin.sock"


def main(folder: Path, settings: Settings) -> None:
    """Runs until SIGTERM or SIGINT."""
    isolate()
    folder.mkdir(parents=True, exist_ok=True)
    _prepare()
    namespaces.enter(FABRIC)
    asyncio.run(_serve(folder, settings))


def end_with_parent() -> None:
    """The kernel sends SIGTERM when the thread that started this process ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


def _prepare() -> None:
    """Creates the fabric's namespace, and a link to the one that the process was started in, which is named `desk`."""
    for leftover in (FABRIC, INTERNET, ONPREMISES, DESK):
        namespaces.delete(leftover)
    subprocess.run(["ip", "netns", "attach", DESK, str(os.getpid())], check=True)
    subprocess.run(["ip", "link", "delete", "desk0"], check=False, stderr=subprocess.DEVNULL)
    namespaces.create(FABRIC)
    subprocess.run(
        ["ip", "link", "add", "desk0", "type", "veth", "peer", "name", "desk", "netns", FABRIC],
        check=True,
    )
    for words in (
        f"addr add {DESK_ADDRESS}/24 dev desk0",
        "link set desk0 up",
        f"route replace default via {DESK_GATEWAY}",
    ):
        subprocess.run(["ip", *words.split()], check=True)


async def _serve(folder: Path, settings: Settings) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    emulator = Emulator(settings)
    network = Network(emulator.cloud, folder / "disks")
    runners: list[web.AppRunner] = []
    await network.open()
    try:
        emulator.changed = network.sync
        await emulator.start()
        await emulator.listen(ARM_ADDRESS, ARM_PORT)
        applications = [
            (services.Metadata(emulator.cloud, network, emulator.clock).application(), FABRIC, METADATA),
            (services.internet_application(), INTERNET, INTERNET_HOST),
            (services.internet_application(), ONPREMISES, ONPREMISES_HOST),
            (services.wireserver_application(), FABRIC, WIRESERVER),
            (services.Storage(network).application(), FABRIC, STORAGE),
        ]
        for application, namespace, address in applications:
            runners.append(await _listen(application, namespace, address, 80))
        admin = folder / SOCKET
        admin.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(_Admin(emulator, network).serve, admin, limit=1 << 26)
        _write_state(folder, admin)
        print(READY.format(pid=os.getpid(), folder=folder, arm=f"http://{ARM_ADDRESS}:{ARM_PORT}"), flush=True)
        async with server:
            await stopping.wait()
    finally:
        (folder / STATE).unlink(missing_ok=True)
        for runner in runners:
            await runner.cleanup()
        await emulator.close()
        await network.close()
        for name in (FABRIC, DESK):
            namespaces.delete(name)


async def _listen(application: web.Application, namespace: str, address: str, port: int) -> web.AppRunner:
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    listener = namespaces.open_socket(namespace)
    listener.bind((address, port))
    await web.SockSite(runner, listener).start()
    return runner


def _write_state(folder: Path, admin: Path) -> None:
    state = {"pid": os.getpid(), "admin": str(admin), "arm": f"http://{ARM_ADDRESS}:{ARM_PORT}", "namespace": FABRIC}
    temporary = folder / f"{STATE}.new"
    temporary.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    temporary.rename(folder / STATE)


class _Admin:
    """One request and one response per line: `{"verb", "arguments"}` → `{"result"}` or `{"error"}`."""

    def __init__(self, emulator: Emulator, network: Network) -> None:
        self._emulator = emulator
        self._network = network

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                answer = await self._answer(json.loads(line))
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def _answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"result": await self._call(asked["verb"], asked["arguments"])}
        except (RefusedError, KernelError) as error:
            return {"error": str(error)}
        except Exception:  # noqa: BLE001 - the edge: the client raises it
            return {"error": traceback.format_exc()}

    async def _call(self, verb: str, arguments: dict[str, Any]) -> Any:
        if verb in ("drops", "dropped"):
            return await getattr(self._network, verb)(**arguments)
        if verb in ("capture", "capture_end"):
            return getattr(self._network, verb)(**arguments)
        if verb == "bugs":
            return self._emulator.bugs + self._network.probes.bugs
        result = self._emulator.admin.call(verb, **arguments)
        if verb == "connect_onpremises" or (verb == "arm" and arguments["method"] != "GET"):
            await self._network.sync()
        return result
