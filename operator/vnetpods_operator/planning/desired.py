"""Desired state of one node: its machine and its number of addresses. Pure."""

from __future__ import annotations

from collections.abc import Collection

from vnetpods_api import NodeIPPool, Reason
from vnetpods_operator.config import Config, Machines
from vnetpods_operator.planning.machine import MachineId, UnsupportedProvider
from vnetpods_operator.planning.model import Problem, Wanted
from vnetpods_operator.planning.node import Node


def identify(
    node: Node, sharers: Collection[str], allowed: Machines, trusted: Collection[str]
) -> tuple[MachineId | None, Problem | None]:
    """The machine in the Node's providerID, and the problem that keeps the operator from serving it, if any.

    `sharers`: other Nodes with the same providerID; `trusted`: resource groups of control-plane machines.
    """
    if not node.provider_id:
        text = (
            f"Node {node.name} has no spec.providerID, so its virtual machine is unknown; is a cloud provider running, "
            "or is the kubelet's --provider-id set?"
        )
        return None, Problem(Reason.NO_PROVIDER_ID, text, stalled=True)
    try:
        machine = MachineId.from_provider_id(node.provider_id)
    except UnsupportedProvider:
        if node.provider_id.lower().startswith("azure://"):
            text = f"providerID {node.provider_id} of Node {node.name} is not that of a virtual machine"
            return None, Problem(Reason.UNSUPPORTED_MACHINE, text, stalled=True)
        text = (
            f"providerID {node.provider_id} of Node {node.name} is of another cloud; label it vnetpods.io/managed=false"
        )
        return None, Problem(Reason.FOREIGN_PROVIDER, text, stalled=True)
    if not allowed.allows(machine.place, trusted):
        text = (
            f"Node {node.name} names {machine.id}, which is in none of the resource groups whose machines Nodes may "
            f"name; if it belongs to this cluster, add {machine.place} to machines.resourceGroups in the operator's "
            "configuration, else delete the Node and find out who registered it"
        )
        return machine, Problem(Reason.MACHINE_NOT_ALLOWED, text, stalled=True)
    if not sharers:
        return machine, None
    text = (
        f"Node {', '.join(sorted(sharers))} has the same providerID as Node {node.name}; nothing is changed on the "
        "machine's NICs until one is left: delete the Node that is no longer there"
    )
    return machine, Problem(Reason.MACHINE_SHARED, text, stalled=True)


def wanted_for(
    node: Node, pool: NodeIPPool, config: Config, host_pods: int, doubled: str = ""
) -> tuple[Wanted, Problem | None]:
    """Sizes from the node's group, refined by the pool's spec.sizing; sizing that contradicts the group is ignored and
    reported.

    `doubled`: evidence that two agents report for the node, or empty.
    """
    group, problem = config.group_of(node.labels), None
    if doubled:
        text = f"{doubled}; nothing is released until one of them is gone: end the one that is not the DaemonSet's pod"
        problem = Problem(Reason.AGENT_DOUBLED, text, stalled=True)
    try:
        group = group.refined(pool.spec.sizing)
    except ValueError as error:
        text = f"spec.sizing together with the configured group makes no sense ({error}); the group's sizes apply"
        problem = Problem(Reason.INVALID_SIZING, text, stalled=True)
    wanted = Wanted(
        minimum=group.minimum,
        warm=group.warm,
        batch=group.batch,
        maximum=min(group.maximum, max(0, node.pod_limit - host_pods)),
        blocks=group.blocks,
        paused=pool.spec.paused,
        release_after=config.release.after,
        release_batch=config.release.batch,
        release_patience=config.release.patience,
    )
    return wanted, problem
