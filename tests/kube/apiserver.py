"""A real kube-apiserver with etcd and nothing else: schemas, CEL, admission, server-side apply, RBAC, watches, leases.

No controllers run (a namespace's `default` ServiceAccount, garbage collection and pods need the cluster, see
cluster.py). Both programs listen on loopback ports of the calling process's network namespace and are killed by the
kernel when the thread that started them ends (PR_SET_PDEATHSIG): start it from the main thread. Data is in the caller's
folder; etcd doesn't sync to disk, nothing here is meant to survive.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from uuid import uuid4

from tests import pace
from tests.kube import binaries, pki
from tests.kube.api import Api, KubeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

READY_SECONDS = 60
LOG_LINES = 12


@dataclass(frozen=True)
class ApiServer(Api):
    """A running API server. `stop`, `start` and `restart` are outages; objects survive them, watches don't."""

    server: Program
    etcd: Program

    def backup(self) -> Path:
        """A copy of etcd's disk; etcd is paused meanwhile."""
        copy = self.folder / f"backup-{uuid4().hex[:8]}"
        self.etcd.signal(signal.SIGSTOP)
        try:
            shutil.copytree(self.folder / "etcd", copy)
        finally:
            self.etcd.signal(signal.SIGCONT)
        return copy

    def restore(self, backup: Path) -> None:
        """Restores a backup: objects, and the versions that the next writes will have."""
        self.begin_restore(backup)
        await_ready(self.url, self.authority, [self.server])

    def begin_restore(self, backup: Path) -> None:
        """Returns before it is ready."""
        self.server.kill()
        self.etcd.kill()
        shutil.rmtree(self.folder / "etcd")
        shutil.copytree(backup, self.folder / "etcd")
        self.etcd.start()
        self.server.start()

    def stop(self) -> None:
        """Kills the API server: connections are reset, new ones refused. etcd stays."""
        self.server.kill()

    def start(self) -> None:
        """Starts it again on the same port and returns when it is ready."""
        self.server.start()
        await_ready(self.url, self.authority, [self.server])

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freezes the API server: connections stay open, but it sends no response."""
        self.server.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.server.signal(signal.SIGCONT)


class Program:
    """A child process that ends with its parent and whose output goes to a file."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.command = command
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        if self.running:
            return
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"GOGC": "50"},  # half the memory for a few percent of time
            )

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None and self.running:
            self._process.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def tail(self) -> str:
        """The end of its log, for an error message."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_LINES:])


@contextlib.contextmanager
def running(folder: Path, *extra: str, program: str = "kube-apiserver") -> Iterator[ApiServer]:
    """Starts etcd and an API server (with `extra` flags) whose data is in `folder`; ready on entry, gone on exit.

    `program` may be one of binaries.ENDS.
    """
    found = binaries.programs(*binaries.API_SERVER, program)
    authority = pki.Authority.open(folder / "pki")
    authority.server("apiserver", pki.SERVER_NAMES)
    port, client_port, peer_port = _free_ports(3)
    url = f"https://127.0.0.1:{port}"
    admin = pki.with_certificate(authority.component("admin"))
    ca_file = folder / "pki" / "ca.crt"
    etcd = Program(
        [str(found["etcd"]), *etcd_flags(folder / "etcd", f"127.0.0.1:{client_port}", f"127.0.0.1:{peer_port}")],
        folder / "etcd.log",
    )
    flags = server_flags(folder / "pki", f"http://127.0.0.1:{client_port}", "127.0.0.1", port)
    flags.append("--endpoint-reconciler-type=none")  # since 1.37 the `kubernetes` Service can't be a loopback address
    server = Program([str(found[program]), *flags, *extra], folder / "kube-apiserver.log")
    try:
        etcd.start()
        server.start()
        await_ready(url, ca_file, [etcd, server])
        yield ApiServer(
            url=url,
            authority=ca_file,
            admin_kubeconfig=pki.kubeconfig(folder / "admin.kubeconfig", url, ca_file, admin),
            kubectl_program=found["kubectl"],
            folder=folder,
            server=server,
            etcd=etcd,
        )
    finally:
        server.kill()
        etcd.kill()


def etcd_flags(folder: Path | str, client: str, peer: str) -> list[str]:
    """One member; `client` and `peer` are address:port."""
    return [
        f"--data-dir={folder}",
        "--unsafe-no-fsync",
        f"--listen-client-urls=http://{client}",
        f"--advertise-client-urls=http://{client}",
        f"--listen-peer-urls=http://{peer}",
        f"--initial-advertise-peer-urls=http://{peer}",
        f"--initial-cluster=default=http://{peer}",
    ]


def server_flags(folder: Path, etcd: str, address: str, port: int) -> list[str]:
    """Flags of every API server of ours; `folder` holds the PKI."""
    return [
        f"--etcd-servers={etcd}",
        f"--advertise-address={address}",
        "--bind-address=0.0.0.0",
        f"--secure-port={port}",
        f"--tls-cert-file={folder}/apiserver.crt",
        f"--tls-private-key-file={folder}/apiserver.key",
        f"--client-ca-file={folder}/ca.crt",
        f"--service-account-key-file={folder}/sa.pub",
        f"--service-account-signing-key-file={folder}/sa.key",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        "--profiling=false",
        "--event-ttl=30m",
    ]


class Started(Protocol):
    """A program that should be running: whether it is, and the end of its log."""

    log: Path

    @property
    def running(self) -> bool: ...

    def tail(self) -> str: ...


def await_ready(url: str, authority: Path, programs: Sequence[Started]) -> None:
    """Returns when /readyz says ok; KubeError carries the log of the program that died, or of the API server."""
    host, _, port = url.removeprefix("https://").partition(":")
    context = ssl.create_default_context(cafile=str(authority))
    limit = pace.stretched(READY_SECONDS)
    deadline = time.monotonic() + limit
    while True:
        connection = http.client.HTTPSConnection(host, int(port), timeout=2, context=context)
        try:
            connection.request("GET", "/readyz")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return
        except (OSError, http.client.HTTPException):
            pass  # not listening yet
        finally:
            connection.close()
        for program in programs:
            if not program.running:
                raise KubeError(f"{program.log.stem} ended at start; end of {program.log}:\n{program.tail()}")
        if time.monotonic() > deadline:
            raise KubeError(f"{url} not ready after {limit:g} s; end of its log:\n{programs[-1].tail()}")
        time.sleep(0.05)


def _free_ports(count: int) -> list[int]:
    """Ports that are free now; all are held at once so that they differ."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
