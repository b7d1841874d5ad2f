"""What a container asks for besides an address, and who may ask. Pure.

containerd and CRI-O hand a pod's annotations to a plugin that declares the capability for them (see installer), so the
agent needs no right to read Pods and no API server. Other runtimes pass the same keys in CNI_ARGS. Nothing that a pod
writes is trusted: a wish that is malformed or not allowed fails the ADD before an address is taken.

    vnetpods.io/snat: never    the pod's own address is its source everywhere, so that a NAT gateway, a firewall or its
                               own public address sees it; by default only direct destinations do
    ips, IP=                   this very address (`--ip` of podman and nerdctl): an option of whoever runs the runtime,
                               which no pod of Kubernetes can set, so it needs no permission
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Interface

from vnetpods_agent.attachment import Address, Pod
from vnetpods_agent.cni.protocol import Call, CniError, Code, quoted
from vnetpods_agent.config import Annotations
from vnetpods_agent.ipam.pool import ANY, Wish

SNAT = "vnetpods.io/snat"
NEVER = "never"
EVERY = "*"


@dataclass(frozen=True, slots=True)
class Wishes:
    """`snat`: False when the pod is to leave under its own address to everywhere."""

    address: Wish = ANY
    snat: bool = True


def wishes(call: Call, allowed: Annotations) -> Wishes:
    """Raises CniError with code 7: no repetition helps until somebody changes the pod or the configuration."""
    return Wishes(_address(call.ips), _snat(call, allowed))


def _address(ips: tuple[str, ...]) -> Wish:
    if not ips:
        return ANY
    try:
        (one,) = ips
        return Wish(address=Address(str(IPv4Interface(one).ip)))
    except ValueError:
        said = f"the address {quoted(', '.join(ips))} can't be given"
        raise CniError(Code.CONFIG, said, "an interface has one address, and that of IPv4") from None


def _snat(call: Call, allowed: Annotations) -> bool:
    if (value := call.annotations.get(SNAT)) is None:
        return True
    if value != NEVER:
        said = f"annotation {SNAT}: {quoted(value)} is not understood"
        raise CniError(Code.CONFIG, said, f"the only value is {NEVER}")
    if not _may(call.pod, allowed.snat):
        subject = f"namespace {call.pod.namespace}" if call.pod else "a container that names no pod"
        listed = ", ".join(allowed.snat) or "none"
        raise CniError(
            Code.CONFIG,
            f"annotation {SNAT}: {subject} may not ask for it",
            f"allowed by annotations.snat in the agent's configuration: {listed}",
        )
    return False


def _may(pod: Pod | None, namespaces: tuple[str, ...]) -> bool:
    return EVERY in namespaces or (pod is not None and pod.namespace in namespaces)
