"""The virtual network in the kernel: one namespace for the fabric, one per machine, kept in sync with the cloud.

`Network` lives in the fabric's process (already inside the fabric's namespace) and its event loop. `sync` is awaited
after every write to the cloud, before the response is sent: it reads the topology, compares plans and applies the
difference. Machines' namespaces are created and deleted with their VM. Nothing survives the process but the machines'
disks (folders); `close` removes the namespaces.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

from tests.azure.arm.cloud import Cloud
from tests.azure.fabric import kernel, namespaces, plan, routing, ruleset, topology
from tests.azure.fabric.capture import Capture
from tests.azure.fabric.probes import Probes
from tests.azure.fabric.topology import Port, Topology

FABRIC_MAC = "12:34:56:78:9a:bc"
"""The MAC that answers every ARP request in Azure, and sends every frame that a VM receives."""
MTU = 1500
GSO_MAX_SIZE = 62780
"""Largest TCP segment, in bytes, that Hyper-V's NICs offload (`ip -d link` on such a machine)."""

INTERNET = "internet"
"""Namespace of the host on the internet."""
INTERNET_HOST = "203.0.113.10"
INTERNET_GATEWAY = "203.0.113.1"
ONPREMISES = "onpremises"
"""Namespace of the host on-premises."""
ONPREMISES_HOST = "192.168.0.10"
ONPREMISES_GATEWAY = "192.168.0.1"
DESK_GATEWAY = "198.18.0.1"
DESK_ADDRESS = "198.18.0.2"
ARM_ADDRESS = "20.0.0.1"
LOCAL_ADDRESSES = (ARM_ADDRESS, ruleset.METADATA, ruleset.WIRESERVER, ruleset.STORAGE)
HOSTS = (
    (INTERNET, routing.INTERNET, INTERNET_HOST, INTERNET_GATEWAY, plan.INTERNET_NETWORK, plan.PUBLIC_TABLE),
    (
        ONPREMISES,
        routing.GATEWAY,
        ONPREMISES_HOST,
        ONPREMISES_GATEWAY,
        plan.ONPREMISES_NETWORK,
        plan.ONPREMISES_TABLE,
    ),
)


