"""Standalone virtual machines (and flexible scale-set instances, which are the same thing).

Pure. Writing a VM attaches its NICs: only then do they have a MAC address, a machine and a primary flag.
"""

from __future__ import annotations

import hashlib

from tests.azure.arm.errors import ArmError, missing_reference
from tests.azure.arm.ids import ResourceId, key, parse
from tests.azure.arm.model import Model
from tests.azure.arm.store import Body, Resource, guid

TYPE = "Microsoft.Compute/virtualMachines"


def nic_ids(body: Body) -> list[str]:
    """Ids of a VM's NICs, primary first."""
    entries = (body.get("properties") or {}).get("networkProfile", {}).get("networkInterfaces") or []
    ordered = sorted(entries, key=lambda entry: not (entry.get("properties") or {}).get("primary", len(entries) == 1))
    return [entry.get("id", "") for entry in ordered]


def mac(nic: str) -> str:
    """The MAC address of a NIC, in ARM's spelling; derived from the id, under a vendor prefix of Azure."""
    digest = hashlib.sha1(nic.lower().encode()).digest()
    return "-".join(f"{octet:02X}" for octet in (0x00, 0x0D, 0x3A, *digest[:3]))


def write(model: Model, vm: ResourceId, body: Body, current: Resource | None, now: float) -> Body:
    properties = {field: value for field, value in (body.get("properties") or {}).items() if value is not None}
    given = {**body, "properties": properties}
    for reference in nic_ids(given):
        nic = model.store.get(parse(reference))
        if nic is None:
            raise missing_reference(reference, str(vm))
        owner = nic.properties.get("virtualMachine")
        if owner and key(owner["id"]) != vm.key:
            raise ArmError(
                400, "NicInUse", f"Network Interface {reference} is used by existing resource {owner['id']}."
            )
    if not nic_ids(given):
        raise ArmError(400, "InvalidParameter", f"Required parameter 'networkProfile' is missing (null) in {vm}.")
    properties["vmId"] = guid("vm", vm.key, 0 if current is None else current.memory.get("birth", 0))
    properties.setdefault("timeCreated", "2026-01-01T00:00:00.0000000+00:00")
    return given


def written(model: Model, vm: Resource, previous: Body | None) -> None:
    """Attaches the listed NICs, detaches those no longer listed."""
    wanted = nic_ids(vm.body)
    for reference in nic_ids(previous or {}):
        if key(reference) not in map(key, wanted):
            _detach(model, reference)
    for position, reference in enumerate(wanted):
        nic = model.store.get(parse(reference))
        if nic is None:
            continue
        values = {"macAddress": mac(nic.id.key), "primary": position == 0, "virtualMachine": {"id": str(vm.id)}}
        if {field: nic.properties.get(field) for field in values} != values:
            nic.properties.update(values)
            nic.changed()


def remove(model: Model, vm: Resource, now: float) -> None:
    """NICs outlive their VM (deleteOption is Detach unless the VM says Delete)."""
    entries = vm.properties["networkProfile"]["networkInterfaces"]
    for entry in entries:
        _detach(model, entry["id"])
        nic = model.store.get(parse(entry["id"]))
        if nic is not None and (entry.get("properties") or {}).get("deleteOption") == "Delete":
            model.delete(nic, now)


def _detach(model: Model, reference: str) -> None:
    nic = model.store.get(parse(reference))
    if nic is not None:
        for field in ("macAddress", "primary", "virtualMachine"):
            nic.properties.pop(field, None)
        nic.changed()
