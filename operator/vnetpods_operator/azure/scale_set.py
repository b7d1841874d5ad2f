"""Instances of uniform scale sets: NICs are read through the set and changed through the instance's model.

A write is a PUT of the whole instance model with If-Match. Its image reference is set to null first: echoing a gallery
image's reference requires rights on the gallery that the operator lacks (403 LinkedAuthorizationFailed), and null means
"unchanged". The model knows entries by name only; addresses come from the list of NICs.

A failed update can leave entries in the model that no NIC has and that make every later update fail. But the list of
NICs may lag behind the model, and the write's ETag does not cover it: a pod may hold an entry that the list lacks. So
only entries that this process created and has never read with an address are reported as Failed and swept: their
addresses were never published. Entries left by others (mostly by the previous operator process) are written again
unchanged, which Azure treats as a retry; if that fails too, a person must act.

Requests for an address by value are not possible here, nor for /28 blocks (they become single addresses).
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import Any

from azure.core import MatchConditions

from vnetpods_kit.faultpoints import OperatorPoint, reach
from vnetpods_operator.azure.client import Arm
from vnetpods_operator.azure.nics import edited_configurations, entry, parse
from vnetpods_operator.azure.sdk_errors import ending, translated
from vnetpods_operator.azure.virtual_machine import body
from vnetpods_operator.errors import AddressTaken, AzureError, Gone
from vnetpods_operator.planning.machine import Entry, MachineId, Nic, Nics, UnreadableNic, fence
from vnetpods_operator.planning.model import BLOCK, Change


@dataclass(frozen=True, slots=True)
class ScaleSetInstance:
    """A Machine (see vnetpods_operator.planning.machine)."""

    arm: Arm
    id: MachineId

    async def nics(self) -> Nics:
        """Reads the instance's NICs, with the entries that only its model has."""
        model = await self._model()
        found, unreadable = await self._actual()
        with translated(f"reading {self._name}"):
            state = (model.get("properties") or {}).get("provisioningState") or "Succeeded"
            self._unseen.difference_update(
                entry.name.lower() for nic in found for entry in nic.entries if entry.address
            )
            nics = [_with_model(nic, model, state, self._unseen) for nic in found]
        if unreadable and not nics:
            raise unreadable[0].error
        return Nics(tuple(sorted(nics, key=lambda nic: not nic.primary)), unreadable)

    async def write(self, nic: Nic, change: Change) -> Nic:
        """Sends one PUT of the model; raises Changed if the model has changed since it was read."""
        if change.restore:
            text = f"a uniform scale set cannot be asked for {', '.join(change.restore)} by value"
            raise AddressTaken(f"writing {self._name}: {text}", "NotSupported")
        what = f"writing {self._name}"
        etag = fence(nic)
        model: Any = _edited(nic, change)
        self._unseen.update(_names(model, nic.name) - _names(nic.body, nic.name))
        with translated(what):
            poller = await self.arm.compute(self.id.subscription).virtual_machine_scale_set_vms.begin_update(
                self.id.group,
                str(self.id.scale_set),
                self.id.name,
                model,
                etag=etag,
                match_condition=MatchConditions.IfNotModified,
                cls=body,
                **self.arm.compute_arguments(),
            )
        reach(OperatorPoint.NIC_ACCEPTED)
        async with ending(what, self.arm.config.operation_timeout):
            await poller.result()
        after = next((other for other in (await self.nics()).found if other.name == nic.name), None)
        if after is None:
            raise Gone(f"{what}: its NIC {nic.name} is gone", "NotFound")
        return replace(after, carries=_names(model, nic.name))

    @property
    def _unseen(self) -> set[str]:
        return self.arm.unseen[self.id.id.lower()]

    @property
    def _name(self) -> str:
        return f"instance {self.id.name} of scale set {self.id.scale_set} in {self.id.group}"

    async def _model(self) -> dict[str, Any]:
        with translated(f"reading {self._name}"):
            model: Any = await self.arm.compute(self.id.subscription).virtual_machine_scale_set_vms.get(
                self.id.group, str(self.id.scale_set), self.id.name, cls=body, **self.arm.compute_arguments()
            )
        found: dict[str, Any] = model
        return found

    async def _actual(self) -> tuple[list[Nic], tuple[UnreadableNic, ...]]:
        """Lists the NICs. The SDK fixes this operation's API version (2018-10-01)."""
        network = self.arm.network(self.id.subscription)
        with translated(f"reading the NICs of {self._name}"):
            pages = network.network_interfaces.list_virtual_machine_scale_set_vm_network_interfaces(
                self.id.group, str(self.id.scale_set), self.id.name
            )
            bodies = [nic.as_dict() async for nic in pages]
        answers = [self._parsed(one) for one in bodies]
        return (
            [one for one in answers if isinstance(one, Nic)],
            tuple(one for one in answers if isinstance(one, UnreadableNic)),
        )

    def _parsed(self, found: dict[str, Any]) -> Nic | UnreadableNic:
        id_ = str(found.get("id"))
        name = id_.rpartition("/")[2]
        try:
            with translated(f"reading NIC {name} of {self._name}"):
                return parse(found)
        except AzureError as error:
            return UnreadableNic(id_, name, bool((found.get("properties") or {}).get("primary")), error)