class Network:
    """The fabric. Order of life: `open`, then any number of `sync`, then `close`."""

    def __init__(self, cloud: Cloud, disks: Path) -> None:
        self._cloud = cloud
        self._disks = disks
        self.numbers = plan.Numbers()
        self.topology = Topology.empty()
        self.probes = Probes(self._mark, self.sync)
        self._plan = plan.Plan()
        self._lock = asyncio.Lock()
        self._captures: dict[str, Capture] = {}
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Prepares the namespace the process is in."""
        for name in ("ipv4/ip_forward", "ipv4/conf/default/proxy_arp", "ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect"):
            kernel.sysctl(name, 1)
        for name in ("all/rp_filter", "default/rp_filter", "all/send_redirects", "default/send_redirects"):
            kernel.sysctl(f"ipv4/conf/{name}", 0)
        kernel.sysctl("ipv6/conf/default/disable_ipv6", 1)
        await kernel.nft(ruleset.text([plan.declaration(name) for name in plan.MAPS]))
        await kernel.ip(
            [
                *(f"addr add {address}/32 dev lo" for address in LOCAL_ADDRESSES),
                # Unowned addresses go to `void`: answered by proxy ARP as if they existed, counted, dropped.
                *(
                    line
                    for name in ("void", routing.NO_ROUTE)
                    for line in (
                        f"link add {name} type veth peer name {name}-end",
                        f"link set {name} up",
                        f"link set {name}-end up",
                    )
                ),
                "route add default dev void",
                f"addr add {DESK_GATEWAY}/24 dev desk",
                "link set desk up",
                f"rule add pref 100 to {plan.DESK_NETWORK} lookup main",
            ]
        )
        for host in HOSTS:
            await self._host(*host)
        self._task = asyncio.create_task(self.probes.run())

    async def _host(self, name: str, device: str, address: str, gateway: str, network: str, table: int) -> None:
        """Creates a namespace that is no VM: the internet, or the network on-premises."""
        length = network.partition("/")[2]
        namespaces.create(name)
        await kernel.ip(
            [
                f"link add {device} address {FABRIC_MAC} type veth peer name eth0 netns {name}",
                # No route in the main table: only whose rules lead to the host's table reaches it.
                f"addr add {gateway}/{length} dev {device} noprefixroute",
                f"link set {device} up",
                f"route add {network} dev {device} table {table}",
            ]
        )
        await kernel.ip(
            [f"addr add {address}/{length} dev eth0", "link set eth0 up", f"route add default via {gateway}"], name
        )

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for machine in [*self._captures]:
            self.capture_end(machine)
        for name in (*self.topology.machines, INTERNET, ONPREMISES):
            namespaces.delete(name)

    async def sync(self) -> None:
        """Makes the kernel agree with the cloud."""
        async with self._lock:
            wanted = topology.read(self._cloud, self.probes.healthy)
            gone = await self._machines(wanted)
            await self._program(wanted, gone)
            self.probes.checks = wanted.translation.checks

    async def drops(self) -> dict[str, int]:
        """Dropped packets by reason (see ruleset)."""
        found = await kernel.nft_json("list", "counters", "table", "ip", "fabric")
        return {entry["counter"]["name"]: entry["counter"]["packets"] for entry in found if "counter" in entry}

    async def dropped(self, reason: str) -> list[dict[str, Any]]:
        """Drops for one reason: sending machine (or device), source, destination, packets."""
        found = await kernel.nft_json("list", "set", "ip", "fabric", f"noted_{reason}")
        machines = {self.numbers.port(port.nic): port.machine for port in self.topology.ports.values()}
        rows = []
        for entry in found:
            for element in entry.get("set", {}).get("elem", ()):
                device, source, destination = element["elem"]["val"]["concat"]
                packets = element["elem"]["counter"]["packets"]
                sender = machines.get(device, device)
                rows.append({"from": sender, "source": source, "destination": destination, "packets": packets})
        return rows

    def capture(self, machine: str, path: str, ifname: str = "eth0") -> None:
        """Starts to capture a machine's link into a pcap file."""
        for port in self.topology.ports.values():
            if (port.machine, port.ifname) == (machine, ifname):
                self._captures[machine] = Capture(self.numbers.port(port.nic), Path(path))
                return
        raise kernel.KernelError(f"no running machine {machine} has an {ifname}")

    def capture_end(self, machine: str) -> int:
        """Ends the capture; returns the number of captured packets."""
        capture = self._captures.pop(machine)
        capture.close()
        return capture.packets

    def _mark(self, address: str) -> int | None:
        for port in self.topology.ports.values():
            if address in port.addresses:
                return self.numbers.mark(port.subnet)
        return None

    async def _machines(self, wanted: Topology) -> set[str]:
        """Updates namespaces and links of new, deleted and booted machines; returns the devices that were removed."""
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
        """Deletes links. A deleted namespace takes its link along, but maybe later."""
        for port in ports:
            try:
                await kernel.ip([f"link del {self.numbers.port(port.nic)}"])
            except kernel.KernelError as error:
                if "Cannot find device" not in str(error):
                    raise

    async def _plug(self, port: Port) -> None:
        """Creates a NIC's link, configured in the machine as by Azure's DHCP."""
        device = self.numbers.port(port.nic)
        inside = (
            f"peer name {port.ifname} address {port.mac} mtu {MTU} gso_max_size {GSO_MAX_SIZE} netns {port.machine}"
        )
        await kernel.ip([f"link add {device} address {FABRIC_MAC} mtu {MTU} type veth {inside}"])
        kernel.sysctl(f"ipv4/neigh/{device}/proxy_delay", 0)
        await kernel.ip([f"link set {device} up"])
        metric = "" if port.first else f" metric {100 + int(port.ifname[3:])}"
        lines = [
            f"link set {port.ifname} up",
            f"addr add {port.primary}/{port.prefix_length} broadcast + dev {port.ifname}",
            f"route add default via {port.gateway} dev {port.ifname}{metric}",
        ]
        if port.first:
            known = (ruleset.WIRESERVER, ruleset.METADATA)
            lines += [f"route add {address} via {port.gateway} dev {port.ifname}" for address in known]
        await kernel.ip(lines, port.machine)

    async def _program(self, wanted: Topology, gone: set[str]) -> None:
        """Programs routes, neighbours, rules, sets and chains. Additions precede removals: an address that moves always
        has a place."""
        after = plan.make(wanted, self.numbers)
        await kernel.nft(plan.nft_script(self._plan, after))
        await kernel.ip(plan.ip_batch(self._plan, after, gone))
        # Unused sets and chains stay, empty: they must not be declared again.
        after.elements = {name: set() for name in self._plan.elements} | after.elements
        after.chains = dict.fromkeys(self._plan.chains, ()) | after.chains
        self._plan = after
        self.topology = wanted


def _wiring(port: Port) -> tuple[str, str, str, str, int]:
    """The properties that can't change without a new link."""
    return port.machine, port.ifname, port.mac, port.subnet, port.boot
