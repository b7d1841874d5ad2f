"""Scale sets: the set, its uniform instances, and their NICs, which only the set shows.

Pure. A flexible set is little more than a name: its instances are ordinary VMs that refer to it. A uniform one creates
instances from its profile; an instance's NICs can't be written, only its model can: after a PUT the NICs follow its
`networkProfileConfiguration`. Documented: the PUT makes `latestModelApplied` false; a Failed one may leave half-made
entries that fail every later update.
"""

from __future__ import annotations

from typing import Any

from tests.azure.arm import machines, nics
from tests.azure.arm.errors import ArmError, check_names
from tests.azure.arm.ids import ResourceId
from tests.azure.arm.model import Kind, Model
from tests.azure.arm.store import Body, Resource, guid

TYPE = "Microsoft.Compute/virtualMachineScaleSets"
INSTANCE = f"{TYPE}/virtualMachines"
NIC = f"{INSTANCE}/networkInterfaces"

LIMIT_CODE = "SecondaryIpConfigurationCountPerVMSSVMExceeded"
PREFIXED = ("IpConfigurationsOnSameNicCannotUseDifferentSubnets",)
"""Codes that a scale set returns with the prefix VMScaleSet."""
HALF_MADE = "half_made"


def write(model: Model, scale_set: ResourceId, body: Body, current: Resource | None, now: float) -> Body:
    properties = {name: value for name, value in (body.get("properties") or {}).items() if value is not None}
    properties.setdefault("orchestrationMode", "Uniform")
    properties["uniqueId"] = guid("scale-set", scale_set.key)
    if properties["orchestrationMode"] == "Uniform" and not _configurations(properties.get("virtualMachineProfile")):
        raise ArmError(400, "InvalidParameter", f"{scale_set}: the virtual machine profile has no network interface.")
    return {**body, "sku": {"tier": "Standard", "capacity": 0, **(body.get("sku") or {})}, "properties": properties}


def written(model: Model, scale_set: Resource, previous: Body | None) -> None:
    """Creates or removes instances until their number is the capacity."""
    if scale_set.properties["orchestrationMode"] != "Uniform":
        return
    present = list(model.store.below(scale_set.id.text, INSTANCE))
    for instance in present[scale_set.body["sku"]["capacity"] :]:
        model.delete(instance, 0.0)
    for _ in range(scale_set.body["sku"]["capacity"] - len(present)):
        try:
            _create(model, scale_set)
        except ArmError:  # as in Azure, the set stays with what could be made
            scale_set.body["sku"]["capacity"] = len(list(model.store.below(scale_set.id.text, INSTANCE)))
            break


def remove(model: Model, scale_set: Resource, now: float) -> None:
    for instance in model.store.below(scale_set.id.text, INSTANCE):
        model.delete(instance, now)


def write_instance(model: Model, instance: ResourceId, body: Body, current: Resource | None, now: float) -> Body:
    """Changes an instance's model. An image reference of null means unchanged."""
    if current is None:
        raise ArmError(
            400,
            "InstanceIdsListInstanceIdNotActiveVM",
            f"The provided instanceId {instance.name} is not an active instance.",
        )
    if not body.get("properties"):  # tags alone are a write, too
        return {**current.body, "tags": body.get("tags") or {}}
    properties = {name: value for name, value in body["properties"].items() if value is not None}
    storage = dict(properties.get("storageProfile") or current.properties["storageProfile"])
    if not storage.get("imageReference"):
        storage["imageReference"] = current.properties["storageProfile"]["imageReference"]
    wanted = _configurations(properties)
    if not wanted:
        raise ArmError(400, "InvalidParameter", f"{instance}: networkProfileConfiguration is missing.")
    _write_nics(model, current, wanted, now)
    kept = {name: current.properties[name] for name in ("vmId", "networkProfile", "osProfile", "timeCreated")}
    current.memory.pop(HALF_MADE, None)
    return {
        **body,
        "instanceId": instance.name,
        "location": current.body["location"],
        "sku": current.body["sku"],
        "properties": {**properties, **kept, "storageProfile": storage, "latestModelApplied": False},
    }


def written_instance(model: Model, instance: Resource, previous: Body | None) -> None:
    instance.body["name"] = f"{instance.id.parent.name}_{instance.id.name}"


def check_instance_id(wanted: ResourceId) -> None:
    """Instances are numbered."""
    types = tuple(kind.lower() for kind in wanted.types[:2])
    if types == ("virtualmachinescalesets", "virtualmachines") and not wanted.names[1].isdecimal():
        raise ArmError(400, "InvalidParameter", f"The value of parameter instanceId is invalid: '{wanted.names[1]}'.")


def remove_instance(model: Model, instance: Resource, now: float) -> None:
    for nic in model.store.below(instance.id.text, NIC):
        nics.release(model, nic, now)
        nics.unlinked(model, nic)
        model.store.remove(nic)
    scale_set = model.store.get(instance.id.parent)
    if scale_set is not None:
        scale_set.body["sku"]["capacity"] = max(0, scale_set.body["sku"]["capacity"] - 1)


def write_nic(model: Model, nic: ResourceId, body: Body, current: Resource | None, now: float) -> Body:
    words = f"{nic} belongs to a scale set and can only be changed through the model of its virtual machine."
    raise ArmError(405, "OperationNotAllowed", words)


def half_make(instance: Resource, body: Any) -> None:
    """Leaves entries in the model that no NIC has, as a Failed update does."""
    wanted = _configurations((body or {}).get("properties"))
    added = _names(wanted) - _names(_configurations(instance.properties))
    instance.properties["networkProfileConfiguration"] = {"networkInterfaceConfigurations": wanted}
    instance.memory[HALF_MADE] = added | instance.memory.get(HALF_MADE, set())


