"""The effects of faults: on the model before or after a request, on the operation, on the response.

Pure; called from `cloud.Cloud.handle` with the rule that is due (see `faults`).
"""

from __future__ import annotations

from tests.azure.arm import machines, nics, scalesets
from tests.azure.arm.errors import ArmError
from tests.azure.arm.faults import Fault
from tests.azure.arm.ids import parse
from tests.azure.arm.kinds import BY_TYPE
from tests.azure.arm.requests import Reply, Request
from tests.azure.arm.routes import Target
from tests.azure.arm.store import Body, Resource
from tests.azure.arm.writes import OWNER, Outcome, Writable, copy, put

PREEMPTED = "Operation execution has been preempted by a more recent operation."


def outcome(fault: Fault) -> Outcome | None:
    """How the operation of a hit write ends."""
    if fault.effect == "fail":
        return Outcome(ArmError(200, fault.code, fault.message), fault.after)
    if fault.effect == "preempt":
        return Outcome(ArmError(200, "OperationPreempted", PREEMPTED), fault.after)
    if fault.effect == "half":
        return Outcome(ArmError(200, fault.code, fault.message), applied=False)
    if fault.effect == "vanish" and fault.after:
        return Outcome(
            ArmError(200, "ParentResourceNotFound", "The machine was deleted while it was updated."), applied=True
        )
    return None


def spoil(fault: Fault, reply: Reply) -> None:
    """Applies the part of a fault that shows only on the wire."""
    if fault.effect == "reset":
        reply.cut = True
    elif fault.effect == "timeout":
        reply.cut = True
        reply.delay = fault.seconds
    elif fault.effect == "slow":
        reply.delay = fault.seconds
    elif fault.effect == "garbage":
        reply.raw = (fault.argument or "<html><body>Bad gateway</body></html>").encode()


def other_writer(model: Writable, wanted: Target, fault: Fault, now: float) -> None:
    """Writes the same NIC (or instance) just before the caller, as cloud-provider, Terraform or a person would."""
    found = model.store.get(wanted.id) if wanted.id is not None else None
    if found is None or not (nics.is_nic(found) or found.id.kind == scalesets.INSTANCE.lower()):
        return
    body: Body = copy(found.body)
    inner = body["properties"]
    if not nics.is_nic(found):
        inner = inner["networkProfileConfiguration"]["networkInterfaceConfigurations"][0]["properties"]
    if fault.change == "tag":
        body["tags"] = {**(body.get("tags") or {}), "changed-by": fault.argument or "another writer"}
    else:
        inner["ipConfigurations"] = _changed(inner["ipConfigurations"], fault)
    request = Request("PUT", str(found.id), {"api-version": "2024-01-01"}, body=body, principal=OWNER)
    put(model, request, BY_TYPE[found.id.kind], found.id, now, None)


def _changed(parts: list[Body], fault: Fault) -> list[Body]:
    """The configurations as the other writer leaves them."""
    if fault.change == "pool":
        first = next((part for part in parts if part["properties"].get("primary")), parts[0])["properties"]
        pools = first.get("loadBalancerBackendAddressPools") or []
        first["loadBalancerBackendAddressPools"] = [*pools, {"id": fault.argument}]
        return parts
    if fault.change == "configuration":
        first = parts[0]["properties"]
        subnet, first["primary"] = first["subnet"], True
        return [*parts, {"name": fault.argument or "foreign", "properties": {"subnet": subnet, "primary": False}}]
    prefix = (fault.argument or "vnetpods-").lower()
    ours = [part for part in parts if part["name"].lower().startswith(prefix)]
    gone = ours if fault.change == "remove_all" else ours[:1]
    return [part for part in parts if part not in gone]


def vanish(model: Writable, wanted: Target, now: float) -> None:
    """Deletes the machine of a resource, with its NICs."""
    resource = model.store.get(wanted.id) if wanted.id is not None else None
    if resource is None:
        return
    machine = resource.properties.get("virtualMachine")
    vm = model.store.get(parse(machine["id"])) if machine else resource
    if vm is None:
        return
    attached: list[Resource] = []
    if vm.id.kind == machines.TYPE.lower():  # the NICs of an instance go with it
        attached = [nic for text in machines.nic_ids(vm.body) if (nic := model.store.get(parse(text))) is not None]
    model.delete(vm, now)
    for nic in attached:
        if model.store.get(nic.id) is not None:
            model.delete(nic, now)
