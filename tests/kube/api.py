"""Client of a test cluster for tests, demo and benchmarks: kubectl, and kubeconfigs for ServiceAccounts.

Shared by the bare API server and the whole cluster. Everything is synchronous, most of it a subprocess of our own
kubectl (the one on PATH may be of any version); in an event loop use `asyncio.to_thread`. A kubectl costs as much CPU
time as dozens of requests, so repeated requests go through `request` and `write`.
"""

from __future__ import annotations

import functools
import http.client
import json
import ssl
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests import pace
from tests.kube import pki

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

POLL_SECONDS = 0.1


class KubeError(Exception):
    """kubectl, a request or a wait failed; carries the request and the response."""


@dataclass(frozen=True)
class Api:
    """An API server, accessed as its administrator. `url` is reachable from the tests' own network namespace."""

    url: str
    authority: Path
    admin_kubeconfig: Path
    kubectl_program: Path
    folder: Path

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 60) -> str:
        """Runs kubectl as the administrator and returns its output; KubeError carries its error."""
        command = [str(self.kubectl_program), f"--kubeconfig={self.admin_kubeconfig}", *arguments]
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=pace.stretched(timeout), check=False
        )
        if done.returncode:
            raise KubeError(f"kubectl {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def get(self, *arguments: str) -> Any:
        """`kubectl get … -o json`, decoded."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def apply(self, manifest: str) -> str:
        """Applies one or more documents (server-side, so that big CRDs fit) and waits until new CRDs are served."""
        out = self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=manifest)
        crds = [name for name in (line.split()[0] for line in out.splitlines()) if name.startswith("customresourced")]
        if crds:
            self.kubectl("wait", "--for=condition=Established", f"--timeout={pace.stretched(30):.0f}s", *crds)
        return out

    def request(self, method: str, path: str, body: Any = None, *, token: str | None = None) -> Any:
        """Sends a request to the API server, as the administrator or with the token; returns the decoded response."""
        host = self.url.removeprefix("https://")
        context = self._anonymous if token else self._administrator
        connection = http.client.HTTPSConnection(host, timeout=pace.stretched(60), context=context)
        kind = "application/apply-patch+yaml" if method == "PATCH" else "application/json"
        headers = {"Content-Type": kind} | ({"Authorization": f"Bearer {token}"} if token else {})
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            answer = connection.getresponse()
            said = answer.read().decode()
        except (OSError, http.client.HTTPException) as error:
            raise KubeError(f"{method} {path}: {error!r}") from error
        finally:
            connection.close()
        if answer.status >= http.HTTPStatus.BAD_REQUEST:
            raise KubeError(f"{method} {path}: {said}")
        return json.loads(said)

    def write(self, path: str, body: Any, manager: str = "kubectl", *, token: str | None = None) -> Any:
        """Server-side apply of the object (or subresource) at this path, which wins conflicts."""
        return self.request("PATCH", f"{path}?fieldManager={manager}&force=true", body, token=token)

    @functools.cached_property
    def _anonymous(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.authority))

    @functools.cached_property
    def _administrator(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.authority))
        pki = self.authority.parent
        context.load_cert_chain(pki / "admin.crt", pki / "admin.key")
        return context

    def token(
        self,
        service_account: str,
        namespace: str = "kube-system",
        node_name: str | None = None,
        pod_name: str | None = None,
    ) -> str:
        """A token from the TokenRequest API, bound to a Node (from Kubernetes 1.31 on) or, as a kubelet has it, to
        a Pod.
        """
        kind, name = ("Pod", pod_name) if pod_name else ("Node", node_name)
        bound = [f"--bound-object-kind={kind}", f"--bound-object-name={name}"] if name else []
        return self.kubectl("create", "token", service_account, f"--namespace={namespace}", *bound).strip()

    def kubeconfig_for(
        self,
        service_account: str,
        namespace: str = "kube-system",
        node_name: str | None = None,
        *,
        pod_name: str | None = None,
        server: str | None = None,
    ) -> Path:
        """A kubeconfig that acts as this ServiceAccount (made if missing, without any rights).

        With `node_name` the token carries the claim `authentication.kubernetes.io/node-name`; the Node must exist.
        With `pod_name` it names that Pod, which must run under the ServiceAccount, and the Pod's node.
        `server` is for a process that reaches the API server under another address than the tests do.
        """
        self.apply(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "ServiceAccount",
                    "metadata": {"name": service_account, "namespace": namespace},
                }
            )
        )
        token = self.token(service_account, namespace, node_name, pod_name)
        name = "-".join(filter(None, [namespace, service_account, node_name, pod_name]))
        path = self.folder / "kubeconfigs" / f"{name}.kubeconfig"
        return pki.kubeconfig(path, server or self.url, self.authority, {"token": token})

    def wait(self, what: str, condition: Callable[[], Any], timeout: float = 60) -> Any:
        """Polls until `condition` returns a true value, and returns that; the KubeError names what was waited for."""
        deadline = time.monotonic() + pace.stretched(timeout)
        error: KubeError | None = None
        while True:
            try:
                if result := condition():
                    return result
                error = None
            except KubeError as failed:  # objects that don't exist yet, or a server that is down
                error = failed
            if time.monotonic() > deadline:
                raise KubeError(f"waited {pace.stretched(timeout):g} s in vain for {what}") from error
            time.sleep(POLL_SECONDS)
