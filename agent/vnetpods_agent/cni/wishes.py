"""Per-container wishes, and which namespaces may have them. Pure.

containerd and CRI-O pass a pod's annotations to a plugin that declares that capability (see installer), so the agent
needs neither permission to read Pods nor the API server. Other runtimes pass the same keys in CNI_ARGS. Input from a
pod is not trusted: a malformed or forbidden wish fails the ADD before an address is taken.

    vnetpods.io/snat: never    the pod keeps its own source address to every destination, so that a NAT gateway, a
                               firewall or its own public address sees it; by default only direct destinations do
    ips, IP=                   this very address, even in cool-down: traffic for its former pod may still arrive.
                               `--ip` of podman and nerdctl; a Kubernetes pod sets it through Multus, so it needs
                               permission
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
    """`snat`: False if the pod keeps its own source address to every destination."""

    address: Wish = ANY
    snat: bool = True


def wishes(call: Call, allowed: Annotations) -> Wishes:
    """Raises CniError with code 7: a retry fails until the pod or the configuration changes."""
    return Wishes(_address(call, allowed), _snat(call, allowed))


def _address(call: Call, allowed: Annotations) -> Wish:
    if not call.ips:
        return ANY
    if call.pod is not None:
        _check("ips", call.pod, "annotations.ips", allowed.ips)
    try:
        (one,) = call.ips
        return Wish(address=Address(str(IPv4Interface(one).ip)))
    except ValueError:
        said = f"the address {quoted(', '.join(call.ips))} can't be given"
        raise CniError(Code.CONFIG, said, "an interface has one address, and that of IPv4") from None


def _snat(call: Call, allowed: Annotations) -> bool:
    if (value := call.annotations.get(SNAT)) is None:
        return True
    if value != NEVER:
        said = f"annotation {SNAT}: {quoted(value)} is not understood"
        raise CniError(Code.CONFIG, said, f"the only value is {NEVER}")
    _check(f"annotation {SNAT}", call.pod, "annotations.snat", allowed.snat)
    return False


def _check(wish: str, pod: Pod | None, key: str, namespaces: tuple[str, ...]) -> None:
    if EVERY in namespaces or (pod is not None and pod.namespace in namespaces):
        return
    subject = f"namespace {pod.namespace}" if pod else "a container that names no pod"
    listed = ", ".join(namespaces) or "none"
    raise CniError(
        Code.CONFIG,
        f"{wish}: {subject} may not ask for it",
        f"allowed by {key} in the agent's configuration: {listed}",
    )
