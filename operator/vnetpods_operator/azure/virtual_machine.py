"""Standalone virtual machines and instances of flexible scale sets: ordinary VMs with ordinary NIC resources.

A write is GET (by `nics()`) → edit our entries → PUT with If-Match → poll → read back. If the process dies after ARM
accepted the PUT, the next `nics()` shows the outcome: our entries are recognised by name.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, replace
from typing import Any

from vnetpods_kit.faultpoints import OperatorPoint, reach
from vnetpods_operator.azure.client import Arm, NicId
from vnetpods_operator.azure.nics import edited, names, parse
from vnetpods_operator.azure.sdk_errors import ending, translated
from vnetpods_operator.errors import AzureError, Gone, Throttled
from vnetpods_operator.planning.machine import MachineId, Nic, Nics, UnreadableNic, fence
from vnetpods_operator.planning.model import Change


def body(response: Any, _model: Any, _headers: Any) -> Any:
    """ARM's JSON as sent, for a call's `cls`: SDK models would be a second truth."""
    return response.http_response.json()


@dataclass(frozen=True, slots=True)
class VirtualMachine:
    """A Machine (see vnetpods_operator.planning.machine)."""

    arm: Arm
    id: MachineId

    async def nics(self) -> Nics:
        """Reads the NICs; the VM itself only if the cached list of its NICs has expired or proves wrong."""
        known = self.arm.known_nics(self.id.id)
        if known:
            nics = await self._read(known)
            gone = any(isinstance(one.error, Gone) for one in nics.unreadable)
            if not gone and all(self._mine(nic) for nic in nics.found):
                return nics
        with translated(f"reading virtual machine {self.id.name} in {self.id.group}"):
            machine: Any = await self.arm.compute(self.id.subscription).virtual_machines.get(
                self.id.group, self.id.name, cls=body, **self.arm.compute_arguments()
            )
            profile = (machine.get("properties") or {}).get("networkProfile") or {}
            references = profile.get("networkInterfaces") or []
            ids = tuple(
                NicId(str(one["id"]), bool((one.get("properties") or {}).get("primary", len(references) == 1)))
                for one in references
            )
        nics = await self._read(ids)
        if nics.unreadable and not nics.found:
            raise nics.unreadable[0].error
        self.arm.learn_nics(self.id.id, ids)
        return nics

    async def _read(self, ids: tuple[NicId, ...]) -> Nics:
        answers = await asyncio.gather(*(self._try(one) for one in ids))
        found = sorted((a for a in answers if isinstance(a, Nic)), key=lambda nic: not nic.primary)
        return Nics(tuple(found), tuple(a for a in answers if isinstance(a, UnreadableNic)))

    async def _try(self, wanted: NicId) -> Nic | UnreadableNic:
        try:
            return await self._nic(wanted.id)
        except Throttled:  # concerns the subscription, not this NIC
            raise
        except AzureError as error:
            return UnreadableNic(wanted.id, wanted.id.rpartition("/")[2], wanted.primary, error)

    def _mine(self, nic: Nic) -> bool:
        """Whether the NIC is still attached to this VM."""
        holder = ((nic.body.get("properties") or {}).get("virtualMachine") or {}).get("id")
        return str(holder).lower() == self.id.id.lower()

    async def write(self, nic: Nic, change: Change) -> Nic:
        """Sends one PUT; raises Changed if the NIC has changed since it was read."""
        subscription, group, name = _place(nic.id)
        what = f"writing NIC {name} in {group}"
        wanted: Any = edited(nic.body, change, lambda: secrets.token_hex(4))
        with translated(what):
            poller = await self.arm.network(subscription).network_interfaces.begin_create_or_update(
                group, name, wanted, headers={"If-Match": fence(nic)}, cls=body, **self.arm.network_arguments()
            )
        reach(OperatorPoint.NIC_ACCEPTED)
        async with ending(what, self.arm.config.operation_timeout):
            after: Any = await poller.result()
            return replace(parse(after), carries=names(wanted["properties"]["ipConfigurations"]))

    async def _nic(self, resource: str) -> Nic:
        subscription, group, name = _place(resource)
        with translated(f"reading NIC {name} in {group}"):
            found: Any = await self.arm.network(subscription).network_interfaces.get(
                group, name, cls=body, **self.arm.network_arguments()
            )
            return parse(found)


def _place(resource: str) -> tuple[str, str, str]:
    """Splits a resource id into subscription, resource group and name."""
    parts = resource.strip("/").split("/")
    if len(parts) < 8 or parts[0].lower() != "subscriptions" or parts[2].lower() != "resourcegroups":
        raise Gone(f"{resource} is not a resource id of a NIC", "InvalidResourceId")
    return parts[1], parts[3], parts[-1]