def still_half_made(instance: Resource | None, body: Any) -> ArmError | None:
    """The error of an update whose model still has half-made entries."""
    bad = (instance.memory.get(HALF_MADE) or set()) if instance else set()
    left = bad & _names(_configurations((body or {}).get("properties")))
    if not left:
        return None
    return ArmError(200, "NetworkingInternalOperationError", f"IP configuration {min(left)} is in a Failed state.")


def computer_name(instance: Resource) -> str:
    """The machine's hostname, which is its Node's name."""
    name: str = instance.properties["osProfile"]["computerName"]
    return name


def _create(model: Model, scale_set: Resource) -> None:
    number = scale_set.memory.get("next", 0)
    profile = scale_set.properties["virtualMachineProfile"]
    prefix = (profile.get("osProfile") or {}).get("computerNamePrefix") or scale_set.id.name
    instance = Resource(scale_set.id.child("virtualMachines", str(number)), {})
    wanted = _configurations(profile)
    primary = next((entry for entry in wanted if (entry.get("properties") or {}).get("primary")), wanted[0])
    references = [
        {"id": f"{instance.id}/networkInterfaces/{entry['name']}", "properties": {"primary": entry is primary}}
        for entry in wanted
    ]
    image = (profile.get("storageProfile") or {}).get("imageReference") or {}
    instance.body = {
        "name": f"{scale_set.id.name}_{number}",
        "id": str(instance.id),
        "type": INSTANCE,
        "instanceId": str(number),
        "location": scale_set.body["location"],
        "sku": {name: scale_set.body["sku"].get(name) for name in ("name", "tier")},
        "properties": {
            "latestModelApplied": True,
            "modelDefinitionApplied": "VirtualMachineScaleSet",
            "networkProfileConfiguration": {"networkInterfaceConfigurations": wanted},
            "vmId": guid("instance", instance.id.key),
            "hardwareProfile": {},
            "storageProfile": {"imageReference": image, "osDisk": {"osType": "Linux", "createOption": "FromImage"}},
            "osProfile": {"computerName": f"{prefix}{_base36(number)}"},
            "networkProfile": {"networkInterfaces": references},
            "timeCreated": "2026-01-01T00:00:00.0000000+00:00",
        },
    }
    _write_nics(model, instance, wanted, 0.0)
    scale_set.memory["next"] = number + 1
    instance.changed("Succeeded")
    model.store.add(instance)


def _write_nics(model: Model, instance: Resource, wanted: list[Body], now: float) -> None:
    """Applies the instance's model to its NICs; the first refusal ends it, before anything of that NIC has changed."""
    check_names(wanted, instance.id)
    _check_primaries(wanted)
    order = [reference.rsplit("/", 1)[1].lower() for reference in machines.nic_ids(instance.body)]
    for entry in wanted:
        nic = instance.id.child("networkInterfaces", entry["name"])
        current = model.store.get(nic)
        inner = entry.get("properties") or {}
        properties = {name: inner[name] for name in ("networkSecurityGroup", "enableIPForwarding") if inner.get(name)}
        body = {"properties": {**properties, "ipConfigurations": inner.get("ipConfigurations") or []}}
        try:
            made = nics.write(model, nic, body, current, now)
        except ArmError as error:
            raise _renamed(model, error) from error
        previous = current.body if current else None
        resource = current or Resource(nic, {})
        model.remember(resource, now, now + model.settings.duration(INSTANCE))
        resource.body = {"name": nic.name, "id": str(nic), **made}
        resource.properties.update(
            macAddress=machines.mac(nic.key),
            primary=order[:1] == [nic.name.lower()],
            virtualMachine={"id": str(instance.id)},
        )
        model.store.add(resource)
        nics.written(model, resource, previous)
        resource.changed("Succeeded")


def _check_primaries(wanted: list[Body]) -> None:
    """A single entry is the primary implicitly; of several, one must be marked."""
    for entry in wanted:
        parts = (entry.get("properties") or {}).get("ipConfigurations") or []
        primaries = [part for part in parts if (part.get("properties") or {}).get("primary")]
        if len(parts) > 1 and len(primaries) != 1:
            raise ArmError(
                400,
                "VMScaleSetNetworkInterfaceConfigurationMustHaveOneIpConfigAsPrimary",
                f"Network interface configuration {entry['name']} must have one IP configuration marked as primary, "
                f"{len(primaries)} are.",
            )


def _renamed(model: Model, error: ArmError) -> ArmError:
    """The same refusal in a scale set's wording."""
    guesses = model.settings.guesses
    code = f"VMScaleSet{error.code}" if error.code in PREFIXED else error.code
    if error.code in (guesses.nic_limit_code, guesses.vm_limit_code):
        code = LIMIT_CODE
    return ArmError(error.status, code, error.message, error.details, error.headers)


def _configurations(properties: Any) -> list[Body]:
    """`networkInterfaceConfigurations` of an instance's model, or of a set's profile."""
    inner = properties or {}
    profile = inner.get("networkProfileConfiguration") or inner.get("networkProfile") or {}
    found: list[Body] = profile.get("networkInterfaceConfigurations") or []
    return found


def _names(wanted: list[Body]) -> set[str]:
    parts = [part for entry in wanted for part in (entry.get("properties") or {}).get("ipConfigurations") or ()]
    return {part["name"].lower() for part in parts}


def _base36(number: int) -> str:
    digits = ""
    for _ in range(6):
        number, digit = divmod(number, 36)
        digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"[digit] + digits
    return digits


KINDS = (
    Kind(TYPE, write, written, remove),
    Kind(INSTANCE, write_instance, written_instance, remove_instance),
    Kind(NIC, write_nic),
)