def _with_model(nic: Nic, model: dict[str, Any], state: str, unseen: set[str]) -> Nic:
    """The NIC with the instance's ETag, and with the entries that only the model has."""
    listed = {one.name.lower() for one in nic.entries}
    beyond = [replace(one, address=None) for one in _entries(model, nic.name) if one.name.lower() not in listed]
    entries = [
        replace(one, state="Failed" if state == "Failed" and one.name.lower() in unseen else "Updating")
        if one.ours and one.address is None
        else one
        for one in (*nic.entries, *beyond)
    ]
    return replace(
        nic,
        etag=model.get("etag") or "",
        fenced=False,
        state=state if state == "Updating" or (state == "Failed" and beyond) else nic.state,
        entries=tuple(entries),
        body=model,
        carries=_names(model, nic.name),
    )


def _edited(nic: Nic, change: Change) -> dict[str, Any]:
    """The instance's model with the change applied."""
    named = replace(change, add=change.add + BLOCK * change.blocks, blocks=0)
    model = {key: value for key, value in nic.body.items() if key not in ("resources", "etag")}
    properties = model["properties"] = dict(nic.body["properties"])
    storage = dict(properties.get("storageProfile") or {})
    properties["storageProfile"] = storage | {"imageReference": None}
    profile = properties["networkProfileConfiguration"] = dict(properties["networkProfileConfiguration"])
    profile["networkInterfaceConfigurations"] = [
        _with_entries(configuration, named) if configuration["name"].lower() == nic.name.lower() else configuration
        for configuration in profile["networkInterfaceConfigurations"]
    ]
    return model


def _with_entries(configuration: dict[str, Any], change: Change) -> dict[str, Any]:
    properties = dict(configuration["properties"])
    present = _with_primary(properties["ipConfigurations"])
    before = {one["name"] for one in present}
    entries = edited_configurations(present, change, lambda: secrets.token_hex(4))
    for made in entries:
        if made["name"] not in before:  # the model has no allocation method
            del made["properties"]["privateIPAllocationMethod"]
    return configuration | {"properties": properties | {"ipConfigurations": entries}}


def _with_primary(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Instance models carry no `primary`, but Azure requires it once there are several entries (else 400
    VMScaleSetNetworkInterfaceConfigurationMustHaveOneIpConfigAsPrimary); the set's own entry is the first.
    """
    if any(entry(one).primary for one in entries):
        return entries
    first = entries[0]
    return [first | {"properties": (first.get("properties") or {}) | {"primary": True}}, *entries[1:]]


def _entries(model: dict[str, Any], name: str) -> list[Entry]:
    properties = _configuration(model, name).get("properties") or {}
    return [entry(one) for one in properties.get("ipConfigurations") or []]


def _names(model: dict[str, Any], name: str) -> frozenset[str]:
    return frozenset(one.name.lower() for one in _entries(model, name))


def _configuration(model: dict[str, Any], name: str) -> dict[str, Any]:
    profile = (model.get("properties") or {}).get("networkProfileConfiguration") or {}
    configurations: list[dict[str, Any]] = profile.get("networkInterfaceConfigurations") or []
    return next((c for c in configurations if (c.get("name") or "").lower() == name.lower()), {})
