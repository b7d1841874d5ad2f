"""What a pod asks for by annotation, and which namespaces may ask. Pure.

containerd and CRI-O hand a pod's annotations to a plugin that declares the capability for them (see installer), so the
agent needs no right to read Pods and no API server. Other runtimes pass the same keys in CNI_ARGS. Nothing that a pod
writes is trusted: a wish that is malformed or not allowed fails the ADD before an address is taken.

    vnetpods.io/snat: never    the pod's own address is its source everywhere, so that a NAT gateway, a firewall or its
                               own public address sees it; by default only direct destinations do
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vnetpods_agent.attachment import Pod
from vnetpods_agent.cni.protocol import CniError, Code, quoted
from vnetpods_agent.config import Annotations

SNAT = "vnetpods.io/snat"
NEVER = "never"
EVERY = "*"


@dataclass(frozen=True, slots=True)
class Wishes:
    """`snat`: False when the pod is to leave under its own address to everywhere."""

    snat: bool = True


def wishes(annotations: Mapping[str, str], pod: Pod | None, allowed: Annotations) -> Wishes:
    """Raises CniError with code 7: no repetition helps until somebody changes the pod or the configuration."""
    if (value := annotations.get(SNAT)) is None:
        return Wishes()
    if value != NEVER:
        raise CniError(
            Code.CONFIG, f"annotation {SNAT}: {quoted(value)} is not understood", f"the only value is {NEVER}"
        )
    if not _may(pod, allowed.snat):
        subject = f"namespace {pod.namespace}" if pod else "a container that names no pod"
        listed = ", ".join(allowed.snat) or "none"
        raise CniError(
            Code.CONFIG,
            f"annotation {SNAT}: {subject} may not ask for it",
            f"allowed by annotations.snat in the agent's configuration: {listed}",
        )
    return Wishes(snat=False)


def _may(pod: Pod | None, namespaces: tuple[str, ...]) -> bool:
    return EVERY in namespaces or (pod is not None and pod.namespace in namespaces)
