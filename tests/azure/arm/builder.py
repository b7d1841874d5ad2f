"""Builds clouds in a line: VNets, subnets, peerings, NICs, VMs, and reads them back. For tests and the demo, not for
the product.

Everything goes through `Cloud.handle` as the owner (who has no budget, no faults and no line in the ledger), so that
the same rules apply. Every method takes and returns plain values: the client of the running emulator offers the same
methods.
"""

from __future__ import annotations

from typing import Any

from tests.azure.arm.admin import Call
from tests.azure.arm.faults import Effect

SUBSCRIPTION = "00000000-0000-0000-0000-000000000001"
GROUP = "vnetpods"
LOCATION = "westeurope"

Body = dict[str, Any]


class Builder:
    """`subscription` and `group` are where short names live; every `name` may also be a whole id."""

    def __init__(self, call: Call, subscription: str = SUBSCRIPTION, group: str = GROUP) -> None:
        self._call = call
        self.subscription = subscription
        self.group = group

    def id(self, kind: str, name: str) -> str:
        """`id("Microsoft.Network/networkInterfaces", "w1")`; a whole id is returned as it is."""
        if name.startswith("/"):
            return name
        names = name.split("/")
        provider, *types = kind.split("/")
        path = "/".join(f"{part}/{value}" for part, value in zip(types, names, strict=True))
        return f"/subscriptions/{self.subscription}/resourceGroups/{self.group}/providers/{provider}/{path}"

    def request(self, method: str, path: str, body: Body | None = None) -> Body:
        """Sends any ARM request as the owner. Raises RefusedError with the service's message."""
        found: Body = self._call("arm", method=method, path=path, body=body)
        return found

    def put(self, kind: str, name: str, properties: Body | None = None, **rest: Any) -> Body:
        """Creates a resource of any kind; returns its body."""
        return self.request("PUT", self.id(kind, name), {"location": LOCATION, "properties": properties or {}, **rest})

    def get(self, kind: str, name: str) -> Body:
        return self.request("GET", self.id(kind, name))

    def delete(self, kind: str, name: str) -> None:
        self.request("DELETE", self.id(kind, name))

    # -- networks

    def create_vnet(self, name: str, *prefixes: str) -> str:
        body = {"addressSpace": {"addressPrefixes": list(prefixes)}}
        return str(self.put("Microsoft.Network/virtualNetworks", name, body)["id"])

    def create_subnet(self, vnet: str, name: str, prefix: str, **properties: Any) -> str:
        path = f"{self.id('Microsoft.Network/virtualNetworks', vnet)}/subnets/{name}"
        return str(self.request("PUT", path, {"properties": {"addressPrefix": prefix, **properties}})["id"])

    def peer(self, one: str, other: str) -> None:
        """Peers two VNets in both directions."""
        ids = [self.id("Microsoft.Network/virtualNetworks", name) for name in (one, other)]
        for here, there in (ids, ids[::-1]):
            name = "to-" + there.rsplit("/", 1)[1]
            body = {
                "properties": {
                    "remoteVirtualNetwork": {"id": there},
                    "allowVirtualNetworkAccess": True,
                    "allowForwardedTraffic": True,
                }
            }
            self.request("PUT", f"{here}/virtualNetworkPeerings/{name}", body)

    def connect_onpremises(self, vnet: str) -> None:
        """Gives a VNet a gateway to the network on-premises (192.168.0.0/16 in the fabric)."""
        self._call("connect_onpremises", vnet=self.id("Microsoft.Network/virtualNetworks", vnet))

    # -- NICs and VMs

    def create_nic(
        self, name: str, subnet: str, address: str | None = None, secondaries: int = 0, **properties: Any
    ) -> str:
        """A NIC in a subnet ("vnet/subnet" or an id): `ipconfig1` is its primary, then so many dynamic `ipconfig2…`."""
        reference = {"id": self.id("Microsoft.Network/virtualNetworks/subnets", subnet)}
        first: Body = {"subnet": reference, "primary": True, "privateIPAllocationMethod": "Dynamic"}
        if address is not None:
            first |= {"privateIPAllocationMethod": "Static", "privateIPAddress": address}
        more: Body = {"subnet": reference, "primary": False}
        parts = [{"name": "ipconfig1", "properties": first}]
        parts += [{"name": f"ipconfig{number}", "properties": more} for number in range(2, secondaries + 2)]
        return str(
            self.put("Microsoft.Network/networkInterfaces", name, {"ipConfigurations": parts, **properties})["id"]
        )

    def create_vm(
        self,
        name: str,
        subnet: str | None = None,
        address: str | None = None,
        *,
        nics: list[str] | None = None,
        **properties: Any,
    ) -> str:
        """A VM with the NIC `<name>-nic` in a subnet, then NICs that exist; the first is primary. Returns the VM's
        id."""
        ids = [self.id("Microsoft.Network/networkInterfaces", nic) for nic in nics or ()]
        if subnet is not None:
            ids = [self.create_nic(f"{name}-nic", subnet, address), *ids]
        return str(self.put("Microsoft.Compute/virtualMachines", name, _vm_properties(name, ids) | properties)["id"])

    def create_vms(self, count: int, subnet: str, name: str = "vm-{}") -> list[str]:
        """VMs 0…count-1 with one NIC each."""
        return [self.create_vm(name.format(number), subnet) for number in range(count)]

    def create_scale_set(self, name: str, subnet: str, count: int, *, mode: str = "Uniform", **profile: Any) -> str:
        """A scale set with instances 0…count-1: uniform ones are
        `…/virtualMachineScaleSets/<name>/virtualMachines/<n>`, flexible ones are VMs called `<name>_<n>`. Computers are
        called `<name>00000<n>`. Returns the set's id."""
        reference = {"id": self.id("Microsoft.Network/virtualNetworks/subnets", subnet)}
        first = {"name": "ipconfig1", "properties": {"subnet": reference}}  # models carry no `primary` (recorded)
        nic = {"name": f"{name}-nic", "properties": {"primary": True, "ipConfigurations": [first]}}
        image = {"publisher": "Debian", "offer": "debian-12", "sku": "12-gen2", "version": "latest"}
        properties: Body = {"orchestrationMode": mode}
        if mode == "Uniform":
            properties["virtualMachineProfile"] = {
                "osProfile": {"computerNamePrefix": name},
                "storageProfile": {"imageReference": image},
                "networkProfile": {"networkInterfaceConfigurations": [nic]},
                **profile,
            }
        sku = {"name": "Standard_D4s_v5", "capacity": count if mode == "Uniform" else 0}
        made = str(self.put("Microsoft.Compute/virtualMachineScaleSets", name, properties, sku=sku)["id"])
        for number in range(count if mode != "Uniform" else 0):
            self.create_vm(f"{name}_{number}", subnet, virtualMachineScaleSet={"id": made})
        return made

    def power(self, machine: str, action: str) -> None:
        """`start`, `restart`, `powerOff`, `deallocate` or `reimage` a VM (by name) or a scale-set instance (by id)."""
        self.request("POST", f"{self.id('Microsoft.Compute/virtualMachines', machine)}/{action}")

    def nic(self, name: str) -> Body:
        """A NIC as ARM shows it."""
        return self.get("Microsoft.Network/networkInterfaces", name)

    def addresses(self, nic: str) -> dict[str, str]:
        """ipConfiguration → address of a NIC, in its order."""
        parts = self.nic(nic)["properties"]["ipConfigurations"]
        return {part["name"]: part["properties"]["privateIPAddress"] for part in parts}

    def add_address(self, nic: str, name: str, address: str | None = None, **properties: Any) -> str:
        """Adds an ipConfiguration to a NIC, as another writer; returns the address it got."""
        body = self.nic(nic)
        reference = body["properties"]["ipConfigurations"][0]["properties"]["subnet"]
        part: Body = {
            "subnet": reference,
            "privateIPAllocationMethod": "Static" if address else "Dynamic",
            **properties,
        }
        if address:
            part["privateIPAddress"] = address
        body["properties"]["ipConfigurations"] = [
            *body["properties"]["ipConfigurations"],
            {"name": name, "properties": part},
        ]
        self.request("PUT", body["id"], body)
        return self.addresses(nic)[name]

    def remove_address(self, nic: str, name: str) -> None:
        """Removes an ipConfiguration from a NIC, as another writer."""
        body = self.nic(nic)
        parts = [part for part in body["properties"]["ipConfigurations"] if part["name"].lower() != name.lower()]
        body["properties"]["ipConfigurations"] = parts
        self.request("PUT", body["id"], body)

    # -- what happened

    def requests(
        self, operation: str | None = None, *, principal: str | None = None, resource: str | None = None
    ) -> list[Body]:
        """The request ledger, filtered (see requests.Ledger.select)."""
        entries: list[Body] = self._call("requests", operation=operation, principal=principal, resource=resource)
        return entries

    def counts(self, since: float | None = None) -> dict[str, int]:
        """Requests by operation (`Microsoft.Network/networkInterfaces/write`)."""
        counts: dict[str, int] = self._call("counts", since=since)
        return counts

    def now(self) -> float:
        """The cloud's time; mark a moment with it and pass it as `since`."""
        return float(self._call("now"))

    def assign_role(self, principal: str, actions: list[str], scope: str = "/") -> None:
        """Restricts the principal to its assignments from now on (without any it may do everything)."""
        self._call("assign_role", principal=principal, actions=actions, scope=scope)

    def revoke_roles(self, principal: str) -> None:
        """Removes the principal's assignments: it may do everything again."""
        self._call("revoke_roles", principal=principal)

    def limit(self, **limits: tuple[float, float]) -> None:
        """Turns throttling on, with other figures for some of settings.Limits: `limit(network_writes=(10, 300))`."""
        self._call("limit", **{name: list(values) for name, values in limits.items()})

    def fault(self, effect: Effect, **rule: Any) -> None:
        """Adds a fault rule: see faults.Fault for its fields."""
        self._call("fault", effect=effect, **rule)

    def fault_hits(self) -> list[int]:
        """Number of times that each rule has acted, in the order they were added."""
        hits: list[int] = self._call("fault_hits")
        return hits

    def clear_faults(self) -> None:
        self._call("clear_faults")

    def keep(self, resource: str = "*") -> str:
        """Remembers the present state of resources whose id matches the shell pattern; returns the mark for `lag`."""
        return str(self._call("keep", resource=resource))

    def lag(
        self,
        resource: str = "*",
        *,
        mark: str | None = None,
        seconds: float | None = None,
        alternating: bool = False,
    ) -> str:
        """Makes reads of these resources return body and etag as of the mark (None: as of now), for `seconds` of cloud
        time or until `release`; `alternating`: the first read does, the second doesn't, and so on. Returns the mark."""
        kept = self.keep(resource) if mark is None else mark
        self._call("lag", mark=kept, seconds=seconds, alternating=alternating)
        return kept

    def release(self, mark: str | None = None) -> None:
        """Ends the lag of reads by this mark (None: by all)."""
        self._call("release", mark=mark)

    def advance(self, seconds: float) -> None:
        """Moves a virtual clock."""
        self._call("advance", seconds=seconds)

    def set_duration(self, kind: str, seconds: float) -> None:
        """How long writes of a resource type (or "*") stay InProgress."""
        self._call("set_duration", kind=kind, seconds=seconds)

    def configure(self, **settings: Any) -> None:
        """Sets fields of settings.Settings, or of its guesses."""
        self._call("configure", **settings)


def _vm_properties(name: str, nics: list[str]) -> Body:
    entries = [{"id": nic, "properties": {"primary": position == 0}} for position, nic in enumerate(nics)]
    image = {"publisher": "Debian", "offer": "debian-12", "sku": "12-gen2", "version": "latest"}
    return {
        "hardwareProfile": {"vmSize": "Standard_D4s_v5"},
        "storageProfile": {
            "imageReference": image,
            "osDisk": {"osType": "Linux", "createOption": "FromImage", "name": f"{name}-disk"},
        },
        "osProfile": {"computerName": name, "adminUsername": "azureuser"},
        "networkProfile": {"networkInterfaces": entries},
    }
