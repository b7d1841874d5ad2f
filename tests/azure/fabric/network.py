"""The virtual network in the kernel: one namespace for the fabric, one per machine, kept equal to what the cloud says.

`Network` lives in the fabric's process (already inside the fabric's namespace) and its event loop. `sync` is awaited
after every write to the cloud, before the write is answered: it reads the topology, compares plans and sends the
difference. Machines' namespaces appear and go with their VM. Nothing survives the process but the namespaces, which
`close` removes.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

from tests.azure.arm.cloud import Cloud
from tests.azure.fabric import kernel, namespaces, plan, ruleset, topology
from tests.azure.fabric.topology import Port, Topology

FABRIC_MAC = "12:34:56:78:9a:bc"
"""What answers every ARP request in Azure, and is the sender of every frame a VM receives."""
MTU = 1500

INTERNET = "internet"
"""Namespace of the host on the internet."""
INTERNET_HOST = "203.0.113.10"
INTERNET_GATEWAY = "203.0.113.1"
DESK_GATEWAY = "198.18.0.1"
DESK_ADDRESS = "198.18.0.2"
ARM_ADDRESS = "20.0.0.1"
LOCAL_ADDRESSES = (ARM_ADDRESS, ruleset.METADATA, ruleset.WIRESERVER)


class Network:
    """The fabric. Order of life: `open`, then any number of `sync`, then `close`."""

    def __init__(self, cloud: Cloud, disks: Path) -> None:
        self._cloud = cloud
        self._disks = disks
        self.numbers = plan.Numbers()
        self.topology = Topology({}, {}, {}, frozenset())
        self._plan = plan.Plan(elements={name: set() for name in plan.SETS})
        self._lock = asyncio.Lock()

    async def open(self) -> None:
        """Prepares the namespace the process is in."""
        for name in ("ipv4/ip_forward", "ipv4/conf/default/proxy_arp", "ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect"):
            kernel.sysctl(name, 1)
        for name in ("all/rp_filter", "default/rp_filter", "all/send_redirects", "default/send_redirects"):
            kernel.sysctl(f"ipv4/conf/{name}", 0)
        kernel.sysctl("ipv6/conf/default/disable_ipv6", 1)
        namespaces.create(INTERNET)
        await kernel.nft(ruleset.text())
        await kernel.ip(
            [
                *(f"addr add {address}/32 dev lo" for address in LOCAL_ADDRESSES),
                # Everything nobody owns goes here: answered by proxy ARP as if it existed, counted, dropped.
                "link add void type veth peer name void-end",
                "link set void up",
                "link set void-end up",
                "route add default dev void",
                f"addr add {DESK_GATEWAY}/24 dev desk",
                "link set desk up",
                f"link add inet address {FABRIC_MAC} type veth peer name eth0 netns {INTERNET}",
                f"addr add {INTERNET_GATEWAY}/24 dev inet",
                "link set inet up",
                f"route add {plan.INTERNET_NETWORK} dev inet table {plan.PUBLIC_TABLE}",
                f"rule add pref 100 to {plan.DESK_NETWORK} lookup main",
            ]
        )
        await kernel.ip(
            [f"addr add {INTERNET_HOST}/24 dev eth0", "link set eth0 up", f"route add default via {INTERNET_GATEWAY}"],
            INTERNET,
        )

    async def close(self) -> None:
        for machine in self.topology.machines:
            namespaces.delete(machine)
        namespaces.delete(INTERNET)

    async def sync(self) -> None:
        """Makes the kernel agree with the cloud."""
        async with self._lock:
            wanted = topology.read(self._cloud)
            gone = await self._machines(wanted)
            await self._program(wanted, gone)

    async def drops(self) -> dict[str, int]:
        """Dropped packets by reason (see ruleset)."""
        found = await kernel.nft_json("list", "counters", "table", "ip", "fabric")
        return {entry["counter"]["name"]: entry["counter"]["packets"] for entry in found if "counter" in entry}

    async def dropped(self, reason: str) -> list[dict[str, Any]]:
        """What was dropped for one reason: sending machine (or device), source, destination, packets."""
        found = await kernel.nft_json("list", "set", "ip", "fabric", f"noted_{reason}")
        machines = {self.numbers.port(port.nic): port.machine for port in self.topology.ports.values()}
        rows = []
        for entry in found:
            for element in entry.get("set", {}).get("elem", ()):
                device, source, destination = element["elem"]["val"]["concat"]
                packets = element["elem"]["counter"]["packets"]
                rows.append(
                    {
                        "from": machines.get(device, device),
                        "source": source,
                        "destination": destination,
                        "packets": packets,
                    }
                )
        return rows

    async def _machines(self, wanted: Topology) -> set[str]:
        """Namespaces and links of machines that came, went or booted; returns the devices that were removed."""
        before, after = self.topology.ports, wanted.ports
        unplugged = [port for nic, port in before.items() if nic not in after or _wiring(after[nic]) != _wiring(port)]
        plugged = [port for nic, port in after.items() if nic not in before or _wiring(before[nic]) != _wiring(port)]
        had = {(port.machine, port.boot) for port in before.values()}
        have = {(port.machine, port.boot) for port in after.values()}
        for machine, _ in had - have:
            namespaces.delete(machine)
        await self._unplug(unplugged)
        self._wipe(wanted)
        for machine, _ in sorted(have - had):
            namespaces.delete(machine)  # left behind by a fabric that was killed
            namespaces.create(machine)
            (self._disks / machine).mkdir(parents=True, exist_ok=True)
        for port in plugged:
            await self._plug(port)
        return {self.numbers.port(port.nic) for port in unplugged}

    def _wipe(self, wanted: Topology) -> None:
        """A deleted machine takes its disk along, a re-imaged one gets an empty one."""
        for machine, image in self.topology.images.items():
            if wanted.images.get(machine) != image:
                shutil.rmtree(self._disks / machine, ignore_errors=True)

    async def _unplug(self, ports: list[Port]) -> None:
        """Deletes links. A namespace that is gone took its link along, but maybe not yet."""
        for port in ports:
            try:
                await kernel.ip([f"link del {self.numbers.port(port.nic)}"])
            except kernel.KernelError as error:
                if "Cannot find device" not in str(error):
                    raise

    async def _plug(self, port: Port) -> None:
        """A NIC's link, configured in the machine as Azure's DHCP does it."""
        device = self.numbers.port(port.nic)
        inside = f"peer name {port.ifname} address {port.mac} mtu {MTU} netns {port.machine}"
        await kernel.ip([f"link add {device} address {FABRIC_MAC} mtu {MTU} type veth {inside}"])
        kernel.sysctl(f"ipv4/neigh/{device}/proxy_delay", 0)
        await kernel.ip([f"link set {device} up"])
        lines = [
            f"link set {port.ifname} up",
            f"addr add {port.primary}/{port.prefix_length} broadcast + dev {port.ifname}",
        ]
        metric = "" if port.first else f" metric {100 + int(port.ifname[3:])}"
        lines.append(f"route add default via {port.gateway} dev {port.ifname}{metric}")
        if port.first:
            lines += [
                f"route add {address} via {port.gateway} dev {port.ifname}"
                for address in (ruleset.WIRESERVER, ruleset.METADATA)
            ]
        await kernel.ip(lines, port.machine)

    async def _program(self, wanted: Topology, gone: set[str]) -> None:
        """Routes, neighbours, rules and sets. Additions come before removals: an address that moves is never
        nowhere."""
        after = plan.make(wanted, self.numbers)
        await kernel.nft(plan.nft_script(self._plan, after))
        await kernel.ip(plan.ip_batch(self._plan, after, gone))
        self._plan = after
        self.topology = wanted


def _wiring(port: Port) -> tuple[str, str, str, str, int]:
    """What can't change without a new link."""
    return port.machine, port.ifname, port.mac, port.subnet, port.boot
